"""Principal components of a modality over the cells of a run: where its linear path starts.

Cells are read in parts, of which one is in memory at a time. The components of the first part are a first guess; one
reading of all cells multiplies these directions by the covariance of all, and the components of all are sought, in a
second reading, among the directions that come out (Halko, Martinsson and Tropp 2011, "Finding structure with
randomness"). Of cells that are one part they are exact.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, svds

from scmbert_jax.feature_layout import NUM_COMPONENTS

# Directions among which components are sought: some more, because the last of a part are noise.
_NUM_DIRECTIONS = NUM_COMPONENTS + 16


class MeasuredValues(NamedTuple):
    """Values of n cells.

    Attributes:
      values: CSR [n, F], 0 where a feature was not measured; products are as exact as they are.
      panels: bool [P, F], what was measured together.
      panel_of: int [n], row of `panels`.
    """

    values: sp.csr_matrix
    panels: np.ndarray
    panel_of: np.ndarray


class Components(NamedTuple):
    """Those of all n cells that were read, in their order.

    Attributes:
      loadings: float32 [F, 64], rounded to 4 digits, so that processes whose linear algebra differs in the last bits
        start alike.
      scores: float64 [n, 64], values less their mean times the loadings before rounding. All together have mean square
        64 per cell: one per number, as other states of the model.
      mean: float64 [F], over the cells that measured the feature; 0 where none did.
      measured_in: int [F], how many these are.
    """

    loadings: np.ndarray
    scores: np.ndarray
    mean: np.ndarray
    measured_in: np.ndarray


def principal_components(values: sp.csr_matrix, panels: np.ndarray, panel_of: np.ndarray) -> Components:
    """Of cells that are all in memory; arguments as of `MeasuredValues`."""
    cells, found = MeasuredValues(values, panels, panel_of), PrincipalComponents(values.shape[1])
    found.widen(cells)
    found.project(cells)
    return found.components()


class PrincipalComponents:
    """Those of a PCA; a feature that was not measured in a cell has its mean there.

    All parts of the cells are given to `widen`, then all of them again to `project`. Components there are not are zero:
    there are fewer than cells of the first part, and than features. Signs are fixed.
    """

    def __init__(self, num_features: int):
        self._sums, self._measured_in = np.zeros(num_features), np.zeros(num_features, np.int64)
        self._guess: np.ndarray | None = None  # [F, D], the components of the first part
        self._products = np.zeros(0)  # [F, D], the guess times the covariance of what was read
        self._basis: np.ndarray | None = None  # [F, D], orthonormal
        self._projected: list[np.ndarray] = []  # [n, D]

    def widen(self, cells: MeasuredValues) -> None:
        """Takes a part of the cells, of which the directions that components are sought among are to hold most."""
        self._sums += np.asarray(cells.values.sum(axis=0), np.float64).ravel()
        self._measured_in += np.bincount(cells.panel_of, minlength=len(cells.panels)) @ cells.panels
        # The mean of what was read so far: it decides only where components are sought.
        centred = _Centred(cells, self._mean)
        if self._guess is None:
            self._guess = centred.right_vectors(_NUM_DIRECTIONS)
            self._products = np.zeros_like(self._guess)
        self._products += centred.transposed(centred.times(self._guess))

    def project(self, cells: MeasuredValues) -> None:
        """Takes a part of the cells for the second time."""
        if self._basis is None:
            self._basis = np.linalg.qr(self._products)[0]
            self._guess, self._products = None, np.zeros(0)
        self._projected.append(_Centred(cells, self._mean).times(self._basis))

    def components(self) -> Components:
        """Of all cells that were projected."""
        assert self._basis is not None
        projected = np.concatenate(self._projected).astype(np.float64)
        # No mean is to be taken off: where something was not measured, it has been filled in.
        variances, axes = np.linalg.eigh(projected.T @ projected / len(projected))
        order = np.argsort(-variances)[:NUM_COMPONENTS]
        directions = self._basis @ axes[:, order]
        signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(len(order))]) if len(order) else 1.0
        factors = signs * np.sqrt(NUM_COMPONENTS / max(float(variances[order].sum()), 1e-8))
        loadings = np.zeros((len(self._sums), NUM_COMPONENTS), np.float32)
        loadings[:, : len(order)] = np.round(directions * factors, 4)
        scores = np.zeros((len(projected), NUM_COMPONENTS))
        scores[:, : len(order)] = projected @ axes[:, order] * factors
        return Components(loadings, scores, self._mean, self._measured_in)

    @property
    def _mean(self) -> np.ndarray:
        return self._sums / np.maximum(self._measured_in, 1)


class _Centred:
    """Cells x features [n, F] less their mean float64 [F], never made dense: 0 where a feature was not measured."""

    def __init__(self, cells: MeasuredValues, mean: np.ndarray):
        self._values, self._panel_of = cells.values, cells.panel_of
        self._mean = mean.astype(cells.values.dtype)
        # Few features are missing from a panel, as a rule: what they would have taken off is added again.
        self._missing = sp.csr_matrix(~cells.panels).multiply(self._mean).tocsr()
        number = len(cells.panel_of)
        self._cells_of_panels = sp.csr_matrix(
            (np.ones(number, cells.values.dtype), (cells.panel_of, np.arange(number))), (len(cells.panels), number)
        )

    def times(self, x: np.ndarray) -> np.ndarray:
        """[F, ...] -> [n, ...]"""
        x = x.astype(self._values.dtype)
        return self._values @ x - self._mean @ x + (self._missing @ x)[self._panel_of]

    def transposed(self, y: np.ndarray) -> np.ndarray:
        """[n, ...] -> [F, ...]"""
        of_panels = self._missing.T @ (self._cells_of_panels @ y)
        return self._values.T @ y - np.multiply.outer(self._mean, y.sum(axis=0)) + of_panels

    def right_vectors(self, number: int) -> np.ndarray:
        """[F, K], the largest singular value first; K is less than `number` where there are few cells or features."""
        shape = self._values.shape
        number = min(number, min(shape) - 1)
        if number < 1 or self._values.nnz == 0:
            return np.zeros((shape[1], 0))
        operator = LinearOperator(
            shape,
            matvec=lambda x: self.times(x.ravel()),
            rmatvec=lambda y: self.transposed(y.ravel()),
            dtype=np.float64,
        )
        _, singular, right = svds(operator, k=number, v0=np.ones(min(shape)) / np.sqrt(min(shape)))
        return right[np.argsort(-singular)].T
