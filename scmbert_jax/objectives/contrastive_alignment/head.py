"""The space in which modalities of a cell are compared: one projection per modality, and a learned temperature."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scmbert_jax.config import ExperimentConfig
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.models.bounds import within
from scmbert_jax.models.linear_path import LinearMap, alignment_start
from scmbert_jax.models.parameters import filled, weight


class AlignmentHead(nnx.Module):
    """Cell embeddings of one modality [B, D] -> unit vectors [B, P], comparable with those of another.

    With a linear path, component scores of the modality add to the projection. Where pairs tell on which axes those
    correlate, that is where training starts, and what is projected from the embedding adds nothing yet.
    """

    def __init__(self, config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs):
        own, dim = config.objectives.contrastive_alignment, config.model.embed_dim
        self.projections: Any = nnx.Dict()
        self.biases: Any = nnx.Dict()
        self.linear: Any = nnx.Dict()
        for name in config.modalities.in_use():
            start = alignment_start(layout, name, own.projection_dim)
            projection = weight(rngs, (dim, own.projection_dim), dim, ("embed", None))
            if config.model.linear_path:
                self.linear[name] = LinearMap(start[None])
                if start.any():
                    projection[...] = jnp.zeros_like(projection[...])
            self.projections[name] = projection
            self.biases[name] = filled(0.0, (own.projection_dim,), (None,), "bias")
        self.log_temperature = filled(float(np.log(own.initial_temperature)), (), (), "scalar")
        self.bounds = (float(np.log(own.min_temperature)), float(np.log(own.max_temperature)))

    def project(self, name: str, cell: jax.Array, scores: jax.Array | None) -> jax.Array:
        """cell [B, D] and, with a linear path, scores [B, K] -> float32 [B, P] of length 1."""
        x = cell.astype(jnp.float32) @ self.projections[name][...] + self.biases[name][None]
        if scores is not None:
            x = x + self.linear[name](scores)
        return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)

    def temperature(self) -> jax.Array:
        """float32 [], within its bounds."""
        return jnp.exp(within(self.log_temperature[...], *self.bounds))
