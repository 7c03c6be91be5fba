"""Layers that encoder, decoders and heads are made of."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import dot_general

from scmbert_jax.models.parameters import filled


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: jax.Array, weight: jax.Array, num_axes: int = 1) -> jax.Array:
    """x [*N, *I] times weight [*I, *O] -> [*N, *O]; I is the last `num_axes` axes of x.

    As `jnp.tensordot`, but for how the weight's gradient is computed: JAX's own rule, (g^T x)^T, makes XLA copy g
    transposed on CPUs, and call a product that takes twice as long as x^T g.
    """
    return _product(x, weight, num_axes)


def _product(x: jax.Array, weight: jax.Array, num_axes: int) -> jax.Array:
    inputs = tuple(range(x.ndim - num_axes, x.ndim))
    return dot_general(x, weight, ((inputs, tuple(range(num_axes))), ((), ())))


def _forward(x: jax.Array, weight: jax.Array, num_axes: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Not `linear`, inside which a policy of recomputing sees no product to keep.
    return _product(x, weight, num_axes), (x, weight)


def _backward(num_axes: int, saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = saved
    num_rows = x.ndim - num_axes  # axes of N
    outputs = tuple(range(num_rows, g.ndim)), tuple(range(num_axes, weight.ndim))
    x_bar = dot_general(g, weight, (outputs, ((), ())))
    # As one axis: of several, XLA would copy both sides transposed. I and O stay as they are, since they may be split
    # over devices.
    x, g = (own.reshape(-1, *own.shape[num_rows:]) for own in (x, g))
    return x_bar, dot_general(x, g, (((0,), (0,)), ((), ())))


linear.defvjp(_forward, _backward)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, computed in float32, returned in the dtype of its input."""

    def __init__(self, dim: int, epsilon: float = 1e-6):
        self.epsilon = epsilon
        self.scale = filled(1.0, (dim,), (None,), "norm")
        self.bias = filled(0.0, (dim,), (None,), "bias")

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        scale, bias = (jax.lax.broadcast_to_rank(own[...], x.ndim) for own in (self.scale, self.bias))
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + self.epsilon)
        return (y * scale + bias).astype(x.dtype)
