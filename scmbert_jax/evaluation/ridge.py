"""Ridge regression on many outputs at once, sparse or dense, its strength chosen by leaving one cell out.

The same model and choice as scikit-learn's RidgeCV, which keeps the residual of every training cell and output; 25,000
peaks do not allow that. Here the outputs enter only through their inner products, so that they are never densified.
"""

from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp

Array = np.ndarray
Matrix = Any  # an array or a scipy CSR matrix; the stubs know no common type

STRENGTHS = np.logspace(-2, 5, 15)
_CHOOSING_CELLS = 2000  # the strength is chosen on so many cells; an eigendecomposition of more takes minutes


def ridge_predict(x: Matrix, y: Matrix, x_new: Matrix, strengths: Array = STRENGTHS) -> tuple[Array, float]:
    """Fits y ~ x with an unpenalised intercept, min ||y - xB||^2 + a ||B||^2, and predicts.

    Args:
      x: [n, d] inputs; y: [n, F] outputs; x_new: [m, d].
      strengths: candidate a; one of them is taken as it is.

    Returns:
      float32 [m, F] predictions, and the strength a chosen.
    """
    rows = np.random.default_rng(0).permutation(x.shape[0])[:_CHOOSING_CELLS]
    strength = float(strengths[0]) if len(strengths) == 1 else choose_strength(x[rows], y[rows], strengths)
    x_mean, y_mean = _column_means(x), _column_means(y)
    if x.shape[1] <= x.shape[0]:
        centred = _centred(x, x_mean)
        penalised = centred.T @ centred
        penalised[np.diag_indices_from(penalised)] += strength
        weights = scipy.linalg.solve(penalised, _times(centred.T, y, y_mean), assume_a="pos")  # [d, F]
        return (_centred(x_new, x_mean) @ weights + y_mean).astype(np.float32), strength
    kernel = _centred_gram(x, x, x_mean)
    kernel[np.diag_indices_from(kernel)] += strength
    # The smoother [m, n] comes first: it is smaller than the outputs.
    smoother = scipy.linalg.solve(kernel, _centred_gram(x, x_new, x_mean), assume_a="pos", overwrite_a=True).T
    return (_times(smoother, y, y_mean) + y_mean).astype(np.float32), strength


def choose_strength(x: Matrix, y: Matrix, strengths: Array) -> float:
    """The strength with the smallest squared leave-one-out error, summed over cells and outputs.

    With x - mean = U s V', f_k = s_k^2 / (s_k^2 + a) and h_i = 1/n + sum_k f_k u_ik^2, the error of the cell left out
    is its residual divided by 1 - h_i. The squared residual of cell i over all outputs needs only w = U'(y - mean):
    |y_i|^2 - 2 sum_k f_k u_ik (y_i . w_k) + sum_kl f_k f_l u_ik u_il (w_k . w_l).
    """
    mean, number = _column_means(y), x.shape[0]
    left, squares = _left_singular(x)
    along = _times(left.T, y, mean)  # w [k, F]
    onto = _times(along, y.T, np.zeros(number)).T - along @ mean  # y_i . w_k [n, k]
    gram = along @ along.T
    lengths = _squared_lengths(y, mean)
    errors = []
    for strength in strengths:
        shrunk = left * (squares / (squares + strength))  # f_k u_ik
        residual = lengths - 2 * (shrunk * onto).sum(1) + ((shrunk @ gram) * shrunk).sum(1)
        kept = 1 - 1 / number - (shrunk * left).sum(1)
        errors.append((np.maximum(residual, 0) / np.maximum(kept, 1e-6) ** 2).sum())
    return float(strengths[int(np.argmin(errors))])


def _left_singular(x: Matrix) -> tuple[Array, Array]:
    """U [n, k] and s^2 [k] of x - mean, without directions of no variance; by the smaller of the two Gram matrices."""
    mean = _column_means(x)
    if x.shape[1] <= x.shape[0]:
        centred = _centred(x, mean)
        squares, right = np.linalg.eigh(centred.T @ centred)
        used = squares > squares.max() * 1e-10
        return centred @ right[:, used] / np.sqrt(squares[used]), squares[used]
    squares, left = np.linalg.eigh(_centred_gram(x, x, mean))
    used = squares > squares.max() * 1e-10
    return left[:, used], squares[used]


def _column_means(matrix: Matrix) -> Array:
    return np.asarray(matrix.mean(0), np.float64).ravel()


def _centred(matrix: Matrix, mean: Array) -> Array:
    dense = matrix.toarray() if sp.issparse(matrix) else matrix
    return np.asarray(dense, np.float64) - mean


def _times(left: Array, y: Matrix, mean: Array) -> Array:
    """left @ (y - mean), y never densified."""
    product = (y.T @ left.T).T if sp.issparse(y) else left @ y
    return np.asarray(product, np.float64) - np.outer(left.sum(1), mean)


def _squared_lengths(y: Matrix, mean: Array) -> Array:
    squares = y.multiply(y).sum(1) if sp.issparse(y) else (np.asarray(y, np.float64) ** 2).sum(1)
    return np.asarray(squares, np.float64).ravel() - 2 * np.asarray(y @ mean).ravel() + mean @ mean


def _centred_gram(x: Matrix, other: Matrix, mean: Array) -> Array:
    """float64 [n, m]: inner products of (x - mean) and (other - mean)."""
    product = x @ other.T
    gram = np.asarray(product.toarray() if sp.issparse(product) else product, np.float64)
    first, second = np.asarray(x @ mean).ravel(), np.asarray(other @ mean).ravel()
    return gram - first[:, None] - second[None, :] + mean @ mean
