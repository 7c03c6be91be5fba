"""The baselines of the `matching` suite, and the table of them."""

from functools import partial

import numpy as np

from scmbert_jax.evaluation.alignment.baselines import (
    Baseline,
    Build,
    cca_space,
    links_vectors,
    random_vectors,
    ridge_space,
    some_rows,
    type_vectors,
)
from scmbert_jax.evaluation.alignment.matching_fold import MatchingFold
from scmbert_jax.evaluation.alignment.result import Vectors
from scmbert_jax.tasks.pseudo_pairs import SharedSpace, match_unpaired

Array = np.ndarray


def _of_space(space: SharedSpace, fold: MatchingFold) -> Vectors:
    first, second = fold.tested
    return space.embed_first(first), space.embed_second(second)


def of_pairs(build: Build, fold: MatchingFold, seed: int | None) -> Vectors:
    """By a space that `build` makes of the training pairs; row i of both its arguments is the same cell."""
    chosen = some_rows(np.arange(len(fold.train[0])), seed, 0)
    return _of_space(build(fold.side(0, fold.train[0][chosen]), fold.side(1, fold.train[1][chosen])), fold)


def of_pseudo_pairs(with_test: bool, fold: MatchingFold, seed: int | None) -> Vectors:
    """By pairs that are found through the links; `with_test`: among the test cells as well, unpaired."""
    # Each modality draws its own cells: nothing tells which of them are the same.
    rows = [some_rows(fold.unpaired[side], seed, 3 + side) for side in (0, 1)]
    if with_test:
        rows = [np.sort(np.concatenate([rows[side], fold.test[side]])) for side in (0, 1)]
    space = match_unpaired(fold.side(0, rows[0]), fold.side(1, rows[1])).space
    assert space is not None
    return _of_space(space, fold)


def of_links(fold: MatchingFold, seed: int | None) -> Vectors:
    """By linked features of the test cells."""
    number = np.arange(len(fold.test[0]))
    return links_vectors(*fold.tested, some_rows(number, seed, 1), some_rows(number, seed, 2))


# Two draws each: the modalities must not share their noise.
def of_types(fold: MatchingFold, seed: int | None) -> Vectors:
    types = fold.tested[0].cell_types
    return type_vectors(types, 2 * (seed or 0)), type_vectors(types, 2 * (seed or 0) + 1)


def of_chance(fold: MatchingFold, seed: int | None) -> Vectors:
    number = len(fold.test[0])
    return random_vectors(number, 2 * (seed or 0)), random_vectors(number, 2 * (seed or 0) + 1)


def _types_are_known(fold: MatchingFold) -> bool:
    return bool((fold.tested[0].cell_types != "").all())


# Vectors of the test cells in both modalities, whose cosine is scored.
MATCHING_BASELINES: list[Baseline[MatchingFold, Vectors]] = [
    Baseline("CCA", "pairs", partial(of_pairs, cca_space)),
    Baseline("SVD + ridge", "pairs", partial(of_pairs, ridge_space)),
    Baseline("pseudo-pairs", "links, no pairs", partial(of_pseudo_pairs, False)),
    Baseline("pseudo-pairs, seeing test cells", "links, test cells unpaired", partial(of_pseudo_pairs, True)),
    Baseline("links only", "links, test cells unpaired", of_links),
    Baseline("cell type only", "the test cells' types", of_types, _types_are_known),
    Baseline("random", "nothing", of_chance),
]
