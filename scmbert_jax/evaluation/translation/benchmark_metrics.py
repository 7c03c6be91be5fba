"""Metrics of public benchmarks, as their organisers define them; they differ from ours in what a constant scores.

OpenProblems (the NeurIPS 2021 competition's "predict modality" and its successor, Open Problems v2)
    On the normalised values of the test cells, cells x features.
    rmse, mae                          over all entries
    mean_pearson_per_cell, _per_gene   mean of the correlations of rows, of columns
    mean_spearman_per_cell, _per_gene  the same of ranks (ties share their mean rank)
    overall_pearson, overall_spearman  of all entries as one vector (v2 only)
    A row, a column or a whole without variance on either side counts as correlation 0.

Kaggle 2022 (Open Problems - Multimodal Single-Cell Integration)
    For each cell the Pearson correlation of its true and predicted values over its features (genes of a Multiome cell,
    proteins of a CITE-seq cell); the score is the mean over all cells of both technologies. A cell whose predictions
    are all the same scores -1.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from scmbert_jax.evaluation.translation.metrics import mean_pearson_in_blocks

Array = np.ndarray

OPENPROBLEMS_METRICS = (
    *("rmse", "mae", "mean_pearson_per_cell", "mean_spearman_per_cell"),
    *("mean_pearson_per_gene", "mean_spearman_per_gene", "overall_pearson", "overall_spearman"),
)
_ROWS = 2048


def openproblems_scores(truth: Array, predicted: Array) -> dict[str, float]:
    """metric -> figure, `OPENPROBLEMS_METRICS` in order, of float [n cells, F] normalised values.

    Raises ValueError when the shapes differ, or a prediction is not finite.
    """
    _check(truth, predicted)
    error = predicted.astype(np.float64) - truth
    rows, columns = (_ranks(truth, 1), _ranks(predicted, 1)), (_ranks(truth, 0), _ranks(predicted, 0))
    found = {
        "rmse": np.sqrt(np.mean(error**2)),
        "mae": np.mean(np.abs(error)),
        "mean_pearson_per_cell": mean_pearson_in_blocks(truth, predicted, per="cell"),
        "mean_spearman_per_cell": mean_pearson_in_blocks(*rows, per="cell"),
        "mean_pearson_per_gene": mean_pearson_in_blocks(truth, predicted, per="feature"),
        "mean_spearman_per_gene": mean_pearson_in_blocks(*columns, per="feature"),
        "overall_pearson": mean_pearson_in_blocks(truth.reshape(1, -1), predicted.reshape(1, -1), per="cell"),
        "overall_spearman": mean_pearson_in_blocks(_overall_ranks(truth), _overall_ranks(predicted), per="cell"),
    }
    return {name: float(found[name]) for name in OPENPROBLEMS_METRICS}


def kaggle_correlations(truth: Array, predicted: Array) -> Array:
    """float64 [n]: Pearson correlation of each cell's F values; -1 for a cell whose predictions are all the same.

    Raises ValueError when the shapes differ, a prediction is not finite, or a cell's truth is constant (the competition
    has no such cell, and says nothing of it).
    """
    _check(truth, predicted)
    if (np.ptp(truth, axis=1) == 0).any():
        raise ValueError(f"cell {int(np.argmax(np.ptp(truth, axis=1) == 0))}: its true values are all the same")
    found = np.empty(len(truth))
    for start in range(0, len(truth), _ROWS):
        a, b = (part[start : start + _ROWS].astype(np.float64) for part in (truth, predicted))
        constant = np.ptp(b, axis=1) == 0
        a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
        scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
        correlation = (a * b).sum(1) / np.where(constant, 1.0, scale)
        found[start : start + _ROWS] = np.where(constant, -1.0, correlation)
    return found


def kaggle_score(correlations: Sequence[Array]) -> float:
    """The competition's score: the mean over all cells of all technologies (not the mean of their means)."""
    return float(np.concatenate(list(correlations)).mean())


def _check(truth: Array, predicted: Array) -> None:
    if truth.shape != predicted.shape or truth.ndim != 2 or truth.size == 0:
        raise ValueError(f"true values {truth.shape} and predictions {predicted.shape}: expected the same [n, F]")
    if not np.isfinite(predicted).all():
        raise ValueError("predictions hold nan or infinite values")


def _ranks(values: Array, axis: int) -> Array:
    return np.asarray(rankdata(values, axis=axis), np.float32)


def _overall_ranks(values: Array) -> Array:
    # Ranks of millions of entries need all digits of float64.
    return np.asarray(rankdata(values, axis=None), np.float64).reshape(1, -1)
