"""Values that lie in another order than by cell, copied by cell into temporary files with bounded memory."""

import itertools
import tempfile
from collections.abc import Iterable

import numpy as np
import scipy.sparse as sp

from data_pipelines.readers.whole_counts import widened


class ScratchArray:
    """A one-dimensional array in an anonymous temporary file; read and written by range, never mapped."""

    def __init__(self, dtype: np.dtype | type):
        self.dtype = np.dtype(dtype)
        self._file = tempfile.TemporaryFile(prefix="scmbert-")  # noqa: SIM115  (lives as long as self)

    def write(self, start: int, values: np.ndarray) -> None:
        self._file.seek(start * self.dtype.itemsize)
        self._file.write(values.astype(self.dtype).tobytes())

    def read(self, start: int, stop: int) -> np.ndarray:
        self._file.seek(start * self.dtype.itemsize)
        return np.frombuffer(self._file.read((stop - start) * self.dtype.itemsize), self.dtype).copy()


class CompressedCopy:
    """A cells x features matrix compressed by cell. The files go when this object goes.

    Attributes:
      data: the values, in the dtype of the source.
      columns: int32, the feature of each.
      indptr: int64 [cells + 1]; the values of cell i are indptr[i]:indptr[i + 1].
    """

    def __init__(self, data: ScratchArray, columns: ScratchArray, indptr: np.ndarray):
        self.data, self.columns, self.indptr = data, columns, indptr

    def rows(self, first: int, last: int, num_columns: int, where: str) -> sp.csr_matrix:
        """Cells first:last, as int64 or float64; features of a cell may be unsorted or repeated as they are stored."""
        start, stop = int(self.indptr[first]), int(self.indptr[last])
        data, indptr = widened(self.data.read(start, stop), where), self.indptr[first : last + 1] - start
        return sp.csr_matrix((data, self.columns.read(start, stop), indptr), shape=(last - first, num_columns))


def compress_by_cell(
    values_of_cell: np.ndarray,
    slabs: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    dtype: np.dtype,
    slab_values: int,
) -> CompressedCopy:
    """Deals the values out to groups of neighbouring cells, then sorts each group by cell.

    Memory: one slab, one group and a few eight-byte numbers a cell. Disk: 8 bytes a value beside the value itself.

    Args:
      values_of_cell: int64 [cells], how many values each cell has.
      slabs: (cells, columns, values) of some values, in any order of cells; the order within a cell is kept.
      dtype: of the values.
      slab_values: a group holds at most so many values, or one cell.

    Raises OSError when the temporary folder has no room.
    """
    num_cells = len(values_of_cell)
    indptr = np.concatenate([[0], np.cumsum(values_of_cell)])
    # Group g holds the cells [bounds[g], bounds[g + 1]): as many as fit a slab, at least one.
    bounds = [0]
    while bounds[-1] < num_cells:
        end = int(np.searchsorted(indptr, indptr[bounds[-1]] + slab_values, side="right")) - 1
        bounds.append(min(max(end, bounds[-1] + 1), num_cells))
    data, columns, cells = scratch = (ScratchArray(dtype), ScratchArray(np.int32), ScratchArray(np.int32))
    next_free = indptr[np.array(bounds[:-1])].copy()
    for cells_of_slab, columns_of_slab, values in slabs:
        group = np.searchsorted(bounds, cells_of_slab, side="right") - 1
        order = np.argsort(group, kind="stable")
        dealt = (values[order], columns_of_slab[order], cells_of_slab[order])
        edges = np.searchsorted(group[order], np.arange(len(bounds)))
        for g in np.flatnonzero(np.diff(edges)).tolist():
            for array, part in zip(scratch, dealt, strict=True):
                array.write(int(next_free[g]), part[edges[g] : edges[g + 1]])
            next_free[g] += edges[g + 1] - edges[g]
    for first, last in itertools.pairwise(bounds):
        start, stop = int(indptr[first]), int(indptr[last])
        order = np.argsort(cells.read(start, stop), kind="stable")
        data.write(start, data.read(start, stop)[order])
        columns.write(start, columns.read(start, stop)[order])
    return CompressedCopy(data, columns, indptr)
