"""A number per array that changes when any bit of the array does, the same on every mesh and number of processes.

Orbax's array files carry no checksum: of 40 checkpoints with one flipped bit each, 40 were restored without a word
(tests/training/test_damaged_checkpoint.py). So a checkpoint carries the digests of its arrays, computed by the devices
where the arrays lie, and a restored state must have them again.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # of 8 bytes: two numbers of 4


@jax.jit
def digest(x: jax.Array) -> jax.Array:
    """uint32 []: the sum, modulo 2^32, of every element's bits mixed with its position.

    The mixing (finalizer of MurmurHash3, public domain) is a bijection of an element's bits, so one changed element
    always changes the sum; changes of several cancel with probability 2^-32. Sums of integers do not depend on order,
    so neither on the sharding.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize]).astype(jnp.uint32)
    position = jnp.zeros(bits.shape, jnp.uint32)
    stride = 1
    for dimension in reversed(range(bits.ndim)):
        place = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dimension)
        position = position + place * np.uint32(stride % 2**32)
        stride *= bits.shape[dimension]
    mixed = bits + position * np.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * np.uint32(factor)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


@jax.jit
def _stacked(leaves: list[jax.Array]) -> jax.Array:
    found = jnp.stack([digest(leaf) for leaf in leaves])
    # One program for all, and its result on every process: small programs of their own, each with a reduction over all
    # devices, starve one another on CPU devices.
    if jax.sharding.get_abstract_mesh().empty:
        return found
    return jax.lax.with_sharding_constraint(found, PartitionSpec())


def digests(tree: Any) -> np.ndarray:
    """uint32 [arrays of the tree, in the order of `jax.tree.leaves`], on the host of every process."""
    with jax.transfer_guard("allow"):
        return np.asarray(jax.device_get(_stacked(jax.tree.leaves(tree))))


def changed_arrays(tree: Any, expected: np.ndarray) -> list[str]:
    """Names of the arrays of `tree` whose digest is not the `expected` one."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    found = digests(tree)
    return [
        jax.tree_util.keystr(path) for (path, _), one, other in zip(named, found, expected, strict=True) if one != other
    ]
