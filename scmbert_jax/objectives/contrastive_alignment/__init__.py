"""Bringing the modalities of a cell together: its options, heads and loss."""
