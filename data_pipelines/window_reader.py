"""Windows of a source, decoded once each: the blocks that one lane draws its next cells from.

Several threads ask for the same window; the first decodes it, the others wait for it. The cache holds what the steps in
flight touch, so memory is bounded whatever the corpus.
"""

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from data_pipelines.collate import MAX_COUNT
from data_pipelines.source_blocks import SourceBlocks


class WindowColumns(NamedTuple):
    """One modality of the concatenated blocks of a window (n cells)."""

    cell_starts: np.ndarray  # int64 [n + 1]
    feature_ids: np.ndarray  # int32 [nnz]
    counts: np.ndarray  # uint32 [nnz]
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

    def _decode(self, block_numbers: np.ndarray) -> Window:
        blocks = self._blocks.read_blocks(block_numbers, self._modalities)
        modalities = {}
        for name in self._modalities:
            parts = [block.modalities.get(name) for block in blocks]
            if all(part is None for part in parts):
                continue
            zeros = [np.zeros(block.num_cells, np.int32) for block in blocks]

            def joined(field: str, empty: list[np.ndarray], parts: list = parts) -> np.ndarray:
                return np.concatenate(
                    [spare if part is None else getattr(part, field) for part, spare in zip(parts, empty, strict=True)]
                )

            none = [np.zeros(0, np.int32)] * len(blocks)
            counts = joined("counts", none)
            lengths = joined("lengths", zeros)
            modalities[name] = WindowColumns(
                cell_starts=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
                feature_ids=joined("feature_ids", none).astype(np.int32, copy=False),
                counts=np.minimum(counts, MAX_COUNT).astype(np.uint32),
                library_size=joined("total_counts", zeros).astype(np.float32),
                measured=joined("measured", zeros).astype(bool),
            )
        return Window(
            modalities,
            {name: np.concatenate([block.obs_codes[name] for block in blocks]) for name in self._obs_fields},
            np.concatenate([block.cell_index for block in blocks]),
        )
