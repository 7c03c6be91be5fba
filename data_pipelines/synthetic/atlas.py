"""RNA counts of as many cells as one likes, made when they are read: what `scmbert bench build` builds from.

Counts are negative binomial, gamma-Poisson per gene: means over the 36,601 genes of the 10x reference are log-normal
(a few genes of hundreds of counts, most without one), differ between cell types, and scale with the cell's depth. So
the gaps between expressed genes, and the counts, compress about as those of real cells do: 1.04 bytes a count, as 892
cells of 10x. A count is a pure function of (seed, cell, gene): any range of cells can be read, in any process.
"""

from collections.abc import Iterator
from functools import cached_property

import numba
import numpy as np
import pandas as pd
import scipy.sparse

from data_pipelines.counter_hash import fold_array, fold_compiled, hash_of
from data_pipelines.features.gene_tables import load_gene_table
from data_pipelines.readers.dataset import CountsMatrix, Dataset

EXPRESSED = 1635.0  # genes with a count, on average over the cells; Census-like
NUM_TYPES, NUM_DEPTHS = 8, 8
_GENE_SPREAD, _TYPE_SPREAD, _DEPTH_SPREAD = 2.2, 0.7, 0.35  # standard deviations of logarithms
_DISPERSION = 2.0  # inverse overdispersion: variance = mean + mean² / dispersion
_ROWS_AT_ONCE = 256
_MOST_EXPRESSED = 16_384  # of a cell; eight times what the deepest has


class SyntheticAtlas:
    """A `StoredMatrix` of the cells first:last of the atlas that `seed` names; values float32, as files have them."""

    any_row = True

    def __init__(self, first_cell: int, num_cells: int, num_genes: int, seed: int = 0):
        self.shape, self.dtype = (num_cells, num_genes), np.dtype(np.float32)
        self._first_cell, self._seed = first_cell, seed

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_tables"}

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Means float32 and probabilities of no count uint32 (of 2^32): [types * depths, genes]."""
        rng = np.random.default_rng(self._seed)
        num_genes = self.shape[1]
        profile = rng.normal(0, _GENE_SPREAD, num_genes) + rng.normal(0, _TYPE_SPREAD, (NUM_TYPES, num_genes))
        fraction = np.exp(profile)
        depths = np.exp(_DEPTH_SPREAD * np.linspace(-1.5, 1.5, NUM_DEPTHS))
        low, high = 1e-6, 1e3
        wanted = EXPRESSED * num_genes / 36_601
        relative = (depths[None, :, None] * fraction[:, None, :]).reshape(-1, num_genes)
        for _ in range(40):  # bisection: the scale at which cells express so many genes on average
            scale = np.sqrt(low * high)
            expressed = np.mean((1 - _chance_of_none(scale * relative)).sum(axis=1))
            low, high = (low, scale) if expressed > wanted else (scale, high)
        means = scale * relative
        none = np.minimum(_chance_of_none(means) * 2.0**32, 2.0**32 - 1)
        return means.astype(np.float32), none.astype(np.uint32)

    def chunks(
        self, rows: int, first: int = 0, last: int | None = None
    ) -> Iterator[tuple[int, scipy.sparse.csr_matrix]]:
        last = self.shape[0] if last is None else last
        means, none = self._tables
        for start in range(first, last, rows):
            stop = min(start + rows, last)
            parts = [
                _draw(cells := self._cells(top, min(top + _ROWS_AT_ONCE, stop)), self._kinds(cells), means, none)
                for top in range(start, stop, _ROWS_AT_ONCE)
            ]
            lengths, genes, counts = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            counts = counts.astype(np.float64)
            yield start, scipy.sparse.csr_matrix((counts, genes, starts), (stop - start, self.shape[1]))

    def _cells(self, first: int, last: int) -> np.ndarray:
        """uint64 [cells]: what names each."""
        return fold_array(hash_of(self._seed, 1), np.arange(self._first_cell + first, self._first_cell + last))

    def _kinds(self, cells: np.ndarray) -> np.ndarray:
        """int64 [cells]: row of the tables, a type and a depth."""
        return (cells % np.uint64(NUM_TYPES * NUM_DEPTHS)).astype(np.int64)


def _chance_of_none(means: np.ndarray) -> np.ndarray:
    """Of a negative binomial: (r / (r + mean))^r."""
    return (_DISPERSION / (_DISPERSION + means)) ** _DISPERSION


@numba.njit(nogil=True, cache=True)
def _draw(cells, kinds, means, none):
    """(lengths int32 [cells], genes int32 [nnz], counts float32 [nnz]): inversion, one uniform number a gene."""
    lengths = np.zeros(len(cells), np.int32)
    genes = np.empty(len(cells) * _MOST_EXPRESSED, np.int32)
    counts = np.empty(len(cells) * _MOST_EXPRESSED, np.float32)
    used = 0
    for place in range(len(cells)):
        kind, before = kinds[place], used
        both = np.uint64(0)
        for gene in range(means.shape[1]):
            if gene % 2 == 0:
                both = fold_compiled(cells[place], np.uint64(gene))  # two numbers of 32 bits
                drawn = np.uint32(both >> np.uint64(32))
            else:
                drawn = np.uint32(both & np.uint64(0xFFFFFFFF))
            if drawn < none[kind, gene]:
                continue
            mean = means[kind, gene]
            fraction = mean / (mean + _DISPERSION)
            uniform = np.float64(drawn) / 4294967296.0
            chance = np.float64(none[kind, gene]) / 4294967296.0
            below, count = chance, 0
            while below <= uniform and count < 100000:
                chance *= fraction * (count + _DISPERSION) / (count + 1)
                count += 1
                below += chance
            genes[used] = gene
            counts[used] = count
            used += 1
        lengths[place] = used - before
    return lengths, genes[:used].copy(), counts[:used].copy()


def synthetic_atlas(num_cells: int, cells_per_dataset: int, seed: int = 0) -> list[Dataset]:
    """Human RNA; `cells_per_dataset` cells each but for the last data set; obs has cell_type and technical_batch."""
    table = load_gene_table("human")
    genes = table.ids[np.flatnonzero(table.reference)].astype(str)
    datasets = []
    for number, first in enumerate(range(0, num_cells, cells_per_dataset)):
        size = min(cells_per_dataset, num_cells - first)
        name = f"atlas_{number:04d}"
        stored = SyntheticAtlas(first, size, len(genes), seed)
        ids = np.array([f"{name}_{cell}" for cell in range(size)])
        types = stored._kinds(stored._cells(0, size)) // NUM_DEPTHS
        obs = pd.DataFrame(
            {
                "cell_type": pd.Categorical.from_codes(types, [f"type{code}" for code in range(NUM_TYPES)]),
                "technical_batch": pd.Categorical.from_codes(np.arange(size) * 4 // size, list("abcd")),
            },
            index=pd.Index(ids, dtype=object),
        )
        features = pd.DataFrame(index=pd.Index(genes, dtype=object))
        matrix = CountsMatrix(name, "X", "rna", "synthetic", genes, features, ids, obs, None, stored)
        datasets.append(Dataset(name, [matrix], ids, obs))
    return datasets
