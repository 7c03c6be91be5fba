from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import XLA_DEFAULT
from jax.scipy.special import gammaln

from scmbert_jax.config import ModalityConfig
from scmbert_jax.models.likelihoods import LIKELIHOODS, LOG_DISPERSION_BOUNDS, Truth

LIBRARIES = (400.0, 600.0, 800.0, 900.0, 1000.0, 1200.0, 1500.0, 2000.0, 3000.0)  # at LIBRARY_QUANTILES


def likelihood(name, **config):
    return LIKELIHOODS[name](ModalityConfig(**config), LIBRARIES, 4.0)


def truth(counts, library=1000.0, mean_log_count=1.0) -> Truth:
    counts = jnp.asarray(counts, jnp.float32)
    return Truth(counts, jnp.full(counts.shape, library), jnp.full(counts.shape, mean_log_count))


def logit(fraction):
    return float(np.log(fraction / (1 - fraction)))


def scipy_nb(mean, theta):
    return scipy.stats.nbinom(theta, theta / (theta + mean))


# What each likelihood is, by its definition. In float64 (`jax.enable_x64`) it is what float32 is compared with.
def by_definition(name, outputs, log_dispersion, truth):
    log_mean = jnp.log(jnp.maximum(truth.library_size, 1.0)) + jax.nn.log_sigmoid(outputs[..., 0])
    of_cell = truth.counts / jnp.maximum(truth.library_size, 1.0)
    centred = {
        "gaussian_log1p": jnp.log1p(of_cell * 1000.0) - outputs[..., 0],
        "gaussian_clr": jnp.log1p(truth.counts * jnp.exp(-truth.mean_log_count)) - outputs[..., 0],
    }

    def negative_binomial(log_mean):
        theta, counts = jnp.exp(log_dispersion), truth.counts
        log_total = jnp.logaddexp(log_mean, log_dispersion)
        combinations = gammaln(counts + theta) - gammaln(theta) - gammaln(counts + 1.0)
        return -(combinations + theta * (log_dispersion - log_total) + counts * (log_mean - log_total))

    if name == "negative_binomial":
        return negative_binomial(log_mean)
    if name == "negative_binomial_of_cell":
        return negative_binomial(jnp.log(jnp.maximum(truth.library_size, 1.0)) + outputs[..., 0])
    if name == "negative_binomial_background":
        levels = log_mean, log_mean + jnp.log1p(jax.nn.softplus(outputs[..., 1]))
        fractions = jax.nn.log_sigmoid(outputs[..., 2]), jax.nn.log_sigmoid(-outputs[..., 2])
        return -jnp.logaddexp(
            *(fraction - negative_binomial(level) for fraction, level in zip(fractions, levels, strict=True))
        )
    if name in centred:
        return jax.scipy.stats.norm.logpdf(centred[name] / jnp.exp(log_dispersion)) * -1.0 + log_dispersion
    if name == "bernoulli":
        return -jax.nn.log_sigmoid(jnp.where(truth.counts > 0, 1.0, -1.0) * outputs[..., 0])
    last = outputs.shape[-1] - (2 if name == "bins_and_mask" else 1)
    bins = jnp.clip(jnp.floor(jnp.log2(1.0 + of_cell * 1e4) + 1e-6), 0, last).astype(int)
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), bins[..., None], -1)[..., 0]


def anywhere(name, number=20_000):
    """Outputs, log dispersions and counts wherever they may go, as often where training takes them: near the counts."""
    rng, model = np.random.default_rng(0), likelihood(name)
    library = np.round(np.exp(rng.uniform(0, 13, number)))
    counts = np.where(rng.random(number) < 0.5, rng.integers(0, 4, number), library * rng.random(number) ** 4).round()
    counts = np.minimum(counts, library)
    outputs = rng.uniform(-60, 60, (number, model.num_outputs))
    expected = np.log(np.maximum(counts, 0.3) / library) + rng.normal(0, 1, number) * rng.random(number) ** 4
    outputs[::2, 0] = np.clip(expected - np.log(-np.expm1(np.minimum(expected, -1e-4))), -60, 60)[::2]
    outputs[::2, 1:] = rng.normal(0, 2, outputs[::2, 1:].shape)
    if model.shares_library:  # logarithms of fractions: never above 0
        outputs = -np.logaddexp(0, -outputs)
    log_dispersion = rng.uniform(*LOG_DISPERSION_BOUNDS, number)
    measured = Truth(counts, library, rng.uniform(0, 2, number))
    return jax.tree.map(np.float32, (outputs, log_dispersion, measured))


