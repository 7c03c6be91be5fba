"""What training cells say of each modality, before any component: each feature alone, and the rate of a cell.

What is predicted is of the cell; zeros are rarer among its tokens by a factor that is known, and allowed for
(`nll_of_token`). Without that these were no match for the decoder of `whole_profile`, for which it is allowed for, too:
a fifth of a bit per token was the shape of the likelihood alone. Bins are of tokens, as the model's.

A cell's rate multiplies, with a power of the number of features that were measured: a panel of few features has larger
fractions.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from data_pipelines.statistics.cell_counts import CellCounts, WholeCells
from data_pipelines.statistics.feature_statistics import DrawnTokens, cell_statistics, token_statistics
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.pretraining.masked_values import CellTokens, levels_of
from scmbert_jax.evaluation.pretraining.profile_tokens import nll_of_token
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.models.likelihoods import (
    LOG_DISPERSION_BOUNDS,
    Bernoulli,
    Bins,
    Likelihood,
    NegativeBinomial,
    Truth,
    make_likelihood,
)

Array = np.ndarray

SHRINKAGES = (1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
CHOOSING_TOKENS = 150_000


class Outputs(NamedTuple):
    """Parameters of a modality's F features: bias [F, J], weights [F, P, J], log_dispersion [F]."""

    bias: Array
    weights: Array
    log_dispersion: Array


class Measured(NamedTuple):
    """Of tokens: what likelihoods are asked for, and `CellTokens.log_rarer`."""

    truth: Truth
    log_rarer: jax.Array


class MaskedTraining:
    """What baselines of masked values are fitted on.

    Attributes:
      config, layout: the model's: what its tokens and likelihoods are.
      cells: N training cells, whole.
      tokens: modality -> their tokens as drawn and hidden for training, `cells` 0 .. D N - 1 for D draws of the cells
        in their order.
      modalities: modality -> what is known of its features alone, and of the rate of a cell.

    Raises `InputError` where a modality of the model has no token among them.
    """

    def __init__(
        self, config: ExperimentConfig, layout: FeatureLayout, cells: WholeCells, tokens: Mapping[str, CellTokens]
    ):
        self.config, self.layout, self.cells, self.tokens = config, layout, cells, tokens
        for name in config.modalities.in_use():
            if name not in tokens or not tokens[name].masked.any():
                raise InputError(
                    f"training cells: none of them has a {name} value, which the model predicts; baselines need some. "
                    "Give cells that measured it."
                )
        self.modalities = {
            name: MaskedModality(name, config, layout, cells.modalities[name], tokens[name])
            for name in config.modalities.in_use()
        }


