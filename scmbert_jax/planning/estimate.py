"""How long a step would take and what a run would cost: a roofline, with its assumptions beside it.

Nothing here is measured. A step takes at least as long as the slowest of four: arithmetic at the chip's peak, traffic
to its memory, traffic to other chips, traffic between nodes. Real steps reach a fraction of that, `efficiency`.
"""

from typing import NamedTuple

import numpy as np

from scmbert_jax.config import ExperimentConfig
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.models.flops import counts_of_full_cells, feature_table_flops
from scmbert_jax.objectives.mixture import step_flops
from scmbert_jax.planning.compiled_step import CompiledStep
from scmbert_jax.planning.topologies import Topology

# Of the roofline. Public marks of well-kept training code: 44-50% of peak on v6e, 65% on v5p, 46-53% on H100.
DEFAULT_EFFICIENCY = 0.5


class StepEstimate(NamedTuple):
    """Seconds unless said; of one step, by the assumptions of `ASSUMPTIONS`.

    Attributes:
      flops: operations that the task needs (models/flops.py), of the whole step on all chips.
      recomputed_flops: what remat adds to them.
      compute, memory, links, network: each alone, at the chip's best.
      bound: which of them is longest.
      seconds: that one, divided by the efficiency.
      mfu: flops / (chips x peak x seconds).
    """

    flops: float
    recomputed_flops: float
    compute: float
    memory: float
    links: float
    network: float
    bound: str
    seconds: float
    mfu: float


ASSUMPTIONS = (
    "every cell is measured in all modalities of the run and fills its tokens (padding is not work)",
    "a step reaches EFFICIENCY of its roofline: the longest of arithmetic, memory, links and network, all overlapped",
    "memory: weights are read in each pass, what is kept for the backward pass is written and read once, the optimizer "
    "reads and writes its state once",
    "links and network: the bytes of a ring, at the bandwidth of one direction",
    "no time for data, checkpoints, evaluation or restarts",
    "prices: on-demand, list, 2025 (--price changes them)",
)


def estimate(
    config: ExperimentConfig, layout: FeatureLayout, topology: Topology, step: CompiledStep, efficiency: float
) -> StepEstimate | None:
    """None where the chip has no known speed (`cpu-N`), or the step did not compile."""
    chip = topology.chip
    if chip.flops == 0 or not step.compiled:
        return None
    parts = flops_of(config, layout, step.objective)
    needed = sum(parts.values())
    again = recomputed_flops(config, parts)
    times = {
        "compute": (needed + again) / topology.num_chips / chip.flops,
        "memory": _memory_traffic(config, step) / chip.memory_bandwidth,
        "links": sum(one.sent * one.times for one in step.collectives if one.nodes == 1) / chip.link_bandwidth
        + sum(max(0.0, one.sent - one.sent_between_nodes) * one.times for one in step.collectives if one.nodes > 1)
        / chip.link_bandwidth,
        "network": sum(one.sent_between_nodes * one.times for one in step.collectives) / chip.network_bandwidth,
    }
    bound = max(times, key=lambda name: times[name])
    seconds = times[bound] / efficiency
    mfu = needed / (topology.num_chips * chip.flops * seconds)
    return StepEstimate(needed, again, **times, bound=bound, seconds=seconds, mfu=mfu)


def flops_of(config: ExperimentConfig, layout: FeatureLayout, objective: str) -> dict[str, float]:
    """Operations of a step on full cells, by part; see models/flops.py for the formula."""
    parts = step_flops(config, objective, counts_of_full_cells(config, config.data.global_batch_size, layout))
    return {**parts, "feature_table": feature_table_flops(config, layout)}


def recomputed_flops(config: ExperimentConfig, parts: dict[str, float]) -> float:
    """What the backward pass computes a second time: `full`, each layer's forward pass; `dots`, its attention."""
    forward = {"none": 0.0, "dots": parts["attention"], "full": parts["attention"] + parts["encoder"]}
    return forward[config.model.remat] / 3


def _memory_traffic(config: ExperimentConfig, step: CompiledStep) -> float:
    """Bytes to and from a chip's memory in a step, at least."""
    memory, passes = step.memory, 2 + (config.model.remat == "full")
    item = np.dtype("float32").itemsize if config.model.compute_dtype == "float32" else 2
    # Gathered weights lie in the chip's memory, whole: each pass of each microbatch reads them.
    gathered = sum(one.payload * one.times for one in step.collectives if one.kind == "all-gather")
    weights = max(gathered, config.train.num_microbatches * passes * memory.params / 4 * item)
    activations = 2 * config.train.num_microbatches * max(0, memory.temporaries - memory.gradients)
    # AdamW reads parameter, gradient and two moments, and writes parameter and moments.
    update = 2 * memory.params + 2 * memory.optimizer + 2 * memory.gradients
    return weights + activations + update


class Cost(NamedTuple):
    """Of a number of cells: steps, days, chip hours, dollars."""

    cells: int
    steps: int
    days: float
    chip_hours: float
    dollars: float


def cost(
    config: ExperimentConfig,
    topology: Topology,
    estimates: dict[str, StepEstimate],
    cells: int,
    dollars_per_chip_hour: float,
) -> Cost:
    """Of training on `cells` cells (those seen twice count twice), objectives drawn by their weights."""
    weights = config.objectives.weights()
    seconds = sum(weights[name] * estimates[name].seconds for name in weights) / sum(weights.values())
    steps = -(-cells // config.data.global_batch_size)
    hours = steps * seconds / 3600
    chip_hours = hours * topology.num_chips
    return Cost(cells, steps, hours / 24, chip_hours, chip_hours * dollars_per_chip_hour)
