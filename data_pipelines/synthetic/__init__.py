"""Cells with a known truth."""
