"""The `annotation` suite: cell types of cells never seen, by every method on the same cells."""
