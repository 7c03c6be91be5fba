"""Linear maps between the principal component scores of modalities: where translation and alignment start.

Both come from cells that were measured in two modalities. Without such cells they are zero, and nothing starts.
"""

from collections.abc import Mapping
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np
from sklearn.neighbors import NearestNeighbors

from scmbert_jax.feature_layout import NEIGHBOUR_COMPONENTS, NUM_COMPONENTS, NUM_FOLDS, NUM_NEIGHBOURS
from scmbert_jax.modalities import MODALITIES

# Ridge strengths among which leave-one-out chooses; scores have mean square 1 over components.
_ALPHAS = np.geomspace(1.0, 1e5, 21)
# Added to the diagonal of each covariance in CCA, as a fraction of its mean.
_CCA_RIDGE = 0.1
# Cells in the memory.
MEMORY_SIZE = 4096
# With fewer pairs than components, the maps would only say what these few cells are.
_FEWEST_PAIRS = NUM_COMPONENTS


class Scores(NamedTuple):
    """Component scores of one modality.

    Attributes:
      cells: int [n], ascending.
      values: float64 [n, K], centred.
      folds: int [n], 1 .. `NUM_FOLDS`.
      technical_batches: int [n], codes; None: all cells are of one.
    """

    cells: np.ndarray
    values: np.ndarray
    folds: np.ndarray
    technical_batches: np.ndarray | None = None

    def within_batches(self) -> "Scores":
        """The same, centred in each technical batch."""
        if self.technical_batches is None:
            return self._replace(values=self.values - self.values.mean(axis=0))
        codes = np.unique(self.technical_batches, return_inverse=True)[1]
        number = np.bincount(codes)[:, None]
        sums = np.zeros((len(number), self.values.shape[1]))
        np.add.at(sums, codes, self.values)
        return self._replace(values=self.values - (sums / number)[codes])


def translation_maps(scores: Mapping[str, Scores]) -> np.ndarray:
    """Ridge regression of a modality's scores on another's: float32 [1 + folds, source, target, K, K], by `MODALITIES`.

    Entry 0 is of all pairs, entry i of all but those of fold i: what is to learn from a regression's errors must see
    those of a regression that has not seen the cell (stacking, Wolpert 1992). The strength is chosen per direction by
    leave-one-out error.
    """
    maps = np.zeros((1 + NUM_FOLDS, len(MODALITIES), len(MODALITIES), NUM_COMPONENTS, NUM_COMPONENTS), np.float32)
    for first, second, a, b, folds in _pairs(scores):
        for source, target, x, y in ((first, second, a, b), (second, first, b, a)):
            place = MODALITIES.index(source), MODALITIES.index(target)
            for fold in range(1 + NUM_FOLDS):
                maps[fold, *place] = np.round(_ridge(x[folds != fold], y[folds != fold]), 5)
    return maps


