"""A file's counts in the features of a trained model: chunk by chunk, in the order of the file's cells."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from data_pipelines.checks.input_report import InputReport
from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.readers.dataset import CountsMatrix, Dataset
from data_pipelines.readers.whole_counts import by_feature
from scmbert_jax.errors import InputError


@dataclass(frozen=True)
class Overlap:
    """How the features of a file and of a model meet, for one modality.

    Attributes:
      columns: int64 [columns of the file], the place of each in the model's features, -1 where the model lacks it.
      measured: bool [features of the model], which of them the file measures.
      num_unknown: mapped features of the file that the model does not know; unknown: the first few of their names.
    """

    columns: np.ndarray = field(repr=False)
    measured: np.ndarray = field(repr=False)
    num_unknown: int
    unknown: tuple[str, ...]

    def summary(self) -> str:
        known, total = int(self.measured.sum()), len(self.measured)
        text = f"the file measures {known:,} of the model's {total:,} features"
        if self.num_unknown:
            text += (
                f"; {self.num_unknown:,} features of the file are unknown to the model ({', '.join(self.unknown)}, ...)"
            )
        return text


class CountsChunk(NamedTuple):
    """Consecutive cells: modality -> int32 CSR [n, features of the model]; modality -> bool [n], measured or not."""

    first: int
    counts: dict[str, sp.csr_matrix]
    measured: dict[str, np.ndarray]


def overlap_with_model(report: InputReport, space: FeatureSpace, modalities: list[str]) -> dict[str, Overlap]:
    """modality -> `Overlap`, for those of `modalities` that the file has.

    Raises `InputError` when the file has none of them, is of another organism or genome build, or shares no feature.
    """
    overlaps = {}
    for name in modalities:
        part = report.modalities.get(name)
        if part is None or part.mapping is None:
            continue
        known, found = space.modalities[name], part.mapping.features
        if found.space != known.space:
            raise InputError(
                f"{report.path}: {name} features are {found.space}, the model knows {known.space}. A model cannot read "
                "another organism or genome build; lift the data over, or use a model of that space."
            )
        place = known.index_of(found.ids)
        columns = np.where(part.column_to_feature >= 0, place[part.column_to_feature], -1)
        measured = np.zeros(len(known), bool)
        measured[columns[columns >= 0]] = True
        unknown = found.names[place < 0]
        if not measured.any():
            raise InputError(
                f"{report.path}: none of its {len(found):,} {name} features is among the model's {len(known):,} "
                f"(the file has {', '.join(found.names[:3])}; the model has {', '.join(known.names[:3])}). "
                "Regions must be the very intervals the model was trained on; others can be mapped to the catalogue of "
                "its corpus by overlap: FILE?regions=catalogue.bed"
            )
        overlaps[name] = Overlap(columns, measured, int((place < 0).sum()), tuple(unknown[:3]))
    if not overlaps:
        raise InputError(
            f"{report.path}: has {', '.join(report.modalities) or 'no modality'}; "
            f"the model reads {', '.join(modalities)}."
        )
    return overlaps


def model_counts(
    dataset: Dataset, report: InputReport, overlaps: dict[str, Overlap], rows: int = 2048
) -> Iterator[CountsChunk]:
    """The cells of `dataset.cell_ids` in order, `rows` at a time.

    Memory is bounded by the chunk where a modality's cells stand in the order of the data set (nearly always); a
    modality in another order is held whole, as sparse counts of the model's features.
    """
    readers = {
        matrix.modality: _InOrder(matrix, dataset.rows_of(matrix), report, overlaps[matrix.modality], rows)
        for matrix in dataset.matrices
        if matrix.modality in overlaps
    }
    for first in range(0, len(dataset.cell_ids), rows):
        stop = min(first + rows, len(dataset.cell_ids))
        parts = {name: reader.take(first, stop) for name, reader in readers.items()}
        yield CountsChunk(
            first,
            {name: counts for name, (counts, _) in parts.items()},
            {name: measured for name, (_, measured) in parts.items()},
        )


class _InOrder:
    """Gives the rows of one matrix by their place in the data set, for ascending, adjoining ranges."""

    def __init__(self, matrix: CountsMatrix, places: np.ndarray, report: InputReport, overlap: Overlap, rows: int):
        self._places, self._keep = places, report.modalities[matrix.modality].keep
        self._num_features = len(overlap.measured)
        self._columns, self._where = overlap.columns, matrix.where
        self._chunks = matrix.chunks(rows)
        self._held: list[tuple[np.ndarray, np.ndarray, sp.csr_matrix]] = []
        self._last_place = -1
        if np.any(np.diff(places) < 0):
            order = np.argsort(places, kind="stable")
            whole = sp.vstack([self._mapped(counts) for _, counts in self._chunks], format="csr")
            self._held = [(places[order], self._keep[order], whole[order])]
            self._last_place = len(places) and int(places.max())
            self._chunks = iter(())

    def _mapped(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        return by_feature(counts, self._columns, self._num_features, self._where).astype(np.int32)

    def take(self, first: int, stop: int) -> tuple[sp.csr_matrix, np.ndarray]:
        while self._last_place < stop - 1 and (chunk := next(self._chunks, None)) is not None:
            start, counts = chunk
            rows = slice(start, start + counts.shape[0])
            self._held.append((self._places[rows], self._keep[rows], self._mapped(counts)))
            self._last_place = int(self._places[rows][-1])
        measured = np.zeros(stop - first, bool)
        targets, parts, remaining = [], [], []
        for places, keep, counts in self._held:
            low, high = np.searchsorted(places, [first, stop])
            mine = np.arange(low, high)[keep[low:high]]
            targets.append(places[mine] - first)
            parts.append(counts[mine])
            if high < len(places):
                remaining.append((places[high:], keep[high:], counts[high:]))
        self._held = remaining
        target = np.concatenate([*targets, np.zeros(0, np.int64)]).astype(np.int64)
        measured[target] = True
        found = sp.vstack([*parts, sp.csr_matrix((0, self._num_features), dtype=np.int32)], format="csr")
        spread = sp.csr_matrix(
            (np.ones(len(target), np.int32), (target, np.arange(len(target)))), (stop - first, len(target))
        )
        return (spread @ found).tocsr(), measured
