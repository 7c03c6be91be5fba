"""Counts to values in which cells compare: log1p of sequencing-depth-free counts, centred log ratio, TF-IDF; all CSR.

Every one of them keeps zeros zero, so that sparse counts stay sparse.
"""

import numpy as np
import scipy.sparse as sp

Array = np.ndarray


def log1p_of_depth(counts: sp.csr_matrix, target_sum: float | None = None) -> sp.csr_matrix:
    """log(1 + T x count / cell total), natural log; a cell with no counts stays zero. CSR float64 [n, f].

    Args:
      counts: [n, f] raw counts.
      target_sum: T; None: the median total of these cells, so that a typical count keeps its size.
    """
    totals = np.asarray(counts.sum(1)).ravel()
    if target_sum is None:
        target_sum = float(np.median(totals[totals > 0])) if (totals > 0).any() else 1.0
    return sp.csr_matrix(scale_rows(counts, target_sum / np.where(totals > 0, totals, 1.0)).log1p())


def log1p_cp10k(counts: sp.csr_matrix) -> sp.csr_matrix:
    """log(1 + 10,000 x count / cell total), natural log; a cell with no counts stays zero. CSR float64 [n, f]."""
    return log1p_of_depth(counts, 1e4)


def centred_log_ratio(counts: sp.csr_matrix) -> sp.csr_matrix:
    """CLR per cell: log(1 + x / g), g = exp(mean over all features of log(1 + x)); zeros stay zero. CSR [n, f].

    The form used for antibody counts since Stoeckius et al. 2017 (CITE-seq), per cell instead of per feature.
    """
    log_mean = np.asarray(counts.log1p().sum(1)).ravel() / counts.shape[1]
    return sp.csr_matrix(scale_rows(counts, np.exp(-log_mean)).log1p())


def tf_idf(counts: sp.csr_matrix) -> sp.csr_matrix:
    """log(1 + 10,000 x tf x idf) of binarised counts: tf = 1 / open regions of the cell, idf = log(1 + n / n_open).

    After Cusanovich et al. 2015 and Stuart et al. 2021 (Signac). Regions open in no cell stay zero. CSR float64 [n, f].
    """
    binary = (counts > 0).astype(np.float64).tocsr()
    opened = np.asarray(binary.sum(1)).ravel()
    cells = np.asarray(binary.sum(0)).ravel()
    idf = np.log1p(binary.shape[0] / np.where(cells > 0, cells, np.inf))
    scaled = scale_rows(binary, 1e4 / np.where(opened > 0, opened, 1.0)) @ sp.diags(idf)
    return sp.csr_matrix(sp.csr_matrix(scaled).log1p())


def scale_rows(matrix: sp.csr_matrix, factors: Array) -> sp.csr_matrix:
    return sp.csr_matrix(sp.diags(factors) @ matrix)
