"""Cells of types that were not among the labelled ones: scores, higher for what is more novel.

    energy        -logsumexp of the logits (Liu et al. 2020)
    max_softmax   1 - the highest probability; above .5 is scBERT's "unassigned"
    mahalanobis   squared distance to the nearest type's mean, in units of the spread within types (Lee et al. 2018)
    knn           mean distance to the 10 nearest labelled cells
    combined      mahalanobis and max_softmax: cells far from all types, and cells between types

Each is a line of `SCORES`; a new one is a class with `fit` and `__call__` and a line there.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from scipy.special import logsumexp, softmax
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from scmbert_jax.errors import ConfigError

Array = np.ndarray

_NEIGHBOURS = 10
_MOST_REMEMBERED = 5000  # labelled cells that `knn` keeps
_TYPICAL = 0.1  # the novelty of the middle one of the held-out cells


class NoveltyScore(Protocol):
    """A dataclass whose fields are arrays, so that it can be kept in a file.

    Attributes:
      threshold: of the score, above which a cell is novel; None: a quantile of held-out cells.
    """

    threshold: ClassVar[float | None]

    @classmethod
    def fit(cls, vectors: Array, logits: Array, membership: Array) -> Self:
        """Of labelled cells: `OneScale` vectors [n, D], calibrated logits [n, L], membership bool [n, L]."""
        ...

    def __call__(self, vectors: Array, logits: Array) -> Array:
        """float64 [n], higher is more novel."""
        ...


@dataclass(frozen=True)
class Energy:
    threshold: ClassVar[float | None] = None

    @classmethod
    def fit(cls, vectors: Array, logits: Array, membership: Array) -> "Energy":
        return cls()

    def __call__(self, vectors: Array, logits: Array) -> Array:
        return -logsumexp(logits, axis=1)


@dataclass(frozen=True)
class MaxSoftmax:
    threshold: ClassVar[float | None] = 0.5

    @classmethod
    def fit(cls, vectors: Array, logits: Array, membership: Array) -> "MaxSoftmax":
        return cls()

    def __call__(self, vectors: Array, logits: Array) -> Array:
        return 1 - softmax(logits, axis=1).max(1)


@dataclass(frozen=True)
class Mahalanobis:
    """means: [L, D]; whitening: [D, D], vectors @ whitening have spread 1 within types."""

    means: Array
    whitening: Array
    threshold: ClassVar[float | None] = None

    @classmethod
    def fit(cls, vectors: Array, logits: Array, membership: Array) -> "Mahalanobis":
        single = membership.sum(1) == 1
        x, codes = vectors[single].astype(np.float64), membership[single].argmax(1)
        present = np.unique(codes)
        means = np.stack([x[codes == code].mean(0) for code in present])
        with threadpool_limits(1):
            covariance, _ = ledoit_wolf(x - means[np.searchsorted(present, codes)], assume_centered=True)
            variances, axes = np.linalg.eigh(covariance)
        floor = max(float(variances.max()), 1e-12) * 1e-6
        return cls(means, axes / np.sqrt(np.maximum(variances, floor)))

    def __call__(self, vectors: Array, logits: Array) -> Array:
        x, means = vectors @ self.whitening, self.means @ self.whitening
        nearest = np.full(len(x), np.inf)
        for mean in means:
            nearest = np.minimum(nearest, ((x - mean) ** 2).sum(1))
        return nearest


@dataclass(frozen=True)
class NearestCells:
    """remembered: float32 [m, D], labelled cells."""

    remembered: Array
    threshold: ClassVar[float | None] = None

    @classmethod
    def fit(cls, vectors: Array, logits: Array, membership: Array) -> "NearestCells":
        if len(vectors) <= _MOST_REMEMBERED:
            return cls(vectors.astype(np.float32))
        # As many of a rare type as of a frequent one, as far as it has them: a rare one is not to be taken for novel.
        of_type = membership.argmax(1)
        place = np.zeros(len(vectors), np.int64)  # of a cell among those of its type
        for code in np.unique(of_type):
            mine = np.flatnonzero(of_type == code)
            place[np.random.default_rng(0).permutation(mine)] = np.arange(len(mine))
        return cls(vectors[np.sort(np.argsort(place, kind="stable")[:_MOST_REMEMBERED])].astype(np.float32))

    def __call__(self, vectors: Array, logits: Array) -> Array:
        number = min(_NEIGHBOURS, len(self.remembered))
        with threadpool_limits(1):
            near = NearestNeighbors(n_neighbors=number, algorithm="brute").fit(self.remembered)
            return near.kneighbors(vectors.astype(np.float32))[0].mean(1).astype(np.float64)


@dataclass(frozen=True)
class Combined:
    """The mean of the logarithms of both scores, in standard deviations of the labelled cells' own.

    means, whitening: of `Mahalanobis`; centre, spread: [2], of the logarithms.
    """

    means: Array
    whitening: Array
    centre: Array
    spread: Array
    threshold: ClassVar[float | None] = None

    @classmethod
    def fit(cls, vectors: Array, logits: Array, membership: Array) -> "Combined":
        distance = Mahalanobis.fit(vectors, logits, membership)
        logs = _logs_of_both(distance, vectors, logits)
        return cls(distance.means, distance.whitening, logs.mean(0), np.maximum(logs.std(0), 1e-6))

    def __call__(self, vectors: Array, logits: Array) -> Array:
        logs = _logs_of_both(Mahalanobis(self.means, self.whitening), vectors, logits)
        return ((logs - self.centre) / self.spread).mean(1)


def _logs_of_both(distance: Mahalanobis, vectors: Array, logits: Array) -> Array:
    """float64 [n, 2]; a probability within 1e-4 of 1 is as good as 1."""
    both = np.stack([distance(vectors, logits), MaxSoftmax()(vectors, logits)], axis=1)
    return np.log(np.maximum(both, 1e-4))


SCORES: dict[str, type[Any]] = {
    "energy": Energy,
    "max_softmax": MaxSoftmax,
    "mahalanobis": Mahalanobis,
    "knn": NearestCells,
    "combined": Combined,
}


@dataclass(frozen=True)
class Novelty:
    """A score with its threshold.

    Attributes:
      name: of `SCORES`.
      score: the fitted one.
      threshold: above it, a cell is novel.
      spread: of the score, for `__call__`.
    """

    name: str
    score: Any
    threshold: float
    spread: float

    @classmethod
    def of(cls, name: str, score: Any, held_out: Array, quantile: float) -> "Novelty":
        """The threshold is that of the score, or the `quantile` of the scores float [n] of held-out cells."""
        threshold = type(score).threshold
        threshold = float(np.quantile(held_out, quantile)) if threshold is None else threshold
        to_middle = threshold - float(np.median(held_out))
        spread = to_middle / np.log(1 / _TYPICAL - 1)
        return cls(name, score, threshold, max(float(spread), 1e-9))

    def __call__(self, vectors: Array, logits: Array) -> Array:
        """float64 [n] in [0, 1]: .5 at the threshold, .1 for the middle one of the held-out cells; in between and
        beyond, by the logistic function of the score."""
        away = (self.score(vectors, logits) - self.threshold) / self.spread
        return 1 / (1 + np.exp(-np.clip(away, -500, 500)))

    def arrays(self) -> dict[str, Array]:
        """What `from_arrays` needs besides name, threshold and spread."""
        return {field.name: getattr(self.score, field.name) for field in fields(self.score)}

    @classmethod
    def from_arrays(cls, name: str, arrays: dict[str, Array], threshold: float, spread: float) -> "Novelty":
        return cls(name, score_class(name)(**arrays), threshold, spread)


def score_class(name: str) -> type[Any]:
    """Raises `ConfigError` for a name that is not in `SCORES`."""
    if name not in SCORES:
        raise ConfigError(f"novelty {name!r}: expected one of {', '.join(SCORES)}.")
    return SCORES[name]


def check_quantile(quantile: float) -> None:
    """Raises `ConfigError` for a quantile that is not between 0 and 1."""
    if not 0 < quantile < 1:
        raise ConfigError(
            f"novelty_quantile {quantile}: expected the fraction of known cells that are not called novel, between "
            "0 and 1, such as 0.98."
        )


# --- how well novel cells are found ----------------------------------------------------------------------------------


def novelty_auroc(novelty: Array, is_novel: Array) -> float:
    """Chance that a novel cell has a higher score than a known one. Float [n]; bool [n], both kinds present."""
    return float(roc_auc_score(is_novel, novelty))


def novelty_aupr(novelty: Array, is_novel: Array) -> float:
    """Average precision; of scores that know nothing, the fraction of novel cells."""
    return float(average_precision_score(is_novel, novelty))


def union_accuracy(right: Array, called_novel: Array, is_novel: Array) -> float:
    """scBERT's accuracy with "novel" as one more type: a novel cell is right if called novel, a known one if it is not
    and its label is right. All bool [n]."""
    return float(np.where(is_novel, called_novel, right & ~called_novel).mean())
