"""Predicting a whole cell from its embedding: its options, heads and loss."""
