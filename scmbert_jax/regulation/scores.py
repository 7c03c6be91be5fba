"""How good outputs are: Matthews correlation, accuracy, AUROC, AUPRC; of values correlations and the root mean square.

Each with the 95% interval of a bootstrap over sequences. Of several labels or values the mean over those that vary.
Sequences are not independent where they overlap or repeat each other: intervals are then too narrow.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from scmbert_jax.regulation.labelled import Task

Array = np.ndarray

RESAMPLES = 500
_RESAMPLES_AT_ONCE = 4_000_000  # numbers


class Interval(NamedTuple):
    """An estimate, and the interval in which 95% of its bootstrap values lie."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def scores(
    task: Task, targets: Array, outputs: Array, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """Name of a score -> its interval.

    Args:
      targets: float32 [N, T]; outputs: float32 [N, K] of a model (`labelled`).
      seed: of the bootstrap, the same for every model of the same sequences, so that they compare.
      resamples: of the bootstrap; 0: no interval (low and high are nan).

    binary, classes: mcc, accuracy, auroc, auprc (of classes one against the others, mean). labels: auroc, auprc, mcc at
    even odds, means over labels. values: pearson, spearman, rmse; pearson and spearman are means over values.
    """
    found = {name: _interval(score, len(targets), seed, resamples) for name, score in _of(task, targets, outputs)}
    return {name: interval for name, interval in found.items() if np.isfinite(interval.value)}


def _of(task: Task, targets: Array, outputs: Array) -> list[tuple[str, Callable[[Array], Array]]]:
    """(name, weights float64 [R, N] -> float64 [R])."""
    if task.kind == "values":
        return [
            ("pearson", _mean([_correlation(t, o) for t, o in _columns(targets, outputs)])),
            ("spearman", _mean([_correlation(_ranks(t), _ranks(o)) for t, o in _columns(targets, outputs)])),
            ("rmse", _mean([_root_mean_square(t, o) for t, o in _columns(targets, outputs)])),
        ]
    if task.kind == "labels":
        columns = _columns(targets, outputs)
        return [
            ("auroc", _mean([_auroc(t, o) for t, o in columns])),
            ("auprc", _mean([_auprc(t, o) for t, o in columns])),
            ("mcc", _mean([_matthews(t, (o > 0).astype(np.float64), 2) for t, o in columns])),
        ]
    truth = targets[:, 0].astype(np.int64)
    called = (outputs[:, 0] > 0).astype(np.int64) if task.kind == "binary" else outputs.argmax(1)
    several = [(truth == place, outputs[:, place]) for place in range(outputs.shape[1])]
    each = [(truth == 1, outputs[:, 0])] if task.kind == "binary" else several
    return [
        ("mcc", _matthews(truth, called, len(task.names))),
        ("accuracy", lambda weights: weights @ (truth == called) / weights.sum(1)),
        ("auroc", _mean([_auroc(t, o) for t, o in each])),
        ("auprc", _mean([_auprc(t, o) for t, o in each])),
    ]


def _columns(targets: Array, outputs: Array) -> list[tuple[Array, Array]]:
    return [(targets[:, place], outputs[:, place]) for place in range(targets.shape[1])]


