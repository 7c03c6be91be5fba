import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from scmbert_jax.config import ModalityConfig
from scmbert_jax.models.heads import LIKELIHOODS, negative_binomial_nll


def test_the_negative_binomial_is_that_of_scipy():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, 200)
    mean, theta = rng.uniform(0.01, 30, 200), rng.uniform(0.1, 20, 200)
    wanted = -scipy.stats.nbinom.logpmf(counts, theta, theta / (theta + mean))
    ours = negative_binomial_nll(jnp.asarray(counts, jnp.float32), jnp.asarray(mean), jnp.log(theta))
    np.testing.assert_allclose(ours, wanted, rtol=2e-4, atol=2e-4)  # float32 lgamma


def test_a_mean_never_exceeds_the_library():
    likelihood = LIKELIHOODS["negative_binomial"]
    library = jnp.asarray([10.0, 10.0, 10.0])
    mean = likelihood.expected(jnp.asarray([[-50.0], [0.0], [50.0]]), library, ModalityConfig())
    assert ((mean >= 0) & (mean <= library)).all()


def test_the_likelihood_of_bins_is_the_cross_entropy_of_the_true_bin():
    config = ModalityConfig(likelihood="bins", num_bins=6)
    outputs = jax.random.normal(jax.random.key(0), (2, 6))
    nll = LIKELIHOODS["bins"].nll(outputs, None, jnp.asarray([0.0, 1.0]), jnp.asarray([1000.0, 1000.0]), config)
    probabilities = np.asarray(jax.nn.softmax(outputs))
    np.testing.assert_allclose(nll, [-np.log(probabilities[0, 0]), -np.log(probabilities[1, 3])], rtol=1e-5)


def test_accessibility_is_predicted_as_open_or_not_whatever_the_count():
    nll = LIKELIHOODS["bernoulli"].nll
    logits = jnp.asarray([[0.7], [0.7], [0.7]])
    values = nll(logits, None, jnp.asarray([0.0, 1.0, 9.0]), jnp.ones(3), ModalityConfig(likelihood="bernoulli"))
    open_ = 1 / (1 + np.exp(-0.7))
    np.testing.assert_allclose(values, [-np.log(1 - open_), -np.log(open_), -np.log(open_)], rtol=1e-5)


@pytest.mark.parametrize("name", sorted(LIKELIHOODS))
def test_extreme_outputs_and_counts_give_finite_losses_and_gradients(name):
    config = ModalityConfig(likelihood=name)
    outputs = jnp.asarray([[-80.0] * 6, [80.0] * 6, [0.0] * 6])

    def total(outputs, log_dispersion):
        counts, library = jnp.asarray([0.0, 5000.0, 3.0]), jnp.asarray([0.0, 1e6, 3.0])
        return LIKELIHOODS[name].nll(outputs, log_dispersion, counts, library, config).sum()

    for log_dispersion in (-10.0, 0.0, 10.0):
        value, gradient = jax.value_and_grad(total)(outputs, jnp.full(3, log_dispersion))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
