"""Sparse counts of a set of cells as values (`value_scales`), by what these cells alone say; all CSR, float64 [n, f].

Every one of them keeps zeros zero, so that sparse counts stay sparse.
"""

import numpy as np
import scipy.sparse as sp

from scmbert_jax.value_scales import clr_values, log1p_values, root_idf_values, root_values

Array = np.ndarray


def log1p_of_depth(counts: sp.csr_matrix, target_sum: float | None = None) -> sp.csr_matrix:
    """`log1p_values` of the cells' own totals; a cell with no counts stays zero.

    Args:
      counts: [n, f] raw counts.
      target_sum: None: the median total of these cells, so that a typical count keeps its size.
    """
    totals = np.asarray(counts.sum(1)).ravel()
    if target_sum is None:
        target_sum = float(np.median(totals[totals > 0])) if (totals > 0).any() else 1.0
    return _with_values(counts, log1p_values(counts.data, _of_cells(totals, counts), target_sum))


def log1p_cp10k(counts: sp.csr_matrix) -> sp.csr_matrix:
    """log(1 + 10,000 x count / cell total), natural log; a cell with no counts stays zero."""
    return log1p_of_depth(counts, 1e4)


def root_of_depth(counts: sp.csr_matrix) -> sp.csr_matrix:
    """`root_values` of the cells' own totals; a cell with no counts stays zero."""
    totals = np.asarray(counts.sum(1)).ravel()
    return _with_values(counts, root_values(counts.data, _of_cells(totals, counts)))


def centred_log_ratio(counts: sp.csr_matrix) -> sp.csr_matrix:
    """`clr_values`, all f features counted as measured."""
    log_mean = np.asarray(counts.log1p().sum(1)).ravel() / counts.shape[1]
    return _with_values(counts, clr_values(counts.data, _of_cells(log_mean, counts)))


def root_idf(counts: sp.csr_matrix) -> sp.csr_matrix:
    """`root_idf_values` of these cells' open regions; regions open in no cell stay zero."""
    binary = (counts > 0).astype(np.float64).tocsr()
    num_open = np.asarray(binary.sum(1)).ravel()
    detection = np.asarray(binary.mean(0)).ravel()[binary.indices]
    return _with_values(binary, root_idf_values(binary.data, _of_cells(num_open, binary), detection))


def _of_cells(values: Array, counts: sp.csr_matrix) -> Array:
    """Values [n] of the cells, one for each stored count."""
    return np.repeat(values, np.diff(counts.indptr))


def _with_values(counts: sp.csr_matrix, values: Array) -> sp.csr_matrix:
    # Copies of the index arrays: scipy sorts those of a matrix in place, and `counts` is the caller's.
    return sp.csr_matrix((values, counts.indices.copy(), counts.indptr.copy()), counts.shape)
