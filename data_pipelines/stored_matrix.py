"""A stored counts matrix, read in chunks of cells with memory bounded by the chunk, whatever its storage.

Every source yields `(first_row, csr_matrix [rows, features])` with sorted column indices and no stored zeros.
"""

import itertools
import tempfile
from collections.abc import Iterator
from typing import Any, Protocol

import h5py
import numpy as np
import scipy.sparse as sp

from scmbert_jax.errors import InputError

# Values held at once while a dense slab or a column-compressed matrix is read: 1 Mi values = 4-8 MiB an array.
_SLAB_VALUES = 1 << 20


class StoredMatrix(Protocol):
    """Cells x features; `shape` is known without reading the values."""

    shape: tuple[int, int]

    def chunks(self, rows: int) -> Iterator[tuple[int, sp.csr_matrix]]: ...


def canonical(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Sorted indices, no stored zeros, values as stored. NaN is not zero and stays."""
    matrix.sum_duplicates()
    if matrix.nnz and np.any(matrix.data == 0):
        matrix.eliminate_zeros()
    return matrix


class CsrFile:
    """`data, indices, indptr` in an HDF5 group, compressed by cell (h5ad CSR; 10x: feature x barcode by barcode)."""

    def __init__(self, group: h5py.Group, shape: tuple[int, int], where: str):
        self.shape, self._where = shape, where
        self._data, self._indices = group["data"], group["indices"]
        self._indptr = _checked_indptr(group["indptr"], shape[0], len(self._data), len(self._indices), where)

    def chunks(self, rows: int) -> Iterator[tuple[int, sp.csr_matrix]]:
        for first in range(0, self.shape[0], rows):
            last = min(first + rows, self.shape[0])
            start, stop = int(self._indptr[first]), int(self._indptr[last])
            data = _read(self._data, start, stop, self._where)
            indices = _read(self._indices, start, stop, self._where)
            _check_indices(indices, self.shape[1], self._where)
            indptr = self._indptr[first : last + 1] - start
            yield first, canonical(sp.csr_matrix((data, indices, indptr), shape=(last - first, self.shape[1])))


class CscFile:
    """Compressed by feature (h5ad CSC). Cells lie scattered over the whole file, so the first use turns it over.

    The compressed-by-cell copy lies in two anonymous temporary files (8-16 bytes a value, gone with this object) and
    is made in three passes, each of which holds one slab of values: count the values of every cell, which fixes
    where each cell will lie; deal the values out to groups of neighbouring cells; sort each group by cell.
    Memory: one slab and a few eight-byte numbers a cell.
    """

    def __init__(self, group: h5py.Group, shape: tuple[int, int], where: str):
        self.shape, self._where = shape, where
        self._data, self._indices = group["data"], group["indices"]
        self._indptr = _checked_indptr(group["indptr"], shape[1], len(self._data), len(self._indices), where)
        self._copy: tuple[_ScratchArray, _ScratchArray, np.ndarray] | None = None

    def chunks(self, rows: int) -> Iterator[tuple[int, sp.csr_matrix]]:
        if self._copy is None:
            try:
                self._copy = self._turn_over()
            except OSError as error:
                raise InputError(
                    f"{self._where}: stored by feature; reading it by cell needs about {16 * len(self._data):,} bytes "
                    f"in the temporary folder ({error}). Make room, set TMPDIR, or store the matrix as CSR"
                ) from error
        data, columns, indptr = self._copy
        for first in range(0, self.shape[0], rows):
            last = min(first + rows, self.shape[0])
            start, stop = int(indptr[first]), int(indptr[last])
            values = (data.read(start, stop), columns.read(start, stop), indptr[first : last + 1] - start)
            yield first, canonical(sp.csr_matrix(values, shape=(last - first, self.shape[1])))

    def _turn_over(self) -> tuple["_ScratchArray", "_ScratchArray", np.ndarray]:
        indptr = np.concatenate([[0], np.cumsum(self._values_of_cell())])
        # Group g holds the cells [bounds[g], bounds[g + 1]): as many as fit a slab, at least one.
        bounds = [0]
        while bounds[-1] < self.shape[0]:
            end = int(np.searchsorted(indptr, indptr[bounds[-1]] + _SLAB_VALUES, side="right")) - 1
            bounds.append(min(max(end, bounds[-1] + 1), self.shape[0]))
        scratch = (
            _ScratchArray(self._data.dtype),
            _ScratchArray(np.dtype(np.int32)),
            _ScratchArray(np.dtype(np.int64)),  # cells
        )
        next_free = indptr[np.array(bounds[:-1])].copy()
        for start, stop in self._slabs():
            cells = _read(self._indices, start, stop, self._where).astype(np.int64)
            column = np.searchsorted(self._indptr, np.arange(start, stop), side="right") - 1
            group = np.searchsorted(bounds, cells, side="right") - 1
            order = np.argsort(group, kind="stable")  # stable: columns stay ascending within a cell
            dealt = (_read(self._data, start, stop, self._where)[order], column[order], cells[order])
            edges = np.searchsorted(group[order], np.arange(len(bounds)))
            for g in np.flatnonzero(np.diff(edges)).tolist():
                for array, values in zip(scratch, dealt, strict=True):
                    array.write(int(next_free[g]), values[edges[g] : edges[g + 1]])
                next_free[g] += edges[g + 1] - edges[g]
        data, columns, cells_of_value = scratch
        for first, last in itertools.pairwise(bounds):
            start, stop = int(indptr[first]), int(indptr[last])
            order = np.argsort(cells_of_value.read(start, stop), kind="stable")
            data.write(start, data.read(start, stop)[order])
            columns.write(start, columns.read(start, stop)[order])
        return data, columns, indptr

    def _values_of_cell(self) -> np.ndarray:
        values = np.zeros(self.shape[0], np.int64)
        for start, stop in self._slabs():
            cells = _read(self._indices, start, stop, self._where)
            _check_indices(cells, self.shape[0], self._where)
            values += np.bincount(cells, minlength=self.shape[0])
        return values

    def _slabs(self) -> Iterator[tuple[int, int]]:
        for start in range(0, len(self._data), _SLAB_VALUES):
            yield start, min(start + _SLAB_VALUES, len(self._data))


class _ScratchArray:
    """A one-dimensional array in an anonymous temporary file; read and written by range, never mapped."""

    def __init__(self, dtype: np.dtype):
        self._dtype = dtype
        self._file = tempfile.TemporaryFile(prefix="scmbert-csc-")  # noqa: SIM115  (lives as long as self)

    def write(self, start: int, values: np.ndarray) -> None:
        self._file.seek(start * self._dtype.itemsize)
        self._file.write(values.astype(self._dtype).tobytes())

    def read(self, start: int, stop: int) -> np.ndarray:
        self._file.seek(start * self._dtype.itemsize)
        return np.frombuffer(self._file.read((stop - start) * self._dtype.itemsize), self._dtype).copy()


class DenseFile:
    """A 2-D HDF5 dataset. Read in slabs of a bounded number of values, kept sparse."""

    def __init__(self, dataset: h5py.Dataset, where: str):
        if dataset.ndim != 2:
            raise InputError(f"{where}: {dataset.ndim}-dimensional; expected a matrix [cells, features]")
        self.shape = (int(dataset.shape[0]), int(dataset.shape[1]))
        self._dataset, self._where = dataset, where

    def chunks(self, rows: int) -> Iterator[tuple[int, sp.csr_matrix]]:
        slab = max(1, min(rows, _SLAB_VALUES // max(1, self.shape[1])))
        for first in range(0, self.shape[0], rows):
            last = min(first + rows, self.shape[0])
            parts = [
                sp.csr_matrix(_read(self._dataset, start, min(start + slab, last), self._where))
                for start in range(first, last, slab)
            ]
            yield first, canonical(sp.vstack(parts, format="csr") if len(parts) > 1 else parts[0])


class MatrixInMemory:
    """A scipy sparse matrix, a numpy array, or anything sliceable by rows into one of them."""

    def __init__(self, matrix: Any, where: str):
        self.shape, self._where = (int(matrix.shape[0]), int(matrix.shape[1])), where
        # Slicing rows of a column-compressed matrix scans all of it, every time.
        self._matrix = matrix.tocsr() if sp.issparse(matrix) and matrix.format != "csr" else matrix

    def chunks(self, rows: int) -> Iterator[tuple[int, sp.csr_matrix]]:
        for first in range(0, self.shape[0], rows):
            part = self._matrix[first : first + rows]
            # a copy always: canonical() edits in place, and the matrix is the caller's
            yield first, canonical(sp.csr_matrix(part if sp.issparse(part) else np.asarray(part), copy=True))


class ColumnsOf:
    """Some columns of a stored matrix: one modality of a file that holds several side by side."""

    def __init__(self, matrix: StoredMatrix, columns: np.ndarray):
        self.shape = (matrix.shape[0], len(columns))
        self._matrix, self._columns = matrix, columns

    def chunks(self, rows: int) -> Iterator[tuple[int, sp.csr_matrix]]:
        for first, part in self._matrix.chunks(rows):
            yield first, part[:, self._columns].tocsr()


class RowsOf:
    """Some rows of a stored matrix: the cells of a file that were asked for. `rows`: int64, ascending."""

    def __init__(self, matrix: StoredMatrix, rows: np.ndarray):
        self.shape = (len(rows), matrix.shape[1])
        self._matrix, self._rows = matrix, rows

    def chunks(self, rows: int) -> Iterator[tuple[int, sp.csr_matrix]]:
        for first, part in self._matrix.chunks(rows):
            start, stop = np.searchsorted(self._rows, [first, first + part.shape[0]])
            if stop > start:
                yield int(start), part[self._rows[start:stop] - first].tocsr()


def open_stored_matrix(node: h5py.Group | h5py.Dataset, where: str) -> StoredMatrix:
    """The matrix at an AnnData element (`X`, `layers/counts`, `raw/X`), by its `encoding-type`."""
    if isinstance(node, h5py.Dataset):
        return DenseFile(node, where)
    missing = [part for part in ("data", "indices", "indptr") if part not in node]
    shape = node.attrs.get("shape", node.attrs.get("h5sparse_shape"))
    if missing or shape is None:
        lacks = ", ".join(missing) or "shape"
        raise InputError(f"{where}: a sparse matrix without {lacks}; the file is incomplete, write it again")
    encoding = str(node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", "")))
    kinds: dict[str, type[CsrFile] | type[CscFile]] = {
        "csr_matrix": CsrFile,
        "csr": CsrFile,
        "csc_matrix": CscFile,
        "csc": CscFile,
    }
    if encoding not in kinds:
        raise InputError(f"{where}: stored as {encoding!r}; expected csr_matrix, csc_matrix or a dense array")
    return kinds[encoding](node, (int(shape[0]), int(shape[1])), where)


def _read(dataset: h5py.Dataset, start: int, stop: int, where: str) -> np.ndarray:
    try:
        return dataset[start:stop]
    except OSError as error:
        raise InputError(
            f"{where}: cannot be read from entry {start:,} to {stop:,} ({error}); "
            "the file is damaged: copy or download it again"
        ) from error


def _checked_indptr(dataset: h5py.Dataset, num_major: int, num_data: int, num_indices: int, where: str) -> np.ndarray:
    indptr = _read(dataset, 0, len(dataset), where).astype(np.int64)
    sound = len(indptr) == num_major + 1 and num_data == num_indices
    if not (sound and indptr[0] == 0 and indptr[-1] == num_data and np.all(np.diff(indptr) >= 0)):
        raise InputError(
            f"{where}: the sparse matrix contradicts itself ({len(indptr):,} row pointers for {num_major:,} rows, "
            f"{num_data:,} values, {num_indices:,} indices); the file is damaged: write it again"
        )
    return indptr


def _check_indices(indices: np.ndarray, limit: int, where: str) -> None:
    if len(indices) and (indices.min() < 0 or indices.max() >= limit):
        worst = indices.max() if indices.max() >= limit else indices.min()
        raise InputError(f"{where}: index {worst:,} in a matrix with {limit:,} places; the file is damaged")
