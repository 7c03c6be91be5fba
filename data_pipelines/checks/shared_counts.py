"""The same cells in data sets of different features: the same barcode, and the same counts of the features in both.

The cells of two sets that have a barcode in common are candidates; unrelated sets share some by chance (n1 * n2 /
737,280, the shortest list of 10x). Their counts are read again and hashed over the shared features, in eight groups.
Cells of a common barcode and no more differ in nine of ten counts (measured on ten PBMC sets), so groups agree in
copies only. At least half of the groups that hold a count must agree: a symbol may name another gene today than the id
beside it, and a third of the cells of PBMC (Zheng 2017) has a count of such a gene. A panel of few features is known by
its names; there all must.

Each file or corpus is read once for all sets that it is compared with, or once per `_MOST_CELLS` candidates. Memory: 32
bytes a candidate. No pair of cells is looked at: the keys of one side are looked up among those of the other.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from data_pipelines.cells.cell_identity import (
    GROUPS,
    NOT_MEASURED,
    add_to_groups,
    barcode_keys,
    cell_keys,
    column_weights,
    feature_weights,
)
from data_pipelines.checks.input_report import InputReport
from data_pipelines.readers.dataset import Dataset
from data_pipelines.readers.whole_counts import whole

_MOST_CELLS = 4_000_000  # candidates of both sides at a time
_PANEL = 100  # shared features; of fewer, all groups must agree
_FEWEST_GROUPS = 2

Keys = dict[str, np.ndarray]  # modality -> uint64 [cells], NOT_MEASURED where a cell has it not
Features = Mapping[str, tuple[str, np.ndarray]]  # modality -> (space, ids [features] ascending)


class Wanted(NamedTuple):
    """Hashes that a `CountsReader` is asked for.

    Attributes:
      modality: of the counts.
      cells: int64 [n] ascending, in the numbering of the reader.
      weights: uint64 [features of the reader], 0 for those that do not count.
    """

    modality: str
    cells: np.ndarray
    weights: np.ndarray


class CountsReader(Protocol):
    """Reads the counts of cells again. `features`: all that it numbers."""

    @property
    def features(self) -> Features: ...

    def group_sums(self, wanted: Sequence[Wanted]) -> list[np.ndarray]:
        """uint64 [n, GROUPS] for each that is wanted (`add_to_groups`), in one pass."""
        ...


@dataclasses.dataclass(frozen=True)
class CellSet:
    """Cells whose features are the same: those of one data set.

    Attributes:
      name: for messages.
      cell_ids: str [cells].
      barcodes: uint64 [cells].
      keys: of the counts over all features of the set.
      features: those of the set.
      reader: of their counts.
      places: int64 [cells] ascending, the number of each in `reader`.
    """

    name: str
    cell_ids: np.ndarray
    barcodes: np.ndarray
    keys: Keys
    features: Features
    reader: CountsReader
    places: np.ndarray

    @cached_property
    def distinct_barcodes(self) -> np.ndarray:
        """uint64, ascending: of the cells that have a key."""
        return np.unique(self.barcodes[has_key(self.keys)])


def has_key(keys: Keys) -> np.ndarray:
    """bool [cells]: those with counts in any modality."""
    return np.logical_or.reduce([of_modality != NOT_MEASURED for of_modality in keys.values()])


# ------------------------------------------------------------------------------------------------ cells of a data set


def cells_of_dataset(name: str, dataset: Dataset, report: InputReport) -> CellSet:
    """The cells that the check keeps; the others have no key."""
    matrices = {matrix.modality: matrix for matrix in dataset.matrices if matrix.modality in report.modalities}
    parts = {name: part for name, part in report.modalities.items() if part.are_counts and part.mapping is not None}
    barcodes = barcode_keys(dataset.cell_ids)
    keys = {}
    for modality, part in parts.items():
        rows = dataset.rows_of(matrices[modality])[part.keep]
        keys[modality] = np.full(len(barcodes), NOT_MEASURED)
        keys[modality][rows] = cell_keys(barcodes[rows], part.counts_hashes[part.keep])
    reader = _DatasetReader(dataset, report, list(parts))
    return CellSet(name, dataset.cell_ids, barcodes, keys, reader.features, reader, np.arange(len(barcodes)))


class _DatasetReader:
    """`CountsReader` of a data set, its cells numbered as in `cell_ids`."""

    def __init__(self, dataset: Dataset, report: InputReport, modalities: Sequence[str]):
        self._dataset, self._report = dataset, report
        self.features = {name: (report.features[name].space, report.features[name].ids) for name in modalities}

    def group_sums(self, wanted: Sequence[Wanted]) -> list[np.ndarray]:
        sums = [np.zeros((len(part.cells), GROUPS), np.uint64) for part in wanted]
        for matrix in self._dataset.matrices:
            mine = [number for number, part in enumerate(wanted) if part.modality == matrix.modality]
            if not mine:
                continue
            rows, of_feature = self._dataset.rows_of(matrix), self._report.modalities[matrix.modality].column_to_feature
            weights = {number: column_weights(wanted[number].weights, of_feature) for number in mine}
            for first, chunk in matrix.chunks():
                counts = whole(chunk)
                for number in mine:
                    places, there = _found_in(wanted[number].cells, rows[first : first + chunk.shape[0]])
                    add_to_groups(
                        sums[number], places, there, counts.indptr, counts.indices, counts.data, weights[number]
                    )
        return sums


def _found_in(cells: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places in `cells`, places in `rows`) of what is in both; `cells`: ascending."""
    place = np.minimum(np.searchsorted(cells, rows), len(cells) - 1)
    there = np.flatnonzero(cells[place] == rows)
    return place[there], there


