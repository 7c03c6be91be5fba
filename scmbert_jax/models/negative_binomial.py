"""The negative binomial in float32, exact wherever its parameters may go, and its gradient likewise.

The definition is a difference of log-gammas: at theta = 535 those are of 2,800, whose float32 has steps of 2e-4, while
their derivative by theta is of 1e-3; from theta = 20,000 on nothing is left but noise. So (Loader 2000, "Fast and
accurate computation of binomial probabilities", for the binomial), with what Stirling's formula leaves of a log-gamma,
e(z) = log Gamma(z) - (z - 1/2) log z + z - log(2 pi) / 2, for counts c > 0:

    -log NB(c; mu, theta) = deviance + log(2 pi c (c + theta) / theta) / 2 + e(c) + e(theta) - e(c + theta)
    deviance              = c log(c (mu + theta) / (mu (c + theta))) - theta log((c + theta) / (mu + theta))

in which no term is large where the sum is small. Of counts of 0 it is theta log(1 + mu / theta).
"""

import jax
import jax.numpy as jnp
import numpy as np


def negative_binomial_nll(counts: jax.Array | np.ndarray, log_mean: jax.Array, log_dispersion: jax.Array) -> jax.Array:
    """-log NB(counts; mean, theta), float32; variance mean + mean**2 / theta (Lopez et al. 2018).

    Any shapes that fit together, any float dtypes; `log_dispersion` is log theta, -15 to 15. Counts get no gradient.
    """
    return _nll(*jnp.broadcast_arrays(*(jnp.asarray(x, jnp.float32) for x in (counts, log_mean, log_dispersion))))


def nll_of_zero(log_mean: jax.Array, log_dispersion: jax.Array) -> jax.Array:
    """`negative_binomial_nll` of counts of 0, without what only other counts need: theta log(1 + mean / theta)."""
    return jnp.exp(log_dispersion) * jax.nn.softplus(log_mean - log_dispersion)


@jax.custom_jvp
def _nll(counts: jax.Array, log_mean: jax.Array, log_dispersion: jax.Array) -> jax.Array:
    mean, theta = jnp.exp(log_mean), jnp.exp(log_dispersion)
    c = jnp.where(counts > 0, counts, 1.0)
    excess = c - mean
    total, expected_total = c + theta, mean + theta
    log_totals = _log(excess / expected_total, jnp.log(total / expected_total))
    log_odds = _log(theta * excess / (mean * total), jnp.log(c) - log_mean - jnp.log(total / expected_total))
    deviance = c * log_odds - theta * log_totals
    normalisation = 0.5 * jnp.log(2.0 * np.pi * c * (total / theta))
    remainders = _stirling_error(c) + _stirling_error(theta) - _stirling_error(total)
    return jnp.where(counts > 0, deviance + normalisation + remainders, theta * jnp.log1p(mean / theta))


@_nll.defjvp
def _nll_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    counts, log_mean, log_dispersion = primals
    _, of_mean, of_dispersion = tangents
    mean, theta = jnp.exp(log_mean), jnp.exp(log_dispersion)
    total, expected_total = counts + theta, mean + theta
    excess = (counts - mean) / expected_total
    by_mean = -theta * excess
    # digamma(z) = log z - 1 / (2 z) - its error: as for the value, only what is left of a difference is computed.
    errors = jnp.where(counts > 0, _digamma_error(theta) - _digamma_error(total), 0.0)
    log_totals = jnp.log(total / expected_total)
    by_dispersion = theta * (_minus_log(excess, log_totals) - errors) - 0.5 * counts / total
    return _nll(*primals), by_mean * of_mean + by_dispersion * of_dispersion


def _log(x: jax.Array, log: jax.Array) -> jax.Array:
    """log(1 + x), given as computed from 1 + x, which near 1 has lost x."""
    return jnp.where(jnp.abs(x) < 0.5, jnp.log1p(x), log)


def _minus_log(x: jax.Array, log: jax.Array) -> jax.Array:
    """x - log(1 + x), given log(1 + x): near 0, where the two are alike, by its series."""
    series = x * x * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x * (1 / 5 - x * (1 / 6 - x * (1 / 7 - x / 8))))))
    return jnp.where(jnp.abs(x) < 0.15, series, x - _log(x, log))


def _stirling_error(z: jax.Array) -> jax.Array:
    """log Gamma(z) - (z - 1/2) log z + z - log(2 pi) / 2, z > 0."""
    far = z >= 4.0
    near = jnp.minimum(z, 4.0)  # in the recurrence over four steps, Gamma(z + 4) = z (z + 1) (z + 2) (z + 3) Gamma(z)
    x = 1.0 / jnp.where(far, z, near + 4.0)
    series = x * (1 / 12 - x * x * (1 / 360 - x * x * (1 / 1260 - x * x / 1680)))
    product = near * (near + 1.0) * (near + 2.0) * (near + 3.0) / (near + 4.0) ** 4
    return series + jnp.where(far, 0.0, (near - 0.5) * jnp.log1p(4.0 / near) - jnp.log(product) - 4.0)


def _digamma_error(z: jax.Array) -> jax.Array:
    """log z - 1 / (2 z) - digamma(z), z > 0: minus the derivative of `_stirling_error`."""
    far = z >= 4.0
    near = jnp.minimum(z, 4.0)
    x = 1.0 / jnp.where(far, z, near + 4.0)
    series = x * x * (1 / 12 - x * x * (1 / 120 - x * x * (1 / 252 - x * x / 240)))
    steps = 0.5 / near + 1.0 / (near + 1.0) + 1.0 / (near + 2.0) + 1.0 / (near + 3.0) + 0.5 / (near + 4.0)
    return series + jnp.where(far, 0.0, steps - jnp.log1p(4.0 / near))
