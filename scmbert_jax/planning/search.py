"""The largest batch and the cheapest remat that fit a topology."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

from scmbert_jax.config import ExperimentConfig
from scmbert_jax.parallel.mesh import mesh_sizes
from scmbert_jax.planning.plan import Plan
from scmbert_jax.planning.topologies import GIB, Topology

# From what computes nothing again to what keeps least.
Remat = Literal["none", "dots", "full"]
REMATS: tuple[Remat, ...] = ("none", "dots", "full")
# Cells on a chip at a time; more add nothing to a chip that is busy.
MOST_CELLS_PER_CHIP = 256
# Tokens on a chip at a time with which arithmetic outlasts fetching the sharded weights (about 2,500 on v5p and H100).
BUSY_TOKENS = 4096


class Found(NamedTuple):
    """One remat policy.

    Attributes:
      remat: its name.
      cells_per_chip: the most that fit at a time, a power of two; 0: not even one.
      largest_batch: the global batch of so many on every chip, in one microbatch.
    """

    remat: Remat
    cells_per_chip: int
    largest_batch: int


class SearchResult(NamedTuple):
    """What was found for each policy, and the experiment's own batch by the best of them; None: nothing fits."""

    found: list[Found]
    best: Plan | None


def search(
    config: ExperimentConfig,
    topology: Topology,
    plan_of: Callable[[ExperimentConfig], Plan],
    say: Callable[[str], None],
) -> SearchResult:
    """Three compilations or so for each policy, minutes each for a TPU.

    Args:
      plan_of: makes a plan of a configuration.
      say: is told of each attempt.

    The cheapest policy that keeps a chip busy (`BUSY_TOKENS`) is best; where none does, that with the most cells. With
    it, the experiment's own batch is planned, in as many microbatches as it takes: what changes is how the training run
    is worked off, not which run it is.
    """
    sizes = mesh_sizes(config.mesh, topology.num_chips)
    parts = sizes[0] * sizes[1]
    found = [_most_cells(config, remat, parts, plan_of, say) for remat in REMATS]
    fitting = [one for one in found if one.cells_per_chip]
    if not fitting:
        return SearchResult(found, None)
    tokens = 1 + sum(own.num_tokens for own in config.modalities.in_use().values())
    busy = [one for one in fitting if one.cells_per_chip * tokens >= BUSY_TOKENS]
    chosen = busy[0] if busy else max(fitting, key=lambda one: one.cells_per_chip)
    batch = config.data.global_batch_size
    number = max(1, math.ceil(batch / chosen.largest_batch))
    while number <= batch:
        # Sums of gradients live beside a microbatch: where the last bytes were taken, it may need one more halving.
        if batch % (number * parts) == 0:
            model, train = replace(config.model, remat=chosen.remat), replace(config.train, num_microbatches=number)
            plan = plan_of(replace(config, model=model, train=train))
            say(f"remat {chosen.remat}, {batch:,} cells in {number} microbatch(es): {_in_words(plan)}")
            if plan.fits:
                return SearchResult(found, plan)
        number += 1
    return SearchResult(found, None)


def _most_cells(
    config: ExperimentConfig,
    remat: Remat,
    parts: int,
    plan_of: Callable[[ExperimentConfig], Plan],
    say: Callable[[str], None],
) -> Found:
    plans: dict[int, Plan] = {}

    def attempt(cells: int) -> Plan:
        plans[cells] = plan_of(with_cells_per_chip(config, remat, cells, parts))
        say(f"remat {remat}, {cells} cell(s) a chip at a time: {_in_words(plans[cells])}")
        return plans[cells]

    one = attempt(1)
    if not one.fits:
        return Found(remat, 0, 0)
    two = attempt(2)
    most = 1
    if two.fits:
        # Temporaries grow by as much with every cell.
        each = max(1, two.largest.memory.total - one.largest.memory.total)
        room = one.topology.chip.memory_bytes - two.largest.memory.total
        most = min(MOST_CELLS_PER_CHIP, 2 ** int(math.log2(2 + room / each)))
        while most > 2 and not attempt(most).fits:
            most //= 2
    return Found(remat, most, most * parts)


def with_cells_per_chip(config: ExperimentConfig, remat: Remat, cells: int, parts: int) -> ExperimentConfig:
    """The experiment with `cells` for each of `parts` devices of the batch, at once."""
    batch = cells * parts
    return replace(
        config,
        model=replace(config.model, remat=remat),
        data=replace(config.data, global_batch_size=batch, num_streams=math.gcd(batch, config.data.num_streams)),
        train=replace(config.train, num_microbatches=1),
    )


def _in_words(plan: Plan) -> str:
    memory = plan.largest.memory.total / GIB
    return f"{memory:.1f} GiB a chip, " + ("fits" if plan.fits else "does not fit")
