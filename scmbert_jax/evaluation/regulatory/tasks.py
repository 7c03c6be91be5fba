"""What the suite's sets of sequences are read from, and who learns, chooses and tests in them.

    a folder    train.csv, dev.csv and test.csv (.tsv, also .gz): the split as published, as in GUE
    a table     all that `regulation.read` reads; with a column of parts that is the split, else it is cut into folds

Of folds, each tests once; of the others a ninth chooses. Classes are as frequent in each fold.
Sequences that should choose, but are among those that learn (or their reverse complements are), do not choose.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_pipelines.genome.header_table import TABLE_ENDINGS
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.regulatory.baselines import Split
from scmbert_jax.regulation.labelled import LabelledSequences, in_another, padded
from scmbert_jax.regulation.read import Reading, read_labelled_table

Array = np.ndarray

# Every row is used: a letter for several bases is N, anything else is refused.
_READING = Reading(task="classes", most_left_out=0.0, most_foreign=1.0)
_PARTS = ("train", "dev", "test")
_FEWEST = 3  # sequences of a class in each part


@dataclass(frozen=True)
class SequenceTask:
    """A question with labels.

    Attributes:
      name: of the folder or table.
      splits: one, or one per fold; each test sequence is in one of them.
    """

    name: str
    splits: tuple[Split, ...]

    @property
    def num_test(self) -> int:
        return sum(len(split.test) for split in self.splits)


def read_task(path: str | Path, num_folds: int = 10, seed: int = 0) -> SequenceTask:
    """Reads a folder or a table.

    Args:
      num_folds, seed: of a table.

    Raises InputError: no such files; columns, letters or labels that are none; a class that is too rare.
    """
    path = Path(path)
    name = path.name.partition(".")[0]
    if path.is_dir():
        files = [_file_of(path, part) for part in _PARTS]
        train = read_labelled_table(files[0], _READING)["train"]
        others = [read_labelled_table(file, _READING, train.task)["train"] for file in files[1:]]
        parts = dict(zip(_PARTS, (train, *others), strict=True))
        name = f"{path.resolve().parent.name}/{path.name}" if path.name.isdigit() else path.name  # GUE's are tf/0 to 4
    else:
        parts = read_labelled_table(path, _READING)
        if list(parts) == ["train"]:
            return SequenceTask(name, tuple(folds(parts["train"], num_folds, seed)))
        if missing := [part for part in _PARTS if part not in parts]:
            raise InputError(f"{path}: its column of parts has no {' and no '.join(missing)}; name all three, or none")
    _check_classes(parts["train"], 1)
    width = max(part.codes.shape[1] for part in parts.values())
    filled = (replace(parts[part], codes=padded(parts[part].codes, width)) for part in _PARTS)
    return SequenceTask(name, (_split(*filled),))


def folds(data: LabelledSequences, num_folds: int, seed: int = 0) -> list[Split]:
    """Each fold tests once. Raises InputError: fewer than three folds, or a class with fewer sequences than folds."""
    if num_folds < 3:
        raise InputError(f"{num_folds} folds: expected 3 or more, since one tests and part of the others chooses")
    _check_classes(data, num_folds)
    rng = np.random.default_rng(seed)
    fold = np.zeros(len(data), np.int64)
    labels = data.targets[:, 0].astype(np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        fold[rows] = np.arange(len(rows)) % num_folds
    found = []
    for number in range(num_folds):
        others = np.flatnonzero(fold != number)
        chooses = np.zeros(len(others), bool)
        for label in np.unique(labels):
            own = rng.permutation(np.flatnonzero(labels[others] == label))
            chooses[own[: max(1, len(own) // 9)]] = True
        parts = (others[~chooses], others[chooses], np.flatnonzero(fold == number))
        found.append(_split(*(data.take(rows) for rows in parts)))
    return found


def _split(train: LabelledSequences, dev: LabelledSequences, test: LabelledSequences) -> Split:
    """What chooses must not be what has learned: of GUE's tf/4, 358 of the 1,000 that should choose are in train."""
    new = ~in_another((train,), dev)
    if len(np.unique(dev.targets[new])) < len(np.unique(dev.targets)):
        raise InputError(f"{dev.where}: every sequence of some class is in {train.where}, too: nothing to choose by")
    return Split(train, dev.take(new), test)


def _file_of(folder: Path, part: str) -> Path:
    for ending in TABLE_ENDINGS:
        if (folder / f"{part}{ending}").is_file():
            return folder / f"{part}{ending}"
    raise InputError(f"{folder}: no {part}.csv in it; expected {', '.join(f'{own}.csv' for own in _PARTS)} (.tsv, .gz)")


def _check_classes(data: LabelledSequences, num_folds: int) -> None:
    for name, number in data.counts().items():
        if number < _FEWEST * num_folds:
            raise InputError(
                f"{data.where}: {number} sequences of class {name}; expected {_FEWEST * num_folds} or more"
                + (f" for {num_folds} folds" if num_folds > 1 else "")
                + ". (Labels that are measurements, not classes, are not judged here.)"
            )
