"""Checked files in, corpora and fixed-shape batches out.

Of `scmbert_jax`, only `batch` and `errors` are imported here; nothing here imports JAX.
"""
