"""Which edges of a network train, choose and test: by hashes of names, so that no order of genes or edges shows.

none        all train
edge        edges at random
regulator   all edges of some regulators
target      all edges of some genes
both        edges of which neither the regulator nor the gene is in an edge that trains or chooses

No edge chooses or tests whose reverse trains: in a network without directions, as STRING's, it says the same.
"""

from hashlib import sha256

import numpy as np

from data_pipelines.counter_hash import Purpose, fold_array, hash_of

SPLITS = ("edge", "regulator", "target", "both")
TEST, VALIDATION = 1 / 4, 1 / 8  # of the edges, the regulators or the genes
NO_PART = -1


def name_hashes(names: np.ndarray, state: int) -> np.ndarray:
    """uint64 [n] of str [n]."""
    own = [int.from_bytes(sha256(name.encode()).digest()[:8], "little") for name in names.tolist()]
    return fold_array(state, np.array(own, np.uint64))


def parts_of_edges(source: np.ndarray, target: np.ndarray, split: str, seed: int) -> np.ndarray:
    """int8 [E] of str [E]: 0 trains, 1 chooses, 2 tests; -1: no use, neither known nor asked.

    The part of an edge depends on its two names, the seed and its reverse alone: in another list of genes it is the
    same.
    """
    if split == "none":
        return np.zeros(len(source), np.int8)
    names, places = np.unique(np.concatenate([source, target]), return_inverse=True)
    source_at, target_at = places.reshape(2, -1)
    hashes = name_hashes(names, hash_of(seed, Purpose.NETWORK_PARTS))
    found = _of_hashes(hashes[source_at], hashes[target_at], split)
    trains = found == 0
    reverse_trains = np.isin(target_at * len(names) + source_at, (source_at * len(names) + target_at)[trains])
    return np.where(~trains & reverse_trains, NO_PART, found).astype(np.int8)


def parts_of_pairs(sources: np.ndarray, targets: np.ndarray, split: str, seed: int) -> np.ndarray:
    """int8 [R, G] of str [R], str [G]: parts as `parts_of_edges` gives them, but for what reverses exclude."""
    state = hash_of(seed, Purpose.NETWORK_PARTS)
    of_source, of_target = name_hashes(sources, state)[:, None], name_hashes(targets, state)[None]
    of_source, of_target = np.broadcast_arrays(of_source, of_target)
    return _of_hashes(of_source, of_target, split)


def _of_hashes(of_source: np.ndarray, of_target: np.ndarray, split: str) -> np.ndarray:
    if split == "edge":
        return _parts(fold_array(of_source, of_target))  # symmetric: an edge and its reverse are in one part
    first, second = (_parts(own) for own in (of_source, of_target))
    if split == "both":
        return np.where(first == second, first, NO_PART).astype(np.int8)
    return first if split == "regulator" else second


def _parts(hashes: np.ndarray) -> np.ndarray:
    place = hashes.astype(np.float64) / 2.0**64
    return np.where(place < TEST, 2, np.where(place < TEST + VALIDATION, 1, 0)).astype(np.int8)
