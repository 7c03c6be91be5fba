"""The cells that are explained: some of each type, in memory, and what simple statistics say of them."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.stats import rankdata

from data_pipelines.batches.model_counts import CountsChunk, model_counts
from scmbert_jax.annotation.representation import OpenCells

Array = np.ndarray

_FEATURES_AT_A_TIME = 512  # that are ranked: what bounds memory


@dataclass(frozen=True)
class DrawnCells:
    """n cells of a file, in the features of an annotator, modality after modality side by side: F in all.

    Attributes:
      counts: modality -> int32 CSR [n, features of the modality].
      measured: modality -> bool [n].
      slices: modality -> (first, one past the last) of its features among the F; those that the file has.
      num_features: F.
    """

    counts: dict[str, sp.csr_matrix]
    measured: dict[str, Array]
    slices: dict[str, tuple[int, int]]
    num_features: int

    @classmethod
    def read(cls, cells: OpenCells, rows: Array, slices: dict[str, tuple[int, int]], num_features: int) -> "DrawnCells":
        """The cells `rows`, int64 [n], ascending; one pass over the file."""
        parts: dict[str, list[sp.csr_matrix]] = {name: [] for name in cells.overlaps}
        measured: dict[str, list[Array]] = {name: [] for name in cells.overlaps}
        for chunk in model_counts(cells.dataset, cells.report, cells.overlaps):
            size = len(next(iter(chunk.measured.values())))
            mine = rows[(rows >= chunk.first) & (rows < chunk.first + size)] - chunk.first
            for name in parts:
                parts[name].append(chunk.counts[name][mine])
                measured[name].append(chunk.measured[name][mine])
        return cls(
            {name: sp.vstack(own, format="csr") for name, own in parts.items()},
            {name: np.concatenate(own) for name, own in measured.items()},
            {name: slices[name] for name in parts},
            num_features,
        )

    @property
    def number(self) -> int:
        return len(next(iter(self.measured.values())))

    def of(self, rows: Array) -> "DrawnCells":
        """The cells `rows`, int64 [m], in that order; a cell may be there twice."""
        return DrawnCells(
            {name: own[rows] for name, own in self.counts.items()},
            {name: own[rows] for name, own in self.measured.items()},
            self.slices,
            self.num_features,
        )

    def chunk(self) -> CountsChunk:
        return CountsChunk(0, self.counts, self.measured)

    def side_by_side(self, parts: dict[str, sp.csr_matrix]) -> sp.csr_matrix:
        """modality -> CSR [n, features of the modality] as one float64 CSR [n, F]."""
        found = sp.csr_matrix((self.number, self.num_features))
        for name, own in parts.items():
            first, stop = self.slices[name]
            wide = sp.csr_matrix(
                (own.data.astype(np.float64), own.indices + first, own.indptr), (self.number, self.num_features)
            )
            assert own.shape[1] == stop - first
            found = found + wide
        found.sum_duplicates()
        return found

    def without(self, deleted: sp.csr_matrix) -> "DrawnCells":
        """The cells with a count of 0 where bool CSR [n, F] is True, as if the file had said so."""
        counts = {}
        for name, (first, stop) in self.slices.items():
            kept = self.counts[name] - self.counts[name].multiply(deleted[:, first:stop])
            kept = sp.csr_matrix(kept, dtype=np.int32)
            kept.eliminate_zeros()
            counts[name] = kept
        return DrawnCells(counts, self.measured, self.slices, self.num_features)

    def expression(self) -> sp.csr_matrix:
        """float64 CSR [n, F]: log1p of counts per 10,000 of the cell's counts of that modality."""
        values = {}
        for name, own in self.counts.items():
            total = np.maximum(np.asarray(own.sum(axis=1, dtype=np.float64)).ravel(), 1.0)
            data = np.log1p(own.data / np.repeat(total, np.diff(own.indptr)) * 1e4)
            values[name] = sp.csr_matrix((data, own.indices, own.indptr), own.shape)
        return self.side_by_side(values)


class FeatureFigures(NamedTuple):
    """What needs no model: of a type's cells, float64 [F] each.

    Attributes:
      wilcoxon: z of the rank sum of the type's cells against all other drawn cells, corrected for ties; positive where
        the type has more. 0 where nothing varies.
      mean, variance: of `DrawnCells.expression`.
      detection: the fraction of the cells with a count.
    """

    wilcoxon: Array
    mean: Array
    variance: Array
    detection: Array


def feature_figures(expression: sp.csr_matrix, mine: Array) -> FeatureFigures:
    """Of float64 CSR [n, F] and which cells are of the type, bool [n]."""
    own = expression[np.flatnonzero(mine)]
    mean = np.asarray(own.mean(axis=0)).ravel()
    variance = np.maximum(np.asarray(own.multiply(own).mean(axis=0)).ravel() - mean**2, 0.0)
    detection = own.getnnz(axis=0) / max(own.shape[0], 1)
    return FeatureFigures(rank_sum_z(expression, mine), mean, variance, detection)


def rank_sum_z(values: sp.csr_matrix, mine: Array) -> Array:
    """float64 [F]: the Wilcoxon rank sum test's z of cells `mine`, bool [n], against the others, of CSR [n, F].

    The variance is corrected for ties (Lehmann 1975): with n1 and n2 cells and ties of sizes t,
    n1 n2 / 12 * (n + 1 - sum(t^3 - t) / (n (n - 1))).
    """
    number, first = len(mine), int(mine.sum())
    second = number - first
    found = np.zeros(values.shape[1])
    if first == 0 or second == 0:
        return found
    columns = values.tocsc()
    for start in range(0, values.shape[1], _FEATURES_AT_A_TIME):
        dense = columns[:, start : start + _FEATURES_AT_A_TIME].toarray()
        ranks = rankdata(dense, axis=0)
        # Of a group of t equal values, each of its t ranks is the mean; their squares miss (t^3 - t) / 12.
        missed = number * (number + 1) * (2 * number + 1) / 6 - (ranks**2).sum(axis=0)
        variance = first * second / 12 * (number + 1 - 12 * missed / (number * (number - 1)))
        above = ranks[mine].sum(axis=0) - first * (number + 1) / 2
        varies = variance > 1e-9
        found[start : start + dense.shape[1]] = np.where(varies, above / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
    return found
