"""Scores of a predicted modality against the measured one; each works in blocks, so that 25,000 peaks fit.

RMSE and both Pearson means follow `metrics`; for peaks, AUROC and average precision are means over peaks that enough
test cells have open and closed. Depth is a trap there: cells with more fragments have more of *every* peak open, so a
method that knows or guesses only a cell's depth scores well. `depth_strata` takes that away: a pair of an open and a
closed cell counts only if both are of the same depth. `told_depth` gives it to all: every method is told how many peaks
of the test cell are open, so that what is left between them is which.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from scmbert_jax.evaluation.metrics import mean_pearson, rmse

Array = np.ndarray

_BLOCK = 1024  # features, or cells, that are held in float64 at a time
CELLS_PER_STRATUM = 50


@dataclass(frozen=True)
class PeakScores:
    """Means over the peaks scored.

    Attributes:
      auroc: area under the ROC curve per peak, ties count half.
      auprc: average precision per peak (the area under the precision-recall steps, equal scores taken as one step).
      auroc_same_depth: AUROC over pairs of cells of the same depth.
      auroc_told_depth: AUROC of `told_depth`. A trap: no user knows it.
      open_rate: mean fraction of open cells of the scored peaks: the AUPRC of a method that knows nothing.
      num_peaks: peaks scored.
    """

    auroc: float
    auprc: float
    auroc_same_depth: float
    auroc_told_depth: float
    open_rate: float
    num_peaks: int


def root_mean_squared_error(truth: Array, predicted: Array) -> float:
    """RMSE over cells x features, both float [n, F], computed over blocks of cells."""
    squares = [rmse(truth[rows], predicted[rows]) ** 2 * (rows.stop - rows.start) for rows in _blocks(len(truth))]
    return float(np.sqrt(sum(squares) / len(truth)))


def mean_pearson_in_blocks(truth: Array, predicted: Array, *, per: str) -> float:
    """`metrics.mean_pearson` of float [n, F] arrays: constant cells or features count as 0."""
    if truth.shape != predicted.shape or truth.size == 0:
        raise ValueError(f"a score compares two arrays of one shape, not empty: {truth.shape}, {predicted.shape}")
    total, number = 0.0, truth.shape[1 if per == "feature" else 0]
    for block in _blocks(number):
        part = (slice(None), block) if per == "feature" else (block, slice(None))
        total += mean_pearson(truth[part], predicted[part], per=per) * (block.stop - block.start)
    return total / number


def score_peaks(truth: Array, predicted: Array, depth: Array, min_cells: int = 20) -> PeakScores | None:
    """Scores of the peaks that at least `min_cells` cells have open, and as many closed.

    Args:
      truth: bool or 0/1 [n, F], open or not.
      predicted: float [n, F]; only the order of a peak's cells matters.
      depth: float [n], open peaks (or fragments) of each cell in the whole target modality.
      min_cells: 1 takes every peak with both classes.

    Returns:
      None where no peak qualifies.
    """
    if truth.shape != predicted.shape or depth.shape != truth.shape[:1]:
        raise ValueError(f"truth {truth.shape}, predicted {predicted.shape}, depth {depth.shape}: want [n, F] and [n]")
    is_open = np.asarray(truth) > 0
    number = is_open.sum(0)
    peaks = np.flatnonzero((number >= min_cells) & (len(is_open) - number >= min_cells))
    if peaks.size == 0:
        return None
    strata = depth_strata(depth)
    told = told_depth(predicted, is_open.sum(1))
    found: list[tuple[Array, ...]] = []
    for block in _blocks(peaks.size):
        y, scores = is_open[:, peaks[block]], np.asarray(predicted[:, peaks[block]], np.float64)
        with_depth = auroc(y, told[:, peaks[block]])
        found.append((auroc(y, scores), average_precision(y, scores), auroc(y, scores, strata), with_depth))
    roc, precision, same_depth, with_depth = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return PeakScores(
        float(roc.mean()),
        float(precision.mean()),
        float(np.nanmean(same_depth)) if np.isfinite(same_depth).any() else float("nan"),
        float(with_depth.mean()),
        float((number[peaks] / len(is_open)).mean()),
        int(peaks.size),
    )


def auroc(truth: Array, scores: Array, strata: Array | None = None) -> Array:
    """Area under the ROC curve of each column, by ranks (Mann-Whitney): ties count half.

    Args:
      truth: bool [n, F]; scores: float [n, F].
      strata: int [n]; given, only pairs (open, closed) within a stratum are compared.

    Returns:
      float64 [F]: the fraction of pairs that are ordered rightly; nan where a column has no such pair.
    """
    groups = np.zeros(len(truth), np.int64) if strata is None else strata
    won = np.zeros(truth.shape[1])
    pairs = np.zeros(truth.shape[1])
    for group in np.unique(groups):
        rows = groups == group
        y = truth[rows]
        positives = y.sum(0)
        ranks = rankdata(scores[rows], axis=0)  # average rank of ties
        won += (ranks * y).sum(0) - positives * (positives + 1) / 2
        pairs += positives * (len(y) - positives)
    return np.where(pairs > 0, won / np.maximum(pairs, 1), np.nan)


def average_precision(truth: Array, scores: Array) -> Array:
    """Average precision of each column: sum over thresholds of (recall gained) x precision, as scikit-learn defines it.

    Args:
      truth: bool [n, F], at least one True per column; scores: float [n, F].

    Returns:
      float64 [F].
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    hits = np.take_along_axis(truth, order, axis=0)
    ranked = np.take_along_axis(scores, order, axis=0)
    number = len(scores)
    place = np.arange(number)[:, None]
    # Cells of equal score enter together: all of them get the precision at the last of their group.
    last = np.vstack([ranked[1:] != ranked[:-1], np.ones((1, ranked.shape[1]), bool)])
    end = np.minimum.accumulate(np.where(last, place, number)[::-1], axis=0)[::-1]
    precision = np.take_along_axis(hits.cumsum(0), end, axis=0) / (end + 1)
    return (precision * hits).sum(0) / hits.sum(0)


