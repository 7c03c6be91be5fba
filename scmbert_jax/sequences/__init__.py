"""What is computed of DNA sequences as such, most of it on the device: no model of ours is needed, no file is read."""
