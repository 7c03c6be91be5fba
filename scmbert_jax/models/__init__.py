"""The network: feature table, value encodings, encoder, heads, and their composition."""
