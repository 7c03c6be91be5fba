"""Embeddings of cells of several technical batches, with what the batches differ in taken off."""
