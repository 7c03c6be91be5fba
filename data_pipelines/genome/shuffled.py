"""Sequences with the same pairs of neighbours in another order: what an element is compared with that means nothing.

A shuffle that keeps how often each letter follows each other one is a random Euler path over the pairs (Altschul and
Erickson 1985, "Significance of nucleotide sequence alignments"): for each letter the pair that is taken last is drawn
such that all of these lead to the last letter, the other pairs are permuted, and the path is walked. Each sequence with
these pairs, this first and this last letter is as likely as any other.

The last pairs are those by which random walks to the last letter leave each letter for the last time (Wilson 1996,
"Generating random spanning trees more quickly than the cover time"). Drawing all of them until they fit is as exact,
but of long runs of one letter it would take hours: a walk takes at most 4 L steps in the mean.
"""

import numba
import numpy as np

from data_pipelines.counter_hash import Purpose, fold_array, fold_compiled, hash_of

_LETTERS = 5  # N is one, too


def shuffle_dinucleotides(codes: np.ndarray, seed: int, lengths: np.ndarray | None = None) -> np.ndarray:
    """uint8 [N, L]: each sequence shuffled, a function of (seed, row) and the sequence.

    Args:
      codes: uint8 [N, L] (`bases`).
      seed: any integer.
      lengths: int [N], bases that are real, what is behind them stays; None: all L.
    """
    sizes = np.full(len(codes), codes.shape[1], np.int64) if lengths is None else np.asarray(lengths, np.int64)
    states = fold_array(hash_of(seed, Purpose.SHUFFLED_SEQUENCE), np.arange(len(codes)))
    return _shuffled(np.asarray(codes, np.uint8), sizes, states)


@numba.njit(nogil=True, cache=True)
def _below(state, drawn, number):
    """A random integer in [0, number)."""
    return np.int64(fold_compiled(state, np.uint64(drawn)) % np.uint64(number))


@numba.njit(nogil=True, cache=True)
def _shuffled(codes, lengths, states):
    found = codes.copy()
    following = np.empty((_LETTERS, codes.shape[1]), np.uint8)  # what follows each letter, in the order of the path
    total, last = np.zeros(_LETTERS, np.int64), np.zeros(_LETTERS, np.int64)
    joined = np.zeros(_LETTERS, np.bool_)
    for row in range(len(codes)):
        size, state, drawn = lengths[row], states[row], 0
        if size < 3:
            continue
        total[:] = 0
        for place in range(size - 1):
            letter = codes[row, place]
            following[letter, total[letter]] = codes[row, place + 1]
            total[letter] += 1
        end = codes[row, size - 1]
        joined[:] = False  # letters whose last pairs are known to lead to the end
        joined[end] = True
        for letter in range(_LETTERS):
            at = np.int64(letter)
            while total[letter] > 0 and not joined[at]:  # where the walk comes by again, it leaves by another pair
                last[at] = _below(state, drawn, total[at])
                drawn += 1
                at = np.int64(following[at, last[at]])
            at = np.int64(letter)
            while total[letter] > 0 and not joined[at]:
                joined[at] = True
                at = np.int64(following[at, last[at]])
        for letter in range(_LETTERS):
            free = total[letter]
            if free > 0 and letter != end:
                free -= 1
                kept = following[letter, last[letter]]
                following[letter, last[letter]] = following[letter, free]
                following[letter, free] = kept
            for place in range(free - 1, 0, -1):
                other = _below(state, drawn, place + 1)
                drawn += 1
                moved = following[letter, place]
                following[letter, place] = following[letter, other]
                following[letter, other] = moved
        total[:] = 0
        for place in range(size - 1):
            letter = found[row, place]
            found[row, place + 1] = following[letter, total[letter]]
            total[letter] += 1
    return found
