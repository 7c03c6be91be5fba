"""What predicts from states of a model of DNA."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scmbert_jax.models.bounds import within
from scmbert_jax.models.layers import LayerNorm, linear
from scmbert_jax.models.parameters import filled, weight


class Head(nnx.Module):
    """[..., I] -> float32 [..., O]: a layer with GELU, then a linear one."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.hidden = weight(rngs, (inputs, inputs), inputs, ("embed", None))
        self.norm = LayerNorm(inputs)
        self.outputs = weight(rngs, (inputs, outputs), inputs, ("embed", None))
        self.bias = filled(0.0, (outputs,), (None,), "bias")

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(jax.nn.gelu(linear(x.astype(jnp.float32), self.hidden[...])))
        bias = jax.lax.broadcast_to_rank(self.bias[...], x.ndim)
        return linear(x, self.outputs[...]) + bias


class MatchingHead(nnx.Module):
    """The space in which sequences and regions are compared, and the judgement of a pair that was read together."""

    def __init__(self, dim: int, projection_dim: int, temperatures: tuple[float, float, float], rngs: nnx.Rngs):
        """`temperatures`: the first, the lowest, the highest."""
        self.sequence = weight(rngs, (dim, projection_dim), dim, ("embed", None))
        self.regions = weight(rngs, (dim, projection_dim), dim, ("embed", None))
        self.match: Any = Head(dim, 1, rngs)
        first, low, high = (float(np.log(own)) for own in temperatures)
        self.log_temperature = filled(first, (), (), "scalar")
        self.bounds = (low, high)

    def similarity(self, sequence: jax.Array, regions: jax.Array) -> jax.Array:
        """float32 [B, B]: of each sequence (rows; pooled [B, D]) with the regions of each row (columns; [B, D]),
        divided by the temperature."""
        units = []
        for x, matrix in ((sequence, self.sequence), (regions, self.regions)):
            y = linear(x.astype(jnp.float32), matrix[...])
            units.append(y * jax.lax.rsqrt(jnp.sum(y * y, axis=-1, keepdims=True) + 1e-12))
        return units[0] @ units[1].T / jnp.exp(within(self.log_temperature[...], *self.bounds))