def _interval(score: Callable[[Array], Array], number: int, seed: int, resamples: int) -> Interval:
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(score(np.ones((1, number)))[0])
        rng, values = np.random.default_rng(seed), []
        rows = max(1, _RESAMPLES_AT_ONCE // number)
        for first in range(0, resamples, rows):
            size = min(rows, resamples - first)
            values.append(score(rng.multinomial(number, np.full(number, 1 / number), size=size).astype(np.float64)))
    drawn = np.concatenate(values) if values else np.zeros(0)
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
    return Interval(value, float(low), float(high))


def _mean(each: list[Callable[[Array], Array]]) -> Callable[[Array], Array]:
    """The mean over columns, without those in which nothing varies (nan)."""

    def mean(weights: Array) -> Array:
        found = np.stack([one(weights) for one in each])
        known = np.isfinite(found)
        return np.where(known, found, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)

    return mean


def _matthews(truth: Array, called: Array, classes: int) -> Callable[[Array], Array]:
    """Gorodkin 2004, equation 2: (s c - sum_k p_k t_k) / sqrt((s^2 - sum p_k^2) (s^2 - sum t_k^2)); of two classes
    Matthews'. Rows that are nan do not count; 0 where all are called alike."""
    known = ~np.isnan(truth)
    is_class = (truth[:, None] == np.arange(classes)) & known[:, None]
    is_called = (called[:, None] == np.arange(classes)) & known[:, None]

    def score(weights: Array) -> Array:
        total, right = weights @ known, weights @ (is_class & is_called).sum(1)
        own, given = weights @ is_class, weights @ is_called
        above = total * right - (own * given).sum(1)
        below = (total**2 - (given**2).sum(1)) * (total**2 - (own**2).sum(1))
        return np.where(below > 0, above / np.sqrt(np.where(below > 0, below, 1)), 0.0)

    return score


def _auroc(truth: Array, outputs: Array) -> Callable[[Array], Array]:
    """The probability that a positive is above a negative; ties count half. nan without one of either."""
    known = ~np.isnan(truth.astype(np.float64))
    positive = (truth == 1) & known
    order = np.argsort(outputs, kind="stable")
    _, group = np.unique(outputs[order], return_inverse=True)
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])

    def score(weights: Array) -> Array:
        own = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
        others = np.add.reduceat((weights * (known & ~positive))[:, order], starts, axis=1)
        below = np.cumsum(others, axis=1) - others / 2
        return (own * below).sum(1) / (own.sum(1) * others.sum(1))

    return score


def _auprc(truth: Array, outputs: Array) -> Callable[[Array], Array]:
    """Average precision, sum over thresholds of (step of recall) x precision. nan without a positive."""
    known = ~np.isnan(truth.astype(np.float64))
    positive = (truth == 1) & known
    order = np.argsort(-outputs, kind="stable")
    ends = np.flatnonzero(np.r_[outputs[order][1:] != outputs[order][:-1], True])

    def score(weights: Array) -> Array:
        own = np.cumsum((weights * positive)[:, order], axis=1)[:, ends]
        called = np.cumsum((weights * known)[:, order], axis=1)[:, ends]
        precision = own / np.where(called > 0, called, 1)
        return (np.diff(own, axis=1, prepend=0) * precision).sum(1) / own[:, -1]

    return score


def _ranks(values: Array) -> Array:
    """Ranks among those that are known. In a resample they stay those of all, as is usual for the bootstrap of ranks
    of so many rows: the difference is of the order of 1 / N."""
    found = np.full(len(values), np.nan)
    known = ~np.isnan(values)
    found[known] = rankdata(values[known])
    return found


def _correlation(truth: Array, outputs: Array) -> Callable[[Array], Array]:
    """Pearson's, of the rows that are known; nan where one side does not vary."""
    known = np.isfinite(truth) & np.isfinite(outputs)
    a, b = (np.where(known, values, 0).astype(np.float64) for values in (truth, outputs))
    varies = known.any() and np.ptp(a[known]) > 0 and np.ptp(b[known]) > 0
    a, b = (np.where(known, values - values[known].mean(), 0) if varies else values for values in (a, b))

    def score(weights: Array) -> Array:
        if not varies:
            return np.full(len(weights), np.nan)
        total = weights @ known
        mean_a, mean_b = weights @ a / total, weights @ b / total
        both = weights @ (a * b) / total - mean_a * mean_b
        return both / np.sqrt((weights @ a**2 / total - mean_a**2) * (weights @ b**2 / total - mean_b**2))

    return score


def _root_mean_square(truth: Array, outputs: Array) -> Callable[[Array], Array]:
    known = np.isfinite(truth)
    squares = np.where(known, (np.where(known, truth, 0) - outputs) ** 2, 0)
    return lambda weights: np.sqrt(weights @ squares / np.maximum(weights @ known, 1e-12))
