"""Models that PyTorch programs trained, read into model folders and written back; torch is not needed."""