def _ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weights [K, K] of y [n, K] ~ x [n, K], of the strength that errs least on cells left out: what scikit-learn's
    RidgeCV finds, in less time and memory."""
    squares, axes = np.linalg.eigh(x.T @ x)
    along = x @ axes
    products = along.T @ y

    def error_of_left_out(alpha: float) -> float:
        leverage = along**2 @ (1 / (squares + alpha))
        residual = y - along @ (products / (squares + alpha)[:, None])
        return float(((residual / (1 - leverage)[:, None]) ** 2).sum())

    return axes @ (products / (squares + min(_ALPHAS, key=error_of_left_out))[:, None])


class Memory(NamedTuple):
    """Cells of more than one modality that translations look up; see `FeatureStatistics` for what the arrays are."""

    scores: np.ndarray
    measured: np.ndarray
    folds: np.ndarray
    fractions: np.ndarray


def memory_of_pairs(scores: Mapping[str, Scores], maps: np.ndarray) -> Memory:
    """The first paired cells, and for each direction the fraction of a translation that their neighbours shall say.

    It is that with which neighbours and `maps` (`translation_maps`) together err least, both without the cell's
    own fold; 0 where the maps alone are best, and where there are no pairs.
    """
    cells = np.unique(
        np.concatenate([np.zeros(0, int), *(own.cells[_paired(scores, name)] for name, own in scores.items())])
    )
    cells = cells[:MEMORY_SIZE]
    stored = np.zeros((len(cells), len(MODALITIES), NUM_COMPONENTS), np.float32)
    measured = np.zeros((len(cells), len(MODALITIES)), bool)
    folds = np.zeros(len(cells), np.int32)
    for name, own in scores.items():
        _, places, mine = np.intersect1d(cells, own.cells, assume_unique=True, return_indices=True)
        stored[places, MODALITIES.index(name)] = np.round(own.values[mine], 4)
        measured[places, MODALITIES.index(name)] = True
        folds[places] = own.folds[mine]
    fractions = np.zeros((len(MODALITIES), len(MODALITIES)), np.float32)
    for source, target in permutations(range(len(MODALITIES)), 2):
        both = measured[:, source] & measured[:, target]
        if both.sum() < _FEWEST_PAIRS:
            continue
        x, y = stored[both, source].astype(np.float64), stored[both, target].astype(np.float64)
        mapped = np.einsum("nk,nkp->np", x, maps[folds[both], source, target])
        near = np.zeros_like(y)
        for fold in np.unique(folds[both]):
            mine = folds[both] == fold
            index = NearestNeighbors(n_neighbors=min(NUM_NEIGHBOURS, (~mine).sum())).fit(
                x[~mine, :NEIGHBOUR_COMPONENTS]
            )
            near[mine] = y[~mine][index.kneighbors(x[mine, :NEIGHBOUR_COMPONENTS], return_distance=False)].mean(axis=1)
        other = near - mapped
        fractions[source, target] = np.clip((other * (y - mapped)).sum() / max((other**2).sum(), 1e-8), 0.0, 1.0)
    return Memory(stored, measured, folds, np.round(fractions, 3))


def alignment_maps(scores: Mapping[str, Scores]) -> np.ndarray:
    """Regularised generalised CCA (MAXVAR, Kettenring 1971): float32 [modalities, K, K], scores to common axes.

    With two modalities it is CCA. Axes stand in the order of their correlation and are multiplied by it, so that those
    that do not correlate do not count. Only differences within a technical batch are looked at: those between batches
    correlate, too, and would tell batches apart instead of cells.
    """
    scores = {name: own.within_batches() for name, own in scores.items()}
    names = [name for name in MODALITIES if name in scores]
    maps = np.zeros((len(MODALITIES), NUM_COMPONENTS, NUM_COMPONENTS), np.float32)
    whitening = {name: _whitening(scores[name].values[_paired(scores, name)]) for name in names}
    size = NUM_COMPONENTS
    correlation = np.eye(len(names) * size)
    paired = set()
    for first, second, a, b, _ in _pairs(scores):
        i, j = names.index(first) * size, names.index(second) * size
        block = whitening[first].T @ (a.T @ b / len(a)) @ whitening[second]
        correlation[i : i + size, j : j + size], correlation[j : j + size, i : i + size] = block, block.T
        paired |= {first, second}
    values, vectors = np.linalg.eigh(correlation)
    order = np.argsort(-values)[:size]
    # Of two modalities, the eigenvalue is 1 + their canonical correlation.
    strength = np.maximum(values[order] - 1.0, 0.0)
    vectors = vectors[:, order] * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])[order]
    for place, name in enumerate(names):
        if name in paired:
            axes = whitening[name] @ vectors[place * size : (place + 1) * size] * np.sqrt(2.0)
            maps[MODALITIES.index(name)] = np.round(axes * strength, 5)
    return maps


def _pairs(scores: Mapping[str, Scores]):
    """(first, second, scores of first, of second, folds) of the cells measured in both, centred over them."""
    for first, second in combinations([name for name in MODALITIES if name in scores], 2):
        _, left, right = np.intersect1d(
            scores[first].cells, scores[second].cells, assume_unique=True, return_indices=True
        )
        if len(left) < _FEWEST_PAIRS:
            continue
        a, b = scores[first].values[left], scores[second].values[right]
        yield first, second, a - a.mean(axis=0), b - b.mean(axis=0), scores[first].folds[left]


def _paired(scores: Mapping[str, Scores], name: str) -> np.ndarray:
    """bool [n]: which cells of modality `name` were measured in another one too."""
    others = [own.cells for other, own in scores.items() if other != name]
    return np.isin(scores[name].cells, np.concatenate([np.zeros(0, int), *others]))


def _whitening(values: np.ndarray) -> np.ndarray:
    """float64 [K, K] by which scores get covariance one; components that are not there stay zero."""
    covariance = values.T @ values / max(len(values), 1)
    present = np.diagonal(covariance) > 1e-8
    mean = np.trace(covariance) / max(present.sum(), 1)
    variances, axes = np.linalg.eigh(covariance + _CCA_RIDGE * mean * np.diag(present.astype(float)))
    inverse = np.where(variances > 1e-8, 1.0 / np.sqrt(np.maximum(variances, 1e-8)), 0.0)
    return (axes * inverse) @ axes.T
