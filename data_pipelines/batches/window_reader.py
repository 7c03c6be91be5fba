"""Windows of a source, decoded once each: the blocks that one partition draws its next cells from.

Several threads ask for the same window; the first decodes it, the others wait for it. The cache holds what the steps in
flight touch, so memory is bounded whatever the corpus.
"""

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from data_pipelines.corpus.cell_block import PackedColumns
from data_pipelines.corpus.packed_counts import CellIndex, PackedCounts, index_of, joined, pack
from data_pipelines.readers.whole_counts import MAX_COUNT
from data_pipelines.sampling.source_blocks import SourceBlocks


class WindowColumns(NamedTuple):
    """One modality of the concatenated blocks of a window (n cells)."""

    counts: PackedCounts
    places: CellIndex
    library_size: np.ndarray  # float32 [n]
    measured: np.ndarray  # bool [n]


class Window(NamedTuple):
    modalities: dict[str, WindowColumns]  # only those that are read and that somebody in the window measured
    obs_codes: dict[str, np.ndarray]  # int32 [n]
    cell_index: np.ndarray  # int64 [n]


class WindowReader:
    """Decodes windows of a source, and keeps the last few. Threads may share it.

    Args:
      blocks: of the source.
      modalities: those that are read.
      obs_fields: whose codes are read; `dataset` always is.
      capacity: windows in memory.
    """

    def __init__(self, blocks: SourceBlocks, modalities: tuple[str, ...], obs_fields: tuple[str, ...], capacity: int):
        self._blocks = blocks
        self._modalities = modalities
        self._obs_fields = tuple(dict.fromkeys(("dataset", *obs_fields)))
        self._capacity = capacity
        self._cache: OrderedDict[bytes, Future] = OrderedDict()
        self._lock = threading.Lock()

    def window(self, block_numbers: np.ndarray) -> Window:
        """The window of these blocks (int64 [K], in order), decoded once however many threads ask for it.

        Raises:
          CorpusError: a block cannot be read; the shard and the block are named.
        """
        key = block_numbers.tobytes()
        with self._lock:
            future = self._cache.get(key)
            mine = future is None
            if future is None:
                future = self._cache[key] = Future()
            self._cache.move_to_end(key)
            while len(self._cache) > self._capacity:
                self._cache.popitem(last=False)
        if mine:
            try:
                future.set_result(self._decode(block_numbers))
            except BaseException as error:
                with self._lock:
                    self._cache.pop(key, None)  # a disk that comes back is read again
                future.set_exception(error)
        return future.result()

    def read_ahead(self, block_numbers: np.ndarray) -> None:
        """The window will be asked for: unless it is here, its blocks begin to come.

        Raises CorpusError: where they lie cannot be read."""
        key = block_numbers.tobytes()
        with self._lock:
            if key in self._cache:
                return
        ranges = self._blocks.ranges(block_numbers)  # may wait for a file, so nothing is locked
        with self._lock:  # or a thread that decodes the window meanwhile would leave its blocks to be fetched again
            if key not in self._cache:
                self._blocks.read_ahead(ranges)

    def _decode(self, block_numbers: np.ndarray) -> Window:
        blocks = self._blocks.read_blocks(block_numbers, self._modalities, self._obs_fields)
        modalities = {}
        for name in self._modalities:
            if any(name in block.modalities for block in blocks):
                modalities[name] = _joined([block.modalities.get(name, block.num_cells) for block in blocks])
        return Window(
            modalities,
            {name: np.concatenate([block.obs_codes[name] for block in blocks]) for name in self._obs_fields},
            np.concatenate([block.cell_index for block in blocks]),
        )


def _joined(parts: list[PackedColumns | int]) -> WindowColumns:
    """Of blocks; a number stands for so many cells that were not measured."""
    whole = [_not_measured(part) if isinstance(part, int) else part for part in parts]
    counts, index = joined([(part.counts, part.places) for part in whole])
    return WindowColumns(
        counts._replace(large_counts=np.minimum(counts.large_counts, np.uint32(MAX_COUNT))),
        index,
        np.concatenate([part.total_counts for part in whole]).astype(np.float32),
        np.concatenate([part.measured for part in whole]),
    )


def _not_measured(num_cells: int) -> PackedColumns:
    nothing = np.zeros(0, np.int32)
    counts = pack(np.zeros(num_cells, np.int32), nothing, nothing)
    return PackedColumns(counts, index_of(counts), np.zeros(num_cells, np.uint64), np.zeros(num_cells, bool))
