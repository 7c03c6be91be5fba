"""Our train step on synthetic cells, compiled and timed: seconds, MFU, tokens, cells and memory of one configuration.

It is the step of `pretrain`, with the state donated and every batch brought to the devices, as in the loop. Needs
neither TensorFlow nor anndata.
"""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.synthetic.cells import profile_of_tokens, synthetic_batch
from scmbert_jax.batch import CellBatch
from scmbert_jax.benchmarks.device_peaks import peak_flops
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.models.flops import counts_of_batch
from scmbert_jax.objectives.mixture import objectives_of, step_flops
from scmbert_jax.parallel.mesh import batch_to_devices, make_mesh, replicated
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.optimizer import make_optimizer
from scmbert_jax.training.train_state import initial_state
from scmbert_jax.training.train_step import make_train_step

# Batches that steps take one after the other; blocks of steps whose means give the interval.
_BATCHES, _BLOCKS = 4, 20


@dataclass(frozen=True)
class StepSpeed:
    """One configuration in steady state.

    Attributes:
      seconds: of a step, mean over `steps` after the warm-up; `interval`: half the 95% interval of that mean, from the
        means of blocks of steps; None of a single block.
      flops: of a step (models/flops.py); unpadded tokens only.
      mfu: flops / seconds over the peak of all devices (`device_peaks`); None where the peak is not known.
      tokens_per_second, cells_per_second: unpadded tokens.
      padding: fraction of the token positions of a batch that are padding.
      peak_bytes: device memory in use at most since the process started, where the device says so; else of the process.
      step_bytes: arguments, outputs and temporaries of the compiled step, as XLA reports them; None: it does not.
      compile_seconds: of tracing and compiling.
    """

    seconds: float
    interval: float | None
    steps: int
    flops: float
    mfu: float | None
    tokens_per_second: float
    cells_per_second: float
    padding: float
    peak_bytes: int
    step_bytes: int | None
    compile_seconds: float


