"""`favor` computes the published estimate of softmax attention, of each cell by itself; directions are redrawn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import XLA_DEFAULT

from scmbert_jax.models.attention import favor
from scmbert_jax.models.attention.favor import attend, default_num_features, random_directions
from scmbert_jax.objectives.base import LossSum
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.optimizer import make_optimizer
from scmbert_jax.training.train_state import TrainState
from scmbert_jax.training.train_step import make_train_step


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 8 tokens at most, so that short rows have several."""
    monkeypatch.setattr(favor, "_BLOCK_ON_CPU", 8)


def reference(q, k, v, lengths, directions, still=None):
    """FAVOR+ as in Choromanski et al. 2021, equation 4 with lemma 1, in float64 and without blocks; stabilisers as in
    the authors' code, those of `still` = (q, k) if given. q [B, Sq, H, D], k and v [B, S, H, D] -> [B, Sq, H, D]."""
    out = np.zeros(q.shape)
    scale = q.shape[-1] ** -0.25
    for row, length in enumerate(lengths):
        for head in range(q.shape[2]):
            queries, keys = q[row, :, head] * scale, k[row, :length, head] * scale
            still_q, still_k = (q, k) if still is None else still
            largest_q = (still_q[row, :, head] * scale @ directions.T).max(1, keepdims=True)
            largest_k = (still_k[row, :length, head] * scale @ directions.T).max()
            phi_q = np.exp(queries @ directions.T - 0.5 * (queries**2).sum(1, keepdims=True) - largest_q)
            phi_k = np.exp(keys @ directions.T - 0.5 * (keys**2).sum(1, keepdims=True) - largest_k)
            weights = (phi_q + 1e-4) @ (phi_k + 1e-4).T
            out[row, :, head] = weights / weights.sum(1, keepdims=True) @ v[row, :length, head]
    return out


def inputs(seed=0, size=1.0, shape=(3, 20, 2, 8), queries=12):
    keys = jax.random.split(jax.random.key(seed), 4)
    of_queries = (shape[0], queries, *shape[2:])
    q, k, v, cotangent = (
        jax.random.normal(key, s) for key, s in zip(keys, (of_queries, shape, shape, of_queries), strict=True)
    )
    return size * q, size * k, v, cotangent


def float64(*arrays):
    return tuple(np.asarray(x, np.float64) for x in arrays)


@pytest.mark.parametrize("size", [1.0, 30.0])  # 30: exponents of thousands, where only the stabilisers help
def test_favor_is_the_published_estimate(size):
    q, k, v, _ = inputs(size=size)
    directions, lengths = random_directions(jax.random.key(5), (16, 8)), [20, 1, 9]
    ours = np.asarray(jax.jit(attend, compiler_options=XLA_DEFAULT)(q, k, v, jnp.asarray(lengths), directions))
    wanted = reference(*float64(q, k, v), lengths, *float64(directions))
    # float32: an exponent of 1000 is known to 1e-4, and so is its exponential
    np.testing.assert_allclose(ours, wanted, atol=1e-5 if size == 1 else 1e-3)


def test_the_published_stabiliser_is_of_the_batch_and_lets_neighbours_change_a_cell():
    q, k, v, cotangent = inputs(size=3.0)
    directions, lengths = random_directions(jax.random.key(5), (16, 8)), jnp.asarray([20, 1, 9])

    def of_batch(q, k, v, lengths):
        return attend(q, k, v, lengths, directions, True)

    scaled = np.asarray(k, np.float64) * 8**-0.25
    largest = max((scaled[row, :length] @ np.asarray(directions).T).max() for row, length in enumerate(lengths))
    wanted = np.zeros(q.shape)
    for row, head in np.ndindex(3, 2):
        keys, queries = scaled[row, : lengths[row], head], np.asarray(q, np.float64)[row, :, head] * 8**-0.25
        dots = queries @ np.asarray(directions, np.float64).T
        phi_q = np.exp(dots - 0.5 * (queries**2).sum(1, keepdims=True) - dots.max(1, keepdims=True)) + 1e-4
        phi_k = np.exp(keys @ np.asarray(directions).T - 0.5 * (keys**2).sum(1, keepdims=True) - largest) + 1e-4
        weights = phi_q @ phi_k.T
        wanted[row, :, head] = weights / weights.sum(1, keepdims=True) @ np.asarray(v)[row, : lengths[row], head]
    np.testing.assert_allclose(of_batch(q, k, v, lengths), wanted, atol=2e-5)
    alone = of_batch(q[2:], k[2:], v[2:], lengths[2:])
    assert np.abs(np.asarray(alone)[0] - wanted[2]).max() > 1e-3
    gradient = jax.grad(lambda k: jnp.sum(of_batch(q, k, v, lengths) * cotangent))(k)
    assert bool(jnp.isfinite(gradient).all())


