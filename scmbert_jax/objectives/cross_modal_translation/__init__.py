"""Predicting one modality of a cell from another: its options, heads and loss."""
