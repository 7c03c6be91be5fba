"""Parts of models that read DNA and regions of a genome; `scmbert_jax.dna_model` puts them together."""
