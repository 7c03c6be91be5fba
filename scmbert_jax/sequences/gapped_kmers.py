"""Counts of k bases within a window, whatever stands between them, as a function of one-hot sequences.

A pattern says which of the window's places are read: (0, 1, 2, 5, 6, 7) of 8 are two triples, two bases apart. As
features of a linear model they are those of gkm-SVM (Ghandi et al. 2014): the site of a regulator is rarely one exact
word.
"""

from functools import cache
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from scmbert_jax.sequences.kmer_counts import places_of_words, reverse_complements

Array = np.ndarray


@cache
def gap_patterns(window: int, k: int) -> Array:
    """int64 [P, k]: every way to read k of at most `window` neighbours; the first place is 0."""
    found = [(0, *rest) for rest in combinations(range(1, window), k - 1)]
    return np.array(found).reshape(-1, k)


@cache
def _on_the_other_strand(window: int, k: int) -> Array:
    """int64 [P]: which pattern reads on the other strand what each one reads."""
    patterns = [tuple(own) for own in gap_patterns(window, k).tolist()]
    return np.array([patterns.index(tuple(own[-1] - place for place in reversed(own))) for own in patterns])


@cache
def _kept(window: int, k: int) -> tuple[Array, Array]:
    """(pattern, word), int64 [F] each: of what both strands count alike, the first."""
    other, turned = _on_the_other_strand(window, k), reverse_complements(k)
    pattern, word = np.arange(len(other))[:, None], np.arange(len(turned))[None]
    first = (pattern < other[:, None]) | ((pattern == other[:, None]) & (word <= turned[None]))
    kept, words = np.nonzero(first)
    return kept, words


def gapped_counts(one_hot: jax.Array, window: int, k: int, both: bool) -> jax.Array:
    """float32 [N, F]: how often each word stands at each pattern; none where it has an N. Of `both` strands together:
    what is counted alike on either has one number.

    Args:
      one_hot: float [N, L, 4].
      k: at least 2.
    """
    number, length = one_hot.shape[:2]
    filled = jnp.pad(one_hot, ((0, 0), (0, window - 1), (0, 0)))

    @jax.checkpoint  # its words, [N, L, 4^(k/2)] for each pattern, would take gigabytes in a gradient
    def counted(pattern: jax.Array) -> jax.Array:
        def words(places: jax.Array) -> jax.Array:
            found = jnp.ones((number, length, 1), one_hot.dtype)
            for place in places:
                own = jax.lax.dynamic_slice_in_dim(filled, place, length, axis=1)
                found = (found[..., :, None] * own[..., None, :]).reshape(number, length, -1)
            return found

        left, right = words(pattern[: k // 2]), words(pattern[k // 2 :])
        return jnp.einsum("nlu,nlv->nuv", left, right, precision="highest").reshape(number, -1)

    counts = jnp.moveaxis(jax.lax.map(counted, jnp.asarray(gap_patterns(window, k))), 0, 1)  # [N, P, 4^k]
    if not both:
        return counts.reshape(number, -1)
    pattern, word = _kept(window, k)
    other, turned = _on_the_other_strand(window, k), reverse_complements(k)
    return counts[:, pattern, word] + counts[:, other[pattern], turned[word]]


def gapped_matrix(codes: Array, window: int, k: int, both: bool) -> sp.csr_array:
    """The same numbers as `gapped_counts`, of codes uint8 [N, L], on the host: float32 CSR [N, F]."""
    patterns, size = gap_patterns(window, k), 4**k
    column = np.full((len(patterns), size), -1, np.int32)
    if both:
        column[_kept(window, k)] = np.arange(len(_kept(window, k)[0]))
    else:
        column[:] = np.arange(column.size).reshape(column.shape)
    turned, other = reverse_complements(k), _on_the_other_strand(window, k)
    rows, columns = [], []
    for place, pattern in enumerate(patterns):
        words, known = places_of_words(codes, pattern.tolist())
        for own in (column[place], column[other[place]][turned]) if both else (column[place],):
            found = own[words]
            counts = known & (found >= 0)
            rows.append(np.nonzero(counts)[0].astype(np.int32))
            columns.append(found[counts])
    where = np.concatenate(rows), np.concatenate(columns)
    shape = (len(codes), int(column.max()) + 1)
    found = sp.csr_array((np.ones(len(where[0]), np.float32), where), shape=shape)
    found.sum_duplicates()
    return found
