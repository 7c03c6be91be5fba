"""Masked modelling of values: its options, heads and loss."""
