"""Entropic optimal transport between two sets of cells (Cuturi 2013), by ott-jax.

    min over P >= 0 of <P, C> - epsilon x H(P), rows of P sum to 1/n and columns to 1/m

A cell cannot be the partner of everybody: that is what transport adds to a ranking by distance.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scmbert_jax.errors import InputError

Array = np.ndarray

# Entries of the largest cost that is made: 1 GB as float32. ott's geometry that makes its cost anew where it is needed
# would do without, but ott-jax 0.6 cannot run it under the pinned JAX (it reads a name that JAX has dropped).
LARGEST_COST = 16384 * 16384


class Transport(NamedTuple):
    """Dual potentials: log P_ij = (f_i + g_j - C_ij) / epsilon.

    f: float32 [n]; g: float32 [m]; converged: whether the marginals are within 1e-3.
    """

    f: Array
    g: Array
    converged: bool


def cosine_cost(first: Array, second: Array) -> Array:
    """float32 [n, m]: 1 - cosine; 1 where one of the two vectors is zero."""
    return np.asarray(1.0 - _unit(first) @ _unit(second).T, np.float32)


def transport_of_cost(cost: Array, epsilon: float) -> Transport:
    """Balanced transport with a cost float [n, m] that is held in memory."""
    f, g, converged = _solve_cost(jnp.asarray(cost, jnp.float32), epsilon)
    return Transport(np.asarray(f), np.asarray(g), bool(converged))


def transport_of_vectors(first: Array, second: Array, epsilon: float) -> Transport:
    """Balanced transport with the cosine cost of vectors float [n, d], [m, d].

    Raises `InputError` where n x m is more than memory should hold.
    """
    if len(first) * len(second) > LARGEST_COST:
        raise InputError(
            f"optimal transport between {len(first):,} and {len(second):,} cells: a cost of more than "
            f"{LARGEST_COST:,} entries. Match within technical batches, split the batch, or take method cosine."
        )
    return transport_of_cost(cosine_cost(first, second), epsilon)


def plan(cost: Array, epsilon: float) -> tuple[Array, bool]:
    """float64 [n, m] with unit sum, and whether it converged."""
    solved = transport_of_cost(cost, epsilon)
    exponent = (solved.f[:, None].astype(np.float64) + solved.g[None, :] - cost) / epsilon
    coupling = np.exp(exponent)
    return coupling / coupling.sum(), solved.converged


def _unit(vectors: Array) -> Array:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


# ott is imported where it is used: it takes a second, and most of what imports this file solves no transport.
@partial(jax.jit, static_argnums=1)
def _solve_cost(cost: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    with jax.numpy_rank_promotion("allow"):  # ott adds arrays of different ranks, which a user may have JAX refuse
        problem = linear_problem.LinearProblem(geometry.Geometry(cost_matrix=cost, epsilon=epsilon))
        out = sinkhorn.Sinkhorn(max_iterations=2000)(problem)
    return out.f, out.g, jnp.asarray(out.converged)
