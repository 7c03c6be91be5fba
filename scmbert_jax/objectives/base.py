"""What an objective is, and how sums of losses are put together."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp


class LossSum(NamedTuple):
    """Sums over a batch or part of one; never means, so that accumulation and sharding cannot bias a masked loss.

    Attributes:
      total: float32 [], sum of weighted losses.
      weight: float32 [], sum of the weights; the loss is total / weight.
      metrics: name -> (sum, weight), each float32 []; the reported value is sum / weight.
    """

    total: jax.Array
    weight: jax.Array
    metrics: dict[str, tuple[jax.Array, jax.Array]]


class Objective(Protocol):
    """One training task. Pure: the same arguments give the same sums, on any mesh and in any microbatch.

    Attributes:
      needs_whole_batch: its loss compares cells of the batch with each other, so that microbatches would change it; it
        bounds its memory itself.
    """

    needs_whole_batch: bool

    def loss(self, model: Any, feature_table: jax.Array, batch: Any, key: jax.Array) -> LossSum:
        """Args: model (ScMbert), feature_table float32 [F, D], a batch, and the key of (seed, step).

        Randomness of a row must come from `row_keys(key, batch.row)`, so that it does not depend on how rows are
        spread over devices and microbatches.
        """
        ...


def row_keys(key: jax.Array, row: jax.Array) -> jax.Array:
    """One key per row of the global batch: pure function of (seed, step, row). row int32 [B] -> keys [B]."""
    return jax.vmap(lambda r: jax.random.fold_in(key, r))(row)


def drop_covariates(covariates: dict[str, jax.Array], fraction: float, keys: jax.Array) -> dict[str, jax.Array]:
    """Hides all covariates of a share of the cells, so that `unknown` (-1) is a trained case. keys [B], of the rows."""

    def drop(key: jax.Array) -> jax.Array:
        # 2**31 - 1 is no feature id, so this draw is independent of those of the tokens.
        return jax.random.bernoulli(jax.random.fold_in(key, 2**31 - 1), fraction)

    if not covariates or fraction == 0:
        return covariates
    dropped = jax.vmap(drop)(keys)
    return {name: jnp.where(dropped, -1, codes) for name, codes in covariates.items()}
