"""Cells that are there twice: in two of the files of a corpus, within one, or in another corpus.

Two cells are copies of each other in a modality when they have the same barcode and the same counts (`cell_identity`).

Counts are compared over all features that their data sets map, by their keys. Data sets of different features (other
genes filtered out; gene ids here and symbols there, of which some are ambiguous) are compared over the features that
both map (`shared_counts`). The key of a cell that is stored with a corpus is over all its features, and so does not
depend on other files.

Of copies with the same modalities the one whose data set has more features stays, of those the first. A cell stays
that has a modality of which no copy is in a cell that stays: RNA alone is a copy of the same RNA with protein, wherever
it comes. So dropping copies loses no count but those of features that only the smaller data set has.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.cells.cell_identity import NOT_MEASURED
from data_pipelines.checks.input_report import InputReport
from data_pipelines.checks.shared_counts import CellSet, Keys, comparable_keys
from data_pipelines.readers.dataset import Dataset

STAYS = -1
_UNDECIDED = -2
_PART_BITS = 6  # cells are sorted by key in 2^6 parts, so that sorting takes little memory
_EXAMPLES = 3


def copies_among(keys: Sequence[Keys], num_features: Sequence[Mapping[str, int]] | None = None) -> list[np.ndarray]:
    """Per set, int32 [cells]: the set of the copy that stays, `STAYS` for a cell that stays or has no key.

    Args:
      keys: per set; sets that come first keep their cells.
      num_features: per set, modality -> how many features it has; None: as many in all.
    """
    sizes = [len(next(iter(of_set.values()), ())) for of_set in keys]
    starts = np.cumsum([0, *sizes])
    modalities = list(dict.fromkeys(name for of_set in keys for name in of_set))
    richness = np.zeros(starts[-1] if len(modalities) > 1 else 0, np.int8)  # how many modalities a cell has
    if len(modalities) > 1:
        for name in modalities:
            richness += _joined(keys, name, sizes) != NOT_MEASURED
    kept_by = np.full(starts[-1], _UNDECIDED, np.int32)
    for name in modalities:
        size = np.array([of_set.get(name, 0) for of_set in num_features] if num_features else [0] * len(keys))
        joined = _joined(keys, name, sizes)
        part_of = np.empty(len(joined), np.uint8)
        np.right_shift(joined, np.uint64(64 - _PART_BITS), out=part_of, casting="unsafe")
        for part in range(1 << _PART_BITS):
            cells = np.flatnonzero(part_of == part)
            cells = cells[joined[cells] != NOT_MEASURED]
            cells = cells[np.argsort(-size[np.searchsorted(starts, cells, side="right") - 1], kind="stable")]
            if len(richness):
                cells = cells[np.argsort(-richness[cells], kind="stable")]
            cells = cells[np.argsort(joined[cells], kind="stable")]
            is_first = np.ones(len(cells), bool)
            is_first[1:] = joined[cells[1:]] != joined[cells[:-1]]
            first = cells[is_first][np.cumsum(is_first) - 1]
            kept_by[first] = STAYS
            open_to = (kept_by[cells] != STAYS) & ~is_first
            kept_by[cells[open_to]] = np.searchsorted(starts, first[open_to], side="right") - 1
    kept_by[kept_by == _UNDECIDED] = STAYS  # without a key
    return np.split(kept_by, starts[1:-1])


def _joined(keys: Sequence[Keys], modality: str, sizes: list[int]) -> np.ndarray:
    """uint64 [cells of all sets]."""
    joined = np.full(sum(sizes), NOT_MEASURED)
    for start, of_set in zip(np.cumsum([0, *sizes]), keys, strict=False):
        if modality in of_set:
            joined[start : start + len(of_set[modality])] = of_set[modality]
    return joined


def cells_in(keys: Keys, others: Sequence[Keys]) -> np.ndarray:
    """bool [cells]: those of which any modality is in one of the other sets."""
    found = np.zeros(len(next(iter(keys.values()), ())), bool)
    for modality, mine in keys.items():
        for other in others:
            found |= np.isin(mine, other.get(modality, ())) & (mine != NOT_MEASURED)
    return found


def drop_cells(
    dataset: Dataset, report: InputReport, dropped: np.ndarray, reason: str, warning: str, nothing_left: str
) -> None:
    """Takes cells out of what the check keeps, and says so in the report.

    Args:
      dropped: bool [cells of the data set].
      reason: what the cells are, after their number: "that are copies of cells of pbmc".
      warning: added to `reason` in the report's warning.
      nothing_left: the problem that it is when no cell is left.
    """
    if not dropped.any():
        return
    rows = {
        matrix.modality: dataset.rows_of(matrix) for matrix in dataset.matrices if matrix.modality in report.modalities
    }
    for modality, places in rows.items():
        part = report.modalities[modality]
        leaving = part.keep & dropped[places]
        if leaving.any():
            part.dropped[reason] = part.dropped.get(reason, 0) + int(np.count_nonzero(leaving))
            part.examples[reason] = dataset.cell_ids[places[leaving]][:_EXAMPLES].tolist()
            part.keep &= ~leaving
    before = report.num_cells_kept
    report.count_kept(rows)
    report.warnings.append(f"{dataset.path}: {before - report.num_cells_kept:,} cells {reason}: {warning}")
    if not report.num_cells_kept and report.usable:
        report.problems.append(f"{dataset.path}: {nothing_left}")


def drop_copies(checked: Sequence[tuple[str, Dataset, InputReport]], sets: Sequence[CellSet]) -> None:
    """Takes out of what the check keeps the cells that are copies of others; `report.copies` says of whose.

    Args:
      checked: (name, data set, report) of each; of copies in equal data sets the first stays.
      sets: `cells_of_dataset` of each.
    """
    if not checked:
        return
    num_features = [{name: len(ids) for name, (_, ids) in cells.features.items()} for cells in sets]
    kept_by = copies_among(comparable_keys(sets), num_features)
    for place, (name, dataset, report) in enumerate(checked):
        for owner, count in zip(*np.unique(kept_by[place][kept_by[place] != STAYS], return_counts=True), strict=True):
            report.copies[checked[owner][0]] = int(count)
            of_whom = "other cells of the same file" if owner == place else f"cells of {checked[owner][0]}"
            drop_cells(
                dataset,
                report,
                kept_by[place] == owner,
                f"that are copies of {of_whom}",
                "same barcode, same counts; dropped, unless --keep-duplicates is given",
                f"every cell of {name} is in the other files already; leave this file out, or keep all copies with "
                "--keep-duplicates",
            )
