"""What the suite's sets of sequences are read from, and who learns, chooses and tests in them.

    a folder    train.csv, dev.csv and test.csv (.tsv, also .gz): the split as published, as in GUE
    a table     .csv, .tsv with a header, or UCI's splice junctions (.data: class, name, sequence): folds

In a table of folds, each fold tests once; of the others a ninth chooses. Classes are as frequent in each fold.
Sequences that should choose, but are among those that learn (or their reverse complements are), do not choose.
"""

import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.genome.bases import UNKNOWN, encode
from data_pipelines.genome.header_table import TABLE_ENDINGS, is_table, read_header_table
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.regulatory.baselines import Split
from scmbert_jax.regulation.labelled import LabelledSequences, Task, in_another

Array = np.ndarray

_COLUMNS = {"sequence": ("sequence", "seq", "dna"), "label": ("label", "class", "target", "y")}
_UCI = (".data", ".data.gz")
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
    if path.is_dir():
        files = [_file_of(path, part) for part in _PARTS]
        read = [_read(file) for file in files]
        names = sorted({label for _, labels in read for label in labels}, key=_order)
        width = max(len(one) for codes, _ in read for one in codes)
        parts = [_labelled(str(file), *own, names, width) for file, own in zip(files, read, strict=True)]
        _check_classes(parts[0], 1)
        name = f"{path.resolve().parent.name}/{path.name}" if path.name.isdigit() else path.name  # GUE's are tf/0 to 4
        return SequenceTask(name, (_split(*parts),))
    codes, labels = _read(path)
    names = sorted(set(labels), key=_order)
    whole = _labelled(str(path), codes, labels, names, max(map(len, codes)))
    name = path.name.partition(".")[0]
    return SequenceTask(name, tuple(folds(whole, num_folds, seed)))


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


def _read(path: Path) -> tuple[list[Array], list[str]]:
    """Codes and label of each line."""
    if str(path).lower().endswith(_UCI):
        return _read_uci(path)
    if not is_table(path):
        raise InputError(f"{path}: expected a folder, a table ({', '.join(TABLE_ENDINGS)}) or {', '.join(_UCI)}")
    raw, columns = read_header_table(path, _COLUMNS, ("sequence", "label"))
    if raw.empty:
        raise InputError(f"{path}: has no rows")
    sequences, labels = raw[columns["sequence"]].tolist(), raw[columns["label"]].tolist()
    return _checked(path, sequences, labels, 2)


def _read_uci(path: Path) -> tuple[list[Array], list[str]]:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("ascii", "replace")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    rows = [[field.strip() for field in line.split(",")] for line in io.StringIO(text) if line.strip()]
    if not rows or (bad := next((number for number, row in enumerate(rows, 1) if len(row) != 3), 0)):
        raise InputError(f"{path}, line {bad if rows else 1}: expected class, name, sequence")
    return _checked(path, [row[2] for row in rows], [row[0] for row in rows], 1)


def _checked(path: Path, sequences: Sequence[str], labels: Sequence[str], first: int) -> tuple[list[Array], list[str]]:
    codes = []
    for line, (sequence, label) in enumerate(zip(sequences, labels, strict=True), first):
        if not sequence or not label:
            raise InputError(f"{path}, line {line:,}: no {'label' if sequence else 'sequence'}")
        codes.append(encode(sequence, 1.0, f"{path}, line {line:,}"))
    return codes, list(labels)


def _labelled(
    where: str, codes: Sequence[Array], labels: Sequence[str], names: Sequence[str], width: int
) -> LabelledSequences:
    if len(names) < 2:
        raise InputError(f"{where}: every label is {names[0]!r}; expected two classes or more")
    task = Task("binary" if len(names) == 2 else "classes", tuple(names))
    filled = np.full((len(codes), width), UNKNOWN, np.uint8)
    for row, own in enumerate(codes):
        filled[row, : len(own)] = own
    number = {name: place for place, name in enumerate(names)}
    targets = np.array([[number[label]] for label in labels], np.float32)
    return LabelledSequences(filled, np.array([len(own) for own in codes], np.int32), targets, task, where=where)


def _check_classes(data: LabelledSequences, num_folds: int) -> None:
    for name, number in data.counts().items():
        if number < _FEWEST * num_folds:
            raise InputError(
                f"{data.where}: {number} sequences of class {name}; expected {_FEWEST * num_folds} or more"
                + (f" for {num_folds} folds" if num_folds > 1 else "")
                + ". (Labels that are measurements, not classes, are not judged here.)"
            )


def _order(name: str) -> tuple[bool, float, str]:
    """Numbers in their order, before names."""
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name
