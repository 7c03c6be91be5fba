"""The product with a weight: JAX's numbers, and a gradient that XLA on CPUs computes without copying its operands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scmbert_jax.models.layers import linear

SHAPES = [((2, 5, 8), (8, 12), 1), ((2, 5, 8), (8, 3, 2, 4), 1), ((2, 5, 2, 4), (2, 4, 6), 2), ((7, 8), (8, 4), 1)]


def operands(x_shape, weight_shape, dtype=jnp.float32):
    x, weight = (jax.random.normal(jax.random.key(i), s).astype(dtype) for i, s in enumerate((x_shape, weight_shape)))
    return x, weight


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("x_shape", "weight_shape", "num_axes"), SHAPES)
def test_it_is_tensordot_with_its_gradients(x_shape, weight_shape, num_axes, dtype):
    x, weight = operands(x_shape, weight_shape, dtype)
    expected, expected_vjp = jax.vjp(lambda x, weight: jnp.tensordot(x, weight, num_axes), x, weight)
    found, vjp = jax.vjp(lambda x, weight: linear(x, weight, num_axes), x, weight)
    cotangent = jax.random.normal(jax.random.key(2), found.shape).astype(dtype)
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    for mine, theirs in zip((found, *vjp(cotangent)), (expected, *expected_vjp(cotangent)), strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        mine, theirs = np.asarray(mine, np.float32), np.asarray(theirs, np.float32)
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it is about XLA on CPUs")
def test_the_gradient_of_the_weight_copies_neither_operand():
    """JAX's own rule does (so the test can fail): it takes twice as long for it."""

    def copies(product) -> int:
        def weight_gradient(x, weight, cotangent):
            return jax.vjp(lambda weight: product(x, weight, 1), weight)[1](cotangent)[0]

        x, weight = operands((4, 512, 384), (384, 3, 6, 64))
        cotangent = jnp.ones((4, 512, 3, 6, 64))
        text = jax.jit(weight_gradient).lower(x, weight, cotangent).compile().as_text()
        return text.count(" copy(")

    assert copies(linear) == 0
    assert copies(jnp.tensordot) > 0


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.dots_with_no_batch_dims_saveable])
def test_recomputation_sees_the_product_inside(policy):
    """A policy that keeps products keeps these, too: with it, two products of the forward pass are not done again."""

    def loss(x, weight):
        return jnp.sum(jnp.sin(linear(jnp.sin(linear(x, weight)), weight)))

    x, weight = operands((2, 5, 8), (8, 8))
    remat = jax.checkpoint(loss, policy=policy)
    number = str(jax.make_jaxpr(jax.grad(remat, argnums=(0, 1)))(x, weight)).count("dot_general")
    assert number == (8 if policy is None else 6)  # 2 forward, 4 backward, and without a policy 2 again
