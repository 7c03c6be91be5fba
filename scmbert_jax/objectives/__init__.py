"""What a model is trained to do: one file each (loss, heads, cost), one line each in the table of `mixture.py`."""