# -------------------------------------------------------------------------------------------------- comparable keys


def comparable_keys(sets: Sequence[CellSet]) -> list[Keys]:
    """The keys of each set, by which copies in all of them are known: those of the earlier sets where it has copies."""
    pairs = [(first, second) for second in range(len(sets)) for first in range(second)]
    return _with_keys_of_copies(sets, pairs)


def keys_beside(sets: Sequence[CellSet], others: Sequence[CellSet]) -> list[Keys]:
    """The keys of the cells of each set; where a cell is a copy of one in a set of others, the key of that one."""
    pairs = [(first, len(others) + second) for second in range(len(sets)) for first in range(len(others))]
    return _with_keys_of_copies([*others, *sets], pairs)[len(others) :]


class _Comparison(NamedTuple):
    """Two of the sets in one modality; candidates of each (ascending), and the ids of the features in both."""

    first: int
    second: int
    modality: str
    candidates: tuple[np.ndarray, np.ndarray]
    shared: np.ndarray


def _with_keys_of_copies(sets: Sequence[CellSet], pairs: Sequence[tuple[int, int]]) -> list[Keys]:
    """`pairs`: (first, second), in an order in which the keys of `first` do not change any more."""
    keys = [dict(cells.keys) for cells in sets]
    comparisons = [comparison for pair in pairs for comparison in _comparisons(sets, *pair)]
    copies = [copies for batch in _batches(comparisons) for copies in _copies(sets, batch)]
    for comparison, (second, first) in zip(comparisons, copies, strict=True):
        name = comparison.modality
        changed = keys[comparison.second][name].copy()
        changed[second] = keys[comparison.first][name][first]
        keys[comparison.second][name] = changed
    return keys


def _comparisons(sets: Sequence[CellSet], first: int, second: int) -> list[_Comparison]:
    """One for each modality in which the two have different features, some of them in both, and barcodes in both."""
    one, other = sets[first], sets[second]
    found = []
    for name in [name for name in one.features if name in other.features]:
        (space, ids), (space_of_other, ids_of_other) = one.features[name], other.features[name]
        if space != space_of_other or np.array_equal(ids, ids_of_other):
            continue
        candidates = (_candidates(one, other, name), _candidates(other, one, name))
        if not all(len(cells) for cells in candidates):
            continue
        shared = np.intersect1d(ids, ids_of_other, assume_unique=True)
        if len(shared):
            found.append(_Comparison(first, second, name, candidates, shared))
    return found


