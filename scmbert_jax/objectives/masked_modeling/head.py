"""The simplest head: what scBERT predicts a token with."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scmbert_jax.config import ExperimentConfig
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.models.heads import nll_of_tokens
from scmbert_jax.models.layers import linear
from scmbert_jax.models.likelihoods import Truth, make_likelihood
from scmbert_jax.models.parameters import filled, weight


class LinearHead(nnx.Module):
    """Token states [B, M, D] -> outputs of their modality's likelihood, by one linear layer for all its features.

    Args:
      likelihoods: modality -> name in `LIKELIHOODS`; of those that read outputs alone, no dispersion.
    """

    def __init__(self, config: ExperimentConfig, layout: FeatureLayout, likelihoods: Mapping[str, str], rngs: nnx.Rngs):
        dim, modalities = config.model.embed_dim, config.modalities.in_use()
        self.likelihoods = {
            name: make_likelihood(likelihood, name, modalities[name], layout.statistics, layout.slices[name])
            for name, likelihood in likelihoods.items()
        }
        sizes = {name: own.num_outputs for name, own in self.likelihoods.items()}
        self.outputs: Any = nnx.Dict(
            {name: weight(rngs, (dim, size), dim, ("embed", None)) for name, size in sizes.items()}
        )
        self.biases: Any = nnx.Dict({name: filled(0.0, (size,), (None,), "bias") for name, size in sizes.items()})

    def logits(self, name: str, x: jax.Array) -> jax.Array:
        """float32 [B, M, K] of tokens of modality `name`."""
        return linear(x.astype(jnp.float32), self.outputs[name][...]) + self.biases[name][None, None]

    def nll(
        self,
        x: jax.Array,
        feature_ids: jax.Array,
        modality: jax.Array,
        truth: Truth,
        covariates: dict[str, jax.Array],
    ) -> jax.Array:
        """As that of `ValueHead`; features and covariates are not read."""
        nothing = jnp.zeros(modality.shape)  # log dispersions, which its likelihoods do not read
        return nll_of_tokens(self.likelihoods, lambda name: (self.logits(name, x), nothing), modality, truth)
