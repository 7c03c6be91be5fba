"""The baselines of the `integration` suite, the table of them, and the cells that they are given."""

from collections.abc import Mapping, Sequence

import numpy as np

from scmbert_jax.evaluation.alignment.baselines import TRAIN_FRACTION, Baseline, cca_space, some_rows
from scmbert_jax.evaluation.alignment.combat import combat
from scmbert_jax.evaluation.data.model_vectors import EmbeddedModels
from scmbert_jax.tasks.modality_cells import ModalityCells, centred_by, fit_projection, shared_cells
from scmbert_jax.tasks.pseudo_pairs import SharedSpace, match_unpaired
from scmbert_jax.tasks.soft_clusters import correct_clusters

Array = np.ndarray

FEWEST_PAIRS = 100
PCA_DIMENSIONS = 25  # of each modality
MOST_FEATURES = 2000  # that are corrected one by one: those that vary most


class AllCells:
    """Every cell of a data set with all its modalities: ids, labels, and vectors by modality joined by cell."""

    def __init__(self, cells: Mapping[str, ModalityCells]):
        self.sides = list(cells.values())
        ids = np.concatenate([side.cell_ids for side in self.sides])
        self.ids, where = np.unique(ids, return_index=True)
        self.types = np.concatenate([side.cell_types for side in self.sides])[where]
        self.batches = np.concatenate([side.technical_batches for side in self.sides])[where]
        self.kinds = np.full(len(self.ids), "", dtype=object)
        for side in self.sides:
            rows = np.isin(self.ids, side.cell_ids)
            self.kinds[rows] = [f"{kind}+{side.modality}".strip("+") for kind in self.kinds[rows]]

    def embedded(self, models: EmbeddedModels, seed: int) -> Array:
        """float [n, d], all modalities of each cell read; nan for a cell of whose counts the model knows nothing."""
        vectors = models.of(seed, None)
        nothing = np.full(len(next(iter(vectors.values()))), np.nan)
        return np.stack([vectors.get(cell, nothing) for cell in self.ids.tolist()])

    def mean_of(self, vectors: Sequence[Array]) -> Array:
        """float64 [n, d]: mean over the modalities of each cell of its unit vectors."""
        total = np.zeros((len(self.ids), vectors[0].shape[1]))
        for side, values in zip(self.sides, vectors, strict=True):
            units = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
            total[np.searchsorted(self.ids, side.cell_ids)] += units
        return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def _some(side: ModalityCells, seed: int | None) -> ModalityCells:
    return side if seed is None else side.take(some_rows(np.arange(len(side)), seed, len(side)))


def _of_space(space: SharedSpace, cells: AllCells) -> Array:
    first, second = cells.sides
    return cells.mean_of([space.embed_first(first), space.embed_second(second)])


def pca(cells: AllCells, seed: int | None) -> Array:
    """PCs of each modality beside each other; the mean (zero) where a modality was not measured."""
    return _side_by_side(
        cells, [fit_projection(_some(side, seed), PCA_DIMENSIONS)(side.values) for side in cells.sides]
    )


def _side_by_side(cells: AllCells, scores: Sequence[Array]) -> Array:
    parts = []
    for side, own in zip(cells.sides, scores, strict=True):
        part = np.zeros((len(cells.ids), own.shape[1]))
        part[np.searchsorted(cells.ids, side.cell_ids)] = own / np.sqrt(own.var(0).sum())
        parts.append(part)
    return np.concatenate(parts, axis=1)


def centred_pca(cells: AllCells, seed: int | None) -> Array:
    """PCA minus the mean of each technical batch."""
    return centred_by(pca(cells, seed), cells.batches)


def clustered_pca(cells: AllCells, seed: int | None) -> Array:
    """PCA as `scmbert integrate` corrects it; of a seed, also other starts of the clusters."""
    return correct_clusters(pca(cells, seed), cells.batches, seed=seed or 0)


def combat_pca(cells: AllCells, seed: int | None) -> Array:
    """PCs of the most variable features after ComBat of each modality; of a seed, fitted to some of the cells."""
    scores = []
    for side in cells.sides:
        values = combat(side.values[:, most_variable(side)].toarray(), side.technical_batches)
        rows = np.arange(len(side)) if seed is None else some_rows(np.arange(len(side)), seed, len(side))
        mean = values[rows].mean(0)
        # Of the covariance, which is small.
        axes = np.linalg.eigh(np.cov(values[rows] - mean, rowvar=False))[1][:, ::-1][:, :PCA_DIMENSIONS]
        scores.append((values - mean) @ axes)
    return _side_by_side(cells, scores)


def most_variable(side: ModalityCells) -> Array:
    """int64, ascending: at most `MOST_FEATURES`, by the variance of `side.values`."""
    values = side.values
    variance = np.asarray(values.multiply(values).mean(0)).ravel() - np.asarray(values.mean(0)).ravel() ** 2
    return np.sort(np.argsort(-variance, kind="stable")[:MOST_FEATURES])


def cca(cells: AllCells, seed: int | None) -> Array:
    """By the space of the cells that were measured in both modalities."""
    first, second = cells.sides
    left, right = shared_cells(first, second)
    if seed is not None:
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(len(left), round(TRAIN_FRACTION * len(left)), replace=False))
        left, right = left[chosen], right[chosen]
    return _of_space(cca_space(first.take(left), second.take(right)), cells)


def pseudo_pairs(cells: AllCells, seed: int | None) -> Array:
    """By pairs that are found through the links."""
    space = match_unpaired(*(_some(side, seed) for side in cells.sides)).space
    assert space is not None
    return _of_space(space, cells)


def _two_modalities(cells: AllCells) -> bool:
    return len(cells.sides) == 2


def several_batches(cells: AllCells) -> bool:
    """Whether there is anything to correct; each batch has two cells or more."""
    numbers = np.unique(cells.batches, return_counts=True)[1]
    return len(numbers) > 1 and bool((numbers > 1).all())


def _combat(cells: AllCells) -> bool:
    # Values of regions are nearly all zero, nothing like a normal distribution.
    per_side = [np.unique(side.technical_batches, return_counts=True)[1] for side in cells.sides]
    return all(len(n) > 1 and bool((n > 1).all()) for n in per_side) and all(s.modality != "atac" for s in cells.sides)


def _pairs(cells: AllCells) -> bool:
    return _two_modalities(cells) and len(shared_cells(*cells.sides)[0]) >= FEWEST_PAIRS


# An embedding float [n, d] of all cells, in the order of `AllCells.ids`.
INTEGRATION_BASELINES: list[Baseline[AllCells, Array]] = [
    Baseline("PCA side by side", "nothing", pca),
    Baseline("PCA, batches centred", "technical batches", centred_pca, several_batches),
    Baseline("ComBat", "technical batches", combat_pca, _combat),
    Baseline("PCA, soft clusters (scmbert integrate)", "technical batches", clustered_pca, several_batches),
    Baseline("CCA", "pairs", cca, _pairs),
    Baseline("pseudo-pairs", "links, no pairs", pseudo_pairs, _two_modalities),
]
