"""What stands beside a model's masked values: each feature alone, the cell's rate, and a PCA fitted to the very task.

All of them are fitted on training cells whose tokens are drawn and hidden as those of the held-out cells are, and all
speak through the likelihood of the modality, so their bits and the model's are of one kind. What they predict is of the
cell; zeros are rarer among its tokens by a factor that is known, and allowed for (`nll_of_token`). Without that they
were no match for the decoder of `whole_profile`, for which it is allowed for, too: a fifth of a bit per token was the
shape of the likelihood alone. Bins are of tokens, as the model's.

The second multiplies by a rate of the cell, and by a power of the number of features that were measured: a panel of
few features has larger fractions.

The third is meant to be hard to beat. Principal components are those of whole training cells. A cell's scores are what
its visible tokens say of them (the posterior mean of a probabilistic PCA of which most values are missing: Tipping and
Bishop 1999, Ilin and Raiko 2010), of all modalities that the cell has. Every feature then has a generalised linear
model of the scores and of the cell's rate: output = bias + scores @ weights + rate. It starts from the reconstruction
by the feature's loadings, and leaves it by what a ridge penalty of `strength` lets the masked tokens of the training
cells say. The number of components, the scale of the reconstruction and the strength are those that do best on a fifth
of the training cells that the fit has not seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from data_pipelines.statistics.cell_counts import CellCounts, WholeCells
from data_pipelines.statistics.feature_statistics import DrawnTokens, cell_statistics, token_statistics
from data_pipelines.statistics.principal_components import principal_components
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
from scmbert_jax.value_scales import linear_values

Array = np.ndarray

MARGINAL, CELL_RATE, PCA = "each feature alone", "the cell's rate", "PCA, ridge"

COMPONENTS = (8, 16, 32, 64)
RECONSTRUCTION_SCALES = (0.0, 0.25, 0.5, 1.0, 1.5)
STRENGTHS = (3.0, 10.0, 30.0, 100.0, 300.0)
SHRINKAGES = (1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
_FIT_TOKENS, _CHOOSING_TOKENS = 600_000, 150_000
_ITERATIONS = 40
_FEWEST_TOKENS = 10  # of a feature, for weights of its own: others keep those of the reconstruction


class _Outputs(NamedTuple):
    """Parameters of a modality's F features: bias [F, J], weights [F, P, J], log_dispersion [F]."""

    bias: Array
    weights: Array
    log_dispersion: Array


class _Measured(NamedTuple):
    """Of tokens: what likelihoods are asked for, and `CellTokens.log_rarer`."""

    truth: Truth
    log_rarer: jax.Array


@dataclass(frozen=True)
class Choice:
    """What was chosen for a modality: components, the scale of the reconstruction, the strength of the ridge."""

    components: int
    scale: float
    strength: float


class MaskedBaselines:
    """The baselines of every modality, fitted on training cells.

    Args:
      config, layout: the model's: what its tokens and likelihoods are.
      cells: N training cells, whole.
      tokens: modality -> their tokens as drawn and hidden for training, `cells` 0 .. D N - 1 for D draws of the cells
        in their order.

    Raises `InputError` where a modality of the model has no token among them.
    """

    def __init__(
        self, config: ExperimentConfig, layout: FeatureLayout, cells: WholeCells, tokens: Mapping[str, CellTokens]
    ):
        num_cells = len(cells.folds)
        for name in config.modalities.in_use():
            if name not in tokens or not tokens[name].masked.any():
                raise InputError(
                    f"training cells: none of them has a {name} value, which the model predicts; baselines need some. "
                    "Give cells that measured it."
                )
        self._features = {
            name: _Modality(name, config, layout, cells.modalities[name], tokens[name])
            for name in config.modalities.in_use()
        }
        draws = 1 + max(int(own.cells.max()) for own in tokens.values()) // num_cells
        held_out = np.tile(np.random.default_rng(0).permutation(num_cells) % 5 == 0, draws)
        inputs = {number: self._inputs(tokens, num_cells * draws, number) for number in COMPONENTS}
        self.choices: dict[str, Choice] = {}
        self._fits: dict[str, _Outputs] = {}
        for name, own in self._features.items():
            self.choices[name], self._fits[name] = own.fit_pca(tokens[name], inputs, held_out)

    def _inputs(self, tokens: Mapping[str, CellTokens], num_cells: int, components: int) -> Array:
        """float32 [cells, modalities * components], scores of all modalities side by side."""
        parts = [
            own.visible_scores(tokens[name], num_cells, components)
            if name in tokens
            else np.zeros((num_cells, components), np.float32)
            for name, own in self._features.items()
        ]
        return np.concatenate(parts, axis=1)

    def nll(self, tokens: Mapping[str, CellTokens], num_cells: int) -> dict[str, dict[str, Array]]:
        """Modality -> baseline -> float64 [masked tokens], nats, in the order of `tokens`."""
        inputs = {number: self._inputs(tokens, num_cells, number) for number in COMPONENTS}
        found = {}
        for name, own in tokens.items():
            mine, masked = self._features[name], own.at(own.masked)
            x = np.concatenate([inputs[self.choices[name].components], mine.of_cells(own, num_cells)], axis=1)
            found[name] = {
                MARGINAL: mine.nll(mine.alone, np.zeros((num_cells, 0), np.float32), masked),
                CELL_RATE: mine.rate_nll(own, num_cells),
                PCA: mine.nll(self._fits[name], x, masked),
            }
        return found


