"""What the `matching` suite holds out: pairs of a technical batch, or of cell types."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.alignment.result import Vectors
from scmbert_jax.tasks.modality_cells import ModalityCells, batch_rows, shared_cells

Array = np.ndarray

MOST_FOLDS = 4
FEWEST_PAIRS = 30


@dataclass(frozen=True)
class MatchingFold:
    """One held-out part of the pairs of two modalities.

    Attributes:
      direction: for the table. first, second: all cells of each modality.
      train, test: pairs (rows of first, rows of second), int64 [p], [p].
      unpaired: rows of first and of second outside the test batches, which a method without pairs may read.
    """

    direction: str
    first: ModalityCells
    second: ModalityCells
    train: Vectors
    test: Vectors
    unpaired: Vectors

    def side(self, number: int, rows: Array) -> ModalityCells:
        return (self.first, self.second)[number].take(rows)

    @property
    def tested(self) -> tuple[ModalityCells, ModalityCells]:
        return self.side(0, self.test[0]), self.side(1, self.test[1])


def matching_folds(
    cells: Mapping[str, ModalityCells],
    train_batches: Sequence[str] = (),
    test_batches: Sequence[str] = (),
    held_out_types: Sequence[str] = (),
) -> Iterator[MatchingFold]:
    """Folds of every two modalities that some cells have both of."""
    names, found = list(cells), 0
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            first, second = cells[name], cells[other]
            left, right = shared_cells(first, second)
            if len(left) < 2 * FEWEST_PAIRS:
                continue
            for title, train, test in _splits(first.take(left), train_batches, test_batches, held_out_types):
                for part, what in ((train, "training"), (test, "test")):
                    if part.sum() < FEWEST_PAIRS:
                        raise InputError(
                            f"{first.path}: {int(part.sum())} {what} cells have {name} and {other}; at least "
                            f"{FEWEST_PAIRS} are needed. Choose other batches or types."
                        )
                found += 1
                if held_out_types:
                    free = [np.flatnonzero(~np.isin(side.cell_types, held_out_types)) for side in (first, second)]
                else:
                    tested = np.unique(first.technical_batches[left[test]])
                    free = [np.flatnonzero(~np.isin(side.technical_batches, tested)) for side in (first, second)]
                yield MatchingFold(
                    f"{name}-{other}: {title}",
                    first,
                    second,
                    (left[train], right[train]),
                    (left[test], right[test]),
                    (free[0], free[1]),
                )
    if not found:
        path = next(iter(cells.values())).path if cells else "the data"
        raise InputError(
            f"{path}: no two modalities share {2 * FEWEST_PAIRS} cells ({', '.join(cells) or 'nothing was measured'}); "
            "a matching can only be scored where true pairs are known."
        )


def _splits(
    pairs: ModalityCells, train_batches: Sequence[str], test_batches: Sequence[str], held_out_types: Sequence[str]
) -> Iterator[tuple[str, Array, Array]]:
    """(title, training pairs bool [p], test pairs bool [p])."""
    if held_out_types:
        known = np.unique(pairs.cell_types)
        missing = sorted(set(held_out_types) - set(known.tolist()))
        if missing:
            raise ConfigError(f"cell type {', '.join(missing)}: {pairs.path} has {', '.join(known)}.")
        test = np.isin(pairs.cell_types, held_out_types)
        yield f"types {', '.join(held_out_types)} held out", ~test & (pairs.cell_types != ""), test
        return
    if test_batches:
        test = batch_rows(pairs, test_batches)
        train = batch_rows(pairs, train_batches) if train_batches else ~test
        if (train & test).any():
            raise ConfigError(
                f"train batches {', '.join(train_batches)} and test batches {', '.join(test_batches)} have cells in "
                "common; a batch is one or the other."
            )
        yield f"{', '.join(train_batches) or 'the others'} -> {', '.join(test_batches)}", train, test
        return
    if train_batches:
        raise ConfigError("--train-batches without --test-batches: name the batches to be scored, too.")
    batches = np.unique(pairs.technical_batches)
    if len(batches) < 2:
        raise InputError(
            f"{pairs.path}: the paired cells are of {len(batches)} technical batch; at least 2 are needed to hold one "
            "out. Name the column technical_batch, or hold out cell types."
        )
    if len(batches) > MOST_FOLDS:
        raise ConfigError(
            f"{pairs.path}: {len(batches)} technical batches of pairs ({', '.join(batches)}); name those to hold out "
            "with --test-batches."
        )
    for batch in batches:
        test = pairs.technical_batches == batch
        others = ", ".join(name for name in batches if name != batch)
        yield f"{others} -> {batch}", ~test, test
