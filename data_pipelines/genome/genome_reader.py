"""Batches of sequences by step: `GenomeReader.batch_at(step)` is a pure function of (corpus, settings, step).

The order is that of cells (`data_pipelines.sampling`): a part of the corpus is one source, in blocks that each epoch
takes in another order. So any number of processes gives the same batches, and a run continues from its step alone.
"""

import numpy as np

from data_pipelines.counter_hash import Purpose, fold_array, hash_of
from data_pipelines.genome.bases import UNKNOWN, reverse_complement
from data_pipelines.genome.genome_corpus import GenomeCorpus
from data_pipelines.genome.region_matrix import RegionMatrix
from data_pipelines.genome.sealed_chromosomes import Part
from data_pipelines.sampling.sampling_order import SamplingOrder
from data_pipelines.sampling.source_blocks import plan_alone
from scmbert_jax.batch import GenomeBatch
from scmbert_jax.errors import ConfigError

_BLOCK = 256  # regions; smaller where every stream needs one


class GenomeReader:
    """Makes the batches of one process. Threads may share it.

    Args:
      corpus: of sequences.
      part: of its chromosomes; what is not of it is never read.
      seed: fixes the order of the regions, and their strands.
      global_batch_size, num_streams: see `SamplingOrder`.
      window_blocks: blocks of 256 regions that a stream shuffles together.
      num_neighbours: K, regions around each whose regulators and accessibility come with it, itself among them.
      both_strands: half of the sequences, drawn anew in each step, are read as their reverse complement.
      process_index, process_count: this process makes its part of the rows of the global batch.

    Attributes:
      steps_per_epoch: steps until each region was offered once, but for a tail.
      rows: rows of a batch of this process.

    Raises:
      ConfigError: settings that `SamplingOrder` refuses; no neighbours.
      InputError: a part without regions.
    """

    def __init__(
        self,
        corpus: GenomeCorpus,
        part: Part = "train",
        *,
        seed: int,
        global_batch_size: int,
        num_streams: int = 1,
        window_blocks: int = 16,
        num_neighbours: int = 1,
        both_strands: bool = True,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if num_neighbours < 1:
            raise ConfigError(f"num_neighbours is {num_neighbours}; expected 1 (the region itself) or more")
        self.corpus, self.seed = corpus, int(seed)
        self._own = corpus.rows(part)
        plan = plan_alone(np.array([_BLOCK]), self._own, num_streams, window_blocks)
        self.order = SamplingOrder([plan], np.ones(1), seed, global_batch_size, num_streams)
        self.order.cells_at(0, process_index, process_count)  # the number of processes is checked here
        self.steps_per_epoch = self.order.steps_per_epoch
        self.rows = global_batch_size // process_count
        self._process = (process_index, process_count)
        self._num_neighbours, self._both_strands = num_neighbours, both_strands

    def batch_at(self, step: int) -> GenomeBatch:
        """The rows of this process of the global batch of a step. Raises ValueError: a negative step."""
        source = self.order.source_orders[0]
        of_step = self.order.cells_at(step, *self._process)
        region = self._own[np.concatenate([source.numbers_of(one.blocks)[one.cells] for one in of_step])]
        row = np.concatenate([one.first_row + np.arange(len(one.cells)) for one in of_step])
        turned = np.zeros(len(row), bool)
        if self._both_strands:
            turned = (fold_array(hash_of(self.seed, Purpose.STRAND, step), row) >> np.uint64(63)).astype(bool)
        return batch_of(self.corpus, region, row, turned, self._num_neighbours)

    def empty_batch(self) -> GenomeBatch:
        """One of the same shapes and types, for who plans for it."""
        rows, length = self.rows, self.corpus.codes.shape[1]
        neighbours = np.full((rows, self._num_neighbours), -1, np.int32)
        zeros = np.zeros(rows, np.int32)
        return GenomeBatch(
            np.full((rows, length), 4, np.uint8),
            zeros,
            zeros.astype(bool),
            zeros,
            zeros,
            neighbours,
            _rows_of(self.corpus.regulators, neighbours),
            _rows_of(self.corpus.accessibility, neighbours),
        )


def batch_of(
    corpus: GenomeCorpus, region: np.ndarray, row: np.ndarray, turned: np.ndarray, num_neighbours: int
) -> GenomeBatch:
    """Some regions of a corpus; those whose number is -1 are padding, without a base and without neighbours.

    Args:
      region: int [B], rows of the corpus.
      row: int [B], what their masks are keyed by.
      turned: bool [B], those whose reverse complement is read.
      num_neighbours: K.
    """
    real = region >= 0
    place = np.where(real, region, 0)
    codes, lengths = corpus.codes[place], np.where(real, corpus.lengths[place], 0).astype(np.int32)
    codes[~real] = UNKNOWN
    codes[turned] = reverse_complement(codes[turned], lengths[turned])
    neighbours = np.where(real[:, None], corpus.neighbours(place, num_neighbours), np.int32(-1))
    return GenomeBatch(
        codes,
        lengths,
        turned,
        region.astype(np.int32),
        row.astype(np.int32),
        neighbours,
        _rows_of(corpus.regulators, neighbours),
        _rows_of(corpus.accessibility, neighbours),
    )


def _rows_of(matrix: RegionMatrix | None, neighbours: np.ndarray) -> np.ndarray | None:
    """float32 [B, K, C]; zeros where there is no neighbour."""
    if matrix is None:
        return None
    found = matrix.values[np.maximum(neighbours, 0).ravel()].toarray().astype(np.float32)
    found[neighbours.ravel() < 0] = 0
    return found.reshape(*neighbours.shape, -1)
