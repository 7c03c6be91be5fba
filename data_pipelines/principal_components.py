"""Principal components of a modality over the first cells of a run: where its linear path starts."""

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, svds

from scmbert_jax.batch import NUM_COMPONENTS


def principal_components(
    values: sp.csr_matrix, panels: np.ndarray | None = None, panel_of: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Loadings float32 [F, 64] and scores float64 [n, 64] of cells x features `values` [n, F].

    Those of a PCA; a feature that was not measured in a cell has its mean there. The scores of all components together
    have mean square 64 per cell: one per number, as other states of the model. Components there are not (few cells or
    features) are zero. Signs are fixed; loadings are rounded, so that processes whose linear algebra differs in the
    last bits start alike.

    Args:
      values: 0 where a feature was not measured.
      panels: bool [P, F], what was measured together; None: everything in every cell.
      panel_of: int [n], row of `panels`.
    """
    num_cells, num_features = values.shape
    loadings = np.zeros((num_features, NUM_COMPONENTS), np.float32)
    number = min(NUM_COMPONENTS, min(values.shape) - 1)
    if number < 1 or values.nnz == 0:
        return loadings, np.zeros((num_cells, NUM_COMPONENTS))
    if panels is None or panel_of is None:
        panels, panel_of = np.ones((1, num_features), bool), np.zeros(num_cells, np.int64)
    measured_in = np.bincount(panel_of, minlength=len(panels)) @ panels
    mean = np.asarray(values.sum(axis=0)).ravel() / np.maximum(measured_in, 1)
    # Few features are missing from a panel, as a rule: what they would have taken off is added again.
    missing = sp.csr_matrix(~panels).multiply(mean).tocsr()

    def centred(x: np.ndarray) -> np.ndarray:  # [F, ...] -> [n, ...]
        return values @ x - mean @ x + (missing @ x)[panel_of]

    def transposed(y: np.ndarray) -> np.ndarray:  # [n] -> [F]
        return values.T @ y - mean * y.sum() + missing.T @ np.bincount(panel_of, y, minlength=len(panels))

    operator = LinearOperator(
        values.shape, matvec=lambda x: centred(x.ravel()), rmatvec=lambda y: transposed(y.ravel()), dtype=np.float64
    )
    _, singular, right = svds(operator, k=number, v0=np.ones(min(values.shape)) / np.sqrt(min(values.shape)))
    order = np.argsort(-singular)
    singular, right = singular[order], right[order]
    right *= np.sign(right[np.arange(number), np.abs(right).argmax(axis=1)])[:, None]
    variance = float((singular**2).sum() / num_cells)
    scaled = right.T * np.sqrt(NUM_COMPONENTS / max(variance, 1e-8))
    loadings[:, :number] = np.round(scaled, 4)
    return loadings, centred(loadings)
