"""The space in which modalities of a cell are compared: one projection per modality, and a learned temperature."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scmbert_jax.config import ContrastiveAlignmentConfig
from scmbert_jax.models.encoder import constant, weight


class AlignmentHead(nnx.Module):
    """Cell embeddings of one modality [B, D] -> unit vectors [B, P], comparable with those of another."""

    def __init__(self, config: ContrastiveAlignmentConfig, modalities: tuple[str, ...], embed_dim: int, rngs: nnx.Rngs):
        shape = (embed_dim, config.projection_dim)
        self.projections: Any = nnx.Dict({name: weight(rngs, shape, embed_dim, ("embed", None)) for name in modalities})
        self.biases: Any = nnx.Dict({name: constant(0.0, (config.projection_dim,), (None,)) for name in modalities})
        self.log_temperature = constant(float(np.log(config.initial_temperature)), (), ())
        self.bounds = (float(np.log(config.min_temperature)), float(np.log(config.max_temperature)))

    def project(self, name: str, cell: jax.Array) -> jax.Array:
        """cell [B, D] -> float32 [B, P] of length 1."""
        x = cell.astype(jnp.float32) @ self.projections[name][...] + self.biases[name][...]
        return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)

    def temperature(self) -> jax.Array:
        """float32 [], within its bounds."""
        return jnp.exp(jnp.clip(self.log_temperature[...], *self.bounds))
