"""The held-out cells of a run as its evaluators read them: the same cells in the same batches on any machine.

    batches          B cells each, every cell once, with the tokens that a training step of epoch 0 would draw; the last
                     is filled up with cells in which nothing was measured, so that every process does as many steps
    whole cells      every count of them, with their labels
    training cells   whole ones, to fit on what held-out cells are scored by

Of more held-out cells than `num_cells` the first of each corpus are taken: a corpus is shuffled, so they are a sample.
"""

import hashlib
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import pandas as pd

from data_pipelines.batches.batch_reader import BatchReader, Collation
from data_pipelines.batches.collate import TokenSampling
from data_pipelines.batches.whole_cells import first_cells, whole_cells
from data_pipelines.batches.window_reader import Window, WindowReader
from data_pipelines.build.corpus_overlap import cells_known, cells_of_corpus
from data_pipelines.corpus.corpus import Corpus
from data_pipelines.features.column_names import as_text
from data_pipelines.sampling.joined_corpora import JoinedCorpora
from data_pipelines.sampling.mixture import Mixture, MixtureOptions
from data_pipelines.sampling.sampling_order import WindowDraws
from data_pipelines.sampling.source_blocks import SourceBlocks
from data_pipelines.statistics.cell_counts import WholeCells
from scmbert_jax.batch import CellBatch
from scmbert_jax.errors import ConfigError

_WINDOW = 256  # cells that are read at a time
_TRAINING_COUNTS = 4_000_000  # of the training cells that something is fitted on: some thousand cells


def held_out_mixture(training: Mixture, corpus: Corpus | None = None) -> Mixture | None:
    """The cells that a run is judged by; None where there are none.

    Args:
      training: what the run draws from.
      corpus: all of its cells; None: those that are held out of the run's own corpora.

    Raises:
      ConfigError: the corpus is one that the run draws from, has no cell, or features that the run has not.
      CorpusError: a corpus of an earlier version, of which nobody can say whether it has cells of the other.
    """
    if corpus is None:
        if all(held is None for held in training.held_out):
            return None
        options = MixtureOptions(
            selection=training.options.selection, held_out=training.options.held_out, side="held_out"
        )
        return Mixture(training.joined.corpora, options, [])
    if not corpus.num_cells:
        raise ConfigError(f"--validation {corpus.path}: it has no cell; build it with some, or leave it out")
    joined = JoinedCorpora([corpus], training.joined)
    shared = [name for name in joined.corpora[0].modalities if name in training.joined.modalities]
    if not shared:
        raise ConfigError(f"--validation {corpus.path}: it measures none of {', '.join(training.joined.modalities)}")
    number = _cells_in_training(training, corpus)
    if number:
        raise ConfigError(
            f"--validation {corpus.path}: {number:,} of its {corpus.num_cells:,} cells are among those that the run "
            "trains on (the same barcode, the same counts): their figures would say nothing. Build the corpus of the "
            f"run without them: scmbert corpus build ... --disjoint-from {corpus.path}"
        )
    return Mixture([corpus], MixtureOptions(held_out=()), [], training.joined)


def _cells_in_training(training: Mixture, corpus: Corpus) -> int:
    """How many cells of a corpus the run draws, whatever features the two measure."""
    cells = cells_of_corpus(corpus)
    found = [np.zeros(len(of_set.barcodes), bool) for of_set in cells.sets]
    for index, other in enumerate(training.joined.corpora):
        known = cells_of_corpus(other, training.drawn_rows(index))
        found = [flags | more for flags, more in zip(found, cells_known(cells.sets, known), strict=True)]
    return sum(int(np.count_nonzero(flags)) for flags in found)


