"""Which cells make the batch of step s: a pure function of (seed, step), the same for any number of processes.

    N cells lie in blocks whose sizes differ by at most one.
    epoch e           permutes all blocks
    stream v of V     owns every V-th stretch of K blocks: window w = blocks permutation[(w V + v) K : +K]
    window            its cells permuted by (seed, e, w, v)
    step              takes B / V consecutive cells of every stream; a batch may straddle two windows
    process h of H    makes the rows of streams [h V / H, (h + 1) V / H)

Rows are stream-major (stream v owns rows [v B / V, (v + 1) B / V)), so concatenating what the processes make gives the
same array for every H that divides V. Nothing is stored: to resume at step s, ask for step s. B, V, K and the corpus
are part of the order; changing one of them changes every batch.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data_pipelines.counter_hash import hash_of, random_permutation
from scmbert_jax.errors import ConfigError

# Raised whenever the same arguments would give other batches; stored in checkpoints and compared when a run resumes.
ORDER_VERSION = 2

_EPOCH, _WINDOW = 1, 2  # what a hash is for, so that no two uses share random numbers


class StepCells(NamedTuple):
    """The cells of one process in one step, in pieces of one window each.

    Attributes:
      epoch: how often every cell was offered before.
      pieces: in row order.
    """

    epoch: int
    pieces: tuple["WindowPiece", ...]


class WindowPiece(NamedTuple):
    """Consecutive rows of the global batch that come from one window.

    Attributes:
      stream, window: which one.
      blocks: int64 [<= K], the blocks of the window, in window order.
      cells: int64 [rows], positions within the concatenated blocks.
      first_row: position in the global batch of the first of them.
    """

    stream: int
    window: int
    blocks: np.ndarray
    cells: np.ndarray
    first_row: int


class _Epoch(NamedTuple):
    permutation: np.ndarray  # int64 [num_blocks]
    window_ends: np.ndarray  # int64 [V, windows + 1], cells of the stream before each window


class SamplingOrder:
    """The order of one corpus under one seed. Threads may share it.

    Args:
      block_sizes: int64 [num_blocks], cells of every block.
      seed: any integer.
      global_batch_size: B, cells of a step over all processes.
      num_streams: V; divides B, and every number of processes that may ever run this must divide V.
      window_blocks: K; more blocks mix better and take more memory.

    Attributes:
      steps_per_epoch: steps until every block was used once.
      cells_per_epoch: steps_per_epoch * B; the other `unused_per_epoch` cells (at most those of V - 1 blocks, one cell
        a block and one batch) rest this epoch; every epoch rests others.

    Raises:
      ConfigError: V does not divide B, fewer blocks than streams, or an epoch shorter than one batch.
    """

    def __init__(
        self, block_sizes: np.ndarray, seed: int, global_batch_size: int, num_streams: int, window_blocks: int
    ):
        block_sizes = np.asarray(block_sizes, np.int64)
        for name, value in [
            ("global_batch_size", global_batch_size),
            ("num_streams", num_streams),
            ("window_blocks", window_blocks),
        ]:
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if global_batch_size % num_streams:
            raise ConfigError(
                f"global_batch_size {global_batch_size} is not a multiple of num_streams {num_streams}: every stream "
                "gives the same number of cells to a batch; change one of the two"
            )
        if len(block_sizes) < num_streams:
            raise ConfigError(
                f"the corpus has {len(block_sizes)} blocks for {num_streams} streams, and every stream needs one: "
                f"lower num_streams to {max(len(block_sizes), 1)} or less, or rebuild the corpus with --block-size "
                f"{max(int(block_sizes.sum()) // num_streams, 1)} or less"
            )
        self.block_sizes = block_sizes
        self.seed = int(seed)
        self.global_batch_size = int(global_batch_size)
        self.num_streams = int(num_streams)
        self.window_blocks = int(window_blocks)
        self.cells_per_stream = self.global_batch_size // self.num_streams  # of one step
        self.blocks_per_stream = len(block_sizes) // num_streams
        self.steps_per_epoch = int(self.blocks_per_stream * block_sizes.min() // self.cells_per_stream)
        if self.steps_per_epoch < 1:
            raise ConfigError(
                f"an epoch of this corpus ({int(block_sizes.sum())} cells in {len(block_sizes)} blocks, "
                f"{self.blocks_per_stream} blocks for each of {num_streams} streams) is shorter than one batch of "
                f"{global_batch_size} cells: lower global_batch_size to "
                f"{int(self.blocks_per_stream * block_sizes.min()) * num_streams} or less"
            )
        self.cells_per_epoch = self.steps_per_epoch * self.global_batch_size
        self.unused_per_epoch = int(block_sizes.sum()) - self.cells_per_epoch
        self._epoch = lru_cache(maxsize=4)(self._make_epoch)
        # enough for the windows that a few steps in flight touch; a permutation of K * 256 cells takes under 1 ms
        self._window_cells = lru_cache(maxsize=4 * num_streams + 16)(self._make_window_cells)

    def cells_at(self, step: int, process_index: int = 0, process_count: int = 1) -> StepCells:
        """The cells that process `process_index` of `process_count` puts into the global batch of `step`.

        Raises:
          ConfigError: the number of processes does not divide the number of streams.
          ValueError: a negative step, or a process index out of range.
        """
        if step < 0:
            raise ValueError(f"step {step} is negative")
        if self.num_streams % process_count:
            raise ConfigError(
                f"{process_count} processes cannot share {self.num_streams} streams evenly: num_streams must be a "
                "multiple of the number of processes"
            )
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index {process_index} of {process_count}")
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        streams_here = self.num_streams // process_count
        pieces: list[WindowPiece] = []
        for stream in range(process_index * streams_here, (process_index + 1) * streams_here):
            pieces += self._pieces(epoch, stream, step_of_epoch * self.cells_per_stream)
        return StepCells(epoch, tuple(pieces))

    def _pieces(self, epoch: int, stream: int, first_cell: int) -> list[WindowPiece]:
        """Cells [first_cell, first_cell + B/V) of a stream, window by window."""
        ends = self._epoch(epoch).window_ends[stream]
        row = stream * self.cells_per_stream
        pieces = []
        stop = first_cell + self.cells_per_stream
        window = int(np.searchsorted(ends, first_cell, side="right")) - 1
        while first_cell < stop:
            last = min(stop, int(ends[window + 1]))
            cells = self._window_cells(epoch, stream, window)[first_cell - ends[window] : last - ends[window]]
            pieces.append(WindowPiece(stream, window, self._window_blocks(epoch, stream, window), cells, row))
            row += last - first_cell
            first_cell = last
            window += 1
        return pieces

    def _window_blocks(self, epoch: int, stream: int, window: int) -> np.ndarray:
        """Blocks of a window. The last window of a stream is shorter where K does not divide the blocks of a stream."""
        full_windows = self.blocks_per_stream // self.window_blocks
        if window < full_windows:
            size, first = self.window_blocks, (window * self.num_streams + stream) * self.window_blocks
        else:
            size = self.blocks_per_stream % self.window_blocks
            first = full_windows * self.num_streams * self.window_blocks + stream * size
        return self._epoch(epoch).permutation[first : first + size]

    def _make_epoch(self, epoch: int) -> _Epoch:
        permutation = random_permutation(hash_of(self.seed, _EPOCH, epoch), len(self.block_sizes))
        full_windows, rest = divmod(self.blocks_per_stream, self.window_blocks)
        sizes = self.block_sizes[permutation]
        split = full_windows * self.num_streams * self.window_blocks
        windows = sizes[:split].reshape(full_windows, self.num_streams, self.window_blocks).sum(2)  # [windows, V]
        if rest:
            last = sizes[split : split + self.num_streams * rest].reshape(1, self.num_streams, rest).sum(2)
            windows = np.concatenate([windows, last])
        ends = np.zeros((self.num_streams, len(windows) + 1), np.int64)
        ends[:, 1:] = np.cumsum(windows, axis=0).T
        return _Epoch(permutation, ends)

    def _make_window_cells(self, epoch: int, stream: int, window: int) -> np.ndarray:
        ends = self._epoch(epoch).window_ends[stream]
        size = int(ends[window + 1] - ends[window])
        return random_permutation(hash_of(self.seed, _WINDOW, epoch, window, stream), size)
