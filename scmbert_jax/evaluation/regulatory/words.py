"""Sequences as columns of a linear model: how often each word occurs, which word stands where, how well motifs fit."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import scipy.sparse as sp

from data_pipelines.genome.bases import UNKNOWN
from scmbert_jax.sequences.kmer_counts import kmer_places

Array = np.ndarray
Columns = Any  # scipy CSR; the stubs know no common type

COUNTS: Mapping[str, Callable[[Columns], Columns]] = MappingProxyType(
    {"counts": lambda counts: counts, "log": lambda counts: counts.log1p()}
)
_LEAST_VARIANCE = 1e-4  # of a column; the rarest words would be blown up


def word_counts(codes: Array, k: int, count: str = "log") -> Columns:
    """float64 [N, 4^k]: how often each word of k bases occurs, on either strand; words with an N are none.

    A word and its reverse complement share the column of the smaller one.

    Args:
      codes: uint8 [N, L] (`bases`).
      count: of `COUNTS`: counts, or log(1 + count).
    """
    ids, whole = kmer_places(codes, k)
    turned, _ = kmer_places(np.where(codes == UNKNOWN, UNKNOWN, 3 - codes).astype(np.uint8)[:, ::-1], k)
    found = _columns(np.minimum(ids, turned[:, ::-1]), whole, 4**k)
    return COUNTS[count](found)


def placed_words(codes: Array, longest: int = 1) -> Columns:
    """float64 [N, sum of (L - k + 1) 4^k for k = 1 .. longest]: 1 for each word at each place.

    longest = 1 is one-hot; 2 also has a column for each pair of neighbours, which is what a linear model needs to
    know that they depend on each other.
    """
    parts = []
    for k in range(1, longest + 1):
        ids, whole = kmer_places(codes, k)
        parts.append(_columns(ids + np.arange(ids.shape[1]) * 4**k, whole, ids.shape[1] * 4**k))
    return sp.hstack(parts, format="csr")


def column_scales(train: Columns) -> Array:
    """float64 [F]: what columns are multiplied by, the inverse root of their standard deviation on training sequences.

    Between no scaling (rare words then count for nothing) and unit variance (they then count for too much). Columns
    that are the same in all sequences get 0.
    """
    mean = np.asarray(train.mean(0)).ravel()
    variance = np.asarray(train.multiply(train).mean(0)).ravel() - mean**2
    return np.where(variance > 0, np.maximum(variance, _LEAST_VARIANCE) ** -0.25, 0.0)


def _columns(ids: Array, whole: Array, number: int) -> Columns:
    rows = np.repeat(np.arange(len(ids)), ids.shape[1]).reshape(ids.shape)
    return sp.csr_matrix((np.ones(int(whole.sum())), (rows[whole], ids[whole])), shape=(len(ids), number))