class ValidationData:
    """Held-out cells for evaluators. What it gives, all processes may ask for; it is kept in memory.

    Args:
      mixture: of the held-out cells (`held_out_mixture`).
      training: the reader of the run: its tokens per cell, covariates, seed and batch size are taken.
      num_cells: cells at most.

    Attributes:
      num_cells: how many there are, numbered from 0: row r of the batches, one after the other, is cell r.
      num_batches: batches of all.
      rows: rows of a batch that this process makes.
      identity: the same for the same cells.
    """

    def __init__(self, mixture: Mixture, training: BatchReader, num_cells: int):
        self._joined, self._training = mixture.joined, training
        self._rows_of = _first_of_each(mixture, num_cells)
        self.num_cells = sum(map(len, self._rows_of))
        self.rows = training.rows
        self._batch_size = training.rows * training.process_count
        self.num_batches = -(-self.num_cells // self._batch_size)
        self._collation = Collation(self._joined, training.sampling, training.covariates, training.seed)
        digest = hashlib.sha256("".join(corpus.fingerprint for corpus in self._joined.corpora).encode())
        for rows in self._rows_of:
            digest.update(rows.tobytes())
        self.identity = f"{self.num_cells} of {digest.hexdigest()[:12]}"

    @cached_property
    def batches(self) -> list[CellBatch]:
        """This process's rows of each batch (numpy arrays); `row` is the number of the cell. Cells beyond the last have
        no measured modality: no objective gives them weight.

        Raises CorpusError: a block cannot be read.
        """
        first = self._training.process_index * self.rows
        starts = [number * self._batch_size + first for number in range(self.num_batches)]
        return [
            self._collation.batch(self._draws(start, min(start + self.rows, self.num_cells)), start, self.rows)
            for start in starts
        ]

    def shown(self, sampling: dict[str, TokenSampling]) -> CellBatch:
        """All the cells as one batch with other tokens than those of training, on every process; no covariate of them
        is known."""
        sampling = {name: sampling[name]._replace(profile_tokens=0) for name in self._training.sampling}
        collation = Collation(self._joined, sampling, (), self._training.seed)
        batch = collation.batch(self._draws(0, self.num_cells), 0, self.num_cells)
        unknown = np.full(self.num_cells, -1, np.int32)
        return batch._replace(covariates=dict.fromkeys(self._training.covariates, unknown))

    @cached_property
    def whole_cells(self) -> WholeCells:
        """Every count of all the cells, in their order, on every process."""
        return whole_cells(
            self._draws(0, self.num_cells),
            self._joined,
            tuple(self._training.sampling),
            self._training.covariates,
        )

    @cached_property
    def training_cells(self) -> WholeCells:
        """Cells that the run draws first, every count of them, on every process: to fit on."""
        return first_cells(self._training.of_all_processes(), _TRAINING_COUNTS)

    def labels(self, field: str) -> np.ndarray | None:
        """object [num_cells]: a field of the cells as text, such as cell_type, None where it is not known; None: of no
        cell is it known."""
        parts = []
        for corpus, rows in zip(self._joined.corpora, self._rows_of, strict=True):
            obs = corpus.obs(columns=["dataset", field])
            column = obs[field] if field in obs else pd.Series(None, index=obs.index, dtype=object)
            parts.append(as_text(column.iloc[rows]))
        values = np.concatenate(parts)
        return values if any(value is not None for value in values) else None

    @cached_property
    def _windows(self) -> list[WindowReader]:
        return [
            WindowReader(
                SourceBlocks(corpus, rows, _windows_of(len(rows))),
                tuple(name for name in self._training.sampling if name in corpus.modalities),
                tuple(name for name in self._training.covariates if name in corpus.vocabularies),
                capacity=2,
            )
            for corpus, rows in zip(self._joined.corpora, self._rows_of, strict=True)
        ]

    def _draws(self, start: int, stop: int) -> Iterator[tuple[WindowDraws, int, Window]]:
        """Cells [start, stop) as `Collation.batch` takes them."""
        first = 0
        for corpus, rows in enumerate(self._rows_of):
            for number, size in enumerate(_windows_of(len(rows)).tolist()):
                begin, end = max(start, first), min(stop, first + size)
                if begin < end:
                    blocks = np.array([number])
                    draws = WindowDraws(corpus, 0, blocks, np.arange(begin - first, end - first), begin)
                    yield draws, corpus, self._windows[corpus].window(blocks)
                first += size


def _windows_of(num_cells: int) -> np.ndarray:
    """int64: the cells of a corpus, `_WINDOW` at a time."""
    return np.diff(np.append(np.arange(0, num_cells, _WINDOW), num_cells))


def _first_of_each(mixture: Mixture, num_cells: int) -> list[np.ndarray]:
    """Per corpus, int32 ascending: the held-out cells that are looked at, from each in proportion to what it has."""
    drawn = [mixture.drawn_rows(index) for index in range(len(mixture.joined.corpora))]
    rows = [
        np.arange(corpus.num_cells, dtype=np.int32) if of_corpus is None else of_corpus
        for corpus, of_corpus in zip(mixture.joined.corpora, drawn, strict=True)
    ]
    ends = np.cumsum([0, *map(len, rows)])
    limits = ends * min(num_cells, int(ends[-1])) // ends[-1]
    return [of_corpus[:number] for of_corpus, number in zip(rows, np.diff(limits).tolist(), strict=True)]
