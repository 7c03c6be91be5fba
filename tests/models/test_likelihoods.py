import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from scmbert_jax.config import ModalityConfig
from scmbert_jax.models.likelihoods import LIKELIHOODS, Truth, negative_binomial_nll

LIBRARIES = (400.0, 600.0, 800.0, 900.0, 1000.0, 1200.0, 1500.0, 2000.0, 3000.0)  # at LIBRARY_QUANTILES


def likelihood(name, **config):
    return LIKELIHOODS[name](ModalityConfig(**config), LIBRARIES, 4.0)


def truth(counts, library=1000.0, mean_log_count=1.0) -> Truth:
    counts = jnp.asarray(counts, jnp.float32)
    return Truth(counts, jnp.full(counts.shape, library), jnp.full(counts.shape, mean_log_count))


def logit(share):
    return float(np.log(share / (1 - share)))


def scipy_nb(mean, theta):
    return scipy.stats.nbinom(theta, theta / (theta + mean))


def test_the_negative_binomial_is_that_of_scipy():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, 200)
    mean, theta = rng.uniform(0.01, 30, 200), rng.uniform(0.1, 20, 200)
    wanted = -scipy_nb(mean, theta).logpmf(counts)
    ours = negative_binomial_nll(jnp.asarray(counts, jnp.float32), jnp.asarray(mean), jnp.log(theta))
    np.testing.assert_allclose(ours, wanted, rtol=2e-4, atol=2e-4)  # float32 lgamma


def test_a_mean_never_exceeds_the_library():
    mean = likelihood("negative_binomial").mean(jnp.asarray([[-50.0], [0.0], [50.0]]), 10.0)
    assert ((mean >= 0) & (mean <= 10)).all()


@pytest.mark.parametrize(("mean_of_1000", "theta"), [(0.3, 0.5), (4.0, 2.0), (60.0, 8.0), (300.0, 1.0)])
def test_a_negative_binomial_expects_what_sampling_finds(mean_of_1000, theta):
    """Library size drawn, then a count, then log1p of it at the median library: the grid of counts must agree."""
    rng = np.random.default_rng(0)
    library = rng.choice(LIBRARIES, 400_000)
    counts = scipy_nb(library * mean_of_1000 / 1000, theta).rvs(random_state=rng)
    values = np.log1p(counts / library * 1000.0)
    found = likelihood("negative_binomial").predict(jnp.asarray([logit(mean_of_1000 / 1000)]), jnp.log(theta))
    # Monte Carlo error of 400,000 draws: 0.002; the grid is coarse above 32.
    np.testing.assert_allclose(found.value, values.mean(), atol=0.01)
    np.testing.assert_allclose(found.std, values.std(), atol=0.015)


def test_a_bound_and_an_ambient_level_are_one_distribution():
    outputs, spread = jnp.asarray([logit(0.004), 2.0, 0.5]), jnp.log(5.0)
    counts = jnp.arange(4000.0)
    nll = likelihood("negative_binomial_background").nll(outputs, spread, truth(counts))
    probabilities = np.exp(-np.asarray(nll, np.float64))
    assert probabilities.sum() == pytest.approx(1, abs=1e-3)
    ambient, bound, only_ambient = 4.0, 4.0 * (1 + np.log1p(np.exp(2.0))), 1 / (1 + np.exp(-0.5))
    wanted = only_ambient * scipy_nb(ambient, 5).pmf(counts) + (1 - only_ambient) * scipy_nb(bound, 5).pmf(counts)
    np.testing.assert_allclose(probabilities[:100], wanted[:100], rtol=2e-3)
    mean = only_ambient * ambient + (1 - only_ambient) * bound
    assert likelihood("negative_binomial_background").expected_counts(outputs, spread) == pytest.approx(mean, rel=1e-4)


def test_a_bound_and_an_ambient_level_expect_what_sampling_finds():
    rng = np.random.default_rng(0)
    outputs = jnp.asarray([logit(0.02), 1.0, 0.0])
    levels = np.where(rng.random(400_000) < 0.5, 20.0, 20.0 * (1 + np.log1p(np.e)))
    values = np.log1p(scipy_nb(levels, 3.0).rvs(random_state=rng) / 4.0)  # 4.0: the geometric mean
    found = likelihood("negative_binomial_background").predict(outputs, jnp.log(3.0))
    np.testing.assert_allclose([found.value, found.std], [values.mean(), values.std()], atol=0.01)


