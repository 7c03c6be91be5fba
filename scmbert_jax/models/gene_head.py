"""scBERT's head for fine-tuning (Yang et al. 2022): a cell embedding of the states of all genes instead of `[CLS]`'s.

    z_g = relu(state of gene g . w + c)        one number of each gene, by the same w; c
    ReLU layers of all z, side by side         of scBERT 512 and 128 numbers, before a last layer to the types

Its first layer has a row for each feature, so it is bound to the model's features: most of its parameters, 8.7 million
at 16,906 genes, are there. A feature that is no token counts as a z of 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scmbert_jax.config import ExperimentConfig
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.models.embeddings import padded_rows
from scmbert_jax.models.layers import linear
from scmbert_jax.models.parameters import filled, weight
from scmbert_jax.models.token_sequence import TokenSequence


class GeneHead(nnx.Module):
    """States of `[CLS]` and of all tokens -> the cell embedding, `config.model.gene_head[-1]` numbers."""

    def __init__(self, config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs):
        dim, (first, *others) = config.model.embed_dim, config.model.gene_head
        self.num_rows = padded_rows(layout)
        fan_in = layout.num_features + 1
        self.of_state = weight(rngs, (dim, 1), dim, ("embed", None))
        self.of_state_bias = filled(0.0, (1,), (None,), "bias")
        self.features = weight(rngs, (self.num_rows, first), fan_in, ("features", None))
        self.cls = weight(rngs, (1, first), fan_in, (None, None))
        self.features_bias = filled(0.0, (first,), (None,), "bias")
        widths = zip((first, *others), others, strict=False)
        self.layers: Any = nnx.List([weight(rngs, sizes, sizes[0], (None, None)) for sizes in widths])
        self.biases: Any = nnx.List([filled(0.0, (width,), (None,), "bias") for width in others])

    def __call__(self, states: jax.Array, tokens: TokenSequence) -> jax.Array:
        """states [B, 1 + S, D], `[CLS]` first -> float32 [B, `gene_head[-1]`]."""
        z = linear(states.astype(jnp.float32), self.of_state[...])[..., 0] + self.of_state_bias[...][None]
        z = jax.nn.relu(z)  # [B, 1 + S]
        of_tokens = jnp.where(tokens.valid, z[:, 1:], 0.0)
        place = jnp.arange(len(z))[:, None], tokens.feature_ids
        of_features = jnp.zeros((len(z), self.num_rows)).at[place].add(of_tokens)
        x = linear(of_features, self.features[...]) + linear(z[:, :1], self.cls[...]) + self.features_bias[...][None]
        for matrix, bias in zip(self.layers, self.biases, strict=True):
            x = linear(jax.nn.relu(x), matrix[...]) + bias[...][None]
        return jax.nn.relu(x)
