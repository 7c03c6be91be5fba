"""How likely a measured value is under a prediction, and what the prediction expects.

A likelihood turns the numbers that a head gives for a (cell, feature) pair into the negative log-likelihood of the
pair's count, into its expected value on the modality's value scale (what translation reports), and into an expected
count (what a cell that exists only as a prediction would show). Adding one is one class and one line in `LIKELIHOODS`.

Value scales: `log1p` (of the median library size) and `clr`, see `value_scales`; `probability`, of a count above 0;
`bin`, of scBERT.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scmbert_jax.config import ModalityConfig
from scmbert_jax.feature_layout import LIBRARY_QUANTILES, FeatureStatistics
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.models.negative_binomial import negative_binomial_nll, nll_of_zero
from scmbert_jax.value_scales import clr_values, expression_bins, log1p_values, relative_expression

# Support for expectations over counts: every count up to 31, then ever coarser cells up to 100,000.
_GRID = np.unique(np.concatenate([np.arange(32.0), np.round(np.geomspace(32, 1e5, 64))])).astype(np.float32)
# A log dispersion is log theta, or the log of a standard deviation. A theta of exp(-15) gives zeros whatever the mean,
# one of exp(15) is Poisson but for 1 in 3 million of the squared mean; soon beyond, float32 overflows.
LOG_DISPERSION_BOUNDS = (-15.0, 15.0)
# One standard deviation of a linear value changes a log mean or a logit by at most this.
MAX_GAIN = 5.0
_GRID_WIDTH = np.maximum(np.gradient(_GRID), 1.0).astype(np.float32)


class Truth(NamedTuple):
    """What was measured, float32, all of one shape; see `TokenSequence`."""

    counts: jax.Array
    library_size: jax.Array
    mean_log_count: jax.Array


class Prediction(NamedTuple):
    """Expected value and standard deviation on the value scale, float32, of one shape."""

    value: jax.Array
    std: jax.Array


@dataclass(frozen=True)
class Likelihood:
    """One modality's likelihood.

    Attributes:
      config: the modality's.
      libraries: its library sizes at `LIBRARY_QUANTILES`, over the cells of the run.
      geometric_mean: the g of a cell of the median library size (see `clr`).
      shares_library: features compete for the cell's counts, so that none can be predicted without all (`of_cell`).
    """

    config: ModalityConfig
    libraries: tuple[float, ...]
    geometric_mean: float
    scale = "log1p"
    shares_library = False

    @property
    def num_outputs(self) -> int:
        return 1

    @property
    def median_library(self) -> float:
        return self.libraries[len(self.libraries) // 2]

    def start(self, fraction: np.ndarray, log_dispersion: np.ndarray, detection: np.ndarray, scale: dict[str, tuple]):
        """Biases [F, K] and log dispersions [F] that predict each feature by itself (the marginal model).

        `scale`: "log1p" and "clr" -> (mean [F], std [F]) over cells.
        """
        raise NotImplementedError

    def per_value(self, mean: np.ndarray, std: np.ndarray, detection: np.ndarray) -> np.ndarray:
        """float [F]: by how much output 0 changes when the feature's `linear_values` changes by 1, to first order.

        `mean`, `std`: of `linear_values` over cells; `detection`: the fraction of cells with a count above 0; [F] each.
        """
        # value = log1p(m): d log m = d value * (m + 1) / m. Capped: a feature that is hardly ever seen says little.
        return np.minimum(1.0 / -np.expm1(-np.maximum(mean, 1e-8)), MAX_GAIN / std)

    def nll(self, outputs: jax.Array, log_dispersion: jax.Array, truth: Truth) -> jax.Array:
        """outputs [..., K], log_dispersion [...] -> float32 [...]."""
        raise NotImplementedError

    def nll_of_zero(self, outputs: jax.Array, log_dispersion: jax.Array, truth: Truth) -> jax.Array:
        """`nll` of counts of 0, whatever those of `truth` are; cheap, as nearly all features of a cell are zeros."""
        return self.nll(outputs, log_dispersion, truth._replace(counts=jnp.zeros_like(truth.counts)))

    def of_cell(self, outputs: jax.Array, measured: jax.Array) -> jax.Array:
        """Outputs [B, F, K] of all features of cells, as `nll` takes them; measured bool [B, F]."""
        return outputs

    def predict(self, outputs: jax.Array, log_dispersion: jax.Array) -> Prediction:
        """Of a cell whose library size is not known."""
        raise NotImplementedError

    def expected_counts(self, outputs: jax.Array, log_dispersion: jax.Array) -> jax.Array:
        """Of a cell of the median library size; differentiable."""
        raise NotImplementedError


class NegativeBinomial(Likelihood):
    """Counts, given the library size: mean = library * sigmoid(output), so it can neither overflow nor exceed it."""

    def start(self, fraction, log_dispersion, detection, scale):
        return _logit(fraction)[:, None], log_dispersion

    def mean(self, outputs: jax.Array, library_size: jax.Array | float) -> jax.Array:
        return jnp.maximum(library_size, 1.0) * jax.nn.sigmoid(outputs[..., 0])

    def log_mean(self, outputs: jax.Array, library_size: jax.Array | float) -> jax.Array:
        return _log_mean(outputs, library_size)

    def nll(self, outputs, log_dispersion, truth):
        return negative_binomial_nll(truth.counts, self.log_mean(outputs, truth.library_size), log_dispersion)

    def nll_of_zero(self, outputs, log_dispersion, truth):
        return nll_of_zero(self.log_mean(outputs, truth.library_size), log_dispersion)

    def predict(self, outputs, log_dispersion):
        def of_library(library: jax.Array) -> tuple[jax.Array, jax.Array]:
            log_mean = self.log_mean(outputs, library)
            values = log1p_values(_GRID, library, self.median_library, jnp)
            return _expectation(-negative_binomial_nll(_GRID, log_mean[..., None], log_dispersion[..., None]), values)

        return _over_libraries(of_library, self.libraries)

    def expected_counts(self, outputs, log_dispersion):
        return self.mean(outputs, self.median_library)


class NegativeBinomialOfCell(NegativeBinomial):
    """The same, but the features that were measured share the library: mean = library * softmax(output) over them."""

    shares_library = True

    def start(self, fraction, log_dispersion, detection, scale):
        return np.log(fraction)[:, None], log_dispersion

    def of_cell(self, outputs, measured):
        # Of what was not measured, a fraction of 0 without an infinity: its log times 0 is to be 0.
        return jax.nn.log_softmax(jnp.where(measured[..., None], outputs, -1e9), axis=-2)

    def log_mean(self, outputs, library_size):
        return jnp.log(jnp.maximum(library_size, 1.0)) + outputs[..., 0]

    def mean(self, outputs, library_size):
        return jnp.exp(self.log_mean(outputs, library_size))


class NegativeBinomialBackground(Likelihood):
    """Counts of antibodies: ambient molecules in every cell, or those and bound ones (after totalVI, Gayoso 2021).

    outputs: logit of the ambient fraction of the library, log ratio of bound to ambient (through softplus), logit of
    being ambient only. Both levels share the feature's dispersion.
    """

    scale = "clr"

    @property
    def num_outputs(self) -> int:
        return 3

    def start(self, fraction, log_dispersion, detection, scale):
        # Ambient at half the mean, bound at about three times ambient, half of the cells each: that is the mean.
        start = np.stack([_logit(fraction / 2), np.full_like(fraction, 1.85), np.zeros_like(fraction)], axis=1)
        return start, log_dispersion

    def _log_levels(self, outputs: jax.Array, library: jax.Array | float) -> tuple[jax.Array, jax.Array]:
        ambient = _log_mean(outputs, library)
        return ambient, ambient + jnp.log1p(jax.nn.softplus(outputs[..., 1]))

    def _log_probability(
        self, counts: jax.Array | np.ndarray, outputs: jax.Array, log_dispersion: jax.Array, library
    ) -> jax.Array:
        ambient, bound = self._log_levels(outputs, library)
        return jnp.logaddexp(
            jax.nn.log_sigmoid(outputs[..., 2]) - negative_binomial_nll(counts, ambient, log_dispersion),
            jax.nn.log_sigmoid(-outputs[..., 2]) - negative_binomial_nll(counts, bound, log_dispersion),
        )

    def nll(self, outputs, log_dispersion, truth):
        return -self._log_probability(truth.counts, outputs, log_dispersion, truth.library_size)

    def predict(self, outputs, log_dispersion):
        def of_library(library: jax.Array) -> tuple[jax.Array, jax.Array]:
            log_probability = self._log_probability(_GRID, outputs[..., None, :], log_dispersion[..., None], library)
            return _expectation(log_probability, jnp.log1p(_GRID / self.geometric_mean))

        return _over_libraries(of_library, (self.median_library,))

    def expected_counts(self, outputs, log_dispersion):
        ambient, bound = map(jnp.exp, self._log_levels(outputs, self.median_library))
        only_ambient = jax.nn.sigmoid(outputs[..., 2])
        return only_ambient * ambient + (1.0 - only_ambient) * bound


class _Gaussian(Likelihood):
    """The value itself, with one standard deviation per feature."""

    def start(self, fraction, log_dispersion, detection, scale):
        mean, std = scale[self.scale]
        return mean[:, None], np.log(std)

    def per_value(self, mean, std, detection):
        return np.ones_like(std)

    def value(self, truth: Truth) -> jax.Array:
        raise NotImplementedError

    def nll(self, outputs, log_dispersion, truth):
        residual = (self.value(truth) - outputs[..., 0]) * jnp.exp(-log_dispersion)
        return 0.5 * residual**2 + log_dispersion + 0.5 * float(np.log(2 * np.pi))

    def predict(self, outputs, log_dispersion):
        return Prediction(outputs[..., 0], jnp.broadcast_to(jnp.exp(log_dispersion), outputs.shape[:-1]))


class GaussianLog1p(_Gaussian):
    """log1p(count / library_size * median library size), normal."""

    def value(self, truth):
        return log1p_values(truth.counts, truth.library_size, self.median_library, jnp)

    def expected_counts(self, outputs, log_dispersion):
        return jnp.expm1(jnp.clip(outputs[..., 0], 0.0, 12.0))


class GaussianClr(_Gaussian):
    """Centred log ratio, normal."""

    scale = "clr"

    def value(self, truth):
        return clr_values(truth.counts, truth.mean_log_count, jnp)

    def expected_counts(self, outputs, log_dispersion):
        return jnp.expm1(jnp.clip(outputs[..., 0], 0.0, 12.0)) * self.geometric_mean


class Bernoulli(Likelihood):
    """Whether the count is above 0."""

    scale = "probability"

    def start(self, fraction, log_dispersion, detection, scale):
        return _logit(detection)[:, None], np.zeros_like(log_dispersion)

    def per_value(self, mean, std, detection):
        # One standard deviation of the value is one of [count > 0], sqrt(p (1 - p)); d logit = d p / (p (1 - p)).
        return np.minimum(1.0 / np.sqrt(detection * (1.0 - detection)), MAX_GAIN) / std

    def nll(self, outputs, log_dispersion, truth):
        logit = outputs[..., 0]
        return jax.nn.softplus(logit) - logit * (truth.counts > 0)

    def predict(self, outputs, log_dispersion):
        probability = jax.nn.sigmoid(outputs[..., 0])
        return Prediction(probability, jnp.sqrt(probability * (1.0 - probability)))

    def expected_counts(self, outputs, log_dispersion):
        return jax.nn.sigmoid(outputs[..., 0])


class Bins(Likelihood):
    """scBERT's bins, as classes."""

    scale = "bin"

    @property
    def num_outputs(self) -> int:
        return self.config.num_bins

    def start(self, fraction, log_dispersion, detection, scale):
        return np.zeros((len(fraction), self.num_outputs), np.float32), np.zeros_like(log_dispersion)

    def nll(self, outputs, log_dispersion, truth):
        relative = relative_expression(truth.counts, truth.library_size, self.config.target_sum, jnp)
        bins = expression_bins(relative, self.config.num_bins, jnp)
        log_probability = jax.nn.log_softmax(outputs)
        return -jnp.take_along_axis(log_probability, bins[..., None], axis=-1)[..., 0]

    def predict(self, outputs, log_dispersion):
        log_probability = jax.nn.log_softmax(outputs)
        return _prediction(*_expectation(log_probability, jnp.arange(self.config.num_bins, dtype=jnp.float32)))

    def expected_counts(self, outputs, log_dispersion):
        bins = jax.nn.softmax(outputs) @ jnp.arange(self.config.num_bins, dtype=jnp.float32)
        return jnp.expm1(bins * float(np.log(2.0))) * self.median_library / self.config.target_sum


