"""ComBat: the mean and spread of each technical batch, shrunk towards those of all features, are taken off.

Johnson, Li and Rabinovic 2007 (Biostatistics 8, 118-127), the parametric empirical Bayes of their sections 3.1 and 3.2,
without further covariates.
"""

import numpy as np

Array = np.ndarray

_ROUNDS = 100
_CLOSE = 1e-4  # relative change of the estimates of a round that ends the iteration


def combat(values: Array, batches: Array) -> Array:
    """float64 [n, F] of the same, with the batches' differences taken off.

    A feature that is the same in all cells of a batch says nothing of a spread and stays as it is.

    Args:
      values: float [n, F], about normal: log-normalised, not counts.
      batches: str [n]; each of two cells or more.
    """
    values = np.asarray(values, np.float64)
    names, code = np.unique(batches, return_inverse=True)
    rows = [np.flatnonzero(code == number) for number in range(len(names))]
    varies = np.all([values[own].var(0) > 1e-12 for own in rows], axis=0)
    x = values[:, varies]
    batch_means = np.stack([x[own].mean(0) for own in rows])  # [b, F]
    weights = np.array([len(own) for own in rows]) / len(x)
    mean = weights @ batch_means  # alpha of eq. 3.1
    pooled = np.sqrt(((x - batch_means[code]) ** 2).mean(0))  # sigma
    z = (x - mean) / pooled
    for own in rows:
        shift, scale = _shrunken(z[own])
        z[own] = (z[own] - shift) / np.sqrt(scale)
    corrected = values.copy()
    corrected[:, varies] = z * pooled + mean
    return corrected


def _shrunken(z: Array) -> tuple[Array, Array]:
    """gamma* and delta*^2 of eq. 3.4, float64 [F] each, of the standardised values [n, F] of a batch."""
    number = len(z)
    shift, scale = z.mean(0), z.var(0, ddof=1)
    prior_mean, prior_variance = shift.mean(), shift.var(ddof=1) if len(shift) > 1 else 0.0
    # Moments of the inverse gamma prior of delta^2: shape lambda and scale theta.
    v, s2 = scale.mean(), scale.var(ddof=1) if len(scale) > 1 else 0.0
    if prior_variance == 0 or s2 == 0:
        return shift, scale
    shape, rate = v**2 / s2 + 2, v**3 / s2 + v
    gamma, delta = shift, scale
    for _ in range(_ROUNDS):
        new_gamma = (number * prior_variance * shift + delta * prior_mean) / (number * prior_variance + delta)
        squares = ((z - new_gamma) ** 2).sum(0)
        new_delta = (rate + 0.5 * squares) / (number / 2 + shape - 1)
        change = max(_relative(new_gamma, gamma), _relative(new_delta, delta))
        gamma, delta = new_gamma, new_delta
        if change < _CLOSE:
            break
    return gamma, delta


def _relative(new: Array, old: Array) -> float:
    return float((np.abs(new - old) / np.maximum(np.abs(old), 1e-8)).max())
