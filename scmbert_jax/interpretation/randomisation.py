"""Whether attributions are of what was learned: beside those of an untrained model and of permuted labels.

After Adebayo et al. 2018 ("Sanity checks for saliency maps"): an attribution that looks the same when the model has
learned nothing, or when labels mean nothing, is of the cell's counts and not of the model.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.stats import rankdata

from scmbert_jax.annotation.linear_head import LinearHead, fit_linear_head
from scmbert_jax.evaluation.intervals import CellInterval, bootstrap_weights, percentile_interval

Array = np.ndarray


class Agreement(NamedTuple):
    """How two attributions of the same cells agree: Spearman's correlation over each cell's expressed features, the
    mean over cells with a bootstrap's interval; of the values, and of their sizes."""

    signed: CellInterval
    absolute: CellInterval


def agreement(one: sp.csr_matrix, other: sp.csr_matrix, expressed: sp.csr_matrix, seed: int) -> Agreement:
    """Of CSR [n, F] each; cells with fewer than 3 expressed features say nothing."""
    signed, absolute = [], []
    for row in range(expressed.shape[0]):
        features = expressed.indices[expressed.indptr[row] : expressed.indptr[row + 1]]
        if len(features) >= 3:
            first, second = (np.asarray(own[row].toarray()).ravel()[features] for own in (one, other))
            signed.append(spearman(first, second))
            absolute.append(spearman(np.abs(first), np.abs(second)))
    return Agreement(_mean(np.array(signed), seed), _mean(np.array(absolute), seed))


def spearman(x: Array, y: Array) -> float:
    """Of float [m] each; 0 where one of them does not vary."""
    first, second = (own - own.mean() for own in (rankdata(x), rankdata(y)))
    size = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / size if size > 0 else 0.0


def _mean(values: Array, seed: int) -> CellInterval:
    if not len(values):
        return CellInterval(0.0, 0.0, 0.0)
    weights = bootstrap_weights(len(values), 2000, np.random.default_rng(seed)) / len(values)
    return percentile_interval(values.mean(), weights @ values)


def refitted_head(vectors: Array, types: Array, num_types: int, c: float, seed: int | None) -> LinearHead:
    """A head with L columns, fitted to vectors [n, D] and types int64 [n] of cells; with a seed, to permuted types.

    `c` is the inverse strength of L2. Types of which there is no cell here have a column of 0.
    """
    labels = types if seed is None else np.random.default_rng(seed).permutation(types)
    present = np.unique(labels)
    head = fit_linear_head(vectors, labels[:, None] == present[None], c=c)
    weight, bias = np.zeros((vectors.shape[1], num_types)), np.zeros(num_types)
    weight[:, present], bias[present] = head.weight, head.bias
    return LinearHead(weight, bias, head.scale)