class _Modality:
    """One modality: the marginal model, rates, components, and the fit on top of them."""

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
        self.alone = _Outputs(bias, np.zeros((self.num_features, 0, bias.shape[1])), log_dispersion)
        self._fit_rate(tokens)
        # Components of whole cells, of the values that linear models of this modality use.
        self.median_library = max(float(np.median(cells.library_size)), 1.0)
        number = np.bincount(cells.panel_of, minlength=len(cells.panels)) @ cells.panels
        self.typical = np.asarray((cells.counts > 0).sum(axis=0)).ravel() / np.maximum(number, 1)
        matrix, of_cell = cells.counts.copy(), np.repeat(np.arange(len(cells.cells)), np.diff(cells.counts.indptr))
        matrix.data = self._values(
            matrix.data, cells.library_size[of_cell], cells.mean_log_count[of_cell], matrix.indices
        )
        loadings, scores, *_ = principal_components(matrix, cells.panels, cells.panel_of)
        length = np.linalg.norm(loadings, axis=0)
        used = length > 0
        # Unit vectors, and the standard deviation of the cells along each.
        self.directions = loadings[:, used] / length[used]
        self.deviations = scores[:, used].std(axis=0) / length[used]
        visible = tokens.at(~tokens.masked)
        values = self._values_of(visible)
        overall = values.mean() if len(values) else 0.0
        count = np.bincount(visible.features, minlength=self.num_features)
        self.centre = (np.bincount(visible.features, values, minlength=self.num_features) + overall) / (count + 1.0)
        self.noise = float(np.mean((values - self.centre[visible.features]) ** 2)) + 1e-3 if len(values) else 1.0
        mean = np.asarray(matrix.sum(axis=0)).ravel() / np.maximum(number, 1)
        squares = np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel() / np.maximum(number, 1)
        std = np.sqrt(np.maximum(squares - mean**2, 0.0) + 1e-2)
        self.per_value = self.likelihood.per_value(mean, std, np.clip(self.typical, 1e-3, 1 - 1e-3))

    # --------------------------------------------------------------------------------------- each feature, each cell

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
        some = _some(masked, _CHOOSING_TOKENS)
        x, of = self.of_cells(tokens, num_cells)[some.cells], _at(self.alone, some.features)

        def error(given: Array) -> tuple[float, Array]:
            found, gradient = _of_all(self.likelihood, jnp.asarray(given, jnp.float32), of, x, _measured(some))
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

    # ------------------------------------------------------------------------------------------------ components

    def _values(self, counts: Array, library_size: Array, mean_log_count: Array, features: Array) -> Array:
        typical = self.median_library if self.name == "rna" else self.typical[features]
        return linear_values(self.name, counts.astype(float), library_size, mean_log_count, typical, np)

    def _values_of(self, tokens: CellTokens) -> Array:
        return self._values(tokens.counts, tokens.library_size, tokens.mean_log_count, tokens.features)

    def visible_scores(self, tokens: CellTokens, num_cells: int, components: int) -> Array:
        """float32 [cells, components]: posterior means of the first component scores, in units of the first's spread.

        Components beyond those there are stay 0.
        """
        number = min(components, len(self.deviations))
        found = np.zeros((num_cells, components), np.float32)
        if number == 0:
            return found
        deviations = self.deviations[:number]
        scaled = self.directions[:, :number] * deviations
        seen = tokens.at(~tokens.masked)
        residual = self._values_of(seen) - self.centre[seen.features]
        starts = np.searchsorted(seen.cells, np.arange(num_cells + 1))
        for cell in np.unique(seen.cells).tolist():
            mine = slice(starts[cell], starts[cell + 1])
            own = scaled[seen.features[mine]]
            precision = own.T @ own / self.noise
            precision[np.diag_indices(number)] += 1.0
            found[cell, :number] = np.linalg.solve(precision, own.T @ residual[mine] / self.noise)
        found[:, :number] *= deviations / deviations[0]
        return found

    def _reconstruction(self, components: int, num_inputs: int, scale: float) -> Array:
        """Weights [F, num_inputs + 2, J] by which scores and `of_cells` enter before the ridge."""
        number = min(components, len(self.deviations))
        outputs = self.likelihood.num_outputs
        towards = np.arange(outputs, dtype=float) if isinstance(self.likelihood, Bins) else np.eye(outputs)[0]
        weights = np.zeros((self.num_features, num_inputs + 2, outputs))
        if number:
            loadings = self.directions[:, :number] * self.deviations[0] * self.per_value[:, None] * scale
            first = self.place * components
            weights[:, first : first + number] = loadings[..., None] * towards
        weights[:, -2:] = self.rated.weights
        return weights

    # ------------------------------------------------------------------------------------------------------- fit

    def fit_pca(self, tokens: CellTokens, inputs: Mapping[int, Array], held_out: Array) -> tuple[Choice, _Outputs]:
        """Args: all tokens of the training draws; components -> scores of all modalities [cells, P]; bool [cells]."""
        of_cells = self.of_cells(tokens, len(held_out))
        masked = _some(tokens.at(tokens.masked), _FIT_TOKENS)
        choosing = _some(masked, _CHOOSING_TOKENS)
        asked = choosing.at(held_out[choosing.cells])
        given = choosing.at(~held_out[choosing.cells])
        if not len(asked.cells):
            asked = given = choosing

        def start(components: int, scale: float) -> tuple[Array, _Outputs]:
            x = np.concatenate([inputs[components], of_cells], axis=1)
            weights = self._reconstruction(components, inputs[components].shape[1], scale)
            return x, self.rated._replace(weights=weights)

        def error(x: Array, outputs: _Outputs) -> float:
            return float(self.nll(outputs, x, asked).sum())

        shapes = [(components, scale) for components in inputs for scale in RECONSTRUCTION_SCALES]
        components, scale = min(shapes, key=lambda shape: error(*start(*shape)))
        x, begin = start(components, scale)
        strength = min(STRENGTHS, key=lambda strength: error(x, self._fitted(begin, x, given, strength)))
        return Choice(components, scale, strength), self._fitted(begin, x, masked, strength)

    def _fitted(self, begin: _Outputs, x: Array, tokens: CellTokens, strength: float) -> _Outputs:
        """`begin`, but for features of enough tokens the minimum of nll + strength / 2 * |parameters - begin|^2."""
        number = np.bincount(tokens.features, minlength=self.num_features)
        features = np.flatnonzero(number >= _FEWEST_TOKENS)
        own = tokens.at(number[tokens.features] >= _FEWEST_TOKENS)
        if not len(features):
            return begin
        first = _at(begin, features)
        place = np.searchsorted(features, own.features)
        found = _minimise(self.likelihood, first, place, x[own.cells], _measured(own), strength)
        changed = _Outputs(*(np.array(array, np.float64) for array in begin))
        for whole, part in zip(changed, found, strict=True):
            whole[features] = part
        return changed

    def nll(self, outputs: _Outputs, x: Array, tokens: CellTokens) -> Array:
        """float64 [n] of `tokens`; x [cells, P]."""
        parts = []
        for first in range(0, len(tokens.cells), 1 << 17):
            own = CellTokens(*(column[first : first + (1 << 17)] for column in tokens))
            of = _at(outputs, own.features)
            parts.append(np.asarray(_nll(self.likelihood, of, x[own.cells], _measured(own)), np.float64))
        return np.concatenate([*parts, np.zeros(0)])


