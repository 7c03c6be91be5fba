"""Counts of whole cells, as statistics read them."""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp


class CellCounts(NamedTuple):
    """The n cells that measured one modality of F features.

    Attributes:
      cells: int64 [n], ascending: which of the cells they are.
      counts: float64 CSR [n, F].
      library_size: float64 [n], counts over all mapped features of the modality.
      mean_log_count: float64 [n], mean of log1p(count) over the measured features.
      panel_of: int64 [n], row of `panels`.
      panels: bool [P, F], sets of features that a data set measures.
    """

    cells: np.ndarray
    counts: sp.csr_matrix
    library_size: np.ndarray
    mean_log_count: np.ndarray
    panel_of: np.ndarray
    panels: np.ndarray


class WholeCells(NamedTuple):
    """N cells, none of them twice.

    Attributes:
      modalities: modality -> its counts; only those that a cell measured.
      folds: int32 [N] (`fold_of`).
      technical_batches: int32 [N], codes; -1 where unknown.
    """

    modalities: dict[str, CellCounts]
    folds: np.ndarray
    technical_batches: np.ndarray
