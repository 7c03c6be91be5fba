"""How mixed batches are, and how whole labels are, told from the nearest neighbours of cells."""

from typing import NamedTuple

import numpy as np
from sklearn.neighbors import NearestNeighbors

Array = np.ndarray

NEIGHBOURS = 30
_MOST_CELLS = 2000  # whose neighbours are looked for


class Neighbours(NamedTuple):
    """Attributes:
    own_batch: of a cell's nearest neighbours, the mean fraction that are of its batch.
    own_label: of those that have a label, the mean fraction that have the cell's; None without labels.
    """

    own_batch: float
    own_label: float | None


def neighbours_of(vectors: Array, batches: Array, labels: Array | None = None, seed: int = 0) -> Neighbours:
    """Of 2,000 of the cells, drawn at random, among all of them: float [n, d], str [n], str [n] ("" unknown)."""
    asked = np.arange(len(vectors))
    if len(asked) > _MOST_CELLS:
        asked = np.sort(np.random.default_rng(seed).choice(asked, _MOST_CELLS, replace=False))
    number = min(NEIGHBOURS, len(vectors) - 1)
    near = NearestNeighbors(n_neighbors=number + 1).fit(vectors).kneighbors(vectors[asked], return_distance=False)
    # A cell is its own first neighbour, or one of the first where others are its copies.
    itself = near == asked[:, None]
    itself[~itself.any(1), -1] = True
    near = near[~itself].reshape(len(asked), number)
    own_batch = float((batches[near] == batches[asked][:, None]).mean())
    if labels is None:
        return Neighbours(own_batch, None)
    counted = (labels[near] != "") & (labels[asked] != "")[:, None]
    same = labels[near] == labels[asked][:, None]
    return Neighbours(own_batch, float(same[counted].mean()) if counted.any() else None)


def mixed_at_random(batches: Array) -> float:
    """`own_batch` of cells that lie anywhere whatever their batch."""
    return float(((np.unique(batches, return_counts=True)[1] / len(batches)) ** 2).sum())
