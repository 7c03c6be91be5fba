"""Where a model starts: what whole cells say of features."""
