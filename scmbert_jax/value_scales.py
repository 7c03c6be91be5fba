"""Counts as values in which cells compare: the one place where counts become values, for numpy and for JAX arrays.

    log1p        log1p(count / library_size * target_sum)                           RNA
    root         sqrt(1000 * count / library_size)                                  RNA, of cell types
    clr          log1p(count / g), g the cell's geometric mean of count + 1         protein
    root_idf     sqrt(1000 * [count > 0] / library_size) * log1p(1 / detection)     ATAC

Each is 0 for a count of 0, so that whoever holds sparse counts changes the stored ones alone. All arguments are of any
shapes that broadcast; `xp` is numpy or jax.numpy. A size below 1, of a cell without counts, counts as 1.
"""

from typing import Any

import numpy as np

ATAC_VALUES = "root_idf"  # by which stored loadings say of what values they are


def relative_expression(counts: Any, library_size: Any, target_sum: Any, xp: Any = np) -> Any:
    """count / library_size * target_sum; 0 where the library is empty. CP10K for target_sum = 1e4."""
    return counts / xp.maximum(library_size, 1.0) * target_sum


def log1p_values(counts: Any, library_size: Any, target_sum: Any, xp: Any = np) -> Any:
    """log1p(count / library_size * target_sum)."""
    return xp.log1p(relative_expression(counts, library_size, target_sum, xp))


def root_values(counts: Any, library_size: Any, xp: Any = np) -> Any:
    """sqrt(1000 * count / library_size): every cell has the length sqrt(1000), and distances are Hellinger's.

    The root evens out the variance of Poisson counts at any depth. log1p of counts per 10,000 does so for cells of
    about 10,000 counts; in shallower ones a single count is a large value and the rest differ little.
    """
    return xp.sqrt(relative_expression(counts, library_size, 1e3, xp))


def clr_values(counts: Any, mean_log_count: Any, xp: Any = np) -> Any:
    """log1p(count / g), g = exp(mean_log_count), the mean over the cell's measured features of log1p(count).

    The centred log ratio of Stoeckius et al. 2017 (CITE-seq), per cell instead of per feature.
    """
    return xp.log1p(counts * xp.exp(-mean_log_count))


def root_idf_values(counts: Any, library_size: Any, detection: Any, xp: Any = np) -> Any:
    """sqrt(1000 * [count > 0] / library_size) * log1p(1 / detection).

    `root_values` of open and closed, times the inverse document frequency of Cusanovich et al. 2015. With all regions
    of a cell as open regions its length is nearly the same in every cell, as of TF-IDF that is divided by its length:
    what tells types apart is which regions are open, not how many. log(TF x IDF), as Signac takes it, keeps the number.

    Args:
      library_size: counts, or open regions, of the cell.
      detection: fraction of the cells with the region open.
    """
    frequency = xp.log1p(1.0 / xp.maximum(detection, 1e-4))
    return root_values(xp.where(counts > 0, 1.0, 0.0), library_size, xp) * frequency


def linear_values(modality: str, counts: Any, library_size: Any, mean_log_count: Any, typical: Any, xp: Any) -> Any:
    """Values in which principal components are taken: `log1p_values`, `clr_values` or `root_idf_values`.

    Args:
      counts, library_size, mean_log_count: of the tokens, any shape; see `ModalityTokens`.
      typical: of the tokens; rna: the median library size; atac: the detection rate of the region; protein: not read.
    """
    if modality == "rna":
        return log1p_values(counts, library_size, typical, xp)
    if modality == "protein":
        return clr_values(counts, mean_log_count, xp)
    return root_idf_values(counts, library_size, typical, xp)


def expression_bins(relative: Any, num_bins: int, xp: Any = np) -> Any:
    """scBERT's bins of relative expression: floor(log2(1 + CP10K)) clipped at num_bins - 1; int32.

    Yang et al. 2022, Methods.
    """
    # log2 of an exact power of two can fall just below its integer in float32; the nudge is far below one count.
    return xp.clip(xp.floor(xp.log2(1.0 + relative) + 1e-6), 0, num_bins - 1).astype(xp.int32)
