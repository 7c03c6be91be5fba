"""A stored counts matrix, read in chunks of cells with memory bounded by the chunk, whatever its storage.

Every source yields `(first_row, csr_matrix [rows, features])` with sorted column indices and no stored zeros, as int64
or float64 whatever the dtype it is stored in (`whole_counts`).
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from data_pipelines.readers.compressed_copy import CompressedCopy, compress_by_cell
from data_pipelines.readers.stored_nodes import (
    StoredArray,
    StoredGroup,
    attribute_text,
    is_array,
    lacks_chunks,
    read_values,
)
from data_pipelines.readers.whole_counts import widened
from scmbert_jax.errors import InputError

# Values held at once while a dense tile or a column-compressed matrix is read: 1 Mi values = 4-8 MiB an array.
_SLAB_VALUES = 1 << 20


class StoredMatrix(Protocol):
    """Cells x features; `shape` and the `dtype` they are stored in are known without reading the values.

    One that has a true `any_row` takes `chunks(rows, first, last)` for the cells first:last, and reads no others, so
    that several processes can share it. Pickled by `build/hand_over.py`, it opens its file where it is loaded.
    """

    shape: tuple[int, int]
    dtype: np.dtype

    def chunks(self, rows: int) -> Iterator[tuple[int, sp.csr_matrix]]: ...


def row_ranges(matrix: StoredMatrix, rows: int) -> list[tuple[int, int]]:
    """(first, last) of stretches of cells that may be read one without the other; of all cells, if it cannot be."""
    if not getattr(matrix, "any_row", False):
        return [(0, matrix.shape[0])]
    return [(first, min(first + rows, matrix.shape[0])) for first in range(0, matrix.shape[0], rows)]


def chunks_between(matrix: Any, rows: int, first: int, last: int) -> Iterator[tuple[int, sp.csr_matrix]]:
    """`chunks` of one of `row_ranges`."""
    return matrix.chunks(rows) if (first, last) == (0, matrix.shape[0]) else matrix.chunks(rows, first, last)


def canonical(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Sorted indices, no stored zeros. NaN is not zero and stays."""
    matrix.sum_duplicates()
    if matrix.nnz and np.any(matrix.data == 0):
        matrix.eliminate_zeros()
    return matrix


class CsrFile:
    """`data, indices, indptr` in a group, compressed by cell (AnnData CSR; 10x: feature x barcode by barcode)."""

    any_row = True

    def __init__(self, group: StoredGroup, shape: tuple[int, int], where: str):
        self.shape, self._where = shape, where
        self._data, self._indices, self._indptr = _checked_parts(group, shape[0], shape[1], where)
        self.dtype = np.dtype(self._data.dtype)
        self._chunks_lost = _may_have_lost_chunks(group, where)

    def chunks(self, rows: int, first: int = 0, last: int | None = None) -> Iterator[tuple[int, sp.csr_matrix]]:
        for top, bottom in _steps(rows, first, self.shape[0] if last is None else last):
            start, stop = int(self._indptr[top]), int(self._indptr[bottom])
            data = widened(_read(self._data, start, stop, self._where), self._where)
            indices = _read_indices(self._indices, start, stop, self.shape[1], self._where)
            part = sp.csr_matrix((data, indices, self._indptr[top : bottom + 1] - start), (bottom - top, self.shape[1]))
            if self._chunks_lost:
                _refuse_repeats(part, self._where)
            yield top, canonical(part)


