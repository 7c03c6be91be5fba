"""From counts to the values a translation is scored in: one scale per modality, sparse because zeros stay zero.

    rna       log1p(count / library_size x T); T, the target sum, is a median library size     "log1p"
    protein   log1p(count / g), g = exp(mean over the measured antibodies of log1p(count))      "clr"
    atac      1 where a fragment was seen, 0 elsewhere; predictions are probabilities           "probability"

The protein scale is the centred log ratio of Stoeckius et al. 2017 (CITE-seq), per cell; the other form in use,
log1p(count) minus its mean, gives other figures and is not meant here.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from scmbert_jax.modalities import TABLE
from scmbert_jax.tasks.normalisation import centred_log_ratio, log1p_of_depth
from scmbert_jax.value_scales import clr_values

Array = np.ndarray

SCALE_OF_MODALITY = {name: own.value_scale for name, own in TABLE.items()}


@dataclass(frozen=True)
class ValueScale:
    """How the counts of one modality become values.

    Attributes:
      modality: "rna", "protein" or "atac".
      target_sum: T, counts per cell after scaling; only "rna" has one.
    """

    modality: str
    target_sum: float | None = None

    def __post_init__(self) -> None:
        if self.modality not in SCALE_OF_MODALITY:
            raise ValueError(f"modality {self.modality!r}: expected one of {', '.join(SCALE_OF_MODALITY)}")
        if (self.modality == "rna") != (self.target_sum is not None):
            raise ValueError(f"target_sum {self.target_sum} of {self.modality}: RNA has one, the others have none")
        if self.target_sum is not None and not 0 < self.target_sum < np.inf:
            raise ValueError(f"target_sum {self.target_sum}: expected a positive number of counts per cell")

    @property
    def name(self) -> str:
        """ "log1p", "clr" or "probability"."""
        return SCALE_OF_MODALITY[self.modality]

    def values(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        """Values float32 CSR [n, F] of raw counts [n, F]; a cell without counts stays zero.

        All F columns count as measured: library size and g are taken over them.
        """
        # A real copy: a change of dtype alone shares the index arrays, and scipy sorts those in place.
        matrix = sp.csr_matrix(counts, dtype=np.float64, copy=True)
        if self.modality == "protein":
            return centred_log_ratio(matrix).astype(np.float32)
        if self.modality == "atac":
            return sp.csr_matrix((matrix > 0).astype(np.float32))
        return log1p_of_depth(matrix, self.target_sum).astype(np.float32)


def median_library_size(counts: sp.csr_matrix) -> float:
    """Median of the total counts per cell, over cells with any counts [n, F]."""
    totals = np.asarray(counts.sum(1)).ravel()
    return float(np.median(totals[totals > 0]))


def change_target_sum(values: Array, old: float, new: float) -> Array:
    """log1p values for target sum `old` as float32 log1p values for `new`: log1p(expm1(v) x new / old)."""
    return np.log1p(np.expm1(np.maximum(values, 0.0)) * (new / old)).astype(np.float32)


def clr_of_log1p(values: Array) -> Array:
    """Expected log1p counts [n, F] of a cell as float32 CLR values: the counts they stand for, divided by their g.

    For a prediction on the log1p scale that is scored as CLR. CLR depends on the cell's depth a little, through the 1
    in log1p, so the counts should be those of a cell of usual depth.
    """
    log_counts = np.maximum(np.asarray(values, np.float64), 0.0)
    return clr_values(np.expm1(log_counts), log_counts.mean(1, keepdims=True)).astype(np.float32)
