"""A plan: an experiment on a topology, compiled, with what it takes and what to change when it does not fit."""

from dataclasses import asdict, dataclass
from typing import Any

from scmbert_jax.config import ExperimentConfig
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.planning.compile_process import Compilation, compile_apart
from scmbert_jax.planning.compiled_step import CompiledStep
from scmbert_jax.planning.estimate import (
    ASSUMPTIONS,
    DEFAULT_EFFICIENCY,
    Cost,
    StepEstimate,
    cost,
    estimate,
    flops_of,
)
from scmbert_jax.planning.program_text import summary
from scmbert_jax.planning.topologies import GIB, Topology
from scmbert_jax.version import VERSION


@dataclass(frozen=True)
class Plan:
    """What `scmbert plan` shows.

    Attributes:
      estimates: objective -> its step, where the chip's speed is known and the step fits.
      cost: of the cells that were asked about; None where a step has no estimate.
    """

    name: str
    config: ExperimentConfig
    layout: FeatureLayout
    topology: Topology
    compilation: Compilation
    efficiency: float
    dollars_per_chip_hour: float
    estimates: dict[str, StepEstimate]
    cost: Cost | None

    @property
    def largest(self) -> CompiledStep:
        """The step that needs most memory."""
        return max(self.compilation.experiment.steps, key=lambda step: step.memory.total)

    @property
    def missing(self) -> int:
        """Bytes that a chip lacks; 0 or less: it fits."""
        return self.largest.memory.total - self.topology.chip.memory_bytes

    @property
    def fits(self) -> bool:
        return self.missing <= 0 and all(step.compiled for step in self.compilation.experiment.steps)

    def advice(self) -> list[str]:
        """What makes a step that does not fit smaller, what helps most first."""
        if self.fits:
            return []
        model, train, memory = self.config.model, self.config.train, self.largest.memory
        mesh = self.compilation.experiment.mesh
        rows = self.config.data.global_batch_size // (mesh["replica"] * mesh["fsdp"]) // train.num_microbatches
        state, capacity = memory.params + memory.optimizer + memory.gradients, self.topology.chip.memory_bytes
        lines = []
        if state > 0.9 * capacity:
            lines.append(
                f"parameters, optimizer and gradients alone are {state / GIB:.1f} GiB a chip: spread them over more "
                f"(--mesh.fsdp is {mesh['fsdp']}, --mesh.replica {mesh['replica']}, --mesh.tensor {mesh['tensor']}) or "
                "take a larger topology"
            )
        if model.remat != "full":
            stronger = {"none": "dots, then full", "dots": "full"}[model.remat]
            lines.append(f"--model.remat {stronger} (it is {model.remat}): activations are computed again, not kept")
        if model.attention == "xla":
            kernel = self.topology.chip.kernel
            lines.append(f"--model.attention {kernel}: linear in the tokens, where xla keeps their square")
        if rows > 1:
            lines.append(
                f"--train.num-microbatches {2 * train.num_microbatches} (it is {train.num_microbatches}, {rows} cells "
                "a chip at a time): about half of the temporaries, the same update"
            )
        lines.append(f"--data.global-batch-size below {self.config.data.global_batch_size}: another training run")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; bytes, seconds, operations."""
        found = self.compilation
        model = self.config.model
        return {
            "experiment": self.name,
            "topology": self.topology.name,
            "chip": self.topology.chip.name,
            "num_chips": self.topology.num_chips,
            "num_processes": found.experiment.num_processes,
            "mesh": found.experiment.mesh,
            "fits": self.fits,
            "missing_bytes": max(0, self.missing),
            "capacity_bytes": self.topology.chip.memory_bytes,
            "num_params": found.experiment.num_params,
            "num_feature_params": found.experiment.num_feature_params,
            "global_batch_size": self.config.data.global_batch_size,
            "num_microbatches": self.config.train.num_microbatches,
            "attention": model.attention,
            "remat": model.remat,
            "num_features": {name: stop - first for name, (first, stop) in self.layout.slices.items()},
            "seconds": found.seconds,
            "cpu_seconds": found.cpu_seconds,
            "compile_peak_bytes": found.peak_bytes,
            "steps": [self._step(step) for step in found.experiment.steps],
            "cost": self.cost._asdict() if self.cost else None,
            "advice": self.advice(),
            "assumptions": {
                "efficiency": self.efficiency,
                "dollars_per_chip_hour": self.dollars_per_chip_hour,
                "chip": asdict(self.topology.chip),
                "notes": list(ASSUMPTIONS),
            },
            "version": VERSION,
        }

    def _step(self, step: CompiledStep) -> dict[str, Any]:
        one = self.estimates.get(step.objective)
        return {
            "objective": step.objective,
            "compiled": step.compiled,
            "lower_seconds": step.lower_seconds,
            "compile_seconds": step.compile_seconds,
            "memory": {**step.memory._asdict(), "total": step.memory.total},
            "flops": flops_of(self.config, self.layout, step.objective),
            "collectives": summary(step.collectives),
            "estimate": one._asdict() if one else None,
        }

    def text(self) -> str:
        return "\n".join([*self._heading(), *self._steps(), *self._verdict()])

    def _heading(self) -> list[str]:
        found, topology, model = self.compilation, self.topology, self.config.model
        mesh = " x ".join(f"{axis} {size}" for axis, size in found.experiment.mesh.items())
        of_layers = found.experiment.num_params - found.experiment.num_feature_params
        features = ", ".join(f"{stop - first:,} {name}" for name, (first, stop) in self.layout.slices.items())
        lines = [
            f"{self.name} on {topology.name}: {topology.num_chips} x {topology.chip.name}, mesh {mesh}, "
            f"{found.experiment.num_processes} process(es)",
            f"  {of_layers / 1e6:,.1f} million parameters, and {found.experiment.num_feature_params / 1e6:,.1f} "
            f"million in rows of features ({features})",
            f"  {self.config.data.global_batch_size:,} cells a step in {self.config.train.num_microbatches} "
            f"microbatch(es), {model.compute_dtype}, attention {model.attention}, remat {model.remat}",
            f"  compiled in {found.seconds:.0f} s ({found.cpu_seconds:.0f} s of processors) with "
            f"{found.peak_bytes / GIB:.1f} GiB of this machine's memory",
        ]
        if topology.platform != "cpu" and model.attention not in (topology.chip.kernel, "favor"):
            lines.append(f"  attention: {topology.chip.kernel} is made for this chip (--model.attention)")
        return lines

    def _steps(self) -> list[str]:
        lines = []
        for step in self.compilation.experiment.steps:
            memory, capacity = step.memory, self.topology.chip.memory_bytes
            lines += [
                "",
                f"{step.objective}: {memory.total / GIB:.2f} of {capacity / GIB:.2f} GiB a chip"
                + ("" if step.compiled else "   DOES NOT FIT: the compiler gave up"),
                f"  params {memory.params / GIB:.2f}, optimizer {memory.optimizer / GIB:.2f}, batch and links "
                f"{memory.batch / GIB:.2f}, temporaries {memory.temporaries / GIB:.2f} (gradients "
                f"{memory.gradients / GIB:.2f} of them), code {memory.code / GIB:.2f}, other {memory.other / GIB:.2f}",
            ]
            parts = flops_of(self.config, self.layout, step.objective)
            of_parts = ", ".join(f"{name} {flops / 1e12:,.1f}" for name, flops in parts.items())
            lines.append(f"  {sum(parts.values()) / 1e12:,.1f} TFLOP a step: {of_parts}")
            for kind, row in summary(step.collectives).items():
                lines.append(
                    f"  {kind:18} {row['instructions']:4} in the program, {row['times']:7,} times a step, "
                    f"{row['bytes'] / 1e9:10,.2f} GB"
                )
            one = self.estimates.get(step.objective)
            if one:
                lines += [
                    f"  at the chip's best: arithmetic {one.compute * 1e3:,.1f} ms ({one.recomputed_flops / 1e12:,.1f} "
                    f"TFLOP again for remat), memory {one.memory * 1e3:,.1f} ms, links {one.links * 1e3:,.1f} ms, "
                    f"network {one.network * 1e3:,.1f} ms",
                    f"  ESTIMATE: {one.seconds * 1e3:,.0f} ms a step, bound by {one.bound}, MFU {one.mfu:.0%} "
                    f"(assumed: {self.efficiency:.0%} of the roofline)",
                ]
        return lines

    def _verdict(self) -> list[str]:
        lines = [""]
        if self.cost:
            lines.append(
                f"{self.cost.cells:,} cells: {self.cost.steps:,} steps, {self.cost.days:,.2f} days, "
                f"{self.cost.chip_hours:,.0f} chip hours, {self.cost.dollars:,.0f} dollars at "
                f"{self.dollars_per_chip_hour:.2f} a chip hour (ESTIMATE)"
            )
            lines += ["assumed:", *(f"  - {note}" for note in ASSUMPTIONS)]
        if not self.fits:
            lines.append(f"does not fit: {self.missing / GIB:.2f} GiB a chip too much. What helps:")
            lines += [f"  - {line}" for line in self.advice()]
        elif self.topology.platform == "cpu":
            lines.append("devices that one CPU simulates have no speed and no price: no time is estimated")
        return lines


def make_plan(
    name: str,
    config: ExperimentConfig,
    layout: FeatureLayout,
    topology: Topology,
    *,
    cells: int,
    efficiency: float = DEFAULT_EFFICIENCY,
    dollars_per_chip_hour: float | None = None,
) -> Plan:
    """Compiles in a process of its own, and estimates. Raises `ConfigError` as `compile_experiment` does."""
    compilation = compile_apart(config, layout, topology)
    price = topology.chip.dollars_per_hour if dollars_per_chip_hour is None else dollars_per_chip_hour
    estimates = {}
    for step in compilation.experiment.steps:
        one = estimate(config, layout, topology, step, efficiency)
        if one:
            estimates[step.objective] = one
    complete = len(estimates) == len(compilation.experiment.steps)
    return Plan(
        name,
        config,
        layout,
        topology,
        compilation,
        efficiency,
        price,
        estimates,
        cost(config, topology, estimates, cells, price) if complete else None,
    )