class TimedStep:
    """The compiled step of a configuration with one objective, and batches to feed it.

    Args:
      config: the first objective of its mixture is timed.
      layout: of the features.
      padding: fraction of the token positions that are padding, spread over the cells; 0: full rows.
      devices: of the mesh; None: all.

    Raises:
      ConfigError: an attention backend that cannot serve the run, or a batch that does not divide over the mesh.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        layout: FeatureLayout,
        padding: float = 0.0,
        devices: Sequence[jax.Device] | None = None,
    ):
        self.config, self.model = config, ModelDefinition(config, layout)
        self.mesh = make_mesh(config.mesh, devices)
        self.batches = [synthetic_cells_of(config, layout, padding, step) for step in range(_BATCHES)]
        self.objective, objective = next(iter(objectives_of(config).items()))
        optimizer = make_optimizer(config, self.model)
        with jax.set_mesh(self.mesh):
            self.state = initial_state(self.model, optimizer, self.mesh)
            self.constants = jax.device_put(self.model.constants, replicated(self.mesh))
            step = jax.jit(make_train_step(self.model, objective, optimizer), donate_argnums=0)
            before = time.perf_counter()
            self._compiled = step.lower(self.state, self.constants, self._placed(0)).compile()
            self.compile_seconds = time.perf_counter() - before
        self._taken = 0

    def _placed(self, number: int) -> CellBatch:
        return batch_to_devices(self.batches[number % _BATCHES], self.mesh)

    def take(self, number: int) -> float:
        """Takes so many steps; their seconds together."""
        start = time.perf_counter()
        with jax.set_mesh(self.mesh):
            for _ in range(number):
                self.state, metrics = self._compiled(self.state, self.constants, self._placed(self._taken))
                self._taken += 1
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - start

    @property
    def step_bytes(self) -> int | None:
        """See `StepSpeed`."""
        analysis = self._compiled.memory_analysis()
        if analysis is None:
            return None
        # The state is donated: what is both argument and output is there once.
        total = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
        return int(total - analysis.alias_size_in_bytes)

    def speed(self, seconds: Sequence[float], steps: int) -> StepSpeed:
        """The figures of blocks of equally many steps, `steps` together; `seconds`: per step, of each block."""
        counts = [counts_of_batch(batch) for batch in self.batches]
        flops = float(np.mean([sum(step_flops(self.config, self.objective, own).values()) for own in counts]))
        tokens = float(np.mean([own.num_tokens for own in counts]))
        positions = sum(own.feature_ids.size for own in self.batches[0].modalities.values())
        mean = float(np.mean(seconds))
        peak = peak_flops(self.mesh.devices.flat[0], self.config.model.compute_dtype)
        return StepSpeed(
            seconds=mean,
            interval=1.96 * float(np.std(seconds, ddof=1)) / len(seconds) ** 0.5 if len(seconds) > 1 else None,
            steps=steps,
            flops=flops,
            mfu=None if peak is None else flops / mean / (peak * self.mesh.size),
            tokens_per_second=tokens / mean,
            cells_per_second=self.config.data.global_batch_size / mean,
            padding=1.0 - tokens / positions,
            peak_bytes=peak_bytes(self.mesh.devices.flat[0]),
            step_bytes=self.step_bytes,
            compile_seconds=self.compile_seconds,
        )


def measure_step(
    config: ExperimentConfig,
    layout: FeatureLayout,
    steps: int = 200,
    warmup: int = 10,
    padding: float = 0.0,
    trace: Path | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> StepSpeed:
    """Compiles and times one configuration.

    Args:
      steps: timed, after `warmup` more.
      padding: see `TimedStep`.
      trace: folder for an XProf trace of three more steps (view: tensorboard --logdir DIR, with the xprof plugin).

    Raises:
      ConfigError: as `TimedStep`.
    """
    say("compiling")
    timed = TimedStep(config, layout, padding)
    say(f"{warmup} steps to warm up, {steps} timed")
    timed.take(warmup)
    sizes = [len(part) for part in np.array_split(np.arange(steps), min(_BLOCKS, steps))]
    seconds = [timed.take(size) / size for size in sizes]
    if trace is not None:
        with jax.profiler.trace(str(trace)):
            timed.take(3)
    return timed.speed(seconds, steps)


def synthetic_cells_of(config: ExperimentConfig, layout: FeatureLayout, padding: float, step: int) -> CellBatch:
    """A batch of the run's shapes, `padding` of whose token positions hold no token."""
    tokens = {name: own.num_tokens for name, own in config.modalities.in_use().items()}
    batch = synthetic_batch(layout, config.data.global_batch_size, tokens, config.seed, step)
    modalities, profiles = {}, {}
    for number, (name, own) in enumerate(batch.modalities.items()):
        first, stop = layout.slices[name]
        width = own.feature_ids.shape[1]
        rng = np.random.default_rng([config.seed, step, number])
        lengths = _lengths(rng, len(own.lengths), width, padding)
        real = np.arange(width) < lengths[:, None]
        # Distinct and ascending, one from each of `width` stretches, as the pipeline's are.
        ids = first + (np.arange(width) * (stop - first)) // width
        counts = np.where(real, rng.negative_binomial(1, 0.4, real.shape), 0)
        modalities[name] = own._replace(
            feature_ids=np.where(real, ids, 0).astype(np.int32),
            counts=counts.astype(np.int32),
            lengths=lengths.astype(np.int32),
            library_size=np.maximum(counts.sum(axis=1), 1).astype(np.float32),
        )
        if config.profile_tokens:
            profiles[name] = profile_of_tokens(modalities[name], config.profile_tokens, stop - first)
    return batch._replace(modalities=modalities, profiles=profiles or None)


def _lengths(rng: np.random.Generator, number: int, width: int, padding: float) -> np.ndarray:
    """int [number] whose mean is (1 - padding) width: uniform around it, as wide as that allows."""
    mean = (1.0 - padding) * width
    reach = min(width - mean, mean - 1)
    return np.round(rng.uniform(mean - reach, mean + reach, number)).astype(np.int64)


def peak_bytes(device: jax.Device) -> int:
    """The most memory in use: of the device if it says so, else of this process."""
    statistics: dict[str, Any] = device.memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return int(statistics["peak_bytes_in_use"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
