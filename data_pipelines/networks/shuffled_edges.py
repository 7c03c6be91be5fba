"""A network with all its degrees and another wiring: the control of whatever is said to come from the wiring."""

import numpy as np

_ROUNDS = 30


def shuffled_targets(source: np.ndarray, target: np.ndarray, kind: np.ndarray, seed: int) -> np.ndarray:
    """Targets int64 [E], exchanged between edges of a kind: all degrees stay, no edge is there twice or a loop.

    In each of 30 rounds every edge meets another one, and the two exchange targets where that makes no edge that is
    there already (Maslov and Sneppen 2002).
    """
    rng = np.random.default_rng(seed)
    found, most = target.copy(), int(max(source.max(initial=0), target.max(initial=0))) + 1
    for own in np.unique(kind):
        mine = np.flatnonzero(kind == own)
        for _ in range(_ROUNDS):
            first, second = rng.permutation(mine)[: len(mine) // 2 * 2].reshape(2, -1)
            codes = source[mine].astype(np.int64) * most + found[mine]
            new = np.stack([source[first] * most + found[second], source[second] * most + found[first]])
            _, which, number = np.unique(new, return_inverse=True, return_counts=True)
            is_free = (number[which].reshape(new.shape) == 1) & ~np.isin(new, codes)
            exchange = is_free.all(0) & (source[first] != found[second]) & (source[second] != found[first])
            one, other = first[exchange], second[exchange]
            found[one], found[other] = found[other], found[one]
    return found
