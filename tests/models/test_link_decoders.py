"""Decoders of edges: a direction, a sign, and each of them finds what was planted."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from scmbert_jax.models.link_decoders import EDGE, LINK_DECODERS, SIGN

DIM = 8


def made(name):
    return LINK_DECODERS[name](DIM, nnx.Rngs(params=jax.random.key(0)))


@pytest.fixture
def rows():
    return jax.random.normal(jax.random.key(1), (2, 6, DIM))


@pytest.mark.parametrize("name", LINK_DECODERS)
def test_a_pair_has_a_direction_and_any_leading_axes(name, rows):
    source, target = rows
    decoder = made(name)
    logits = decoder(source, target)
    assert logits.shape == (6, 2)
    assert not np.allclose(logits, decoder(target, source), atol=1e-3)
    by_pair = decoder(source.reshape(2, 3, DIM), target.reshape(2, 3, DIM))
    np.testing.assert_allclose(by_pair.reshape(6, 2), logits, atol=1e-5)


def test_translation_is_the_distance_of_each_way(rows):
    source, target = np.asarray(rows, np.float64)
    decoder = made("translational")
    distance = [((source + way - target) ** 2).mean(-1) for way in np.asarray(decoder.ways[...], np.float64)]
    logits = decoder(*rows)
    np.testing.assert_allclose(logits[:, EDGE], np.logaddexp(1 - distance[0], 1 - distance[1]), atol=1e-5)
    np.testing.assert_allclose(logits[:, SIGN], distance[1] - distance[0], atol=1e-5)


@pytest.mark.parametrize("name", LINK_DECODERS)
def test_a_decoder_learns_direction_and_sign(name):
    """Rows are learned with it: of 12 genes on a line, each activates the next and represses the third after it."""
    number = 12
    source, target = (own.ravel() for own in np.indices((number, number)))
    is_edge, sign = np.isin(target - source, (1, 3)).astype(float), (target - source == 1).astype(float)
    definition, params = nnx.split(made(name))
    start = (params, jax.random.normal(jax.random.key(2), (number, DIM)) * 0.3)
    optimizer = optax.adam(3e-2)

    def logits_of(held):
        return nnx.merge(definition, held[0])(held[1][source], held[1][target])

    def loss(held):
        logits = logits_of(held)
        of_sign = optax.sigmoid_binary_cross_entropy(logits[:, SIGN], sign) * is_edge
        return (optax.sigmoid_binary_cross_entropy(logits[:, EDGE], is_edge) + of_sign).mean()

    def step(held, _):
        updates, state = optimizer.update(jax.grad(loss)(held[0]), held[1])
        return (optax.apply_updates(held[0], updates), state), None

    (found, _), _ = jax.jit(lambda held: jax.lax.scan(step, held, None, 300))((start, optimizer.init(start)))
    logits = np.asarray(logits_of(found))
    assert ((logits[:, EDGE] > 0) == (is_edge > 0)).mean() > 0.95  # .85 by saying no
    np.testing.assert_array_equal(logits[is_edge > 0, SIGN] > 0, sign[is_edge > 0] > 0)