def test_its_gradients_are_those_of_the_published_estimate():
    q, k, v, cotangent = inputs()
    directions, lengths = random_directions(jax.random.key(5), (16, 8)), jnp.asarray([20, 1, 9])
    gradients = jax.jit(
        jax.grad(lambda q, k, v: jnp.sum(attend(q, k, v, lengths, directions) * cotangent), argnums=(0, 1, 2))
    )(q, k, v)
    exact, step = float64(q, k, v), 1e-5
    rng = np.random.default_rng(0)
    for number, gradient in enumerate(gradients):
        # A derivative along a random line, of the reference in float64, central difference. The stabilisers are no part
        # of what is derived, as in performer-pytorch: through the 1e-4 beside them they would be.
        line = rng.normal(size=exact[number].shape)

        def moved(by, number=number, line=line):
            arguments = [x + (by * line if i == number else 0.0) for i, x in enumerate(exact)]
            out = reference(*arguments, np.asarray(lengths), np.asarray(directions, np.float64), still=exact[:2])
            return (out * np.asarray(cotangent)).sum()

        wanted = (moved(step) - moved(-step)) / (2 * step)
        assert (np.asarray(gradient) * line).sum() == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_performers_own_numbers():
    """What performer-pytorch 1.1.4 gives for the same numbers and directions (`scmbert bench favor` compares more)."""
    grid = np.arange(24, dtype=np.float32).reshape(1, 6, 1, 4)
    q, k, v = np.sin(grid), np.cos(0.7 * grid), np.sin(0.3 * grid + 1)
    directions = np.cos(np.arange(20, dtype=np.float32)).reshape(5, 4) * 1.5
    ours = attend(*map(jnp.asarray, (q, k, v)), jnp.asarray([6]), jnp.asarray(directions))
    np.testing.assert_allclose(ours[0, :, 0], PERFORMER, atol=2e-6)


PERFORMER = [
    [0.135721, 0.1839214, 0.2156925, 0.2281965],
    [0.0283761, 0.0420635, 0.0519933, 0.0572788],
    [0.4012443, 0.4485827, 0.4558505, 0.4223986],
    [-0.038762, 0.0158097, 0.0689689, 0.1159676],
    [0.0687568, 0.0750205, 0.0745828, 0.0674828],
    [0.3895018, 0.4317848, 0.4354977, 0.4003089],
]


def test_more_features_estimate_softmax_attention_better():
    # Short keys: with long ones, few of a cell's features stand out from the 1e-4 beside each, however many there are.
    q, k, v, _ = inputs(size=0.5)
    lengths = jnp.asarray([20, 1, 9])
    exact = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths)
    function = jax.jit(attend)

    def error(features):
        draws = (random_directions(jax.random.key(seed), (features, 8)) for seed in range(5))
        return np.mean([np.abs(function(q, k, v, lengths, draw) - exact).mean() for draw in draws])

    few, many = error(16), error(1024)
    assert many < 0.3 * few  # 1 / sqrt(64) = 0.125 if it were pure noise; measured .17


def test_a_cell_depends_neither_on_its_neighbours_nor_on_padding():
    q, k, v, _ = inputs()
    directions, lengths = random_directions(jax.random.key(5), (16, 8)), jnp.asarray([20, 7, 9])
    function = jax.jit(attend)
    before = np.asarray(function(q, k, v, lengths, directions))
    other = (q.at[0].mul(30), k.at[0].mul(30), v.at[0].mul(30))
    np.testing.assert_array_equal(np.asarray(function(*other, lengths, directions))[1:], before[1:])
    filled = (q, k.at[1, 7:].set(100.0), v.at[1, 7:].set(100.0))
    np.testing.assert_array_equal(function(*filled, lengths, directions), before)
    wider = (jnp.pad(x, ((0, 0), (0, 30), (0, 0), (0, 0))) for x in (k, v))
    np.testing.assert_allclose(function(q, *wider, lengths, directions), before, atol=1e-6)  # other blocks


