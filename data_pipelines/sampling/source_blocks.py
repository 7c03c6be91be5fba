"""The cells of a source as blocks: how they are laid out for the order, and how they are read.

A whole corpus is read by its own blocks. Some cells of one (those that a filter keeps, those of a class) are regrouped,
in corpus order, into *virtual* blocks of balanced size; the corpus is shuffled globally, so neighbours in it are as
good as any. Reading a virtual block reads the blocks of the corpus that its cells lie in: a source that is 1% of its
corpus decodes about a hundred cells for each one it gives, unless it is small enough to be held whole.
"""

import numpy as np

from data_pipelines.corpus.cell_block import ModalityColumns, PackedBlock, PackedColumns
from data_pipelines.corpus.corpus import Corpus
from data_pipelines.sampling.sampling_order import SourcePlan
from scmbert_jax.errors import ConfigError

# Window of a source that is rarely drawn, in cells: with less, a block of the corpus would be read for every few cells.
_MIN_WINDOW = 16
# A source of up to so many of its windows is one block that stays in memory; all its cells come once per epoch.
_WHOLE_WINDOWS = 4


def plan_alone(block_sizes: np.ndarray, rows: np.ndarray | None, num_streams: int, window_blocks: int) -> SourcePlan:
    """The layout of the only source of a run.

    Args:
      block_sizes: int64, of the corpus.
      rows: int32 [n] ascending, which cells; None: all.
      num_streams: V; a source of fewer cells than V gets a block for each.
      window_blocks: K.

    Raises:
      ConfigError: a corpus of fewer blocks than streams.
    """
    if rows is None:
        if len(block_sizes) < num_streams:
            raise ConfigError(
                f"the corpus has {len(block_sizes)} blocks for {num_streams} streams, and every stream needs one: "
                f"give --data.num-streams {max(len(block_sizes), 1)}, or rebuild the corpus with --block-size "
                f"{max(int(block_sizes.sum()) // num_streams, 1)} or less"
            )
        return SourcePlan(block_sizes, num_streams, window_blocks)
    return SourcePlan(_balanced(len(rows), num_streams, int(block_sizes.max())), num_streams, window_blocks)


