"""What a baseline of these suites is, and what they are made of: CCA and ridge on pairs, links alone, the cell type
alone, chance.

Each gives vectors of both modalities that the cosine compares; none looks at which test cells belong together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import numpy as np
from sklearn.linear_model import Ridge

from scmbert_jax.tasks.linked_features import comparable, find_links, linked_values, smoothed
from scmbert_jax.tasks.modality_cells import ModalityCells, centred_by, fit_projection
from scmbert_jax.tasks.pseudo_pairs import SharedSpace, canonical_axes

Array = np.ndarray

DIMENSIONS = 50
TRAIN_FRACTION = 0.8
CCA_RIDGE = 0.1  # of the mean variance; .01 to .3 give the same FOSCTTM to .003 on PBMC


Cells = TypeVar("Cells")
Found = TypeVar("Found")
# Cells of two modalities, row i of both the same cell -> a space of both.
Build: TypeAlias = Callable[[ModalityCells, ModalityCells], SharedSpace]


@dataclass(frozen=True)
class Baseline(Generic[Cells, Found]):
    """A row of a suite that no model makes.

    Attributes:
      name, uses: of the row; what it is told.
      fitted: (cells, seed) -> what the suite scores. Seed None: fitted to all it may read, else to `TRAIN_FRACTION`.
      possible: whether the cells have what it takes. Otherwise there is no such row.
    """

    name: str
    uses: str
    fitted: Callable[[Cells, int | None], Found]
    possible: Callable[[Cells], bool] = lambda cells: True


def some_rows(rows: Array, seed: int | None, salt: int) -> Array:
    """`TRAIN_FRACTION` of the rows, in their order; all where there is no seed. Another salt draws others."""
    if seed is None:
        return rows
    rng = np.random.default_rng([seed, salt])
    return np.sort(rng.choice(rows, max(2, round(TRAIN_FRACTION * len(rows))), replace=False))


def cca_space(first: ModalityCells, second: ModalityCells, dimensions: int = DIMENSIONS) -> SharedSpace:
    """Regularised CCA of 50 PCs (LSI for ATAC); row i of both is the same cell.

    Axes count by their canonical correlation. Plain unit axes, all 50 alike, do worse: the last ones are noise.
    """
    maps = fit_projection(first, dimensions), fit_projection(second, dimensions)
    a = centred_by(maps[0](first.values), first.technical_batches)
    b = centred_by(maps[1](second.values), second.technical_batches)
    return SharedSpace(*maps, *canonical_axes(a, b, a.T @ b / len(a), dimensions, CCA_RIDGE))


def ridge_space(first: ModalityCells, second: ModalityCells, dimensions: int = DIMENSIONS) -> SharedSpace:
    """SVD + ridge: the PCs of `first` are predicted from those of `second`, and compared with the measured ones."""
    maps = fit_projection(first, dimensions), fit_projection(second, dimensions)
    a = centred_by(maps[0](first.values), first.technical_batches)
    b = centred_by(maps[1](second.values), second.technical_batches)
    coefficients = Ridge(alpha=1.0, fit_intercept=False).fit(b, a).coef_.T  # [d_2, d_1]
    return SharedSpace(*maps, np.eye(a.shape[1]), coefficients, np.ones(a.shape[1]))


def links_vectors(
    first: ModalityCells,
    second: ModalityCells,
    fit_first: Array | None = None,
    fit_second: Array | None = None,
    dimensions: int = 20,
) -> tuple[Array, Array]:
    """Links only, no pairs: linked features smoothed by SVD-20 of their own modality, z-scored; float [n, K], [m, K].

    Every link counts the same (the floor of the shared facts); `pseudo_pairs` weights them.

    Args:
      fit_first, fit_second: int rows the SVDs are fitted to; None: all.
    """
    links = find_links(first, second)
    found = []
    for cells, weights, rows in ((first, links.first, fit_first), (second, links.second, fit_second)):
        projection = fit_projection(cells if rows is None else cells.take(rows), dimensions)
        values, _ = smoothed(linked_values(cells, weights), projection(cells.values))
        found.append(centred_by(values, cells.technical_batches))
    return comparable(found[0], found[1], np.ones(len(links)))


def type_vectors(types: Array, seed: int) -> Array:
    """All that is known is the cell type: one-hot, with a little noise so that cells of a type stand in random order.

    float64 [n, types + 8]. Give the two modalities two seeds. Without the noise all cells of a type would tie with the
    true partner, and a tie is not counted as closer.
    """
    names = np.unique(types)
    noise = 1e-3 * np.random.default_rng(seed).normal(size=(len(types), 8))
    return np.concatenate([(np.asarray(types)[:, None] == names).astype(np.float64), noise], axis=1)


def random_vectors(num_cells: int, seed: int) -> Array:
    """float64 [n, 16] of chance. Give the two modalities two seeds."""
    return np.random.default_rng(seed).normal(size=(num_cells, 16))
