"""Soft clusters of cells that each hold all technical batches; cells are moved by what batches differ in, in each.

The algorithm of Harmony (Korsunsky et al. 2019, Nature Methods 16, 1289-1296, Methods, eqs. 1-12), written from the
paper.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans

Array = np.ndarray


@dataclass(frozen=True)
class SoftClusters:
    """Options; the paper's defaults, by its names.

    Attributes:
      diversity: theta; how much a cluster that lacks a batch is avoided. 0: not at all.
      softness: sigma, of the clusters; near 0 they are hard.
      ridge: lambda, which holds back the correction of clusters that hold few cells of a batch.
      rounds: of clustering and correction, at most.
    """

    diversity: float = 2.0
    softness: float = 0.1
    ridge: float = 1.0
    rounds: int = 10


USUAL = SoftClusters()
_CLUSTERING_ROUNDS, _BLOCKS = 20, 20
_CLUSTERING_CLOSE, _CLOSE = 1e-5, 1e-4  # relative changes of the objective


def correct_clusters(
    vectors: Array,
    batches: Array,
    options: SoftClusters = USUAL,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Array:
    """float64 [n, d], the vectors [n, d] with technical batches str [n] mixed within clusters; deterministic.

    `progress` is called with (rounds done, rounds at most).
    """
    z = np.asarray(vectors, np.float64)
    _, code = np.unique(batches, return_inverse=True)
    one_hot = np.eye(code.max() + 1)[code]  # Phi^T, [n, B]
    rng = np.random.default_rng(seed)
    clustering = _Clustering(z, one_hot, options, rng)
    corrected, before = z, np.inf
    for number in range(options.rounds):
        objective = clustering.update(_units(corrected))
        corrected = _moved(z, clustering.membership, one_hot, options.ridge)
        if progress is not None:
            progress(number + 1, options.rounds)
        if before - objective < _CLOSE * abs(before):
            break
        before = objective
    if progress is not None:
        progress(options.rounds, options.rounds)
    return corrected


class _Clustering:
    """Maximum-diversity clustering (eqs. 3 to 8): `membership` R^T is float64 [n, K], rows of sum 1."""

    def __init__(self, z: Array, one_hot: Array, options: SoftClusters, rng: np.random.Generator):
        self.one_hot, self.options, self.rng = one_hot, options, rng
        num_clusters = int(np.clip(round(len(z) / 30), 2, 100))
        means = KMeans(num_clusters, n_init=1, max_iter=25, random_state=int(rng.integers(2**31))).fit(_units(z))
        self.fraction = one_hot.mean(0)  # of each batch
        self.membership = _softmax(-2 * (1 - _units(z) @ _units(means.cluster_centers_).T) / options.softness)

    def update(self, units: Array) -> float:
        """Clusters these, [n, d] of length 1, from the memberships as they are. Returns the objective (eq. 2)."""
        before = np.inf
        for _ in range(_CLUSTERING_ROUNDS):
            distances = 2 * (1 - units @ _units(self.membership.T @ units).T)  # [n, K]
            self._assign(distances)
            objective = self._objective(distances)
            if before - objective < _CLUSTERING_CLOSE * abs(before):
                break
            before = objective
        return objective

    def _assign(self, distances: Array) -> None:
        observed = self.membership.T @ self.one_hot  # O, [K, B]
        for rows in np.array_split(self.rng.permutation(len(distances)), _BLOCKS):
            # A block is put where the others left room (the paper's Algorithm 2).
            observed -= self.membership[rows].T @ self.one_hot[rows]
            expected = observed.sum(1, keepdims=True) * self.fraction
            log_penalty = self.options.diversity * np.log((expected + 1) / (observed + 1))  # [K, B]
            logits = -distances[rows] / self.options.softness + self.one_hot[rows] @ log_penalty.T
            self.membership[rows] = _softmax(logits)
            observed += self.membership[rows].T @ self.one_hot[rows]

    def _objective(self, distances: Array) -> float:
        r, options = self.membership, self.options
        observed = r.T @ self.one_hot
        expected = observed.sum(1, keepdims=True) * self.fraction
        entropy = (r * np.log(np.maximum(r, 1e-300))).sum()
        diversity = (observed * np.log((observed + 1) / (expected + 1))).sum()
        return float((r * distances).sum() + options.softness * (entropy + options.diversity * diversity))


def _moved(z: Array, membership: Array, one_hot: Array, ridge: float) -> Array:
    """Minus, in each cluster, what a ridge regression on the batches (intercept unpenalised) says of each (eq. 12)."""
    design = np.concatenate([np.ones((len(z), 1)), one_hot], axis=1)
    penalty = np.diag([0.0] + [ridge] * one_hot.shape[1])
    moved = z.copy()
    for of_cluster in membership.T:
        weighted = design * of_cluster[:, None]
        effects = np.linalg.solve(design.T @ weighted + penalty, weighted.T @ z)  # [1 + B, d]
        moved -= weighted[:, 1:] @ effects[1:]
    return moved


def _units(x: Array) -> Array:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)
