"""Cells that are there twice: in two of the files of a corpus, within one, or in another corpus.

Two cells are copies of each other in a modality when they have the same barcode and the same counts (`cell_identity`).

Counts are compared over all features that their data sets map. Data sets of different features (gene ids here and
symbols there, of which some are ambiguous; genes left out) are compared over the features that both map, when those are
at least half of either, and when more of their barcodes are the same than chance explains: that takes another pass over
both. There the features are taken in eight groups, of which half must agree: a symbol may name another gene today than
the id beside it (measured on PBMC of Zheng 2017: a third of the cells has a count of such a gene). The key of a cell
that is stored with a corpus is over all its features, and so does not depend on other files.

Of copies with the same modalities the first stays. A cell stays that has a modality of which no copy is in a cell that
stays, so that dropping copies never loses a count: RNA alone is a copy of the same RNA with protein, wherever it comes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from data_pipelines.cell_identity import (
    NOT_MEASURED,
    barcode_keys,
    cell_keys,
    column_weights,
    counts_hashes,
    feature_weights,
)
from data_pipelines.counts_matrix import Dataset
from data_pipelines.input_report import InputReport

STAYS = -1
_UNDECIDED = -2
# Barcodes of different cells are the same by chance in n1 * n2 / 737,280 cells (the shortest list of 10x, v2).
_BARCODES = 737_280
_LEAST_SHARED = 0.1  # of the cells of the smaller set
_LEAST_FEATURES = 0.5  # of those of either
_GROUPS = 8  # of features, where only some are shared
_TURNS_BITS = 6  # cells are sorted by key in 2^6 turns, so that sorting takes little memory
_EXAMPLES = 3

Keys = dict[str, np.ndarray]  # modality -> uint64 [cells], NOT_MEASURED where a cell has it not
HashesOver = Callable[[str, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class CellSet:
    """Cells whose features are the same: those of one data set.

    Attributes:
      name: for messages.
      barcodes: uint64 [cells].
      keys: of the counts over all features of the set.
      features: modality -> (space, ids [features] ascending).
      hashes_over: (modality, weights uint64 [groups, features]) -> uint64 [groups, cells], hashes of the counts by
        other weights.
    """

    name: str
    barcodes: np.ndarray
    keys: Keys
    features: dict[str, tuple[str, np.ndarray]]
    hashes_over: HashesOver

    @cached_property
    def distinct_barcodes(self) -> np.ndarray:
        """uint64, ascending."""
        return np.unique(self.barcodes)


def cells_of_dataset(name: str, dataset: Dataset, report: InputReport) -> CellSet:
    """The cells that the check keeps; the others have no key."""
    matrices = {matrix.modality: matrix for matrix in dataset.matrices if matrix.modality in report.modalities}
    parts = {name: part for name, part in report.modalities.items() if part.are_counts and part.mapping is not None}
    barcodes = barcode_keys(dataset.cell_ids)

    def hashes_over(modality: str, weights: np.ndarray) -> np.ndarray:
        matrix = matrices[modality]
        rows, of_feature = dataset.rows_of(matrix), parts[modality].column_to_feature
        of_column = [column_weights(of_group, of_feature) for of_group in weights]
        hashes = np.zeros((len(weights), len(barcodes)), np.uint64)
        for first, chunk in matrix.chunks():
            places = rows[first : first + chunk.shape[0]]
            for group, of_group in enumerate(of_column):
                hashes[group, places] = counts_hashes(chunk.indptr, of_group[chunk.indices], chunk.data)
        return hashes

    keys = {}
    for modality, part in parts.items():
        rows = dataset.rows_of(matrices[modality])[part.keep]
        keys[modality] = np.full(len(barcodes), NOT_MEASURED)
        keys[modality][rows] = cell_keys(barcodes[rows], part.counts_hashes[part.keep])
    features = {name: (features.space, features.ids) for name, features in report.features.items() if name in parts}
    return CellSet(name, barcodes, keys, features, hashes_over)


def comparable_keys(sets: Sequence[CellSet]) -> list[Keys]:
    """The keys of each set, by which copies in all of them are known: those of the earlier sets where it has copies."""
    keys: list[Keys] = []
    for later in sets:
        keys.append(keys_beside(later, list(zip(sets, keys, strict=False))))
    return keys


def keys_beside(cells: CellSet, others: Sequence[tuple[CellSet, Keys]]) -> Keys:
    """The keys of the cells; where a cell is a copy of one in a set of other features, the key of that one."""
    keys = dict(cells.keys)
    for other, keys_of_other in others:
        for modality in [name for name in cells.features if name in other.features]:
            shared = _shared_features(other.features[modality], cells.features[modality])
            if shared is None or not _share_barcodes(other.distinct_barcodes, cells.distinct_barcodes):
                continue
            copy_of = _same_cells(*(_keys_over(of_set, modality, shared) for of_set in (other, cells)))
            keys[modality] = np.where(copy_of >= 0, keys_of_other[modality][copy_of], keys[modality])
    return keys


def _shared_features(first: tuple[str, np.ndarray], second: tuple[str, np.ndarray]) -> np.ndarray | None:
    """The ids in both; None where they are the same or too different to compare."""
    if first[0] != second[0] or np.array_equal(first[1], second[1]):
        return None
    shared = np.intersect1d(first[1], second[1], assume_unique=True)
    return shared if len(shared) >= _LEAST_FEATURES * max(len(first[1]), len(second[1])) else None


def _share_barcodes(first: np.ndarray, second: np.ndarray) -> bool:
    """uint64, distinct and ascending: are more of them the same than chance explains?"""
    small, large = sorted((first, second), key=len)
    if not len(small):
        return False
    found = large[np.minimum(np.searchsorted(large, small), len(large) - 1)] == small
    return int(np.count_nonzero(found)) > max(_LEAST_SHARED * len(small), 2 * len(small) * len(large) / _BARCODES)


def _keys_over(cells: CellSet, modality: str, shared: np.ndarray) -> np.ndarray:
    """uint64 [groups, cells]: keys over the shared features of each group; NOT_MEASURED where it holds no count."""
    space, ids = cells.features[modality]
    weights = np.where(np.isin(ids, shared, assume_unique=True), feature_weights(space, ids), np.uint64(0))
    group = weights >> np.uint64(32)  # as random as the weights, and the same in every set
    grouped = np.stack([np.where(group % _GROUPS == number, weights, 0) for number in range(_GROUPS)])
    hashes = cells.hashes_over(modality, grouped)
    known = (hashes != 0) & (cells.keys[modality] != NOT_MEASURED)
    return np.where(known, cell_keys(cells.barcodes, hashes), NOT_MEASURED)


def _same_cells(earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
    """int64 [later cells]: the earlier cell that has the same key in at least half of the groups with counts, and in
    two; -1 where none has.

    Args:
      earlier, later: uint64 [groups, cells].
    """
    found = np.full(later.shape, -1, np.int64)
    for group, (there, wanted) in enumerate(zip(earlier, later, strict=True)):
        order = np.argsort(there, kind="stable")
        place = order[np.minimum(np.searchsorted(there[order], wanted), len(order) - 1)]
        found[group] = np.where((there[place] == wanted) & (wanted != NOT_MEASURED), place, -1)
    enough = np.maximum(2, (later != NOT_MEASURED).sum(axis=0) / 2)
    copy_of = np.full(later.shape[1], -1, np.int64)
    for candidate in found:
        agrees = (candidate >= 0) & ((found == candidate).sum(axis=0) >= enough)
        copy_of = np.where(agrees, candidate, copy_of)
    return copy_of


def copies_among(keys: Sequence[Keys]) -> list[np.ndarray]:
    """Per set, int32 [cells]: the set of the copy that stays, `STAYS` for a cell that stays or has no key.

    Args:
      keys: per set; sets that come first keep their cells.
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
        joined = _joined(keys, name, sizes)
        turn_of = np.empty(len(joined), np.uint8)
        np.right_shift(joined, np.uint64(64 - _TURNS_BITS), out=turn_of, casting="unsafe")
        for turn in range(1 << _TURNS_BITS):
            cells = np.flatnonzero(turn_of == turn)
            cells = cells[joined[cells] != NOT_MEASURED]
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
      checked: (name, data set, report) of each, the first of which keep their cells.
      sets: `cells_of_dataset` of each.
    """
    if not checked:
        return
    kept_by = copies_among(comparable_keys(sets))
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
                f"every cell of {name} is in the files before it already; leave this file out, or keep all copies with "
                "--keep-duplicates",
            )