class BinsAndMask(Bins):
    """The same with the mask as a last class, which is never right: scBERT predicts any of its seven tokens."""

    @property
    def num_outputs(self) -> int:
        return self.config.num_bins + 1

    def predict(self, outputs, log_dispersion):
        return super().predict(outputs[..., :-1], log_dispersion)

    def expected_counts(self, outputs, log_dispersion):
        return super().expected_counts(outputs[..., :-1], log_dispersion)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "negative_binomial": NegativeBinomial,
    "negative_binomial_of_cell": NegativeBinomialOfCell,
    "negative_binomial_background": NegativeBinomialBackground,
    "gaussian_log1p": GaussianLog1p,
    "gaussian_clr": GaussianClr,
    "bernoulli": Bernoulli,
    "bins": Bins,
    "bins_and_mask": BinsAndMask,
}


def make_likelihood(
    name: str, modality: str, config: ModalityConfig, statistics: FeatureStatistics | None, rows: tuple[int, int]
) -> Likelihood:
    """The likelihood `name` of a modality whose features are `rows` (first, one past the last) of the statistics."""
    if statistics is None:
        return LIKELIHOODS[name](config, (config.target_sum,) * len(LIBRARY_QUANTILES), 1.0)
    libraries = tuple(float(size) for size in statistics.library_quantiles[MODALITIES.index(modality)])
    # The g for which a cell of usual values has the median library size.
    geometric_mean = libraries[len(libraries) // 2] / float(np.expm1(statistics.clr_mean[slice(*rows)]).sum() + 1e-8)
    return LIKELIHOODS[name](config, libraries, geometric_mean)


def _log_mean(outputs: jax.Array, library_size: jax.Array | float) -> jax.Array:
    """Log of library * sigmoid(output 0). Not of the product: it would underflow, and a count above 0 would no longer
    pull an output up that has fallen too far."""
    return jnp.log(jnp.maximum(library_size, 1.0)) + jax.nn.log_sigmoid(outputs[..., 0])


def _logit(fraction: np.ndarray) -> np.ndarray:
    return np.log(fraction) - np.log1p(-fraction)


def _expectation(log_probability: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First and second moment of `values` [G] under unnormalised log probabilities [..., G] per unit of the grid."""
    if log_probability.shape[-1] == len(_GRID):
        log_probability = log_probability + jax.lax.broadcast_to_rank(jnp.log(_GRID_WIDTH), log_probability.ndim)
    probability = jax.nn.softmax(log_probability)
    return probability @ values, probability @ values**2


def _over_libraries(of_library, libraries: tuple[float, ...]) -> Prediction:
    """Moments averaged over library sizes, one after the other to bound memory."""
    first, second = jax.lax.map(of_library, jnp.asarray(libraries, jnp.float32))
    return _prediction(first.mean(0), second.mean(0))


def _prediction(first: jax.Array, second: jax.Array) -> Prediction:
    return Prediction(first, jnp.sqrt(jnp.maximum(second - first**2, 1e-12)))
