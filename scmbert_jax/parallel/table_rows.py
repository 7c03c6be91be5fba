"""Rows of a table [features, ...] that is spread over devices, picked by index, and their gradient on the way back.

Left to itself, XLA has every device look up the indices of all devices and adds up what all found, and scatters the
gradients of all tokens on every device: memory and traffic of the global batch's tokens (base_110m on 16 chips, 64
cells at a time: 0.4 GB each way, on 256 chips 6.4). Here what moves is the table: each device fetches all of it,
picks its own rows, adds its own gradients into a table, and those tables are summed where their rows lie.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from scmbert_jax.parallel.mesh import RULES, constrain


@jax.custom_vjp
def whole(table: jax.Array) -> jax.Array:
    """All of a table on each device; its gradient is spread as the table is."""
    return constrain(table, *(None,) * table.ndim)


def _whole_forward(table: jax.Array) -> tuple[jax.Array, None]:
    return whole(table), None


def _whole_backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (constrain(gradient, "features", *(None,) * (gradient.ndim - 1)),)


whole.defvjp(_whole_forward, _whole_backward)


def pick_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """table [features, ...], ids int32 [B, ...] of a batch -> table[ids]."""
    return _sum_of_rows(table, ids[..., None], "batch")


def sum_of_linked_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """table [features, D], ids int32 [features, K], -1 for none -> [features, D], of each row's K rows the sum."""
    return _sum_of_rows(table, ids, "features")


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _sum_of_rows(table: jax.Array, ids: jax.Array, split: str) -> jax.Array:
    """table [N, ...], ids [A, ..., K] whose first dimension is split as the logical axis `split` -> [A, ..., ...]."""
    table = constrain(table, *(None,) * table.ndim)

    def picked(column: jax.Array) -> jax.Array:
        column = constrain(column, split, *(None,) * (column.ndim - 1))
        found = table[jnp.maximum(column, 0)]
        return jnp.where(column.reshape(*column.shape, *(1,) * (table.ndim - 1)) >= 0, found, 0)

    if ids.shape[-1] == 1:
        return picked(ids[..., 0])

    def add(total: jax.Array, column: jax.Array) -> tuple[jax.Array, None]:
        return total + picked(column), None

    # One of the K after the other: all at once, the rows of a million links would be in memory together.
    start = jnp.zeros((*ids.shape[:-1], *table.shape[1:]), table.dtype)
    return jax.lax.scan(add, constrain(start, split, *(None,) * (start.ndim - 1)), jnp.moveaxis(ids, -1, 0))[0]


def _forward(table: jax.Array, ids: jax.Array, split: str) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Of the table, the backward pass needs no more than its shape.
    return _sum_of_rows(table, ids, split), (ids, jnp.zeros((0, *table.shape), table.dtype))


def _backward(split: str, kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    ids, like = kept
    shape, dtype = like.shape[1:], like.dtype

    def scattered(ids: jax.Array, gradient: jax.Array) -> jax.Array:
        def add(total: jax.Array, column: jax.Array) -> tuple[jax.Array, None]:
            return total.at[jnp.where(column >= 0, column, shape[0])].add(gradient, mode="drop"), None

        start = jnp.zeros(shape, dtype)
        if ids.shape[-1] == 1:
            return add(start, ids[..., 0])[0]
        return jax.lax.scan(add, start, jnp.moveaxis(ids, -1, 0))[0]

    if jax.sharding.get_abstract_mesh().empty:
        return scattered(ids, gradient), None
    rows_lie_on = RULES["features"]

    def on_one(ids: jax.Array, gradient: jax.Array) -> jax.Array:
        total = scattered(ids, gradient)
        for axis in RULES[split]:
            if axis in rows_lie_on:
                total = jax.lax.psum_scatter(total, axis, scatter_dimension=0, tiled=True)
            else:
                total = jax.lax.psum(total, axis)
        return total

    own = PartitionSpec(RULES[split])
    summed = jax.shard_map(on_one, in_specs=(own, own), out_specs=PartitionSpec(rows_lie_on), check_vma=False)
    return summed(ids, gradient), None


_sum_of_rows.defvjp(_forward, _backward)
