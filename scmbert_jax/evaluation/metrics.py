"""Scores, each defined once: classification, regression, matching of paired cells.

Labels are integer codes 0 .. num_classes-1. Every function is a pure function of its arrays.
"""

import numpy as np
from scipy.spatial.distance import cdist

Array = np.ndarray


def accuracy(truth: Array, predicted: Array, weights: Array | None = None) -> Array:
    """Fraction of cells whose class is right.

    Args:
      truth: int [n] codes.
      predicted: int [n] codes.
      weights: optional float [..., n], how often each cell counts (bootstrap resamples); every cell once by default.

    Returns:
      float64 [...], one accuracy per leading row of `weights` (a 0-d array without weights).

    Raises:
      ValueError: the shapes differ or there is no cell.
    """
    truth, predicted = _pair(truth, predicted)
    weights = np.ones(truth.size) if weights is None else weights
    return np.asarray((weights @ (truth == predicted)) / weights.sum(-1))


def macro_f1(truth: Array, predicted: Array, num_classes: int, weights: Array | None = None) -> Array:
    """Mean F1 over the classes that occur in `truth`.

    Convention for absent classes: a class without a true cell is left out of the mean, whatever was predicted (cells
    wrongly given to it lower the recall of their own class). So the denominator does not depend on the predictions and
    methods compare on the same classes; scikit-learn's default, which also averages over classes that were only
    predicted, is lower or equal. A class that is never predicted has F1 = 0. With weights, a class whose cells all have
    weight 0 is absent in that resample.

    Args:
      truth: int [n] codes; predicted: int [n] codes; num_classes: codes are 0 .. num_classes-1.
      weights: optional float [..., n], as in `accuracy`.

    Returns:
      float64 [...], F1_c = 2 TP / (2 TP + FP + FN), averaged over classes c with at least one true cell.
    """
    truth, predicted = _pair(truth, predicted)
    weights = np.ones(truth.size) if weights is None else weights
    classes = np.arange(num_classes)
    is_class, called = truth[:, None] == classes, predicted[:, None] == classes  # [n, C]
    hits = weights @ (is_class & called)  # [..., C]
    support, calls = weights @ is_class, weights @ called
    f1 = 2 * hits / np.maximum(support + calls, np.finfo(float).tiny)  # 2 TP + FP + FN = support + calls
    return np.asarray((f1 * (support > 0)).sum(-1) / (support > 0).sum(-1))


def rmse(truth: Array, predicted: Array) -> float:
    """Root of the mean squared error over cells x features. Both float [n, f], in the normalised target's units."""
    truth, predicted = _pair(truth, predicted)
    return float(np.sqrt(np.mean((truth.astype(np.float64) - predicted.astype(np.float64)) ** 2)))


def mean_pearson(truth: Array, predicted: Array, *, per: str) -> float:
    """Mean Pearson correlation per cell (over its features) or per feature (over the cells).

    A cell or feature with zero variance on either side counts as correlation 0, so that a constant prediction scores 0
    and cannot hide by being left out.

    Args:
      truth, predicted: float [n cells, f features].
      per: "cell" or "feature".
    """
    truth, predicted = _pair(truth, predicted)
    if per not in ("cell", "feature") or truth.ndim != 2:
        raise ValueError(f"mean_pearson wants per='cell' or 'feature' and [n, f] arrays, not {per!r}, {truth.shape}")
    axis = 1 if per == "cell" else 0
    a, b = truth.astype(np.float64), predicted.astype(np.float64)
    # Exactly constant rows are found before centring: the mean of equal numbers need not be that number in floats.
    varies = (np.ptp(a, axis=axis) > 0) & (np.ptp(b, axis=axis) > 0)
    a, b = a - a.mean(axis, keepdims=True), b - b.mean(axis, keepdims=True)
    scale = np.sqrt((a**2).sum(axis) * (b**2).sum(axis))
    varies &= scale > 0
    return float(np.mean(np.where(varies, (a * b).sum(axis) / np.where(varies, scale, 1.0), 0.0)))


def foscttm(a: Array, b: Array, *, distance: str = "euclidean") -> float:
    """Fraction of samples closer than the true match, mean of both directions (0 is best, 0.5 is random).

    For cell i of `a`: how many cells of `b` are *strictly* closer than b[i], over n - 1; and the same from b to a.

    Args:
      a: float [n, d] cells seen in one modality; row i of `b` (float [n, d]) is the same cell in the other.
      distance: "euclidean" or "cosine".

    Raises:
      ValueError: the shapes differ, or there are fewer than two cells.
    """
    return float(foscttm_of_cells(a, b, distance=distance).mean())


def foscttm_of_cells(a: Array, b: Array, *, distance: str = "euclidean") -> Array:
    """float64 [n]: each cell's part of FOSCTTM, both directions; their mean is `foscttm`. For errors per type."""
    forward, backward = _number_closer(a, b, distance)
    return (forward + backward) / 2 / (len(a) - 1)


def recall_at_k(a: Array, b: Array, k: int, *, distance: str = "euclidean") -> float:
    """Fraction of cells whose partner is among the k nearest, mean of both directions.

    The partner is among the k nearest when fewer than k cells are strictly closer (the ties of FOSCTTM). Random: k / n.
    """
    if not 1 <= k <= len(a):
        raise ValueError(f"recall@k wants 1 <= k <= number of cells ({len(a)}), not k={k}")
    forward, backward = _number_closer(a, b, distance)
    return float(((forward < k).mean() + (backward < k).mean()) / 2)


def _number_closer(a: Array, b: Array, distance: str, rows: int = 512) -> tuple[Array, Array]:
    """Cells strictly closer than the partner: int [n] from a to b, int [n] from b to a; memory O(rows x n)."""
    a, b = _pair(np.asarray(a, np.float64), np.asarray(b, np.float64))
    number = len(a)
    if number < 2 or distance not in ("euclidean", "cosine"):
        raise ValueError(f"matching wants two cells or more and a known distance; found {number} cells, {distance!r}")
    if distance == "cosine":  # on the unit sphere both distances order alike
        a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(float).tiny) for x in (a, b))
    starts = range(0, number, rows)
    # cdist subtracts before squaring, pair by pair: equal vectors have equal distances, so ties stay ties.
    own = np.concatenate([np.diagonal(cdist(a[i : i + rows], b[i : i + rows])) for i in starts])
    forward, backward = np.zeros(number, np.int64), np.zeros(number, np.int64)
    for start in starts:
        block = cdist(a[start : start + rows], b)  # [rows, n]
        forward[start : start + rows] = (block < own[start : start + rows, None]).sum(1)
        backward += (block < own[None, :]).sum(0)
    return forward, backward


def _pair(truth: Array, predicted: Array) -> tuple[Array, Array]:
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape or truth.size == 0:
        raise ValueError(f"a score compares two arrays of one shape, not empty; found {truth.shape}, {predicted.shape}")
    return truth, predicted
