"""Intervals: Student's t over seeds, and a paired bootstrap over cells for differences between methods.

They answer different questions. Over seeds: would other random numbers (training subsample, token sampling,
initialisation) change the figure? Over cells: would another sample of test cells change it?
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

Array = np.ndarray


class SeedInterval(NamedTuple):
    """mean +- half_width over `number` seeds; half_width is nan for a single seed (unknown, not zero)."""

    mean: float
    half_width: float
    number: int


class CellInterval(NamedTuple):
    """A point estimate with the percentile interval [low, high] of a bootstrap over cells."""

    mean: float
    low: float
    high: float


def student_t_interval(values: Array, confidence: float = 0.95) -> SeedInterval:
    """mean +- t_{(1+confidence)/2, n-1} * s / sqrt(n), s with n - 1 in the denominator.

    Args:
      values: float [n], one figure per seed.

    Raises:
      ValueError: no value, or one that is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"an interval over seeds wants a list of finite figures, not {values!r}")
    number = values.size
    if number == 1:
        return SeedInterval(float(values[0]), float("nan"), 1)
    half = stats.t.ppf((1 + confidence) / 2, number - 1) * values.std(ddof=1) / np.sqrt(number)
    return SeedInterval(float(values.mean()), float(half), number)


def bootstrap_weights(num_cells: int, num_resamples: int, rng: np.random.Generator) -> Array:
    """float64 [num_resamples, num_cells]: how often each cell is drawn when num_cells are drawn with replacement."""
    return rng.multinomial(num_cells, np.full(num_cells, 1 / num_cells), size=num_resamples).astype(np.float64)


def percentile_interval(point: float, resampled: Array, confidence: float = 0.95) -> CellInterval:
    """The percentile interval of bootstrap values `resampled` float [R] around the estimate `point`."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return CellInterval(float(point), float(low), float(high))


def paired_bootstrap(
    first: Array, second: Array, *, seed: int, num_resamples: int = 2000, confidence: float = 0.95
) -> CellInterval:
    """The mean difference first - second per cell, cells resampled together (so that what they share cancels).

    Args:
      first, second: float or bool [n], a per-cell score of two methods on the same cells (1 where right, say).

    Returns:
      Mean difference with its percentile interval (Efron and Tibshirani 1993, chapter 13).
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 1 or first.size == 0:
        raise ValueError(f"a paired bootstrap wants one score per cell twice; found {first.shape}, {second.shape}")
    difference = first - second
    weights = bootstrap_weights(difference.size, num_resamples, np.random.default_rng(seed))
    return percentile_interval(difference.mean(), weights @ difference / difference.size, confidence)