def test_a_centred_log_ratio_is_normal_around_the_prediction():
    counts, mean_log_count = np.array([0, 3, 50]), 1.5
    clr = np.log1p(counts / np.exp(mean_log_count))
    nll = likelihood("gaussian_clr").nll(
        jnp.full((3, 1), 0.8), jnp.full(3, np.log(0.5)), truth(counts, mean_log_count=mean_log_count)
    )
    np.testing.assert_allclose(nll, -scipy.stats.norm(0.8, 0.5).logpdf(clr), rtol=1e-5)
    predicted = likelihood("gaussian_clr").predict(jnp.asarray([0.8]), jnp.log(0.5))
    np.testing.assert_allclose([predicted.value, predicted.std], [0.8, 0.5], rtol=1e-5)


def test_the_log_of_size_normalised_counts_is_normal_around_the_prediction():
    counts, library = np.array([0, 3, 50]), 400.0
    values = np.log1p(counts / library * 1000)  # the median library
    nll = likelihood("gaussian_log1p").nll(jnp.full((3, 1), 1.4), jnp.full(3, np.log(0.7)), truth(counts, library))
    np.testing.assert_allclose(nll, -scipy.stats.norm(1.4, 0.7).logpdf(values), rtol=1e-5)


def test_a_standard_deviation_learns_from_residuals_alone():
    """At the best mean, the spread's gradient must not ask for a smaller mean."""
    model = likelihood("gaussian_clr")
    gradient = jax.grad(lambda spread: model.predict(jnp.asarray([2.0]), spread).value)(0.3)
    assert gradient == 0


def test_accessibility_is_predicted_as_open_or_not_whatever_the_count():
    model = likelihood("bernoulli")
    values = model.nll(jnp.full((3, 1), 0.7), jnp.zeros(3), truth([0, 1, 9]))
    open_ = 1 / (1 + np.exp(-0.7))
    wanted = -scipy.stats.bernoulli(open_).logpmf([0, 1, 1])
    np.testing.assert_allclose(values, wanted, rtol=1e-5)
    predicted = model.predict(jnp.asarray([0.7]), jnp.zeros(()))
    np.testing.assert_allclose(predicted, [open_, scipy.stats.bernoulli(open_).std()], rtol=1e-5)


def test_the_likelihood_of_bins_is_the_cross_entropy_of_the_true_bin():
    outputs = jax.random.normal(jax.random.key(0), (2, 6))
    nll = likelihood("bins", likelihood="bins", num_bins=6).nll(outputs, jnp.zeros(2), truth([0.0, 1.0]))
    probabilities = np.asarray(jax.nn.softmax(outputs))
    np.testing.assert_allclose(nll, [-np.log(probabilities[0, 0]), -np.log(probabilities[1, 3])], rtol=1e-5)


@pytest.mark.parametrize("name", sorted(LIKELIHOODS))
def test_extreme_outputs_and_counts_give_finite_losses_predictions_and_gradients(name):
    model = likelihood(name)
    outputs = jnp.asarray([[-80.0], [80.0], [0.0]]) * jnp.ones((3, model.num_outputs))
    measured = Truth(jnp.asarray([0.0, 5000.0, 3.0]), jnp.asarray([0.0, 1e6, 3.0]), jnp.asarray([0.0, 5.0, 1.0]))

    def total(outputs, spread):
        return model.nll(outputs, spread, measured).sum() + model.expected_counts(outputs, spread).sum()

    # A normal of standard deviation exp(-10) may call any residual nearly impossible, but must stay a number.
    for spread in (-10.0, 0.0, 10.0):
        value, gradient = jax.value_and_grad(total, argnums=(0, 1))(outputs, jnp.full(3, spread))
        assert np.isfinite(value)
        assert all(np.isfinite(part).all() for part in gradient)
        predicted = model.predict(outputs, jnp.full(3, spread))
        assert np.isfinite(predicted.value).all()
        assert (np.isfinite(predicted.std) & (predicted.std >= 0)).all()
