"""Predicting the edges of a network from the rows of its genes: its options, head and loss."""
