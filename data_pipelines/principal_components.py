"""Principal components of each modality over the cells of a run's first batches: where its linear path starts."""

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, svds

from scmbert_jax.batch import NUM_COMPONENTS


def principal_components(values: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Loadings float32 [F, 64] and the mean score float32 [64] of cells x features `values` [n, F].

    The scores of all components together have mean square 64 per cell: one per number, as other states of the model.
    Components there are not (few cells or features) are zero. Signs are fixed; the numbers are rounded, so that
    processes whose linear algebra differs in the last bits start alike.
    """
    num_cells, num_features = values.shape
    loadings, offset = np.zeros((num_features, NUM_COMPONENTS), np.float32), np.zeros(NUM_COMPONENTS, np.float32)
    number = min(NUM_COMPONENTS, min(values.shape) - 1)
    if number < 1 or values.nnz == 0:
        return loadings, offset
    mean = np.asarray(values.mean(axis=0)).ravel()
    ones = np.ones(num_cells)
    centred = LinearOperator(
        values.shape,
        matvec=lambda x: values @ x.ravel() - ones * (mean @ x.ravel()),
        rmatvec=lambda y: values.T @ y.ravel() - mean * (ones @ y.ravel()),
        dtype=np.float64,
    )
    _, singular, right = svds(centred, k=number, v0=np.ones(min(values.shape)) / np.sqrt(min(values.shape)))
    order = np.argsort(-singular)
    singular, right = singular[order], right[order]
    right *= np.sign(right[np.arange(number), np.abs(right).argmax(axis=1)])[:, None]
    variance = float((singular**2).sum() / num_cells)
    scaled = right.T * np.sqrt(NUM_COMPONENTS / max(variance, 1e-8))
    loadings[:, :number] = np.round(scaled, 4)
    offset[:number] = mean @ loadings[:, :number]
    return loadings, np.round(offset, 4)
