"""What a model is trained to do: one file each, one line each in the table of `mixture.py`."""