def told_depth(predicted: Array, num_open: Array) -> Array:
    """Predicted probabilities, shifted cell by cell in log odds until they add up to the peaks that are open.

    Args:
      predicted: float [n, F] probabilities; below 1e-4 and above 1 - 1e-4 (linear models) they are clipped first.
      num_open: [n], open peaks of each cell among the F.

    Returns:
      float32 [n, F]; Newton's method on sum_j sigmoid(logit p_ij + b_i) = num_open_i, to within 1 percent or so.
    """
    told = np.empty(predicted.shape, np.float32)
    wanted = np.clip(np.asarray(num_open, np.float64), 0.5, predicted.shape[1] - 0.5)
    for rows in _blocks(len(predicted), 256):
        p = np.clip(predicted[rows].astype(np.float64), 1e-4, 1 - 1e-4)
        logits = np.log(p / (1 - p))
        shift = np.log(wanted[rows] / p.sum(1))[:, None]
        for _ in range(8):
            p = 1 / (1 + np.exp(-(logits + shift)))
            miss = p.sum(1) - wanted[rows]
            shift -= np.clip(miss / np.maximum((p * (1 - p)).sum(1), 1e-9), -2, 2)[:, None]
        told[rows] = 1 / (1 + np.exp(-(logits + shift)))
    return told


def depth_strata(depth: Array) -> Array:
    """int [n]: cells in order of depth, about `CELLS_PER_STRATUM` to a stratum; equal depths stay together."""
    order = rankdata(depth, method="min") - 1
    num_strata = max(1, round(len(depth) / CELLS_PER_STRATUM))
    return (order * num_strata // max(1, len(depth))).astype(np.int64)


def _blocks(number: int, size: int = _BLOCK) -> list[slice]:
    return [slice(start, min(start + size, number)) for start in range(0, number, size)]
