"""Splits by technical batch: each batch is held out once, and what the split cannot test is said aloud."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scmbert_jax.errors import InputError

Array = np.ndarray

_AT_RANDOM = "To hold out random parts instead of batches: --obs-field technical_batch="


@dataclass(frozen=True)
class Fold:
    """One held-out technical batch.

    Attributes:
      held_out: name of the batch that is tested.
      train: int64 [n_train] rows of the other batches.
      test: int64 [n_test] rows of the held-out batch, all of them.
      absent_classes: class -> number of test cells, for classes no training cell has. Those cells stay in the test
        set and count as errors, because a user would meet them too.
    """

    held_out: str
    train: Array
    test: Array
    absent_classes: dict[str, int] = field(default_factory=dict)


def leave_one_batch_out(
    technical_batch: Sequence[str] | Array, labels: Sequence[str] | Array, held_out: Sequence[str] | None = None
) -> list[Fold]:
    """One fold per technical batch, in the sorted order of their names (or in the order of `held_out`).

    Args:
      technical_batch: str [n], the lab batch of each cell.
      labels: str [n], the class of each cell.
      held_out: the batches to hold out, each once; all of them by default.

    Raises:
      InputError: fewer than two batches; a name in `held_out` that no cell has; a cell without a batch; training
        cells of a single class; no class in two batches.
    """
    groups, classes = np.asarray(technical_batch).astype(str), np.asarray(labels).astype(str)
    if groups.shape != classes.shape or groups.ndim != 1:
        raise ValueError(f"technical_batch and labels are one per cell; found {groups.shape} and {classes.shape}")
    unnamed = np.isin(groups, ["", "nan", "None"])
    if unnamed.any():
        raise InputError(
            f"technical_batch: {unnamed.sum()} of {groups.size} cells have no value (first at row "
            f"{int(np.argmax(unnamed))}); every cell needs one, because the split is by technical batch. {_AT_RANDOM}"
        )
    names = sorted({str(name) for name in groups})
    if len(names) < 2:
        raise InputError(
            f"technical_batch: found {len(names)} batch ({', '.join(names) or 'no cells'}), expected at least 2 to "
            "hold one out. Name the column that tells lab batches, donors or data sets apart."
        )
    chosen = names if held_out is None else [str(name) for name in held_out]
    unknown = sorted(set(chosen) - set(names))
    if unknown:
        raise InputError(f"held_out: no cell is of batch {', '.join(unknown)}; the batches are {', '.join(names)}.")
    folds = [_fold(name, groups, classes) for name in chosen]
    for fold in folds:
        check_fold(fold, groups)
    if all(sum(fold.absent_classes.values()) == fold.test.size for fold in folds):
        raise InputError(
            "technical_batch: no held-out cell is of a class that cells of other batches have: classes and batches are "
            f"the same thing. {_AT_RANDOM}"
        )
    return folds


def check_fold(fold: Fold, technical_batch: Array) -> None:
    """Raises ValueError when a fold leaks: a row or a technical batch on both sides, a row twice or out of range."""
    for side, rows in (("train", fold.train), ("test", fold.test)):
        if rows.size == 0 or rows.min() < 0 or rows.max() >= len(technical_batch):
            raise ValueError(f"fold {fold.held_out}: its {side} rows are empty or outside 0 .. {len(technical_batch)}")
        if np.unique(rows).size != rows.size:
            raise ValueError(f"fold {fold.held_out}: its {side} rows hold a cell twice")
    if np.intersect1d(fold.train, fold.test).size:
        raise ValueError(f"fold {fold.held_out}: cells on both sides of the split")
    if set(technical_batch[fold.train]) & set(technical_batch[fold.test]):
        raise ValueError(f"fold {fold.held_out}: a technical batch on both sides of the split")


def subsample_training_cells(fold: Fold, labels: Array, fraction: float, rng: np.random.Generator) -> Array:
    """int64 rows: a random `fraction` of the training cells of each class, rounded up, so that no class is lost."""
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of training cells is in (0, 1], not {fraction}")
    classes = np.asarray(labels)[fold.train]
    kept = []
    for name in np.unique(classes):
        rows = fold.train[classes == name]
        kept.append(rng.choice(rows, size=int(np.ceil(fraction * rows.size)), replace=False))
    return np.sort(np.concatenate(kept))


def inner_parts(technical_batch: Array, codes: Array, rng: np.random.Generator, num_parts: int = 3) -> Array:
    """int [n]: the part in which each *training* cell is validated while a setting is chosen.

    One part per training batch, so that choosing imitates the test (a batch never seen); with a single training batch,
    `num_parts` random parts, each class spread evenly over them.
    """
    names, part = np.unique(technical_batch, return_inverse=True)
    if names.size > 1:
        return part
    part = np.zeros(len(codes), np.int64)
    for code in np.unique(codes):
        rows = rng.permutation(np.flatnonzero(codes == code))
        part[rows] = (np.arange(rows.size) + rng.integers(num_parts)) % num_parts
    return part


def _fold(name: str, groups: Array, classes: Array) -> Fold:
    train, test = np.flatnonzero(groups != name), np.flatnonzero(groups == name)
    known = set(classes[train])
    if len(known) < 2:
        raise InputError(
            f"labels: outside batch {name} every cell is {str(next(iter(known)))!r}; a probe needs two classes. "
            f"{_AT_RANDOM}"
        )
    counts = {str(c): int((classes[test] == c).sum()) for c in sorted(set(classes[test]) - known)}
    return Fold(name, train, test, counts)