class MaskedModality:
    """One modality.

    Attributes:
      likelihood: by which its values are scored.
      alone: parameters of each feature by itself; rated: the same with the weights of `of_cells`.
    """

    def __init__(
        self, name: str, config: ExperimentConfig, layout: FeatureLayout, cells: CellCounts, tokens: CellTokens
    ):
        self.name, self.config = name, config.modalities.in_use()[name]
        self.likelihood = make_likelihood(
            self.config.likelihood, name, self.config, layout.statistics, layout.slices[name]
        )
        self.place = tuple(config.modalities.in_use()).index(name)
        self.num_features = cells.counts.shape[1]
        self.zeros = config.objectives.masked_modeling.mask_zeros
        eligible = self._eligible(tokens)
        drawn = DrawnTokens(eligible.features, eligible.counts.astype(float), eligible.library_size.astype(float))
        fraction, log_dispersion, detection = token_statistics(drawn, self.num_features)
        self.fraction, self.detection, self.dispersion = fraction, detection, log_dispersion
        if isinstance(self.likelihood, Bins):
            bias, log_dispersion = self._log_frequencies(eligible), log_dispersion
        else:
            bias, log_dispersion = self.likelihood.start(*cell_statistics(cells), {})
        self.alone = Outputs(bias, np.zeros((self.num_features, 0, bias.shape[1])), log_dispersion)
        self._fit_rate(tokens)

    def _eligible(self, tokens: CellTokens) -> CellTokens:
        """Those that may be masked: what the marginal model is of, and what a rate compares with it."""
        return tokens if self.zeros else tokens.at(tokens.counts > 0)

    def _log_frequencies(self, tokens: CellTokens) -> Array:
        """float64 [F, bins]: of each feature's tokens, two tokens of the usual bins added."""
        number = self.likelihood.num_outputs
        place = tokens.features * number + levels_of(self.config, tokens)
        found = np.bincount(place, minlength=self.num_features * number).reshape(-1, number)
        usual = (found.sum(axis=0) + 0.5) / (found.sum() + 0.5 * number)
        return np.log(found + 2.0 * usual) - np.log(found.sum(axis=1, keepdims=True) + 2.0)

    def rate(self, tokens: CellTokens, num_cells: int) -> Array:
        """float64 [cells]: by how much a cell's visible tokens exceed what their features lead to expect.

        Counts: a log ratio. Open or closed: log odds. Both are one Newton step of the likelihood from 0, shrunk. Bins:
        the mean difference, shrunk. A cell of no visible token has 0.
        """
        seen = self._eligible(tokens.at(~tokens.masked))

        def sums(values: Array) -> Array:
            return np.bincount(seen.cells, values, minlength=num_cells)

        if isinstance(self.likelihood, NegativeBinomial):
            mean = seen.library_size * self.fraction[seen.features]
            weight = 1.0 / (1.0 + mean * np.exp(-self.dispersion[seen.features]))
            found = sums((seen.counts - mean) * weight) / (sums(mean * weight) + self.shrinkage)
        elif isinstance(self.likelihood, Bernoulli):
            p = self.detection[seen.features]
            found = sums((seen.counts > 0) - p) / (sums(p * (1.0 - p)) + self.shrinkage)
        else:
            frequencies = np.exp(self.alone.bias[seen.features])
            expected = (frequencies * np.arange(frequencies.shape[1])).sum(axis=1)
            found = sums(levels_of(self.config, seen) - expected) / (sums(np.ones(len(expected))) + self.shrinkage)
        return np.clip(found, -3.0, 3.0)

    def of_cells(self, tokens: CellTokens, num_cells: int) -> Array:
        """float32 [cells, 2]: the rate, and the log of how many features were measured, less its usual value."""
        log_measured = np.full(num_cells, self.usual)
        log_measured[tokens.cells] = np.log(np.maximum(tokens.num_measured, 1.0))
        return np.stack([self.rate(tokens, num_cells), log_measured - self.usual], axis=1).astype(np.float32)

    def _fit_rate(self, tokens: CellTokens) -> None:
        """By the masked tokens of the training draws: the shrinkage of the rate, the weights of `of_cells`, and one
        change of all dispersions, as a count varies less about a mean that knows its cell."""
        num_cells, masked = int(tokens.cells.max()) + 1, tokens.at(tokens.masked)
        self.usual = float(np.log(np.maximum(tokens.num_measured, 1.0)).mean())
        self.rated = self.alone._replace(weights=np.zeros((self.num_features, 2, self.alone.bias.shape[1])))
        if not isinstance(self.likelihood, Bins):
            self.rated.weights[:, 0, 0] = 1.0
        errors = [self.rate_nll(tokens, num_cells).sum() for self.shrinkage in SHRINKAGES]
        self.shrinkage = SHRINKAGES[int(np.argmin(errors))]
        if isinstance(self.likelihood, Bins):
            return
        some = some_tokens(masked, CHOOSING_TOKENS)
        x, of = self.of_cells(tokens, num_cells)[some.cells], parameters_of(self.alone, some.features)

        def error(given: Array) -> tuple[float, Array]:
            found, gradient = _of_all(self.likelihood, jnp.asarray(given, jnp.float32), of, x, measured_of(some))
            return float(found), np.asarray(gradient, np.float64)

        found = scipy.optimize.minimize(error, np.array([1.0, 0.0, 0.0]), jac=True, method="L-BFGS-B").x
        self.rated.weights[:, :, 0] = found[:2]
        self.rated = self.rated._replace(log_dispersion=self.alone.log_dispersion + found[2])

    def rate_nll(self, tokens: CellTokens, num_cells: int) -> Array:
        """Counts, open or closed: the feature's mean times the cell's rate. Bins: those of the cell's visible tokens
        and some of the usual bins, whatever the feature."""
        masked = tokens.at(tokens.masked)
        if not isinstance(self.likelihood, Bins):
            return self.nll(self.rated, self.of_cells(tokens, num_cells), masked)
        number, seen = self.likelihood.num_outputs, self._eligible(tokens.at(~tokens.masked))
        usual = np.exp(self.alone.bias).mean(axis=0)
        place = seen.cells * number + levels_of(self.config, seen)
        found = np.bincount(place, minlength=num_cells * number).reshape(-1, number)
        probability = (found + self.shrinkage * usual) / (found.sum(axis=1, keepdims=True) + self.shrinkage)
        return -np.log(probability[masked.cells, levels_of(self.config, masked)])

    def nll(self, outputs: Outputs, x: Array, tokens: CellTokens) -> Array:
        """float64 [n] of `tokens`; x [cells, P]."""
        parts = []
        for first in range(0, len(tokens.cells), 1 << 17):
            own = CellTokens(*(column[first : first + (1 << 17)] for column in tokens))
            of = parameters_of(outputs, own.features)
            parts.append(np.asarray(token_nll(self.likelihood, of, x[own.cells], measured_of(own)), np.float64))
        return np.concatenate([*parts, np.zeros(0)])