def _some(tokens: CellTokens, most: int) -> CellTokens:
    """At most so many of the tokens, drawn by chance, in their order."""
    if len(tokens.cells) <= most:
        return tokens
    return tokens.at(np.sort(np.random.default_rng(0).choice(len(tokens.cells), most, replace=False)))


def _at(outputs: _Outputs, features: Array) -> _Outputs:
    return _Outputs(*(np.asarray(array[features], np.float32) for array in outputs))


def _measured(tokens: CellTokens) -> _Measured:
    truth = Truth(*map(jnp.asarray, (tokens.counts, tokens.library_size, tokens.mean_log_count)))
    return _Measured(truth, jnp.asarray(tokens.log_rarer))


def _nll(likelihood: Likelihood, of: _Outputs, x: Array, measured: _Measured) -> jax.Array:
    """[n]; `of` [n, J], [n, P, J], [n]: the parameters of each token's feature."""
    outputs = jnp.asarray(of.bias + jnp.einsum("np,npj->nj", x, of.weights))
    log_dispersion = jnp.clip(jnp.asarray(of.log_dispersion), *LOG_DISPERSION_BOUNDS)
    if isinstance(likelihood, Bins):
        return likelihood.nll(outputs, log_dispersion, measured.truth)
    return nll_of_token(likelihood, outputs, log_dispersion, *measured)


