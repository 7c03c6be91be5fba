"""The `networks` suite: which regulator has which targets, against what node degree alone says."""
