"""Where heads start: the first prediction is what is known of each feature by itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from scmbert_jax.config import ExperimentConfig, ModalitiesConfig, ModalityConfig, ModelConfig
from scmbert_jax.models.heads import ValueHead
from scmbert_jax.models.likelihoods import Truth

IDS = {"rna": np.arange(40), "protein": np.arange(40, 52), "atac": np.arange(52, 72)}


def head(layout, likelihoods, of_cells=True):
    config = ExperimentConfig(
        modalities=ModalitiesConfig(*(ModalityConfig(num_tokens=8) for _ in range(3))),
        model=ModelConfig(embed_dim=16, num_layers=1, num_heads=2, head_dim=8, mlp_dim=16),
    )
    return ValueHead(config, layout, likelihoods, of_cells, nnx.Rngs(0))


def start(layout, name, likelihood, of_cells=True):
    """Likelihood object, outputs [1, F, K] and log dispersions [1, F] of all features of a modality, any states."""
    own = head(layout, {name: likelihood}, of_cells)
    states = jax.random.normal(jax.random.key(0), (1, len(IDS[name]), 16))
    return own.likelihoods[name], *jax.jit(lambda states: own(name, states, jnp.asarray(IDS[name])[None], {}))(states)


@pytest.mark.slow
def test_a_negative_binomial_starts_at_the_feature_s_fraction_and_dispersion(known_layout):
    known, (first, stop) = known_layout.statistics, known_layout.slices["rna"]
    likelihood, outputs, log_dispersion = start(known_layout, "rna", "negative_binomial")
    counts = np.arange(stop - first) % 7
    nll = likelihood.nll(outputs, log_dispersion, Truth(jnp.asarray(counts, jnp.float32)[None], 500.0, 0.0))
    mean, theta = 500 * known.cell_fraction[first:stop], np.exp(known.cell_log_dispersion[first:stop])
    np.testing.assert_allclose(nll[0], -scipy.stats.nbinom(theta, theta / (theta + mean)).logpmf(counts), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "likelihood", "mean", "std"),
    [
        ("protein", "gaussian_clr", "clr_mean", "clr_std"),
        ("rna", "gaussian_log1p", "log1p_mean", "log1p_std"),
        ("atac", "bernoulli", "cell_detection", None),
    ],
)
def test_a_translation_starts_at_the_mean_of_each_feature(known_layout, name, likelihood, mean, std):
    own, outputs, log_dispersion = start(known_layout, name, likelihood)
    predicted = own.predict(outputs, log_dispersion)
    np.testing.assert_allclose(predicted.value[0], getattr(known_layout.statistics, mean)[IDS[name]], rtol=1e-4)
    if std is not None:
        np.testing.assert_allclose(predicted.std[0], getattr(known_layout.statistics, std)[IDS[name]], rtol=1e-4)


def test_proteins_with_background_start_at_their_fraction(known_layout):
    own, outputs, log_dispersion = start(known_layout, "protein", "negative_binomial_background")
    wanted = known_layout.statistics.cell_fraction[IDS["protein"]] * own.median_library
    # ambient at half the fraction and bound at about three times that, half of the cells each
    np.testing.assert_allclose(own.expected_counts(outputs, log_dispersion)[0], wanted, rtol=0.05)


def test_tokens_and_cells_start_at_different_models_because_zeros_are_sampled(known_layout):
    known = known_layout.statistics
    # As where a fifth of the zeros are tokens; the synthetic cells show as many zeros as they have.
    halved = dataclasses.replace(known_layout, statistics=known._replace(cell_detection=known.detection / 2))
    for of_cells in (False, True):
        own, outputs, log_dispersion = start(halved, "atac", "bernoulli", of_cells)
        wanted = known.detection[IDS["atac"]] / (2 if of_cells else 1)
        np.testing.assert_allclose(own.predict(outputs, log_dispersion).value[0], wanted, rtol=1e-4)


@pytest.mark.slow
def test_a_modality_is_scored_by_its_own_likelihood_and_no_other(known_layout):
    """Impossible counts of another modality must not reach a head, not even as a NaN in an unused branch."""
    own = head(known_layout, {"rna": "negative_binomial", "atac": "bernoulli"})
    ids, modality = jnp.asarray([[3, 60]]), jnp.asarray([[0, 2]])
    truth = Truth(jnp.asarray([[5.0, 1.0]]), jnp.asarray([[500.0, 90.0]]), jnp.zeros((1, 2)))
    states = jnp.zeros((1, 2, 16))
    both = jax.jit(lambda states: own.nll(states, ids, modality, truth, {}))(states)
    for column, name in ((0, "rna"), (1, "atac")):
        part = jax.tree.map(lambda x, c=column: x[:, c : c + 1], truth)
        outputs, log_dispersion = own(name, states[:, :1], ids[:, column : column + 1], {})
        np.testing.assert_allclose(
            both[:, column], own.likelihoods[name].nll(outputs, log_dispersion, part)[:, 0], rtol=1e-6
        )
    poisoned = dataclasses.replace(known_layout, statistics=None)
    assert np.isfinite(head(poisoned, {"rna": "negative_binomial"}).nll(states, ids, modality, truth, {})).all()


@pytest.mark.slow
def test_a_spread_is_held_where_float32_can_tell_and_comes_back(known_layout):
    own = head(known_layout, {"rna": "negative_binomial"})
    own.spread[...] = jnp.full_like(own.spread[...], 9.0)  # stored at a tenth: log theta 90, whose exp is infinite
    graph, state = nnx.split(own)
    counts = jnp.asarray([[0.0] * 5 + [100.0]])  # of more than Poisson's variance: theta is to fall
    truth, ids = Truth(counts, jnp.full((1, 6), 2000.0), jnp.zeros((1, 6))), jnp.full((1, 6), 3)

    def nll(state):
        return nnx.merge(graph, state).nll(jnp.zeros((1, 6, 16)), ids, jnp.zeros((1, 6), int), truth, {}).sum()

    value, gradient = jax.jit(jax.value_and_grad(nll))(state)
    assert jnp.isfinite(value)
    assert gradient["spread"][...][3] > 0
