"""What a model is made of; `scmbert_jax.scmbert` puts the parts together."""