def some_tokens(tokens: CellTokens, most: int) -> CellTokens:
    """At most so many of the tokens, drawn by chance, in their order."""
    if len(tokens.cells) <= most:
        return tokens
    return tokens.at(np.sort(np.random.default_rng(0).choice(len(tokens.cells), most, replace=False)))


def parameters_of(outputs: Outputs, features: Array) -> Outputs:
    return Outputs(*(np.asarray(array[features], np.float32) for array in outputs))


def measured_of(tokens: CellTokens) -> Measured:
    truth = Truth(*map(jnp.asarray, (tokens.counts, tokens.library_size, tokens.mean_log_count)))
    return Measured(truth, jnp.asarray(tokens.log_rarer))


def token_nll(likelihood: Likelihood, of: Outputs, x: Array, measured: Measured) -> jax.Array:
    """[n]; `of` [n, J], [n, P, J], [n]: the parameters of each token's feature."""
    outputs = jnp.asarray(of.bias + jnp.einsum("np,npj->nj", x, of.weights))
    log_dispersion = jnp.clip(jnp.asarray(of.log_dispersion), *LOG_DISPERSION_BOUNDS)
    if isinstance(likelihood, Bins):
        return likelihood.nll(outputs, log_dispersion, measured.truth)
    return nll_of_token(likelihood, outputs, log_dispersion, *measured)


@partial(jax.jit, static_argnums=0)
@partial(jax.value_and_grad, argnums=1)
def _of_all(likelihood: Likelihood, given: jax.Array, of: Outputs, x: Array, measured: Measured) -> jax.Array:
    """nll and its gradient by `given` [3]: weights of `of_cells` on output 0, what is added to log dispersions."""
    outputs = jnp.asarray(of.bias).at[:, 0].add(x @ given[:2])
    log_dispersion = jnp.clip(of.log_dispersion + given[2], *LOG_DISPERSION_BOUNDS)
    return nll_of_token(likelihood, outputs, log_dispersion, *measured).sum()
