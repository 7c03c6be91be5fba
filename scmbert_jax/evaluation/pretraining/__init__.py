"""Bits per masked token, beside what a linear model says."""
