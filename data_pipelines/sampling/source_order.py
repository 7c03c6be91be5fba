"""The cells of one source, in an endless order: epoch after epoch, each with every cell at most once.

    n cells lie in blocks whose sizes differ by at most one.
    epoch e           permutes all blocks
    partition l of L  owns every L-th group of K blocks: window w = blocks permutation[(w L + l) K : +K]
    window            its cells permuted by (seed, e, w, l); with groups, those of a group in runs (drawn_together)
    draw d            of a partition is cell d mod E of its epoch d // E; E is the same for every partition

Nothing is stored: the cell of any draw is found at once.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data_pipelines.counter_hash import Purpose, hash_of, random_permutation
from data_pipelines.sampling.drawn_together import side_by_side


class _Epoch(NamedTuple):
    permutation: np.ndarray  # int64 [num_blocks]
    window_ends: np.ndarray  # int64 [L, windows + 1], cells of the partition before each window


class SourceOrder:
    """The order of one source under one seed. Threads may share it.

    Args:
      block_sizes: int64 [num_blocks], cells of every block; they differ by at most one.
      seed: any integer.
      num_partitions: L, at most num_blocks.
      window_blocks: K; more blocks mix better and take more memory.
      epoch_draws: E, draws of a partition in one epoch. None: as many as the shortest one may have, which is the most.
      groups: int32 [cells], those whose cells are drawn together, -1 for none; in the order of the blocks. None: none.
      run: so many of them.

    Attributes:
      unused_per_epoch: cells that rest in an epoch; every epoch rests others. By default none with one partition,
        else those of at most L - 1 blocks and one of every block.
      smallest_window: cells.
    """

    def __init__(
        self,
        block_sizes: np.ndarray,
        seed: int,
        num_partitions: int,
        window_blocks: int,
        epoch_draws: int | None = None,
        groups: np.ndarray | None = None,
        run: int = 1,
    ):
        self.block_sizes = np.asarray(block_sizes, np.int64)
        self.seed, self.num_partitions, self.window_blocks = int(seed), int(num_partitions), int(window_blocks)
        self.blocks_per_partition = len(self.block_sizes) // self.num_partitions
        shortest = int(np.sort(self.block_sizes)[: self.blocks_per_partition].sum())
        self.epoch_draws = shortest if epoch_draws is None else epoch_draws
        self.unused_per_epoch = int(self.block_sizes.sum()) - self.num_partitions * self.epoch_draws
        last_blocks = self.blocks_per_partition % self.window_blocks or self.window_blocks
        self.smallest_window = int(self.block_sizes.min()) * min(last_blocks, self.blocks_per_partition)
        self.groups, self.run = groups, run
        self._first_cells = np.cumsum(self.block_sizes) - self.block_sizes
        self._epoch = lru_cache(maxsize=4)(self._make_epoch)
        # enough for the windows that a few steps in flight touch; a permutation of K * 256 cells takes under 1 ms
        self._window_cells = lru_cache(maxsize=4 * self.num_partitions + 16)(self._make_window_cells)

    def cells(self, partition: int, draws: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """The cells of some draws of a partition (int64, ascending), in their order, window by window: how often the
        partition has offered its cells before; int64 [<= K], the blocks of the window; int64 [draws], positions within
        the concatenated blocks."""
        at = 0
        while at < len(draws):
            epoch, place = divmod(int(draws[at]), self.epoch_draws)
            ends = self._epoch(epoch).window_ends[partition]
            window = int(np.searchsorted(ends, place, side="right")) - 1
            first = epoch * self.epoch_draws
            stop = int(np.searchsorted(draws, first + min(self.epoch_draws, int(ends[window + 1]))))
            cells = self._window_cells(epoch, partition, window)[draws[at:stop] - (first + ends[window])]
            yield epoch, self._window_blocks(epoch, partition, window), cells
            at = stop

    def numbers_of(self, blocks: np.ndarray) -> np.ndarray:
        """int64: the cells of some blocks, one after the other, by their number in the source."""
        sizes = self.block_sizes[blocks]
        ends = np.cumsum(sizes)
        return np.arange(sizes.sum()) + np.repeat(self._first_cells[blocks] - (ends - sizes), sizes)

    def _window_blocks(self, epoch: int, partition: int, window: int) -> np.ndarray:
        """Blocks of a window. The last one of a partition is shorter where K does not divide its blocks."""
        full_windows = self.blocks_per_partition // self.window_blocks
        if window < full_windows:
            size, first = self.window_blocks, (window * self.num_partitions + partition) * self.window_blocks
        else:
            size = self.blocks_per_partition % self.window_blocks
            first = full_windows * self.num_partitions * self.window_blocks + partition * size
        return self._epoch(epoch).permutation[first : first + size]

    def _make_epoch(self, epoch: int) -> _Epoch:
        permutation = random_permutation(hash_of(self.seed, Purpose.BLOCKS_OF_EPOCH, epoch), len(self.block_sizes))
        full_windows, rest = divmod(self.blocks_per_partition, self.window_blocks)
        sizes = self.block_sizes[permutation]
        split = full_windows * self.num_partitions * self.window_blocks
        windows = sizes[:split].reshape(full_windows, self.num_partitions, self.window_blocks).sum(2)  # [windows, L]
        if rest:
            last = sizes[split : split + self.num_partitions * rest].reshape(1, self.num_partitions, rest).sum(2)
            windows = np.concatenate([windows, last])
        ends = np.zeros((self.num_partitions, len(windows) + 1), np.int64)
        ends[:, 1:] = np.cumsum(windows, axis=0).T
        return _Epoch(permutation, ends)

    def _make_window_cells(self, epoch: int, partition: int, window: int) -> np.ndarray:
        ends = self._epoch(epoch).window_ends[partition]
        size = int(ends[window + 1] - ends[window])
        cells = random_permutation(hash_of(self.seed, Purpose.CELLS_OF_WINDOW, epoch, window, partition), size)
        if self.groups is None:
            return cells
        groups = self.groups[self.numbers_of(self._window_blocks(epoch, partition, window))]
        return cells[side_by_side(groups[cells], self.run)]
