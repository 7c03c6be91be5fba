"""Exact counts of k-mers as a function of one-hot sequences, so that gradients and all operations pass through them.

The indicator of a k-mer at a position is a product of k one-hot values. A table [N, L, 4^k] of them would be 1.3 GB of
256 sequences of 300 bases at k = 6; split in the middle, the counts are a product of matrices [4^(k/2), L] x [L,
4^(k/2)] for each sequence.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def words(one_hot: jax.Array, k: int) -> jax.Array:
    """float32 [N, L - k + 1, 4^k]: 1 at the k-mer that begins at each position, in the order of A, C, G, T; all 0 where
    it has an N. one_hot: float [N, L, 4]."""
    total = one_hot.shape[1] - k + 1
    found = one_hot[:, :total]
    for place in range(1, k):
        found = found[..., :, None] * one_hot[:, place : place + total, None, :]
        found = found.reshape(*found.shape[:2], -1)
    return found


def kmer_counts(one_hot: jax.Array, k: int) -> jax.Array:
    """float32 [N, 4^k]: how often each k-mer stands in each sequence, in the order of A, C, G, T. k is 2 or more; a
    sequence shorter than k has none."""
    number, length = one_hot.shape[:2]
    if length < k:
        return jnp.zeros((number, 4**k), jnp.float32)
    first = k // 2
    left = words(one_hot, first)[:, : length - k + 1]
    right = words(one_hot, k - first)[:, first:]
    return jnp.einsum("nlu,nlv->nuv", left, right, precision="highest").reshape(number, -1)


def reverse_complements(k: int) -> np.ndarray:
    """int64 [4^k]: the place of the reverse complement of each k-mer."""
    digits = np.array(np.unravel_index(np.arange(4**k), (4,) * k))  # [k, 4^k]
    return np.ravel_multi_index(tuple(3 - digits[::-1]), (4,) * k)


def kmer_places(codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [N, L - k + 1], the number of the k-mer that begins at each position, as `words` orders them; bool, it has
    no N) of codes uint8 [N, L], on the host."""
    return places_of_words(codes, range(k))


def places_of_words(codes: np.ndarray, pattern: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The same of the bases at these places, in rising order, behind each position."""
    total = max(codes.shape[1] - pattern[-1], 0)
    found, known = np.zeros((len(codes), total), np.int64), np.ones((len(codes), total), bool)
    for place in pattern:
        bases = codes[:, place : place + total]
        found = found * 4 + np.minimum(bases, 3)
        known &= bases < 4
    return found, known
