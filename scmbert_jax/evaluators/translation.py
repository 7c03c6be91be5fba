"""`translation`: one modality of held-out cells predicted from another, beside the mean of the training cells.

Of each direction that the run trains, over the held-out cells that measured both, on the scale of the target's
likelihood (models/likelihoods.py), over the features that were measured (of many, the 2,048 that are most often
detected):

A_to_B/rmse                    root of the mean squared error
A_to_B/rmse_linear_path_alone  the same without encoder and decoder, of a model that has a linear path
A_to_B/rmse_of_mean            the same of predicting each feature's mean
A_to_B/cells                   how many cells

Its likelihoods are among the metrics of `loss`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from data_pipelines.statistics.cell_counts import CellCounts
from scmbert_jax.evaluators.inputs import CannotEvaluate, EvaluatorInputs
from scmbert_jax.feature_layout import FeatureStatistics
from scmbert_jax.models.token_sequence import CutBatch
from scmbert_jax.objectives.cross_modal_translation.objective import CrossModalTranslation
from scmbert_jax.scmbert import ScMbert
from scmbert_jax.value_scales import clr_values, log1p_values

_MOST_FEATURES = 2048
_FEATURES_AT_A_TIME = 1024


class _Direction(NamedTuple):
    """cells int64 [n]; of `target`: features int32 [m] (rows of the feature table), truth float32 [n, m], mean float32
    [m], measured bool [n, m]."""

    source: str
    target: str
    cells: np.ndarray
    features: np.ndarray
    truth: np.ndarray
    mean: np.ndarray
    measured: np.ndarray


class _Translation:
    def __init__(self, inputs: EvaluatorInputs):
        directions = [
            _direction(inputs, source, target) for source, target in CrossModalTranslation(inputs.config).directions
        ]
        self._directions = [found for found in directions if found is not None]
        if not self._directions:
            raise CannotEvaluate("no held-out cell measured both modalities of a direction that the run trains")
        self._predict = [inputs.over_whole_cells(_predictions(found)) for found in self._directions]

    def __call__(self, step: int, params: Any, constants: Any) -> Mapping[str, float]:
        values = {}
        for found, predict in zip(self._directions, self._predict, strict=True):
            name = f"{found.source}_to_{found.target}"
            for ending, of_cells in predict.items():
                values[f"{name}/rmse{ending}"] = _rmse(of_cells(params, constants)[found.cells], found)
            values[f"{name}/rmse_of_mean"] = _rmse(found.mean, found)
            values[f"{name}/cells"] = float(len(found.cells))
        return values


def _direction(inputs: EvaluatorInputs, source: str, target: str) -> _Direction | None:
    counts, layout = inputs.data.whole_cells.modalities, inputs.model.layout
    if source not in counts or target not in counts or layout.statistics is None:
        return None
    shown = counts[source].cells[counts[source].library_size > 0]
    own = counts[target]
    cells = np.intersect1d(shown, own.cells[own.library_size > 0])
    if not len(cells):
        return None
    first, stop = layout.slices[target]
    features = np.sort(np.argsort(-layout.statistics.cell_detection[first:stop], kind="stable")[:_MOST_FEATURES])
    rows = np.searchsorted(own.cells, cells)
    measured = own.panels[:, features][own.panel_of[rows]]
    if not measured.any():
        return None
    likelihood = inputs.model.translation_likelihood(target)
    return _Direction(
        source,
        target,
        cells,
        (first + features).astype(np.int32),
        _on_scale(likelihood.scale, likelihood.median_library, own, rows, features),
        _mean_on_scale(likelihood.scale, layout.statistics, first + features),
        measured,
    )


def _on_scale(scale: str, median_library: float, own: CellCounts, rows: np.ndarray, features: np.ndarray) -> np.ndarray:
    """float32 [n, m]: what was measured, as the likelihood predicts it."""
    counts = sp.csr_matrix(own.counts[rows][:, features]).toarray()
    if scale == "probability":
        return (counts > 0).astype(np.float32)
    if scale == "log1p":
        return log1p_values(counts, own.library_size[rows, None], median_library).astype(np.float32)
    return clr_values(counts, own.mean_log_count[rows, None]).astype(np.float32)


def _mean_on_scale(scale: str, statistics: FeatureStatistics, rows: np.ndarray) -> np.ndarray:
    means = {"log1p": statistics.log1p_mean, "clr": statistics.clr_mean, "probability": statistics.cell_detection}
    return means[scale][rows]


def _predictions(direction: _Direction) -> Any:
    width = min(len(direction.features), _FEATURES_AT_A_TIME)
    parts = np.resize(direction.features, (-(-len(direction.features) // width), width))  # the last one is filled up

    def predictions(model: ScMbert, table: jax.Array, batch: CutBatch) -> jax.Array:
        found = model.translate(table, batch, direction.source, direction.target, jnp.asarray(parts))
        return found.value[:, : len(direction.features)]

    return predictions


def _rmse(predicted: np.ndarray, direction: _Direction) -> float:
    errors = np.square(predicted.astype(np.float64) - direction.truth)
    return float(np.sqrt(errors[direction.measured].mean()))


def make(inputs: EvaluatorInputs) -> _Translation:
    if inputs.config.objectives.cross_modal_translation.weight == 0:
        raise CannotEvaluate("the run does not train cross_modal_translation")
    return _Translation(inputs)