@partial(jax.jit, static_argnums=0)
@partial(jax.value_and_grad, argnums=1)
def _of_all(likelihood: Likelihood, given: jax.Array, of: _Outputs, x: Array, measured: _Measured) -> jax.Array:
    """nll and its gradient by `given` [3]: weights of `of_cells` on output 0, what is added to log dispersions."""
    outputs = jnp.asarray(of.bias).at[:, 0].add(x @ given[:2])
    log_dispersion = jnp.clip(of.log_dispersion + given[2], *LOG_DISPERSION_BOUNDS)
    return nll_of_token(likelihood, outputs, log_dispersion, *measured).sum()


@partial(jax.jit, static_argnums=0)
def _penalised(
    likelihood: Likelihood,
    parameters: _Outputs,
    begin: _Outputs,
    place: Array,
    x: Array,
    measured: _Measured,
    strength: float,
) -> tuple[jax.Array, _Outputs]:
    """Value and gradient by `parameters`."""

    def loss(parameters: _Outputs) -> jax.Array:
        of = jax.tree.map(lambda array: array[place], parameters)
        away = jax.tree.map(lambda now, then: ((now - then) ** 2).sum(), parameters, begin)
        return _nll(likelihood, of, x, measured).sum() + strength / 2 * sum(jax.tree.leaves(away))

    return jax.value_and_grad(loss)(parameters)


def _minimise(
    likelihood: Likelihood, begin: _Outputs, place: Array, x: Array, measured: _Measured, strength: float
) -> Sequence[Array]:
    """By L-BFGS; convex in bias and weights."""
    flat, back = jax.flatten_util.ravel_pytree(begin)

    def value(parameters: Array) -> tuple[float, Array]:
        now = back(jnp.asarray(parameters, jnp.float32))
        found, gradient = _penalised(likelihood, now, begin, place, x, measured, strength)
        return float(found), np.asarray(jax.flatten_util.ravel_pytree(gradient)[0], np.float64)

    options = {"maxiter": _ITERATIONS, "maxcor": 5}
    done = scipy.optimize.minimize(value, np.asarray(flat, np.float64), jac=True, method="L-BFGS-B", options=options)
    return back(jnp.asarray(done.x, jnp.float32))
