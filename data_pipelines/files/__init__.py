"""What a file may hold, and whether it is whole."""