def plan_in_mixture(
    block_sizes: np.ndarray,
    rows: np.ndarray | None,
    fraction: float,
    num_sources: int,
    num_streams: int,
    window_blocks: int,
) -> SourcePlan:
    """The layout of one of several sources.

    The window of a stream, `window_blocks` blocks, is divided among the sources by their fractions, so that a mixture
    takes about twice the memory of one corpus, however many sources it has: at most one block more for each whole
    corpus and `_MIN_WINDOW` cells more for each other source.

    Args:
      block_sizes, rows, num_streams, window_blocks: as for `plan_alone`.
      fraction: of the draws.
      num_sources: of the mixture.
    """
    num_cells = int(block_sizes.sum()) if rows is None else len(rows)
    block_size = int(block_sizes.max())
    in_memory = window_blocks * block_size  # cells of a stream
    window = max(int(in_memory * fraction), min(block_size, in_memory // num_sources), _MIN_WINDOW)
    if num_cells <= _WHOLE_WINDOWS * window:
        return SourcePlan(np.array([num_cells]), 1, 1)
    if rows is None:
        num_partitions = _largest_divisor(num_streams, len(block_sizes))
        return SourcePlan(block_sizes, num_partitions, max(1, window // block_size))
    size = min(block_size, window)
    num_partitions = _largest_divisor(num_streams, num_cells // size)
    return SourcePlan(_balanced(num_cells, num_partitions, size), num_partitions, max(1, window // size))


def _balanced(num_cells: int, num_partitions: int, block_size: int) -> np.ndarray:
    """int64: a multiple of `num_partitions` blocks of at most `block_size` cells; sizes differ by one at most."""
    num_blocks = num_partitions * max(1, -(-num_cells // (num_partitions * block_size)))
    sizes = np.full(num_blocks, num_cells // num_blocks, np.int64)
    sizes[: num_cells % num_blocks] += 1
    return sizes


def _largest_divisor(number: int, at_most: int) -> int:
    return max(divisor for divisor in range(1, max(1, min(number, at_most)) + 1) if number % divisor == 0)


class SourceBlocks:
    """Reads the blocks of one source. Threads may share it.

    Args:
      corpus: of its cells.
      rows: int32 [n] ascending, which cells; None: all.
      block_sizes: int64, cells of the blocks of the source.
    """

    def __init__(self, corpus: Corpus, rows: np.ndarray | None, block_sizes: np.ndarray):
        self._corpus = corpus
        self._corpus_ends = np.cumsum(corpus.block_sizes)
        self._corpus_firsts = self._corpus_ends - corpus.block_sizes
        self._as_in_corpus = rows is None and np.array_equal(corpus.block_sizes, block_sizes)
        if rows is None and not self._as_in_corpus:
            rows = np.arange(corpus.num_cells, dtype=np.int32)
        self._rows = rows
        self._ends = np.cumsum(block_sizes)

    def read_blocks(
        self, numbers: np.ndarray, modalities: tuple[str, ...], obs_fields: tuple[str, ...]
    ) -> list[PackedBlock]:
        """The cells of some blocks of the source, in their order: parts of blocks of the corpus, one after the other.

        Raises:
          CorpusError: a block of the corpus cannot be read; the shard and the block are named.
        """
        if self._as_in_corpus:
            return [self._corpus.read_packed_block(number, modalities, obs_fields) for number in numbers.tolist()]
        return [
            take_cells(self._corpus.read_packed_block(block, modalities, obs_fields), cells)
            for number in numbers.tolist()
            for block, cells in self._parts(number)
        ]

    def ranges(self, numbers: np.ndarray) -> list[tuple[str, int, int]]:
        """Where blocks of the source lie (`Corpus.ranges`), for `read_ahead`."""
        blocks = numbers.tolist()
        if not self._as_in_corpus:
            blocks = dict.fromkeys(block for number in blocks for block, _ in self._parts(number))
        return self._corpus.ranges(blocks)

    def read_ahead(self, ranges: list[tuple[str, int, int]]) -> None:
        """These will be read soon; waits for nothing."""
        self._corpus.files.read_ahead(ranges)

    def _parts(self, number: int) -> list[tuple[int, np.ndarray]]:
        """Of a block of the source: the blocks of the corpus with its cells, and where they are there (int64)."""
        assert self._rows is not None  # a source that is not laid out as its corpus
        rows = self._rows[self._ends[number - 1] if number else 0 : self._ends[number]].astype(np.int64)
        of_row = np.searchsorted(self._corpus_ends, rows, side="right")
        places = rows - self._corpus_firsts[of_row]
        blocks, starts = np.unique(of_row, return_index=True)
        return list(zip(blocks.tolist(), np.split(places, starts[1:]), strict=True))


def take_cells(block: PackedBlock, cells: np.ndarray) -> PackedBlock:
    """The cells at these positions (int64 [n]) of a block."""
    modalities = {}
    for name, packed in block.modalities.items():
        columns = packed.unpacked()
        lengths = columns.lengths[cells]
        starts = (np.cumsum(columns.lengths, dtype=np.int64) - columns.lengths)[cells]
        new_starts = np.cumsum(lengths, dtype=np.int64) - lengths
        entries = np.repeat(starts - new_starts, lengths) + np.arange(int(lengths.sum(dtype=np.int64)))
        modalities[name] = PackedColumns.of(
            ModalityColumns(
                lengths,
                columns.feature_ids[entries],
                columns.counts[entries],
                columns.total_counts[cells],
                columns.measured[cells],
            )
        )
    return PackedBlock(modalities, {n: codes[cells] for n, codes in block.obs_codes.items()}, block.cell_index[cells])
