"""Which cells make the batch of step s: a pure function of (seed, step), the same for any number of processes.

    streams           V, divide the batch of B cells; step s takes draws [s B/V, (s + 1) B/V) of every stream
    source            a corpus, or some of its cells; `SourceCycle` says which source a draw of a stream comes from
    partitions        a source of many blocks has V, stream v draws from partition v; a small one has fewer (a divisor
                      of V), and some streams draw from one partition alternately, so that its cells still come once
                      per epoch
    process h of H    makes the rows of streams [h V / H, (h + 1) V / H)

Rows are stream-major (stream v owns rows [v B / V, (v + 1) B / V)) and within a stream source by source, so
concatenating what the processes make gives the same array for every H that divides V. Nothing is stored: to resume at
step s, ask for step s. B, V, K, the corpora and their weights are part of the order; changing one changes every batch.
A corpus alone is the mixture of one source.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.counter_hash import Purpose, hash_of
from data_pipelines.sampling.drawn_together import too_rare
from data_pipelines.sampling.source_cycle import SourceCycle
from data_pipelines.sampling.source_order import SourceOrder
from scmbert_jax.errors import ConfigError

# Raised whenever the same arguments would give other batches; a run folder records it.
ORDER_VERSION = 2


class WindowDraws(NamedTuple):
    """Consecutive draws of a batch that come from one window.

    Attributes:
      source: which one.
      epoch: how often the source has offered these cells before.
      blocks: int64 [<= K], the blocks of the window, in window order.
      cells: int64 [rows], positions within the concatenated blocks.
      first_row: position in the global batch of the first of them.
    """

    source: int
    epoch: int
    blocks: np.ndarray
    cells: np.ndarray
    first_row: int


class SourcePlan(NamedTuple):
    """How the cells of a source are laid out for the order.

    Attributes:
      block_sizes: int64 [blocks], which differ by at most one.
      num_partitions: a divisor of V, at most the number of blocks.
      window_blocks: K of this source.
      groups: int32 [cells], in the order of the blocks, of which cells are drawn together where chance would bring too
        few together (`drawn_together`); -1 where not known. None: as chance has it.
    """

    block_sizes: np.ndarray
    num_partitions: int
    window_blocks: int
    groups: np.ndarray | None = None


class SamplingOrder:
    """The order of a run under one seed. Threads may share it.

    Args:
      plans: one per source.
      draws: int64 [sources], draws of each source in a cycle (`draws_per_cycle`).
      seed: any integer.
      global_batch_size: B, cells of a step over all processes.
      num_streams: V; divides B, and every number of processes that may ever run this must divide V.

    Attributes:
      steps_per_epoch: steps until as many cells were drawn as there are; of one source: until every block was used.
      source_orders: one per source.
      draws: as given.

    Raises:
      ConfigError: V does not divide B; or an epoch shorter than one batch.
    """

    def __init__(
        self, plans: Sequence[SourcePlan], draws: np.ndarray, seed: int, global_batch_size: int, num_streams: int
    ):
        check_batch(global_batch_size, num_streams)
        self.seed = int(seed)
        self.global_batch_size = int(global_batch_size)
        self.num_streams = int(num_streams)
        self.draws_per_step = self.global_batch_size // self.num_streams  # of a stream
        self.draws = np.asarray(draws, np.int64)
        alone = len(plans) == 1
        self.source_orders = [
            SourceOrder(
                plan.block_sizes,
                self.seed if alone else hash_of(self.seed, Purpose.SOURCE, index),
                plan.num_partitions,
                plan.window_blocks,
                _whole_steps(plan, self.draws_per_step) if alone else None,
                *self._together(plan, index),
            )
            for index, plan in enumerate(plans)
        ]
        self.steps_per_epoch = sum(order.epoch_draws * order.num_partitions for order in self.source_orders)
        self.steps_per_epoch //= self.global_batch_size
        if self.steps_per_epoch < 1:
            blocks = [size for plan in plans for size in plan.block_sizes.tolist()]
            shortest = sum(plan.num_partitions * _shortest_partition(plan) for plan in plans)
            raise ConfigError(
                f"an epoch of {sum(blocks):,} cells in {len(blocks):,} blocks, for {num_streams} streams, is shorter "
                f"than one batch of {global_batch_size} cells: lower global_batch_size to "
                f"{shortest // num_streams * num_streams} or less"
            )
        self._cycle = SourceCycle(self.draws, self.seed, self.num_streams)

    def cells_at(self, step: int, process_index: int = 0, process_count: int = 1) -> list[WindowDraws]:
        """The cells that process `process_index` of `process_count` puts into the global batch of `step`, by row.

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
        streams_here = self.num_streams // process_count
        found: list[WindowDraws] = []
        for stream in range(process_index * streams_here, (process_index + 1) * streams_here):
            found += self._draws_of_stream(stream, step * self.draws_per_step)
        return found

    def most_draws(self, source: int) -> int:
        """Of a source by one partition in one step, at most."""
        return self._most_draws(source, self.source_orders[source].num_partitions)

    def _most_draws(self, source: int, num_partitions: int) -> int:
        own = 2 + self.draws_per_step * int(self.draws[source]) // int(self.draws.sum())
        return self.num_streams // num_partitions * min(self.draws_per_step, own)

    def _together(self, plan: SourcePlan, source: int) -> tuple[np.ndarray | None, int]:
        """The groups of a source that are drawn together, and how many cells of one: what a partition gives a step."""
        if plan.groups is None:
            return None, 1
        draws_per_batch = self.global_batch_size * float(self.draws[source] / self.draws.sum())
        return too_rare(plan.groups, draws_per_batch), self._most_draws(source, plan.num_partitions)

    def _draws_of_stream(self, stream: int, first_draw: int) -> list[WindowDraws]:
        """Draws [first_draw, first_draw + B/V)."""
        row = stream * self.draws_per_step
        found = []
        for source, first, count in self._cycle.between(stream, first_draw, first_draw + self.draws_per_step):
            order = self.source_orders[source]
            streams_of_partition = self.num_streams // order.num_partitions
            partition, offset = divmod(stream, streams_of_partition)
            draws = (first + np.arange(count, dtype=np.int64)) * streams_of_partition + offset
            for epoch, blocks, cells in order.cells(partition, draws):
                found.append(WindowDraws(source, epoch, blocks, cells, row))
                row += len(cells)
        return found


def check_batch(global_batch_size: int, num_streams: int) -> None:
    """Raises ConfigError unless B is a multiple of V, both at least 1."""
    for name, value in (("global_batch_size", global_batch_size), ("num_streams", num_streams)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    if global_batch_size % num_streams:
        raise ConfigError(
            f"global_batch_size {global_batch_size} is not a multiple of num_streams {num_streams}: every stream "
            "gives the same number of cells to a batch; change one of the two"
        )


def _shortest_partition(plan: SourcePlan) -> int:
    return len(plan.block_sizes) // plan.num_partitions * int(plan.block_sizes.min())


def _whole_steps(plan: SourcePlan, draws_per_step: int) -> int:
    """Draws of a partition of a source alone in one epoch: whole batches, so that an epoch is a number of steps."""
    return _shortest_partition(plan) // draws_per_step * draws_per_step
