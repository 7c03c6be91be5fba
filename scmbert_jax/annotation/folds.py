"""Which labelled cells are held out together: what is chosen and calibrated, is so on cells that no fit has seen."""

from collections.abc import Callable

import numpy as np

from scmbert_jax.annotation.label_tree import LabelTree

Array = np.ndarray
Say = Callable[[str], None]

NUM_FOLDS = 5


def folds_of(membership: Array, donors: Array, copies: Array, seed: int) -> tuple[Array, str]:
    """(int64 [n], what is held out together): folds of whole donors where two or more are known, else of cells.

    Types are spread over the folds as evenly as they can be; copies of a cell are in one fold.
    """
    known = donors != ""
    names, of_donor = np.unique(donors[known], return_inverse=True)
    folds = np.zeros(len(donors), np.int64)
    rng = np.random.default_rng(seed)
    if len(names) >= 2:
        number = min(NUM_FOLDS, len(names))
        sizes, filled = np.bincount(of_donor), np.zeros(number, np.int64)
        fold_of = np.zeros(len(names), np.int64)
        for donor in np.argsort(-sizes, kind="stable"):
            fold_of[donor] = filled.argmin()
            filled[filled.argmin()] += sizes[donor]
        folds[known] = fold_of[of_donor]
        folds[~known] = rng.integers(0, number, int((~known).sum()))
        return folds, "donor"
    _, label = np.unique(membership, axis=0, return_inverse=True)
    _, first, of_copy = np.unique(copies, return_index=True, return_inverse=True)
    fold_of = np.zeros(len(first), np.int64)
    next_fold = 0
    for code in np.unique(label):
        mine = rng.permutation(np.flatnonzero(label.ravel()[first] == code))
        fold_of[mine] = (next_fold + np.arange(len(mine))) % NUM_FOLDS
        next_fold += len(mine)
    return fold_of[of_copy.ravel()], "cell"


def learned_without_fold(membership: Array, folds: Array, tree: LabelTree, say: Say) -> Array:
    """bool [n]: a type that the label covers has cells of other folds, so that held-out cells can be judged by it.

    All are, where none can be: types then belong to one fold each, and nothing better is known."""
    of_leaf = np.stack([membership[folds == fold].any(0) for fold in np.unique(folds)])  # bool [K, L]
    elsewhere = of_leaf.sum(0) - of_leaf[np.searchsorted(np.unique(folds), folds)] > 0  # bool [n, L]
    judged = (membership & elsewhere).any(1)
    if not judged.any():
        return np.ones(len(folds), bool)
    alone = membership[~judged].sum(0)
    if alone.any():
        few = ", ".join(f"{tree.leaves[leaf]} ({alone[leaf]})" for leaf in np.flatnonzero(alone))
        say(f"cells of types that no other donors have are learned from, but calibrate nothing: {few}")
    return judged
