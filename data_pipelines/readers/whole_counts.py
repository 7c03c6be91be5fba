"""Counts in dtypes in which arithmetic on them is exact, whatever dtype they are stored in.

A file may hold its counts as uint8, float16 or bool. Sums of those overflow, differences of unsigned numbers wrap,
casts of 2.9999998 truncate, and SciPy has no sparse float16. So a stored dtype ends where values are read (`widened`),
and counts that are summed, hashed or kept are whole numbers of 64 bits (`whole`).
"""

import numpy as np
import scipy.sparse as sp

from scmbert_jax.errors import InputError

MAX_COUNT = 2**31 - 1  # counts travel as int32


def widened(values: np.ndarray, where: str) -> np.ndarray:
    """The same numbers as int64 or float64, in the byte order of this machine.

    Raises InputError for a dtype that is not of real numbers. `where`: of the values, for people.
    """
    if values.dtype.kind in "bi" or (values.dtype.kind == "u" and values.dtype.itemsize < 8):
        return values.astype(np.int64, copy=False)
    if values.dtype.kind in "fu":  # 2^63 and more is no count: as a float it is reported, as int64 it would be negative
        return values.astype(np.float64, copy=False)
    raise InputError(
        f"{where}: values of dtype {values.dtype}; counts are whole numbers: write them as int32 or float32"
    )


def exact_below(dtype: np.dtype) -> float:
    """The number from which on a dtype skips whole numbers: 2,048 for float16; infinite for integers and float64,
    whose own limits lie above every count."""
    return float(2 ** (np.finfo(dtype).nmant + 1)) if dtype.kind == "f" and dtype.itemsize < 8 else np.inf


def is_whole(values: np.ndarray) -> np.ndarray:
    """bool [n]: within float rounding of a whole number; never so far that two numbers could be meant."""
    if values.dtype.kind in "biu":
        return np.ones(len(values), bool)
    return np.abs(values - np.rint(values)) <= np.minimum(1e-6 * np.maximum(1.0, np.abs(values)), 0.25)


def whole(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """int64 [rows, columns]: each value as the whole number that it means (`is_whole`); the structure is shared."""
    values = matrix.data
    data = values.astype(np.int64, copy=False) if values.dtype.kind in "biu" else np.rint(values).astype(np.int64)
    return sp.csr_matrix((data, matrix.indices, matrix.indptr), matrix.shape)


def by_feature(matrix: sp.csr_matrix, columns: np.ndarray, num_features: int, where: str) -> sp.csr_matrix:
    """int64 [rows, num_features]: columns without a feature left out, columns of one feature summed, no stored zeros.

    Args:
      matrix: counts [rows, columns], as read.
      columns: int64 [columns], the feature of each, -1 where it has none.
      where: of the matrix, for people.

    Raises InputError where a sum is more than MAX_COUNT.
    """
    features = columns[matrix.indices]
    kept = features >= 0
    starts = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    counts = sp.csr_matrix((whole(matrix).data[kept], features[kept], starts), shape=(matrix.shape[0], num_features))
    counts.has_sorted_indices = False
    counts.sum_duplicates()
    counts.eliminate_zeros()
    if counts.nnz and counts.data.max() > MAX_COUNT:
        raise InputError(
            f"{where}: a count of {counts.data.max():,}; the most a cell may have of one feature "
            f"is {MAX_COUNT:,}. Are these counts?"
        )
    return counts
