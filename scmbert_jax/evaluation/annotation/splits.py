"""Which cells are learned from and which are predicted: by cell, donor, technical batch, data set; types left out.

A seed decides how cells or groups fall into folds. All tasks of one seed and case together are one figure. In a case
with few labels ("10 per type") so many cells of each type are drawn from those that could be learned from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_pipelines.cells.cell_identity import NOT_MEASURED
from data_pipelines.checks.shared_counts import Keys
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.annotation.task import Task

Array = np.ndarray

SPLITS = ("cell", "donor", "technical_batch", "data_set", "type")
ALL_CELLS = "all cells"
NUM_FOLDS = 5
_PARTS = 3
_FEWEST_CELLS = 10  # of a type that is left out, for its novelty to be scored


@dataclass(frozen=True)
class LabelledCells:
    """What the splits need to know.

    Attributes:
      path: for messages.
      codes: int64 [n], 0 .. num_classes - 1; classes: str [C].
      groups: "donor", "technical_batch", "data_set" -> str [n], "" where unknown.
    """

    path: str
    codes: Array
    classes: Array
    groups: dict[str, Array]

    @property
    def num_classes(self) -> int:
        return len(self.classes)


def make_tasks(
    cells: LabelledCells, split: str, *, per_type: Sequence[int | None] = (None,), num_seeds: int = 5
) -> list[Task]:
    """The tasks of a split.

    Args:
      split: of `SPLITS`. "type": each type in turn is new, in the cells of one fold.
      per_type: numbers of labelled cells of each type; None: all.

    Raises:
      ConfigError: an unknown split, or one of types with few labels.
      InputError: the cells have no two groups, or too few types.
    """
    if split not in SPLITS:
        raise ConfigError(f"--split {split}: expected {', '.join(SPLITS)}.")
    if any(number is not None and number < 1 for number in per_type):
        raise ConfigError(f"--per-type {' '.join(map(str, per_type))}: expected numbers of 1 or more, or all.")
    if cells.num_classes < 2:
        raise InputError(
            f"{cells.path}: labelled cells are of {cells.num_classes} type ({', '.join(cells.classes)}); two or more "
            "are needed."
        )
    tasks: list[Task] = []
    for seed in range(num_seeds):
        if split == "type":
            tasks += _types_left_out(cells, seed)
            continue
        for number in per_type:
            tasks += _of_seed(cells, split, number, seed)
    return tasks


def _of_seed(cells: LabelledCells, split: str, number: int | None, seed: int) -> list[Task]:
    everything = np.arange(cells.codes.size)
    groups = _groups(cells, split)
    case = ALL_CELLS if number is None else f"{number} per type"
    if split == "data_set":
        pairs = [(f"{a} -> {b}", everything[groups == a], everything[groups == b]) for a, b in _ordered(groups)]
        cases = [(name if number is None else f"{name}, {case}", 0, train, test) for name, train, test in pairs]
    elif split == "cell" and number is not None:
        cases = [(case, 0, everything, everything)]  # what is drawn is taken out of the test below
    else:
        fold = _folds(cells, groups, seed)
        cases = [(case, k, everything[fold != k], everything[fold == k]) for k in np.unique(fold)]
    found = []
    for name, k, train, test in cases:
        if number is not None:
            # Never more than half of a type: some of it is left to be predicted.
            rng = np.random.default_rng([seed, k, number, 1])
            half = train is test
            train = _few_of_each(train, cells.codes, number, rng, half)
            test = np.setdiff1d(test, train)
        found.append(_task(cells, split, name, seed, k, train, test, groups))
    return found


def _types_left_out(cells: LabelledCells, seed: int) -> list[Task]:
    """Each type in turn: nothing of it is learned from; tested are a fold of the other types and all cells of it."""
    sizes = np.bincount(cells.codes, minlength=cells.num_classes)
    everything, groups = np.arange(cells.codes.size), _groups(cells, "cell")
    left_out = [code for code in range(cells.num_classes) if sizes[code] >= _FEWEST_CELLS]
    if cells.num_classes < 3 or not left_out:
        raise InputError(
            f"{cells.path}: to leave types out, three types are needed, one of {_FEWEST_CELLS} cells or more."
        )
    in_test = _folds(cells, groups, seed) == 0
    return [
        _task(
            cells,
            "type",
            str(cells.classes[code]),
            seed,
            0,
            everything[~in_test & (cells.codes != code)],
            everything[in_test | (cells.codes == code)],
            groups,
        )
        for code in left_out
    ]


def _task(
    cells: LabelledCells, split: str, case: str, seed: int, fold: int, train: Array, test: Array, groups: Array
) -> Task:
    codes, of_train = cells.codes[train], groups[train]
    if np.unique(codes).size < 2:
        raise InputError(
            f"{cells.path}: split by {split}, {case}, fold {fold}: all cells to learn from are of one type "
            f"({cells.classes[codes[0]] if codes.size else 'none'}); two are needed. Choose another split."
        )
    if test.size == 0:
        raise InputError(f"{cells.path}: split by {split}, {case}, fold {fold}: no cell is left to be predicted.")
    parts = validation_parts(codes, of_train, np.random.default_rng([seed, int(fold), 2]))
    return Task(split, case, seed, int(fold), train, codes, of_train, test, parts, cells.num_classes)


def _groups(cells: LabelledCells, split: str) -> Array:
    """str [n]: what may not be on both sides; all "" where single cells are split."""
    if split in ("cell", "type"):
        return np.full(cells.codes.size, "")
    groups = cells.groups.get(split, np.full(cells.codes.size, ""))
    names = np.unique(groups)
    if (groups == "").any() or names.size < 2:
        found = (
            f"{int((groups == '').sum()):,} cells have none" if (groups == "").any() else f"all are {str(names[0])!r}"
        )
        remedy = "give a second file: --test-data" if split == "data_set" else f"name its column: --obs-field {split}="
        raise InputError(f"{cells.path}: to split by {split}, every cell needs one, of two or more; {found}: {remedy}")
    return groups


def _ordered(groups: Array) -> list[tuple[str, str]]:
    names = list(dict.fromkeys(groups.tolist()))
    return [(a, b) for a in names for b in names if a != b]


def _folds(cells: LabelledCells, groups: Array, seed: int) -> Array:
    """int64 [n]: types spread evenly over `NUM_FOLDS`, or groups, the largest first, each into the emptiest fold."""
    rng = np.random.default_rng([seed, 0])
    return _spread_groups(groups, NUM_FOLDS, rng) if groups[0] else _spread_types(cells.codes, NUM_FOLDS, rng)


def _spread_types(codes: Array, number: int, rng: np.random.Generator) -> Array:
    part = np.zeros(codes.size, np.int64)
    for code in np.unique(codes):
        rows = rng.permutation(np.flatnonzero(codes == code))
        part[rows] = (np.arange(rows.size) + rng.integers(number)) % number
    return part


def _spread_groups(groups: Array, number: int, rng: np.random.Generator) -> Array:
    names, of_cell, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    number = min(number, names.size)
    # Sizes are blurred, or every seed would give the same folds.
    order = np.argsort(-sizes * rng.uniform(0.5, 1.5, names.size))
    filled, part_of = np.zeros(number), np.zeros(names.size, np.int64)
    for group in order:
        part_of[group] = int(filled.argmin())
        filled[part_of[group]] += sizes[group]
    return part_of[of_cell]


def validation_parts(codes: Array, groups: Array, rng: np.random.Generator) -> Array | None:
    """int64 [n]: the part in which each training cell is left out while settings are chosen; None: too few cells.

    Whole groups where the split is by group, so that choosing imitates the test. Groups all "": single cells.
    """
    if (np.bincount(codes) > 1).sum() < 2:
        return None
    if np.unique(groups).size > 1:
        return _spread_groups(groups, _PARTS, rng)
    return _spread_types(codes, min(_PARTS, int(np.bincount(codes).max())), rng)


def _few_of_each(rows: Array, codes: Array, number: int, rng: np.random.Generator, half: bool) -> Array:
    """int64, ascending: up to `number` of `rows` of each type; with `half`, at most half of a type, but one."""
    found = []
    for code in np.unique(codes[rows]):
        of_type = rows[codes[rows] == code]
        most = max(1, of_type.size // 2) if half else of_type.size
        found.append(rng.choice(of_type, min(number, most), replace=False))
    return np.sort(np.concatenate(found))


def shared_keys(tasks: Sequence[Task], keys: Keys) -> Array:
    """int64, ascending: rows of cells that some task predicts after learning from an identical one."""
    found: set[int] = set()
    for of_modality in keys.values():
        _, number = np.unique(of_modality[of_modality != NOT_MEASURED], return_counts=True)
        if (number == 1).all():
            continue
        for task in tasks:
            learned = of_modality[task.train]
            both = np.isin(of_modality[task.test], learned[learned != NOT_MEASURED])
            found.update(task.test[both].tolist())
    return np.array(sorted(found), np.int64)


def refuse_identical_cells(
    path: str, cell_ids: Array, tasks: Sequence[Task], keys: Keys, allow: bool = False
) -> list[str]:
    """A note on cells of which an identical one (barcode and counts) stands on the other side of a split.

    Raises `InputError` for them unless `allow`.
    """
    rows = shared_keys(tasks, keys)
    if not rows.size:
        return []
    names = ", ".join(cell_ids[rows[:3]].tolist())
    found = f"{rows.size:,} cells are tested on that stand among those to learn from, too (the same barcode and counts)"
    if not allow:
        raise InputError(
            f"{path}: {found}: {names}{' ...' if rows.size > 3 else ''}. Their labels would be remembered, not "
            "predicted. Remove the copies, or give --allow-identical-cells if you know of them."
        )
    return [f"{found}, such as {names}; this was allowed."]


def without_parts(task: Task) -> Task:
    """The task with nothing to choose settings by."""
    return replace(task, parts=None)
