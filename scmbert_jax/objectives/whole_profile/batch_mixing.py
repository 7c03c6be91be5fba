"""How far technical batches lie apart in the cell embedding: the maximum mean discrepancy (Gretton et al. 2012).

For each cell that has others of its own batch and of further batches in the minibatch: the mean kernel to the first
minus that to the second. Of two batches of like size, that is half of the unbiased estimate of MMD^2; 0 in expectation
where batches are drawn from one distribution, whatever their number. The kernel is a mean of Gaussians whose widths are
multiples of the mean squared distance, so that to shrink the embedding gains nothing.
"""

import jax
import jax.numpy as jnp

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # squared, in mean squared distances


def batch_discrepancy(cell: jax.Array, batches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum over the cells that count, their number), float32 [] each.

    Args:
      cell: float32 [B, D], cell embeddings.
      batches: int32 [B], technical batches; cells of -1 (unknown) do not count.
    """
    number = cell.shape[0]
    squares = jnp.sum(cell * cell, axis=1)
    distances = jnp.maximum(squares[:, None] + squares[None] - 2.0 * cell @ cell.T, 0.0)  # [B, B]
    known = (batches >= 0)[:, None] & (batches >= 0)[None]
    others = known & ~jnp.eye(number, dtype=bool)
    width = (distances * others).sum() / jnp.maximum(others.sum(), 1) + 1e-12
    kernel = sum((jnp.exp(-distances / (scale * width)) for scale in WIDTHS), jnp.zeros(())) / len(WIDTHS)
    same = batches[:, None] == batches[None]
    within, between = others & same, others & ~same
    counts = within.any(axis=1) & between.any(axis=1)
    gap = _mean(kernel, within) - _mean(kernel, between)
    return jnp.where(counts, gap, 0.0).sum(), counts.sum().astype(jnp.float32)


def _mean(values: jax.Array, where: jax.Array) -> jax.Array:
    """float32 [B] of [B, B]; 0 for a row of nothing."""
    return (values * where).sum(axis=1) / jnp.maximum(where.sum(axis=1), 1)
