"""A PCA of whole cells, fitted to masked values: meant to be hard to beat.

Principal components are those of whole training cells. A cell's scores are what its visible tokens say of them (the
posterior mean of a probabilistic PCA of which most values are missing: Tipping and Bishop 1999, Ilin and Raiko 2010),
of all modalities that the cell has. Every feature then has a generalised linear model of the scores and of the cell's
rate: output = bias + scores @ weights + rate. It starts from the reconstruction by the feature's loadings, and leaves
it by what a ridge penalty of `strength` lets the masked tokens of the training cells say. The number of components, the
scale of the reconstruction and the strength are those that do best on a fifth of the training cells that the fit has
not seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from data_pipelines.statistics.cell_counts import CellCounts
from data_pipelines.statistics.principal_components import principal_components
from scmbert_jax.evaluation.pretraining.masked_training import (
    CHOOSING_TOKENS,
    MaskedModality,
    MaskedTraining,
    Measured,
    Outputs,
    measured_of,
    parameters_of,
    some_tokens,
    token_nll,
)
from scmbert_jax.evaluation.pretraining.masked_values import CellTokens
from scmbert_jax.models.likelihoods import Bins, Likelihood
from scmbert_jax.text_table import modality_name
from scmbert_jax.value_scales import linear_values

Array = np.ndarray

PCA = "PCA, ridge"

COMPONENTS = (8, 16, 32, 64)
RECONSTRUCTION_SCALES = (0.0, 0.25, 0.5, 1.0, 1.5)
STRENGTHS = (3.0, 10.0, 30.0, 100.0, 300.0)
_FIT_TOKENS = 600_000
_ITERATIONS = 40
_FEWEST_TOKENS = 10  # of a feature, for weights of its own: others keep those of the reconstruction


@dataclass(frozen=True)
class Choice:
    """What was chosen for a modality: components, the scale of the reconstruction, the strength of the ridge."""

    components: int
    scale: float
    strength: float


class PcaRidge:
    """The baseline (`masked_baselines.MaskedBaseline`). `choices`: of each modality."""

    name, metric = PCA, "bits_pca"

    def __init__(self, training: MaskedTraining):
        self._training, tokens, num_cells = training, training.tokens, len(training.cells.folds)
        self._modalities = {
            name: _OfModality(own, training.cells.modalities[name], tokens[name])
            for name, own in training.modalities.items()
        }
        draws = 1 + max(int(own.cells.max()) for own in tokens.values()) // num_cells
        held_out = np.tile(np.random.default_rng(0).permutation(num_cells) % 5 == 0, draws)
        inputs = {number: self._inputs(tokens, num_cells * draws, number) for number in COMPONENTS}
        self.choices: dict[str, Choice] = {}
        self._fits: dict[str, Outputs] = {}
        for name, own in self._modalities.items():
            self.choices[name], self._fits[name] = own.fit(tokens[name], inputs, held_out)

    def _inputs(self, tokens: Mapping[str, CellTokens], num_cells: int, components: int) -> Array:
        """float32 [cells, modalities * components], scores of all modalities side by side."""
        parts = [
            own.visible_scores(tokens[name], num_cells, components)
            if name in tokens
            else np.zeros((num_cells, components), np.float32)
            for name, own in self._modalities.items()
        ]
        return np.concatenate(parts, axis=1)

    def nll(self, tokens: Mapping[str, CellTokens], num_cells: int) -> dict[str, Array]:
        inputs = {number: self._inputs(tokens, num_cells, number) for number in COMPONENTS}
        found = {}
        for name, own in tokens.items():
            modality = self._training.modalities[name]
            x = np.concatenate([inputs[self.choices[name].components], modality.of_cells(own, num_cells)], axis=1)
            found[name] = modality.nll(self._fits[name], x, own.at(own.masked))
        return found

    def notes(self) -> list[str]:
        chosen = [
            f"{modality_name(name)}, {PCA}: {choice.components} components, reconstruction scaled by {choice.scale:g}, "
            f"strength {choice.strength:g}: the best on a fifth of the training cells."
            for name, choice in self.choices.items()
        ]
        return [
            f"{PCA}: components of training cells, scores from the visible tokens of all modalities, then one "
            "generalised linear model per feature with a ridge penalty; fitted on the same task on "
            f"{len(self._training.cells.folds):,} training cells.",
            *chosen,
        ]


class _OfModality:
    """The components of one modality, and the fit on top of them."""

    def __init__(self, own: MaskedModality, cells: CellCounts, tokens: CellTokens):
        self.own = own
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
        count = np.bincount(visible.features, minlength=self.own.num_features)
        self.centre = (np.bincount(visible.features, values, minlength=self.own.num_features) + overall) / (count + 1.0)
        self.noise = float(np.mean((values - self.centre[visible.features]) ** 2)) + 1e-3 if len(values) else 1.0
        mean = np.asarray(matrix.sum(axis=0)).ravel() / np.maximum(number, 1)
        squares = np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel() / np.maximum(number, 1)
        std = np.sqrt(np.maximum(squares - mean**2, 0.0) + 1e-2)
        self.per_value = self.own.likelihood.per_value(mean, std, np.clip(self.typical, 1e-3, 1 - 1e-3))

    def _values(self, counts: Array, library_size: Array, mean_log_count: Array, features: Array) -> Array:
        typical = self.median_library if self.own.name == "rna" else self.typical[features]
        return linear_values(self.own.name, counts.astype(float), library_size, mean_log_count, typical, np)

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
        outputs = self.own.likelihood.num_outputs
        towards = np.arange(outputs, dtype=float) if isinstance(self.own.likelihood, Bins) else np.eye(outputs)[0]
        weights = np.zeros((self.own.num_features, num_inputs + 2, outputs))
        if number:
            loadings = self.directions[:, :number] * self.deviations[0] * self.per_value[:, None] * scale
            first = self.own.place * components
            weights[:, first : first + number] = loadings[..., None] * towards
        weights[:, -2:] = self.own.rated.weights
        return weights

    def fit(self, tokens: CellTokens, inputs: Mapping[int, Array], held_out: Array) -> tuple[Choice, Outputs]:
        """Args: all tokens of the training draws; components -> scores of all modalities [cells, P]; bool [cells]."""
        of_cells = self.own.of_cells(tokens, len(held_out))
        masked = some_tokens(tokens.at(tokens.masked), _FIT_TOKENS)
        choosing = some_tokens(masked, CHOOSING_TOKENS)
        asked = choosing.at(held_out[choosing.cells])
        given = choosing.at(~held_out[choosing.cells])
        if not len(asked.cells):
            asked = given = choosing

        def start(components: int, scale: float) -> tuple[Array, Outputs]:
            x = np.concatenate([inputs[components], of_cells], axis=1)
            weights = self._reconstruction(components, inputs[components].shape[1], scale)
            return x, self.own.rated._replace(weights=weights)

        def error(x: Array, outputs: Outputs) -> float:
            return float(self.own.nll(outputs, x, asked).sum())

        shapes = [(components, scale) for components in inputs for scale in RECONSTRUCTION_SCALES]
        components, scale = min(shapes, key=lambda shape: error(*start(*shape)))
        x, begin = start(components, scale)
        strength = min(STRENGTHS, key=lambda strength: error(x, self._fitted(begin, x, given, strength)))
        return Choice(components, scale, strength), self._fitted(begin, x, masked, strength)

    def _fitted(self, begin: Outputs, x: Array, tokens: CellTokens, strength: float) -> Outputs:
        """`begin`, but for features of enough tokens the minimum of nll + strength / 2 * |parameters - begin|^2."""
        number = np.bincount(tokens.features, minlength=self.own.num_features)
        features = np.flatnonzero(number >= _FEWEST_TOKENS)
        own = tokens.at(number[tokens.features] >= _FEWEST_TOKENS)
        if not len(features):
            return begin
        first = parameters_of(begin, features)
        place = np.searchsorted(features, own.features)
        found = _minimise(self.own.likelihood, first, place, x[own.cells], measured_of(own), strength)
        changed = Outputs(*(np.array(array, np.float64) for array in begin))
        for whole, part in zip(changed, found, strict=True):
            whole[features] = part
        return changed


@partial(jax.jit, static_argnums=0)
def _penalised(
    likelihood: Likelihood,
    parameters: Outputs,
    begin: Outputs,
    place: Array,
    x: Array,
    measured: Measured,
    strength: float,
) -> tuple[jax.Array, Outputs]:
    """Value and gradient by `parameters`."""

    def loss(parameters: Outputs) -> jax.Array:
        of = jax.tree.map(lambda array: array[place], parameters)
        away = jax.tree.map(lambda now, then: ((now - then) ** 2).sum(), parameters, begin)
        return token_nll(likelihood, of, x, measured).sum() + strength / 2 * sum(jax.tree.leaves(away))

    return jax.value_and_grad(loss)(parameters)


def _minimise(
    likelihood: Likelihood, begin: Outputs, place: Array, x: Array, measured: Measured, strength: float
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