def _candidates(cells: CellSet, others: CellSet, modality: str) -> np.ndarray:
    """int64 ascending: the cells that have the modality, and a barcode that is in the other set."""
    known = others.distinct_barcodes
    if not len(known):
        return np.zeros(0, np.int64)
    place = np.minimum(np.searchsorted(known, cells.barcodes), len(known) - 1)
    return np.flatnonzero((known[place] == cells.barcodes) & (cells.keys[modality] != NOT_MEASURED))


def _batches(comparisons: Sequence[_Comparison]) -> list[list[_Comparison]]:
    batches: list[list[_Comparison]] = []
    room = 0
    for comparison in comparisons:
        size = sum(map(len, comparison.candidates))
        if size > room or not batches:
            batches.append([])
            room = _MOST_CELLS
        batches[-1].append(comparison)
        room -= size
    return batches


def _copies(sets: Sequence[CellSet], comparisons: Sequence[_Comparison]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(cells of the second set, the cell of the first that each is a copy of) of each comparison."""
    asked: dict[int, tuple[CountsReader, list[tuple[int, int, Wanted]]]] = {}  # by the identity of the reader
    for number, comparison in enumerate(comparisons):
        for side, place in enumerate((comparison.first, comparison.second)):
            cells = sets[place]
            space, ids = cells.reader.features[comparison.modality]
            weights = np.where(np.isin(ids, comparison.shared, assume_unique=True), feature_weights(space, ids), 0)
            wanted = Wanted(comparison.modality, cells.places[comparison.candidates[side]], weights.astype(np.uint64))
            asked.setdefault(id(cells.reader), (cells.reader, []))[1].append((number, side, wanted))
    keys: dict[tuple[int, int], np.ndarray] = {}
    for reader, parts in asked.values():
        sums = reader.group_sums([wanted for _, _, wanted in parts])
        for (number, side, _), of_part in zip(parts, sums, strict=True):
            comparison = comparisons[number]
            cells = sets[(comparison.first, comparison.second)[side]]
            keys[number, side] = _group_keys(cells.barcodes[comparison.candidates[side]], of_part)
    copies = []
    for number, comparison in enumerate(comparisons):
        least = 0.5 if len(comparison.shared) >= _PANEL else 1.0
        copy_of = _same_cells(keys[number, 0], keys[number, 1], least)
        first, second = comparison.candidates
        copies.append((second[copy_of >= 0], first[copy_of[copy_of >= 0]]))
    return copies


def _group_keys(barcodes: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """uint32 [GROUPS, cells]; 0 where a group holds no count. 32 bits: several groups must agree."""
    keys = np.stack([(cell_keys(barcodes, of_group) >> np.uint64(32)).astype(np.uint32) for of_group in sums.T])
    return np.where(sums.T == 0, np.uint32(0), np.maximum(keys, np.uint32(1)))


def _same_cells(earlier: np.ndarray, later: np.ndarray, least: float) -> np.ndarray:
    """int64 [later cells]: the earlier cell whose keys agree in at least this fraction of the groups in which either
    holds a count, and in two; -1 where none does.

    Args:
      earlier, later: uint32 [GROUPS, cells], at least one cell each.
    """
    copy_of = np.full(later.shape[1], -1, np.int64)
    for there, wanted in zip(earlier, later, strict=True):
        order = np.argsort(there, kind="stable")
        candidate = order[np.minimum(np.searchsorted(there[order], wanted), len(order) - 1)]
        agree = ((earlier[:, candidate] == later) & (later != 0)).sum(axis=0)
        hold = ((earlier[:, candidate] != 0) | (later != 0)).sum(axis=0)
        copy_of = np.where((agree >= np.maximum(_FEWEST_GROUPS, least * hold)) & (copy_of < 0), candidate, copy_of)
    return copy_of
