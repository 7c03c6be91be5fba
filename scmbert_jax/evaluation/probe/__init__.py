"""What an embedding knows of cell types."""