# --- directions ------------------------------------------------------------------------------------------------------


def test_directions_are_orthogonal_in_blocks_and_as_long_as_gaussian_vectors():
    directions = np.asarray(random_directions(jax.random.key(0), (3, 266, 64)))
    assert directions.shape == (3, default_num_features(64), 64)
    unit = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    for first in range(0, 266, 64):
        block = unit[:, first : first + 64]
        np.testing.assert_allclose(block @ block.swapaxes(1, 2), np.tile(np.eye(block.shape[1]), (3, 1, 1)), atol=1e-5)
    squares = (directions**2).sum(-1)  # chi-squared of 64 degrees: mean 64, variance 128
    assert squares.mean() == pytest.approx(64, abs=4 * np.sqrt(128 / squares.size))
    assert squares.std() == pytest.approx(np.sqrt(128), rel=0.15)
    assert np.abs(unit.mean((0, 1))).max() < 4 / np.sqrt(64 * 3 * 266)  # no preferred side


@pytest.fixture
def favor_config(tiny_config):
    def make(**fields):
        return dataclasses.replace(
            tiny_config, model=dataclasses.replace(tiny_config.model, attention="favor", **fields)
        )

    return make


def directions_of(constants):
    return np.asarray(constants["encoder"]["blocks"]["attention"]["directions"])


def test_directions_are_a_function_of_seed_step_and_layer(favor_config, tiny_layout):
    config = favor_config(favor_redraw_every=5)  # of 20 steps
    definition = ModelDefinition(config, tiny_layout)
    at = [directions_of(definition.constants_at(definition.constants, step)) for step in (0, 4, 5, 19)]
    assert at[0].shape == (2, default_num_features(8), 8)  # two layers
    np.testing.assert_array_equal(at[0], at[1])
    assert (at[0] != at[2]).all()
    assert (at[0][0] != at[0][1]).all()
    np.testing.assert_array_equal(directions_of(definition.constants), at[3])  # a trained model keeps the last
    other = ModelDefinition(dataclasses.replace(config, seed=1), tiny_layout)
    assert (directions_of(other.constants_at(other.constants, 0)) != at[0]).all()
    never = ModelDefinition(favor_config(favor_redraw_every=0), tiny_layout)
    np.testing.assert_array_equal(directions_of(never.constants), at[0])
    np.testing.assert_array_equal(directions_of(never.constants_at(never.constants, 10_000)), at[0])


def test_parameters_are_those_of_any_other_attention(favor_config, tiny_config, tiny_layout):
    definition, usual = ModelDefinition(favor_config(), tiny_layout), ModelDefinition(tiny_config, tiny_layout)
    assert definition.abstract_params == usual.abstract_params
    assert "encoder" not in usual.constants
    assert directions_of(ModelDefinition(favor_config(favor_features=5), tiny_layout).constants).shape == (2, 5, 8)


class DirectionsSeen:
    """An objective that trains nothing and reports the mean of the directions that a step sees."""

    needs_whole_batch = False
    reads_table = True

    def loss(self, model, feature_table, batch, key):
        mean = model.encoder.blocks.attention.directions[...].mean()
        return LossSum(jnp.zeros(()), jnp.ones(()), {"seen": (mean, jnp.ones(()))})


def test_a_step_of_training_sees_the_directions_of_that_step(favor_config, tiny_layout, tiny_batch):
    config = favor_config(favor_redraw_every=7)
    model = ModelDefinition(config, tiny_layout)
    optimizer = make_optimizer(config, model)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), model.abstract_params)
    step = jax.jit(make_train_step(model, DirectionsSeen(), optimizer))
    for number in (0, 6, 7, 19):
        state = TrainState(params, optimizer.init(params), jnp.asarray(number))
        seen = step(state, model.constants, tiny_batch())[1]["seen"]
        wanted = directions_of(model.constants_at(model.constants, number)).mean()
        assert seen == pytest.approx(wanted, rel=1e-3)
        assert abs(seen - directions_of(model.constants).mean()) > 1e-3 or number == 19  # 19: the run's last