class CscFile:
    """Compressed by feature (AnnData CSC). Cells lie scattered over the whole file, so the first use turns it over.

    The compressed-by-cell copy lies in temporary files (12-16 bytes a value, gone with this object) and is made in
    three passes, each of which holds one slab of values: count the values of every cell, which fixes where each cell
    will lie; then the two of `compress_by_cell`. Memory: one slab and a few eight-byte numbers a cell.
    """

    def __init__(self, group: StoredGroup, shape: tuple[int, int], where: str):
        self.shape, self._where = shape, where
        self._data, self._indices, self._indptr = _checked_parts(group, shape[1], shape[0], where)
        self._num_values, self.dtype = int(self._data.shape[0]), np.dtype(self._data.dtype)
        self._chunks_lost = _may_have_lost_chunks(group, where)
        self._copy: CompressedCopy | None = None

    def chunks(self, rows: int) -> Iterator[tuple[int, sp.csr_matrix]]:
        if self._copy is None:
            try:
                self._copy = compress_by_cell(self._values_of_cell(), self._entries(), self.dtype, _SLAB_VALUES)
            except OSError as error:
                raise InputError(
                    f"{self._where}: stored by feature; reading it by cell needs about {16 * self._num_values:,} bytes "
                    f"in the temporary folder ({error}). Make room, set TMPDIR, or store the matrix as CSR"
                ) from error
        for first in range(0, self.shape[0], rows):
            part = self._copy.rows(first, min(first + rows, self.shape[0]), self.shape[1], self._where)
            if self._chunks_lost:
                _refuse_repeats(part, self._where)
            yield first, canonical(part)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copy": None}  # temporary files stay with the process that made them

    def _values_of_cell(self) -> np.ndarray:
        values = np.zeros(self.shape[0], np.int64)
        for start, stop in self._slabs():
            cells = _read_indices(self._indices, start, stop, self.shape[0], self._where)
            values += np.bincount(cells, minlength=self.shape[0])
        return values

    def _entries(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(cells, columns, values) of one slab each; columns ascend."""
        for start, stop in self._slabs():
            cells = _read(self._indices, start, stop, self._where).astype(np.int64)
            columns = np.searchsorted(self._indptr, np.arange(start, stop), side="right") - 1
            yield cells, columns, _read(self._data, start, stop, self._where)

    def _slabs(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self._num_values, _SLAB_VALUES):
            yield start, min(start + _SLAB_VALUES, self._num_values)


class DenseFile:
    """A 2-D array of cells x features. Read tile by tile, kept sparse.

    A tile is made of whole stored chunks, so that none is decoded twice; it holds a bounded number of values, or one
    stored chunk where the file has larger ones.
    """

    any_row = True

    def __init__(self, array: StoredArray, where: str):
        if array.shape is None or len(array.shape) != 2:
            raise InputError(f"{where}: of shape {array.shape}; expected a matrix [cells, features]")
        widened(np.zeros(0, array.dtype), where)
        self.shape, self.dtype = (int(array.shape[0]), int(array.shape[1])), np.dtype(array.dtype)
        self._array, self._where = array, where

    def chunks(self, rows: int, first: int = 0, last: int | None = None) -> Iterator[tuple[int, sp.csr_matrix]]:
        height, width = self._tile()
        for start, stop in _steps(rows, first, self.shape[0] if last is None else last):
            # Tiles end where stored chunks end, wherever the chunk of cells begins.
            edges = [start, *range((start // height + 1) * height, stop, height), stop]
            bands = [
                _joined(
                    [self._read_tile(top, bottom, left, width) for left in range(0, self.shape[1], width)], sp.hstack
                )
                for top, bottom in itertools.pairwise(edges)
            ]
            yield start, canonical(_joined(bands, sp.vstack))

    def _tile(self) -> tuple[int, int]:
        """(cells, features) to read at once."""
        num_cells, num_features = (max(1, size) for size in self.shape)
        tall, wide = self._array.chunks or (1, num_features)
        width = min(num_features, wide * max(1, _SLAB_VALUES // (tall * wide)))
        return min(num_cells, tall * max(1, _SLAB_VALUES // (tall * width))), width

    def _read_tile(self, top: int, bottom: int, left: int, width: int) -> sp.csr_matrix:
        tile = _read(self._array, top, bottom, self._where, (slice(left, left + width),))
        return sp.csr_matrix(widened(tile, self._where))


def _steps(rows: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    for start in range(first, last, rows):
        yield start, min(start + rows, last)


def _joined(parts: list[sp.csr_matrix], stack: Callable[..., Any]) -> sp.csr_matrix:
    return parts[0] if len(parts) == 1 else stack(parts, format="csr")


class MatrixInMemory:
    """A scipy sparse matrix, a numpy array, or anything sliceable by rows into one of them."""

    any_row = True

    def __init__(self, matrix: Any, where: str):
        self.shape, self._where = (int(matrix.shape[0]), int(matrix.shape[1])), where
        self.dtype = np.dtype(matrix.dtype)
        widened(np.zeros(0, self.dtype), where)
        if sp.issparse(matrix) and matrix.format not in ("csr", "csc"):  # what repeats a place is summed by `tocsr`
            matrix = matrix.astype(widened(np.zeros(0, matrix.dtype), where).dtype)
        # Slicing rows of a column-compressed matrix scans all of it, every time.
        self._matrix = matrix.tocsr() if sp.issparse(matrix) and matrix.format != "csr" else matrix

    def chunks(self, rows: int, first: int = 0, last: int | None = None) -> Iterator[tuple[int, sp.csr_matrix]]:
        for start, stop in _steps(rows, first, self.shape[0] if last is None else last):
            part = self._matrix[start:stop]
            # a copy always: canonical() edits in place, and the matrix is the caller's
            part = part.tocsr(copy=True) if sp.issparse(part) else sp.csr_matrix(widened(np.asarray(part), self._where))
            part.data = widened(part.data, self._where)
            yield start, canonical(part)


class ColumnsOf:
    """Some columns of a stored matrix: one modality of a file that holds several side by side."""

    def __init__(self, matrix: StoredMatrix, columns: np.ndarray):
        self.shape, self.dtype = (matrix.shape[0], len(columns)), matrix.dtype
        self.any_row = getattr(matrix, "any_row", False)
        self._matrix, self._columns = matrix, columns

    def chunks(self, rows: int, first: int = 0, last: int | None = None) -> Iterator[tuple[int, sp.csr_matrix]]:
        last = self.shape[0] if last is None else last
        for start, part in chunks_between(self._matrix, rows, first, last):
            yield start, part[:, self._columns].tocsr()


class RowsOf:
    """Some rows of a stored matrix: the cells of a file that were asked for. `rows`: int64, ascending."""

    def __init__(self, matrix: StoredMatrix, rows: np.ndarray):
        self.shape, self.dtype = (len(rows), matrix.shape[1]), matrix.dtype
        self.any_row = getattr(matrix, "any_row", False)
        self._matrix, self._rows = matrix, rows

    def chunks(self, rows: int, first: int = 0, last: int | None = None) -> Iterator[tuple[int, sp.csr_matrix]]:
        wanted = self._rows[first:last]
        if not len(wanted):
            return
        inner = (int(wanted[0]), int(wanted[-1]) + 1) if self.any_row else (0, self._matrix.shape[0])
        for top, part in chunks_between(self._matrix, rows, *inner):
            start, stop = np.searchsorted(wanted, [top, top + part.shape[0]])
            if stop > start:
                yield first + int(start), part[wanted[start:stop] - top].tocsr()


def open_stored_matrix(node: StoredGroup, where: str) -> StoredMatrix:
    """The matrix at an AnnData element (`X`, `layers/counts`, `raw/X`; group or array), by its `encoding-type`.

    Raises InputError when it is no matrix of numbers, or contradicts itself.
    """
    if is_array(node):
        encoding = attribute_text(node, "encoding-type") or "array"
        if encoding != "array":
            raise InputError(f"{where}: stored as {encoding!r}; expected csr_matrix, csc_matrix or a dense array")
        return DenseFile(node, where)
    missing = [part for part in ("data", "indices", "indptr") if not is_array(node.get(part))]
    shape = node.attrs.get("shape", node.attrs.get("h5sparse_shape"))
    encoding = attribute_text(node, "encoding-type", "h5sparse_format")
    kinds: dict[str, type[CsrFile] | type[CscFile]] = {
        "csr_matrix": CsrFile,
        "csr": CsrFile,
        "csc_matrix": CscFile,
        "csc": CscFile,
    }
    if encoding not in kinds and (encoding or not missing):
        raise InputError(f"{where}: stored as {encoding!r}; expected csr_matrix, csc_matrix or a dense array")
    if missing or shape is None:
        lacks = ", ".join(missing) or "shape"
        raise InputError(f"{where}: a sparse matrix without {lacks}; the file is incomplete, write it again")
    return kinds[encoding](node, matrix_shape(shape, where), where)


def matrix_shape(stated: Any, where: str) -> tuple[int, int]:
    """What a file says of the shape of a matrix. Raises InputError when that is not two sizes."""
    sizes = np.asarray(stated)
    if sizes.shape != (2,) or sizes.dtype.kind not in "iu" or sizes.min() < 0:
        raise InputError(f"{where}: its shape is {str(stated)[:60]}; expected two numbers. The file is damaged")
    return int(sizes[0]), int(sizes[1])


def _read(array: StoredArray, start: int, stop: int, where: str, columns: tuple[slice, ...] = ()) -> np.ndarray:
    return read_values(array, (slice(start, stop), *columns), where)


def _read_indices(array: StoredArray, start: int, stop: int, limit: int, where: str) -> np.ndarray:
    indices = _read(array, start, stop, where)
    indices = indices.astype(indices.dtype.newbyteorder("="), copy=False)
    if len(indices) and (indices.min() < 0 or indices.max() >= limit):
        worst = indices.max() if indices.max() >= limit else indices.min()
        raise InputError(f"{where}: index {worst:,} in a matrix with {limit:,} places; the file is damaged")
    return indices


def _checked_parts(
    group: StoredGroup, num_major: int, num_minor: int, where: str
) -> tuple[StoredArray, StoredArray, np.ndarray]:
    """(data, indices, indptr int64 [num_major + 1]) of a sparse matrix.

    Raises InputError unless the three fit each other; what the indices are is seen when they are read.
    """
    data, indices, pointers = (group[part] for part in ("data", "indices", "indptr"))
    for part, array in (("data", data), ("indices", indices), ("indptr", pointers)):
        if array.shape is None or len(array.shape) != 1:
            raise InputError(f"{where}/{part}: of shape {array.shape}; expected a list. The file is damaged")
        if part != "data" and array.dtype.kind not in "iu":
            raise InputError(
                f"{where}/{part}: of type {array.dtype}; places in a matrix are whole numbers. Store them as int32 or "
                "int64 with the program that wrote the file"
            )
    widened(np.zeros(0, data.dtype), where)
    num_data, num_indices = int(data.shape[0]), int(indices.shape[0])
    sound = int(pointers.shape[0]) == num_major + 1 and num_data == num_indices  # before anything of that size is read
    indptr = read_values(pointers, slice(None), where).astype(np.int64) if sound else np.zeros(1, np.int64)
    sizes = np.diff(indptr)
    if not (sound and indptr[0] == 0 and indptr[-1] == num_data and np.all(sizes >= 0)):
        raise InputError(
            f"{where}: the sparse matrix contradicts itself ({pointers.shape[0]:,} row pointers for {num_major:,} "
            f"rows, {num_data:,} values, {num_indices:,} indices); the file is damaged: write it again"
        )
    if len(sizes) and sizes.max() > num_minor and not lacks_chunks(pointers):
        raise InputError(
            f"{where}: {sizes.max():,} values in one row of {num_minor:,} places; the file is damaged: write it again"
        )
    return data, indices, indptr


def _may_have_lost_chunks(group: StoredGroup, where: str) -> bool:
    """Whether places of values were never written to a zarr store, or got lost: they read as zeros then.

    Raises InputError where values were: a sparse matrix stores no zeros.
    """
    if lacks_chunks(group["data"]):
        raise InputError(
            f"{where}/data: {group['data'].nchunks - group['data'].nchunks_initialized:,} of its "
            f"{group['data'].nchunks:,} chunks are missing; the store is incomplete: copy or download it again"
        )
    return lacks_chunks(group["indices"]) or lacks_chunks(group["indptr"])


def _refuse_repeats(part: sp.csr_matrix, where: str) -> None:
    """Raises InputError when a feature stands twice in a cell, as it does where places read as zeros."""
    unique = part.copy()
    unique.sum_duplicates()
    if unique.nnz < part.nnz:
        raise InputError(
            f"{where}: chunks of its indices or indptr are missing ({part.nnz - unique.nnz:,} features stand twice in "
            "a cell); the store is incomplete: copy or download it again"
        )
