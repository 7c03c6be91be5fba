"""Baselines every score is printed beside: PCA / LSI of normalised counts, and the majority class.

The PCA baseline sees what the model sees (raw counts of all given cells, no labels) and reduces them to as many
dimensions as the model's embedding has.
"""

from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import PCA, TruncatedSVD

from scmbert_jax.errors import InputError
from scmbert_jax.modalities import TABLE
from scmbert_jax.tasks.normalisation import centred_log_ratio, log1p_cp10k, root_idf, root_of_depth

Array = np.ndarray

# Up to this many features the exact features x features covariance is faster than Lanczos iterations, and small.
_COVARIANCE_FEATURES = 2000

# The row of a model without its transformer (`PretrainedModel.linear_path_alone`), beside that of the model.
LINEAR_PATH_ALONE = "linear path alone"

NORMALISATIONS = {"rna": log1p_cp10k, "protein": centred_log_ratio, "atac": root_idf}
WITH_ROOTS = {**NORMALISATIONS, "rna": root_of_depth}


def pca_embedding(counts: Any, modality: str, embed_dim: int, seed: int = 0, *, roots: bool = False) -> Array:
    """The PCA (RNA, protein) or LSI (ATAC, first component dropped: it is depth) of the normalised counts.

    Args:
      counts: raw counts, dense or scipy sparse [n cells, f features]; never densified.
      modality: "rna" (log1p CP10k), "protein" (CLR per cell) or "atac" (roots x IDF).
      embed_dim: the wanted number of dimensions, usually the model's.
      seed: starting vector of the Lanczos iterations (their result hardly depends on it).
      roots: RNA as square roots of fractions of the cell instead (`root_values`).

    Returns:
      float32 [n, d], d = min(embed_dim, f - 1, n - 1) (one less for ATAC); scores, largest variance first.

    Raises:
      InputError: an unknown modality, or values that are no counts (negative, not finite, or fractions).
    """
    if modality not in NORMALISATIONS:
        raise InputError(f"modality {modality!r} has no PCA baseline; there is one for {', '.join(NORMALISATIONS)}.")
    matrix = sp.csr_matrix(counts, dtype=np.float64)
    matrix.eliminate_zeros()
    bad = ~np.isfinite(matrix.data) | (matrix.data < 0) | (matrix.data != np.floor(matrix.data))
    if bad.any():
        raise InputError(
            f"counts of {modality}: found {matrix.data[bad][0]!r} among {int(bad.sum())} values that are no counts; "
            "the PCA baseline normalises itself and expects raw non-negative integers."
        )
    cells, features = matrix.shape
    drop = TABLE[modality].depth_components
    components = min(embed_dim + drop, features - 1, cells - 1)
    if components <= drop:
        raise InputError(f"counts of {modality}: {cells} cells x {features} features are too few for a PCA.")
    normalised = (WITH_ROOTS if roots else NORMALISATIONS)[modality](matrix)
    if drop:
        scores = TruncatedSVD(components, algorithm="arpack", random_state=seed).fit_transform(normalised)
    else:
        solver = "covariance_eigh" if features <= _COVARIANCE_FEATURES else "arpack"
        scores = PCA(components, svd_solver=solver, random_state=seed).fit_transform(normalised)
    return np.ascontiguousarray(scores[:, drop:], dtype=np.float32)


def majority_class(train_codes: Array, num_test: int) -> Array:
    """int64 [num_test], the commonest class of the training cells (the smallest code on a tie) for every cell."""
    return np.full(num_test, np.bincount(train_codes).argmax(), np.int64)
