import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scmbert_jax.errors import ConfigError
from scmbert_jax.models.attention import BACKENDS, attention_backend
from scmbert_jax.models.attention_shape import AttentionShape

SHAPE = AttentionShape(num_heads=2, head_dim=8, dtype="float32", platform="cpu")


def reference(q, k, v, lengths):
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    valid = jnp.arange(k.shape[1])[None, None, None] < lengths[:, None, None, None]
    weights = jax.nn.softmax(jnp.where(valid, logits, -1e30), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


@pytest.fixture
def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, cotangent = (jax.random.normal(key, (3, 12, 2, 8)) for key in keys)
    return q, k, v, jnp.asarray([12, 1, 7]), cotangent


def on_real_tokens(function, lengths, cotangent):
    """A loss that reads real query rows only."""
    real = (jnp.arange(12)[None] < lengths[:, None])[..., None, None]
    return lambda q, k, v: jnp.sum(jnp.where(real, function(q, k, v, lengths), 0.0) * cotangent)


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_a_backend_equals_the_reference_with_its_gradients(name, inputs):
    q, k, v, lengths, cotangent = inputs
    attend = attention_backend(name, SHAPE)
    ours = jax.value_and_grad(on_real_tokens(attend, lengths, cotangent), argnums=(0, 1, 2))(q, k, v)
    wanted = jax.value_and_grad(on_real_tokens(reference, lengths, cotangent), argnums=(0, 1, 2))(q, k, v)
    # float32 sums of 12 terms in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, wanted)


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_padded_rows_get_zero_gradient_and_never_nan(name, inputs):
    q, k, v, lengths, cotangent = inputs
    attend = attention_backend(name, SHAPE)
    for gradient in jax.grad(on_real_tokens(attend, lengths, cotangent), argnums=(0, 1, 2))(q, k, v):
        assert np.isfinite(gradient).all()
        padding = np.arange(12)[None] >= np.asarray(lengths)[:, None]
        assert (np.asarray(gradient)[padding] == 0).all()
        assert (np.asarray(gradient)[~padding] != 0).any()


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'flash'.*xla"):
        attention_backend("flash", SHAPE)
