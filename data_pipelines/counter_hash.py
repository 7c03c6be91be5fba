"""Counter-based randomness: a random 64-bit number is a pure function of the integers that name it.

`fold` chains the finaliser of splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
No generator has a state, so a number does not depend on which numbers were drawn before it, by whom, on how many
processes. Unlike `numpy.random.Generator` (NEP 19) the values are ours: they stay the same for ever.
"""

from enum import IntEnum
from numbers import Integral

import numba
import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


class Purpose(IntEnum):
    """What a hash is for: part of it, so that no two uses of one seed share random numbers. Numbers never change."""

    BLOCKS_OF_EPOCH = 1  # (seed, _, epoch): the order of the corpus's blocks
    CELLS_OF_WINDOW = 2  # (seed, _, epoch, window, partition): the order of the cells of some blocks
    TOKENS = 3  # (seed, _, epoch, modality): which features of a cell become tokens
    SOURCE = 4  # (seed, _, source): the seed of each corpus of several
    SOURCES_OF_DRAWS = 5  # (seed, _, stream, cycle): which corpus each draw is from
    PROFILE = 6  # (seed, _, epoch, modality): which features of a cell its profile holds
    HALVES = 11  # (_, cell): the half of the held-out cells that a probe is fitted to; of no seed
    FINE_TUNING_ORDER = 12  # (seed, _, epoch): the order in which fine-tuning shows its cells
    FINE_TUNING_DRAWS = 13  # (seed, _, step): its cells of a step, where types are drawn more evenly than they occur
    FINE_TUNING_TOKENS = 14  # (seed, _, step): the seed of the tokens of a step's cells
    NETWORK_PARTS = 15  # (seed, _): which pairs of a regulator and a gene train, choose and test
    NETWORK_NEGATIVES = 16  # (seed, _): which pairs of a regulator and a gene stand for those that are no edge
    PERTURBED_CELLS = 17  # (seed, _): the order in which cells of a file are drawn to be perturbed
    NETWORK_CELLS = 18  # (seed, _): which cells of a population a network is inferred from
    STRAND = 20  # (seed, _, step, row): which strand of a region's sequence is read
    SHUFFLED_SEQUENCE = 21  # (seed, _, row): the order of its pairs of neighbours


def fold(state: int, value: int) -> int:
    """One link of the chain on Python integers: `state` (64 bits) joined with `value` (taken modulo 2^64)."""
    mixed = ((state ^ (value & _MASK)) + _GOLDEN) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * _MULTIPLIER_1) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * _MULTIPLIER_2) & _MASK
    return mixed ^ (mixed >> 31)


def hash_of(*values: int) -> int:
    """The 64-bit hash of a sequence of integers; the order matters."""
    state = 0
    for value in values:
        if not isinstance(value, Integral):
            raise TypeError(f"hash_of takes integers, not {type(value).__name__} ({value!r})")
        state = fold(state, int(value))
    return state


def fold_array(state: int | np.ndarray, values: np.ndarray) -> np.ndarray:
    """`fold(state, v)` for every v: uint64 of the shape of `values`."""
    mixed = (np.uint64(state) ^ values.astype(np.uint64)) + np.uint64(_GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_MULTIPLIER_1)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_MULTIPLIER_2)
    return mixed ^ (mixed >> np.uint64(31))


def random_permutation(state: int, length: int) -> np.ndarray:
    """The permutation of range(length) that `state` names: int64 [length]."""
    return np.argsort(fold_array(state, np.arange(length)), kind="stable")


@numba.njit(inline="always")
def fold_compiled(state, value):
    """`fold` on uint64 scalars, for use inside numba kernels."""
    mixed = (state ^ value) + np.uint64(_GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_MULTIPLIER_1)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_MULTIPLIER_2)
    return mixed ^ (mixed >> np.uint64(31))
