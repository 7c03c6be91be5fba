"""Judgements of a model while it trains, on cells it does not see: one file each, one line each in table.py."""
