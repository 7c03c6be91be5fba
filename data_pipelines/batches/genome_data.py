"""A corpus of sequences as the training loop takes it: batches by step, and what identifies the data of a run."""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np

from data_pipelines.batches.read_ahead import ReadAhead
from data_pipelines.genome.corpus_layout import layout_of, save_layout
from data_pipelines.genome.genome_corpus import GenomeCorpus
from data_pipelines.genome.genome_reader import GenomeReader, batch_of
from data_pipelines.genome.sealed_chromosomes import Part
from data_pipelines.sampling.sampling_order import ORDER_VERSION
from scmbert_jax.batch import GenomeBatch
from scmbert_jax.errors import InputError
from scmbert_jax.genome_layout import GenomeLayout


class GenomeData:
    """One process's view of the data of a run.

    Attributes:
      fingerprint, feature_space_hash: hex digests that a run remembers: of the corpus; of the columns of its matrices.
      description: what is read; a run remembers that, too.
      covariates: none.
    """

    def __init__(self, reader: GenomeReader, read_ahead: ReadAhead, path: str, quantile: float):
        """`path`: of the corpus; `quantile`: see `layout_of`."""
        self._reader, self._read_ahead, self._quantile = reader, read_ahead, quantile
        corpus = reader.corpus
        self.fingerprint = corpus.fingerprint
        columns = [None if own is None else own.columns.tolist() for own in (corpus.regulators, corpus.accessibility)]
        self.feature_space_hash = hashlib.sha256(json.dumps([corpus.assembly, *columns]).encode()).hexdigest()
        self.covariates: dict[str, list[str]] = {}
        self.description: dict[str, Any] = {
            "corpora": [{"path": path, "fingerprint": corpus.fingerprint, "num_sequences": len(corpus)}],
            "options": {},
            "drawn": "all training regions",
            "order_version": ORDER_VERSION,
        }

    @cached_property
    def layout(self) -> GenomeLayout:
        return layout_of(self._reader.corpus, self._quantile)

    @property
    def information(self) -> dict[str, Any]:
        """What it was trained on, for provenance.json and the model card."""
        corpus = self._reader.corpus
        rows = {part: corpus.chromosomes.rows(corpus.chromosome, part) for part in get_args(Part)}
        return {
            "sequences": {part: len(own) for part, own in rows.items()},
            "sealed": {"validation": corpus.chromosomes.validation, "test": corpus.chromosomes.test},
            "assembly": corpus.assembly,
            "regulators": len(self.layout.regulators),
            "cell_types": list(self.layout.cell_types),
        }

    def batches(self, start_step: int, stop_step: int) -> Iterator[tuple[int, GenomeBatch]]:
        """(step, this process's rows of its batch), a pure function of (seed, step)."""
        return self._read_ahead.batches(self._reader, start_step, stop_step)

    def save_features(self, folder: Path) -> None:
        """Writes genome_layout.npz."""
        save_layout(self.layout, folder)


class HeldOutSequences:
    """Regions of the validation chromosomes, always the same, as an evaluator reads them.

    Attributes:
      identity: a few words that are the same for the same regions.
    """

    def __init__(
        self,
        corpus: GenomeCorpus,
        most: int,
        global_batch_size: int,
        num_neighbours: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """`most`: regions at most, evenly over the part."""
        rows = corpus.rows("validation")
        self._regions = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
        self._corpus, self._num_neighbours = corpus, num_neighbours
        self._global_batch_size, self._process = global_batch_size, (process_index, process_count)
        digest = hashlib.sha256(self._regions.tobytes() + corpus.fingerprint.encode()).hexdigest()
        self.identity = f"{len(self._regions):,} regions of the validation chromosomes ({digest[:12]})"

    @property
    def batches(self) -> Iterator[GenomeBatch]:
        """Every region once; the last batch is filled up with padding."""
        size, (index, count) = self._global_batch_size, self._process
        rows = size // count
        for first in range(0, len(self._regions), size):
            region = np.full(size, -1, np.int64)
            own = self._regions[first : first + size]
            region[: len(own)] = own
            region = region[index * rows : (index + 1) * rows]
            yield batch_of(self._corpus, region, region, np.zeros(len(region), bool), self._num_neighbours)


def held_out_sequences(
    corpus: GenomeCorpus, most: int, global_batch_size: int, num_neighbours: int, process: tuple[int, int]
) -> HeldOutSequences | None:
    """None where the corpus has no region on a validation chromosome. `process`: index and count."""
    try:
        return HeldOutSequences(corpus, most, global_batch_size, num_neighbours, *process)
    except InputError:
        return None
