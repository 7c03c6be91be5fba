"""A parameter held within bounds."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def within(x: jax.Array, low: float, high: float) -> jax.Array:
    """x clipped to [low, high]; its gradient is blocked only where descent would lead further out.

    The gradient of a plain clip is zero on both sides: what has once stepped over a bound would stay there for ever.
    """
    return jnp.clip(x, low, high)


def _forward(x: jax.Array, low: float, high: float):
    return jnp.clip(x, low, high), (x, low, high)


def _backward(saved, gradient: jax.Array):
    x, low, high = saved
    outwards = ((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0))
    return jnp.where(outwards, 0.0, gradient), None, None


within.defvjp(_forward, _backward)
