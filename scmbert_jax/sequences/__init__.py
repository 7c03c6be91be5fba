"""What is computed of DNA sequences as such, on the device: no model of ours is needed, and no file is read."""
