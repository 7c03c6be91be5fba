"""Probabilities that mean what they say, and sets of types that hold the true one as often as they say.

Temperature scaling: Guo et al. 2017. Class-wise conformal sets: a type is in the set of a cell unless the cell looks
less like it than all but the least typical of held-out cells of that type (Sadinle, Lei and Wasserman 2019). They hold
for each type by itself, where cells to be labelled are like those held out.

The most probable type is in every set. So the cells of a type that are told as such anyway count as held by their sets,
and the type is added to sets of others only as far as that is not enough: sets are as small as they can be, and types
that are nearly always right are in more sets than they were asked to be.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from scmbert_jax.annotation.linear_head import marginal_nll
from scmbert_jax.errors import ConfigError

Array = np.ndarray

_NUM_BINS = 15  # of the expected calibration error
_HOTTEST = 20.0  # and coldest, 1 / 20: beyond that a classifier has learned nothing, or all


def fit_temperature(logits: Array, membership: Array) -> float:
    """What held-out logits [n, L] are divided by for the least `marginal_nll`; 1 where there are no cells."""
    if not len(logits):
        return 1.0
    bound = float(np.log(_HOTTEST))
    found = minimize_scalar(
        lambda log_t: marginal_nll(logits / np.exp(log_t), membership), bounds=(-bound, bound), method="bounded"
    )
    return float(np.exp(found.x))


def probabilities_of(logits: Array, temperature: float = 1.0) -> Array:
    """float64 [n, L], rows that sum to 1."""
    return softmax(np.asarray(logits, np.float64) / temperature, axis=1)


@dataclass(frozen=True)
class ConformalSets:
    """Which types a cell may be of.

    Attributes:
      coverage: the fraction of the cells of a type whose sets are to hold it.
      thresholds: float64 [L]; a type is in the set of a cell whose probability of it is at least so high; above 1: only
        where it is the most probable.
      pooled: bool [L]; types of too few held-out cells for a threshold of their own, which have that of all types.
      with_the_best: the most probable type is in every set. Else sets may be empty, and hold the truth of exactly as
        many cells as were asked for.
    """

    coverage: float
    thresholds: Array
    pooled: Array
    with_the_best: bool = True

    @classmethod
    def of(
        cls, probabilities: Array, membership: Array, coverage: float, *, with_the_best: bool = True
    ) -> "ConformalSets":
        """Of held-out cells: probabilities float [n, L], membership bool [n, L]; cells of coarse labels say nothing.

        Raises `ConfigError` for a coverage that is not between 0 and 1.
        """
        check_coverage(coverage)
        single = membership.sum(1) == 1
        codes, own = membership[single].argmax(1), probabilities[single][membership[single]]
        if with_the_best:
            own = own + (probabilities[single].argmax(1) == codes)
        of_all = _threshold(own, coverage)
        found = [_threshold(own[codes == leaf], coverage) for leaf in range(membership.shape[1])]
        # Too few cells even together: whatever has any probability is in the set.
        pooled = np.array([threshold is None for threshold in found], bool)
        thresholds = np.array([(of_all or 0.0) if threshold is None else threshold for threshold in found])
        return cls(coverage, thresholds, pooled, with_the_best)

    def __call__(self, probabilities: Array) -> Array:
        """bool [n, L] of probabilities float [n, L]."""
        found = probabilities >= self.thresholds
        if self.with_the_best:
            found[np.arange(len(found)), probabilities.argmax(1)] = True
        return found


def check_coverage(coverage: float) -> None:
    """Raises `ConfigError` for a coverage that is not between 0 and 1."""
    if not 0 < coverage < 1:
        raise ConfigError(
            f"coverage {coverage}: expected a fraction between 0 and 1, such as 0.9 of the cells of a type."
        )


def fewest_cells(coverage: float) -> int:
    """Held-out cells of a type below which it has no threshold of its own: 9 for a coverage of 90%."""
    number = 1
    while np.ceil((number + 1) * coverage) > number:
        number += 1
    return number


def _threshold(own: Array, coverage: float) -> float | None:
    """What `coverage` of the cells of a type reach, with the correction for a finite number; None for too few."""
    rank = int(np.ceil((len(own) + 1) * coverage))
    return None if rank > len(own) else float(np.sort(own)[len(own) - rank])


# --- how good probabilities are --------------------------------------------------------------------------------------


def expected_calibration_error(confidence: Array, right: Array, bins: int = _NUM_BINS) -> float:
    """Mean of |accuracy - mean confidence| over `bins` bins of equal width, weighted by their cells.

    Args: float [n] in [0, 1]; bool [n].
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    number = np.bincount(place, minlength=bins)
    gap = np.bincount(place, np.asarray(right, float) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / max(number.sum(), 1))


def brier_score(probabilities: Array, codes: Array) -> float:
    """Mean over cells of the squared distance between probabilities [n, L] and the truth (0 is best, 2 is worst)."""
    truth = np.eye(probabilities.shape[1])[codes]
    return float(((probabilities - truth) ** 2).sum(1).mean())


class Rejection(NamedTuple):
    """Of the most confident cells: fraction kept, and accuracy among them; float64 [n], most confident first."""

    kept: Array
    accuracy: Array


def accuracy_rejection(confidence: Array, right: Array) -> Rejection:
    """Accuracy where the least confident cells are left unlabelled. Float [n]; bool [n]."""
    order = np.argsort(-np.asarray(confidence), kind="stable")
    number = np.arange(1, len(order) + 1)
    return Rejection(number / len(order), np.cumsum(np.asarray(right, float)[order]) / number)
