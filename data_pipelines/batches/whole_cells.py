"""Whole cells, every count of them: what statistics and principal components are made of.

A token is a sample of a cell; a mean, a spread or a component of samples would say how they were drawn as well.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import scipy.sparse as sp

from data_pipelines.batches.batch_reader import BatchReader
from data_pipelines.batches.window_reader import Window, WindowColumns
from data_pipelines.corpus.packed_counts import unpack_some
from data_pipelines.sampling.joined_corpora import JoinedCorpora
from data_pipelines.sampling.sampling_order import WindowDraws
from data_pipelines.statistics.cell_counts import CellCounts, WholeCells
from scmbert_jax.feature_layout import fold_of


def first_cells(reader: BatchReader, max_counts: int) -> WholeCells:
    """The first part of `drawn_cells`."""
    return next(drawn_cells(reader, max_counts, 0))


def drawn_cells(reader: BatchReader, max_counts: int, max_cells: int) -> Iterator[WholeCells]:
    """The cells of a run in the order in which it draws them first, all their counts; no cell is in two parts.

    A pure function of the reader's mixture, seed and batch size. Only what the mixture draws is read, so held-out cells
    are in none. Blocks hold cells of the whole corpus in random order, and come in random order: the parts are a sample
    of it.

    Args:
      reader: of all rows of the global batch.
      max_counts: counts above zero after which a part reads no further step.
      max_cells: cells after which there is no further part; nor is there one after the first epoch.
    """
    joined, seen = reader.mixture.joined, set[int]()

    def nothing() -> _WholeCells:
        return _WholeCells(joined, tuple(reader.sampling), reader.covariates, seen)

    part, is_first = nothing(), True
    # Four epochs for the first part: of a corpus of few blocks, an epoch leaves some out.
    for step in range(4 * reader.steps_per_epoch):
        if len(seen) == reader.mixture.num_cells:
            break
        if part.num_counts >= max_counts:
            yield part.joined()
            part, is_first = nothing(), False
        if not is_first and (len(seen) >= max_cells or step >= reader.steps_per_epoch):
            break
        for draws, corpus, window in reader.draws_at(step):
            part.add(draws.cells, corpus, window)
    if part.num_cells or is_first:
        yield part.joined()


def whole_cells(
    drawn: Iterable[tuple[WindowDraws, int, Window]],
    joined: JoinedCorpora,
    modalities: tuple[str, ...],
    covariates: tuple[str, ...],
) -> WholeCells:
    """The cells of some draws, all their counts, in their order.

    Args:
      drawn: (draws, their corpus, the window that holds them).
      joined: the corpora.
      modalities: those that windows were read with.
      covariates: obs fields whose codes windows were read with.
    """
    found = _WholeCells(joined, modalities, covariates, set())
    for draws, corpus, window in drawn:
        found.add(draws.cells, corpus, window)
    return found.joined()


class _WholeCells:
    """Cells, collected window by window; one of those `seen` is passed over, and each becomes one of them."""

    def __init__(self, joined: JoinedCorpora, modalities: tuple[str, ...], covariates: tuple[str, ...], seen: set[int]):
        self._joined, self._covariates = joined, covariates
        self._slices = joined.feature_space.slices
        sizes = {name: self._slices[name][1] - self._slices[name][0] for name in modalities}
        self._parts = {name: _Parts(size) for name, size in sizes.items()}
        self._seen, self.num_cells = seen, 0
        self._folds, self._technical_batches = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]

    @property
    def num_counts(self) -> int:
        return sum(part.num_counts for part in self._parts.values())

    def add(self, cells: np.ndarray, corpus: int, window: Window) -> None:
        translation = self._joined.translations[corpus]
        indices = window.cell_index[cells] + translation.first_cell
        new = np.array([index not in self._seen for index in indices.tolist()], np.bool_)
        new &= np.isin(np.arange(len(indices)), np.unique(indices, return_index=True)[1])  # nor twice among these
        self._seen.update(indices.tolist())
        cells, first = cells[new], self.num_cells
        self.num_cells += len(cells)
        self._folds.append(fold_of(indices[new].astype(np.int32)))
        codes = np.full(len(cells), -1, np.int32)
        if "technical_batch" in self._covariates and "technical_batch" in translation.codes:
            codes = translation.codes["technical_batch"][window.obs_codes["technical_batch"][cells]]
        self._technical_batches.append(codes)
        for name, columns in window.modalities.items():
            mine = np.flatnonzero(columns.measured[cells])
            features = translation.features[name] - self._slices[name][0]
            datasets = window.obs_codes["dataset"][cells[mine]]
            known = self._joined.corpora[corpus]
            panels = {int(dataset): known.measured(int(dataset), name) for dataset in np.unique(datasets)}
            self._parts[name].add(first + mine, columns, cells[mine], features, datasets, panels, corpus)

    def joined(self) -> WholeCells:
        found = {name: part.joined() for name, part in self._parts.items()}
        found = {name: counts for name, counts in found.items() if len(counts.cells)}
        return WholeCells(found, np.concatenate(self._folds), np.concatenate(self._technical_batches))


class _Parts:
    """The cells of one modality, collected step by step."""

    def __init__(self, num_features: int):
        self.num_counts = 0
        self._num_features = num_features
        self._arrays: list[tuple[np.ndarray, ...]] = []
        self._panels: dict[bytes, int] = {}
        self._of_dataset: dict[tuple[int, int], int] = {}  # (corpus, data set) -> panel

    def add(
        self,
        places: np.ndarray,
        columns: WindowColumns,
        cells: np.ndarray,
        features: np.ndarray,
        datasets: np.ndarray,
        panels: dict[int, np.ndarray],
        corpus: int,
    ) -> None:
        for dataset, of_corpus in panels.items():
            if (corpus, dataset) not in self._of_dataset:
                panel = np.zeros(self._num_features, bool)
                panel[features[of_corpus]] = True
                number = self._panels.setdefault(np.packbits(panel).tobytes(), len(self._panels))
                self._of_dataset[corpus, dataset] = number
        lengths, ids, counts = unpack_some(columns.counts, columns.places, cells)
        measured = np.array([panels[dataset].sum() for dataset in datasets.tolist()], np.float64)
        self._arrays.append(
            (
                places,
                lengths,
                features[ids],
                counts.astype(np.float64),
                columns.library_size[cells].astype(np.float64),
                columns.places.sums_of_logs[cells] / np.maximum(measured, 1.0),
                np.array([self._of_dataset[corpus, dataset] for dataset in datasets.tolist()], np.int64),
            )
        )
        self.num_counts += len(counts)

    def joined(self) -> CellCounts:
        if not self._arrays:
            nothing = np.zeros(0)
            empty = sp.csr_matrix((0, self._num_features))
            return CellCounts(nothing, empty, nothing, nothing, nothing, np.zeros((0, self._num_features), bool))
        places, lengths, ids, counts, library_size, mean_log_count, panel_of = (
            np.concatenate(column) for column in zip(*self._arrays, strict=True)
        )
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        bits = [np.frombuffer(packed, np.uint8) for packed in self._panels]
        return CellCounts(
            cells=places,
            counts=_without_zeros(sp.csr_matrix((counts, ids, starts), (len(places), self._num_features))),
            library_size=library_size,
            mean_log_count=mean_log_count,
            panel_of=panel_of,
            panels=np.unpackbits(np.stack(bits), axis=1, count=self._num_features).astype(bool),
        )


def _without_zeros(counts: sp.csr_matrix) -> sp.csr_matrix:
    counts.eliminate_zeros()
    return counts