@pytest.mark.parametrize("name", sorted(LIKELIHOODS))
def test_float32_is_exact_over_the_whole_range_of_the_parameters(name):
    """Values and gradients, beside those of the definition in float64, which for the counts are those of SciPy."""
    outputs, log_dispersion, measured = anywhere(name)

    def all_of(nll):
        def values_and_gradients(*x):
            return nll(*x), *jax.grad(lambda *y: nll(*y).sum(), argnums=(0, 1))(*x)

        return jax.jit(values_and_gradients, compiler_options=XLA_DEFAULT)

    found = jax.device_get(all_of(likelihood(name).nll)(outputs, log_dispersion, measured))
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, (outputs, log_dispersion, measured))
        wanted = jax.device_get(all_of(partial(by_definition, name))(*wide))
    mean, theta = measured.library_size / (1 + np.exp(-wide[0][:, 0])), np.exp(wide[1])
    if name == "negative_binomial":
        usual = (np.abs(wanted[0]) < 50) & (mean > 1e-3)  # SciPy's own form loses what is less likely
        scipy_nll = -scipy_nb(mean, theta).logpmf(measured.counts)
        np.testing.assert_allclose(wanted[0][usual], scipy_nll[usual], rtol=1e-6, atol=1e-6)
    # What a number is a difference of; of that, float32 knows about a millionth.
    nll, residual, precision = np.abs(wanted[0]), np.abs(wide[0][:, 0]) + 14, np.exp(-2 * wide[1])
    terms = [0.0, 0.0, 0.0]
    if name.startswith("gaussian"):
        terms = [residual**2 * precision + 10, residual * precision, residual**2 * precision + 1]
    elif name in ("negative_binomial", "negative_binomial_of_cell"):
        terms = [0.0, measured.counts, 1 + np.sqrt(measured.counts)]
    elif name == "negative_binomial_background":
        # Which of the levels it was depends on the difference of two likelihoods.
        sizes = (1 + measured.counts + np.abs(of.reshape(len(nll), -1)[:, 0]) for of in wanted[1:])
        terms = [0.0, *((1 + nll) * size for size in sizes)]
    for ours, exact, own in zip(found, wanted, terms, strict=True):
        ours, exact = (x.reshape(len(nll), -1).T for x in (ours, exact))
        assert np.isfinite(ours).all()
        np.testing.assert_array_less(np.abs(ours - exact), 1e-4 * np.abs(exact) + 2e-6 * own + 1e-6)


@pytest.mark.slow
def test_likelihoods_of_bfloat16_outputs_are_float32_and_map_over_cells_as_over_an_array():
    outputs, log_dispersion, measured = anywhere("negative_binomial", 64)
    nll = likelihood("negative_binomial").nll
    narrow = jnp.asarray(outputs, jnp.bfloat16)
    found = nll(narrow, log_dispersion, measured)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, jax.vmap(nll)(narrow, log_dispersion, measured), rtol=1e-6)
    gradient = jax.grad(lambda x: nll(x, log_dispersion, measured).sum())(narrow)
    assert gradient.dtype == jnp.bfloat16
    assert jnp.isfinite(gradient).all()


def test_a_count_pulls_a_mean_up_however_far_it_has_fallen():
    gradient = jax.grad(lambda x: likelihood("negative_binomial").nll(x, 0.0, truth(3)))(jnp.asarray([-200.0]))
    assert gradient == pytest.approx(-3)


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
    outputs, log_dispersion = jnp.asarray([logit(0.004), 2.0, 0.5]), jnp.log(5.0)
    counts = jnp.arange(4000.0)
    nll = likelihood("negative_binomial_background").nll(outputs, log_dispersion, truth(counts))
    probabilities = np.exp(-np.asarray(nll, np.float64))
    assert probabilities.sum() == pytest.approx(1, abs=1e-3)
    ambient, bound, only_ambient = 4.0, 4.0 * (1 + np.log1p(np.exp(2.0))), 1 / (1 + np.exp(-0.5))
    wanted = only_ambient * scipy_nb(ambient, 5).pmf(counts) + (1 - only_ambient) * scipy_nb(bound, 5).pmf(counts)
    np.testing.assert_allclose(probabilities[:100], wanted[:100], rtol=2e-3)
    mean = only_ambient * ambient + (1 - only_ambient) * bound
    assert likelihood("negative_binomial_background").expected_counts(outputs, log_dispersion) == pytest.approx(
        mean, rel=1e-4
    )


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
    """At the best mean, the log_dispersion's gradient must not ask for a smaller mean."""
    model = likelihood("gaussian_clr")
    gradient = jax.grad(lambda log_dispersion: model.predict(jnp.asarray([2.0]), log_dispersion).value)(0.3)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LIKELIHOODS))
def test_extreme_outputs_and_counts_give_finite_losses_predictions_and_gradients(name):
    model = likelihood(name)
    outputs = jnp.asarray([[-80.0], [80.0], [0.0]]) * jnp.ones((3, model.num_outputs))
    measured = Truth(jnp.asarray([0.0, 5000.0, 3.0]), jnp.asarray([0.0, 1e6, 3.0]), jnp.asarray([0.0, 5.0, 1.0]))

    def total(outputs, log_dispersion):
        outputs = model.of_cell(outputs[None], jnp.ones((1, 3), bool))[0]
        return model.nll(outputs, log_dispersion, measured).sum() + model.expected_counts(outputs, log_dispersion).sum()

    # A normal of standard deviation exp(-10) may call any residual nearly impossible, but must stay a number.
    for log_dispersion in (-10.0, 0.0, 10.0):
        value, gradient = jax.value_and_grad(total, argnums=(0, 1))(outputs, jnp.full(3, log_dispersion))
        assert np.isfinite(value)
        assert all(np.isfinite(part).all() for part in gradient)
        predicted = model.predict(model.of_cell(outputs[None], jnp.ones((1, 3), bool))[0], jnp.full(3, log_dispersion))
        assert np.isfinite(predicted.value).all()
        assert (np.isfinite(predicted.std) & (predicted.std >= 0)).all()
