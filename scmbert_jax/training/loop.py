"""The training loop, to be read top to bottom.

Build the mesh; build the abstract state from shapes only; restore or initialise it sharded; for each step, fetch the
batch of that step, dispatch the jitted step of that step's objective with the state donated, then read the *previous*
step's metrics (the device works meanwhile), check them, and let the writer and the checkpoints look. Where an
evaluation is due, a checkpoint is written first: a run that is killed while it evaluates does no step again.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh

from scmbert_jax.config import flat_fields
from scmbert_jax.dna_config import DnaExperiment, Experiment
from scmbert_jax.dna_model import DnaDefinition
from scmbert_jax.errors import TrainingError
from scmbert_jax.models.attention.backends import attention_backend
from scmbert_jax.models.attention.shape import shape_of_run
from scmbert_jax.models.definition import Definition
from scmbert_jax.objectives.mixture import objective_at, objectives_of
from scmbert_jax.parallel.mesh import batch_to_devices, check_process_order, make_mesh, replicated
from scmbert_jax.parallel.multihost import StopAgreement, check_agreement
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.checkpoint import RunCheckpoints
from scmbert_jax.training.continuation import check_not_beyond
from scmbert_jax.training.goodput import GoodputLedger
from scmbert_jax.training.init_from import SourceModel, described, described_in_words, state_from
from scmbert_jax.training.metrics import MetricSums, MetricsWriter
from scmbert_jax.training.nonfinite import keep_nonfinite_step
from scmbert_jax.training.optimizer import make_optimizer
from scmbert_jax.training.run_folder import DataIdentity, RunFolder, software_versions
from scmbert_jax.training.stall_watch import StallWatch
from scmbert_jax.training.step_profile import ProfileSteps, StepProfile, check_profile_steps
from scmbert_jax.training.trackers import check_trackers
from scmbert_jax.training.train_state import TrainState, abstract_state, initial_state
from scmbert_jax.training.train_step import make_train_step
from scmbert_jax.training.validation import Validation, ValidationRun


class TrainingData(DataIdentity, Protocol):
    """What the loop needs of data; a corpus of cells or of sequences, or a synthetic stand-in."""

    @property
    def layout(self) -> Any:
        """`FeatureLayout` or `GenomeLayout`. Asked for after the processes of the run agreed on what they run: it may
        take all of them to make it."""
        ...

    def batches(self, start_step: int, stop_step: int) -> Iterator[tuple[int, Any]]:
        """(step, this process's rows of its `CellBatch` or `GenomeBatch`), a pure function of (seed, step)."""
        ...


def definition_of(config: Experiment, layout: Any) -> Definition:
    """The model that an experiment trains. Raises `ConfigError` where `layout` lacks what it reads."""
    return DnaDefinition(config, layout) if isinstance(config, DnaExperiment) else ModelDefinition(config, layout)


class Outcome(NamedTuple):
    """How a call of `pretrain` ended.

    Attributes:
      step: that of the newest checkpoint.
      interrupted: a signal asked it to stop; the same command continues.
      stopped_early: `validation.patience` came to its end; the run is done.
      failed_evaluations: over all starts of the run.
    """

    step: int
    interrupted: bool = False
    stopped_early: bool = False
    failed_evaluations: int = 0


def pretrain(
    config: Experiment,
    data: TrainingData,
    run_dir: Path,
    *,
    validation: Validation | None = None,
    devices: Sequence[jax.Device] | None = None,
    init_from: SourceModel | None = None,
    restore_step: int | None = None,
    profile_steps: ProfileSteps | None = None,
    started: float | None = None,
    show_progress: bool = True,
    report_stall_after: float = 60.0,
    give_up_after: float = math.inf,
    log_to: Sequence[str] = (),
) -> Outcome:
    """Trains to `config.train.num_steps`, continuing from the newest checkpoint of `run_dir` if it has one.

    Args:
      validation: how it is judged on cells it does not see; None: not at all.
      devices: those of the mesh; None: all there are.
      init_from: the model whose weights a new run starts from; None: random ones.
      restore_step: continue from the checkpoint of this step, and set later ones aside (`RunCheckpoints.go_back`).
      profile_steps: (A, B): steps A .. B - 1 are traced into `run_dir`/profile (`StepProfile`).
      started: `time.monotonic()` when the process began, for the ledger of time (goodput.py); None: now.
      report_stall_after, give_up_after: seconds, see `StallWatch`.
      log_to: services that get the rows of metrics.jsonl, too, of `trackers.SERVICES`.

    Raises `ConfigError` or `CheckpointError` when the folder belongs to another run, a checkpoint cannot be read or
    written, or processes do not run the same; `TrainingError` at a loss that is not finite. The signals of
    `_StopOnSignal` save and return with `interrupted`.
    """
    is_coordinator = jax.process_index() == 0
    if is_coordinator:
        check_trackers(log_to)
    check_agreement(
        {
            **flat_fields(config),
            "corpus": data.fingerprint,
            "feature space": data.feature_space_hash,
            "order of the cells, version": data.description["order_version"],
            "held-out cells": None if validation is None else validation.identity,
            "--init-from": None if init_from is None else init_from.identity,
            "--run-dir": str(run_dir.absolute()),
            "--restore-step": restore_step,
            **software_versions(),
        }
    )
    mesh = make_mesh(config.mesh, devices)
    check_process_order(mesh, config.data.global_batch_size, config.train.num_microbatches)
    model = definition_of(config, data.layout)
    check_agreement(model.agreed)
    optimizer = make_optimizer(config, model)
    # A configuration that cannot run is refused before there is a folder that holds on to it.
    attention_backend(config.model.attention, shape_of_run(config.model, mesh.devices.flat[0]))
    check_profile_steps(profile_steps, config.train.num_steps)
    abstract = abstract_state(model, optimizer, mesh)
    evaluators = {} if validation is None else validation.make(model, mesh)
    started_from = None if init_from is None else described(init_from, model)
    folder = RunFolder(run_dir, config, data, is_coordinator, started_from)
    ledger = GoodputLedger(folder.goodput if is_coordinator else None, started)
    checkpoints = RunCheckpoints(folder.checkpoints, config.train.keep_checkpoints, config.train.keep_every)
    writer = None
    try:
        with jax.set_mesh(mesh):
            if restore_step is not None:
                checkpoints.go_back(restore_step)
            saved = checkpoints.steps()
            first = saved[-1] if saved else 0
            check_agreement({"first step": first})
            check_not_beyond(run_dir, config, first, saved)
            if saved:
                state = checkpoints.restore(first, abstract)
            elif init_from is not None:
                state = state_from(init_from, model, optimizer, mesh)
            else:
                state = initial_state(model, optimizer, mesh)
            folder.continue_from(first)
            identity = "" if validation is None else validation.identity
            judged = ValidationRun(config, evaluators, identity, folder, first, saved)
            if judged.best is not None:
                checkpoints.pin(judged.best.step)
            if (first >= config.train.num_steps or judged.stopped) and not judged.due(first):
                # A command that is repeated leaves a finished run as it is.
                return Outcome(first, False, judged.stopped, judged.failures)
            about = _in_words(model, mesh, first)
            if started_from is not None:
                about += described_in_words(started_from)
            writer = MetricsWriter(folder, config, first, show_progress, about, log_to)
            steps = {
                name: jax.jit(make_train_step(model, objective, optimizer), donate_argnums=0)
                for name, objective in objectives_of(config).items()
            }
            constants = jax.device_put(model.constants, replicated(mesh))
            log = _StepLog(config, folder, writer, checkpoints, ledger, model.unit)
            agreed_to_stop = StopAgreement(mesh)
            stall_watch = StallWatch(first, report_stall_after, give_up_after)
            profile = StepProfile(profile_steps, run_dir / "profile" if is_coordinator else None, first)
            with _StopOnSignal() as stop, stall_watch, profile, jax.transfer_guard("disallow"):
                ledger.begin(first)
                done, compiled = first, set[str]()
                profile.dispatched(first, state)
                log.evaluate(judged, first, state.params, constants)
                stop_step = first if judged.stopped else config.train.num_steps
                for step, batch in log.timed(data.batches(first, stop_step)):
                    name = objective_at(config, step)
                    # The first call traces and compiles before it returns; what it dispatches is not waited for.
                    with nullcontext() if name in compiled else ledger.spending("compile"):
                        state, metrics = steps[name](state, constants, batch_to_devices(batch, mesh))
                    compiled.add(name)
                    done = step + 1
                    log.dispatched(done, name, metrics, batch)
                    profile.dispatched(done, state)
                    stall_watch.finished(step)
                    stopping = agreed_to_stop(stop.requested, done)
                    if done % config.train.checkpoint_every == 0 or stopping or judged.due(done):
                        log.save(done, state)
                    if not stopping:  # else there may be little time: what is due here is done by the next start
                        log.evaluate(judged, done, state.params, constants)
                        stall_watch.finished(step)
                    if stopping or judged.stopped:
                        break
                if done > first:
                    log.save(done, state)
                with ledger.spending("save"):
                    checkpoints.wait()
                ledger.note(done)
        interrupted = done < config.train.num_steps and not judged.stopped
        return Outcome(done, interrupted, judged.stopped, judged.failures)
    finally:
        if writer is not None:
            writer.close()
        checkpoints.close()
        folder.close()


def _in_words(model: Definition, mesh: Mesh, first: int) -> list[str]:
    """What the run is: its model, where it runs, and from which step."""
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.abstract_params))
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    steps = model.config.train.num_steps
    return [
        f"{parameters:,} parameters; {model.reads_in_words()}; {', '.join(model.config.objectives.weights())}",
        f"{mesh.size} x {mesh.devices.flat[0].device_kind}{processes}, mesh {axes}",
        f"continuing from step {first} of {steps}" if first else f"starting at step 0 of {steps}",
    ]


class _StepLog:
    """Reads metrics one step late, checks them, and writes a row of their means every `log_every` steps and with every
    checkpoint, so that a run that continues from one writes the rows of a run that nobody disturbed."""

    def __init__(
        self,
        config: Experiment,
        folder: RunFolder,
        writer: MetricsWriter,
        checkpoints: RunCheckpoints,
        ledger: GoodputLedger,
        unit: str = "cells",
    ):
        self._config, self._unit, self._folder, self._writer = config, unit, folder, writer
        self._checkpoints, self._ledger = checkpoints, ledger
        self._waiting: tuple[int, str, Any, Any] | None = None
        self._sums, self._data_seconds, self._since = MetricSums(), 0.0, time.perf_counter()

    def timed(self, batches: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """The same batches, with the time spent waiting for them counted."""
        while True:
            before = time.perf_counter()
            with self._ledger.spending("data_wait"):
                item = next(batches, None)
            self._data_seconds += time.perf_counter() - before
            if item is None:
                return
            yield item

    def dispatched(self, step: int, objective: str, metrics: Any, batch: Any) -> None:
        """Takes the metrics of `step`, which the device may still compute, and reads those of the step before."""
        self.read_all()
        self._waiting = (step, objective, metrics, batch)

    def save(self, step: int, state: TrainState) -> None:
        """Starts a checkpoint, unless there is one of `step`; never of a state whose step was not finite."""
        self.read_all()
        if self._sums.steps:
            self._write_row(step)
        with self._ledger.spending("save"):
            self._checkpoints.save(step, state)
        self._ledger.note(step)

    def evaluate(self, judged: ValidationRun, step: int, params: Any, constants: Any) -> None:
        """What is due after `step`, of which there is a checkpoint, or one under way."""
        if not judged.due(step):
            return
        before = time.perf_counter()
        with self._ledger.spending("save"):
            self._checkpoints.wait()
        with self._ledger.spending("eval"):
            judged.evaluate(step, params, constants, self._writer.write)
        if judged.best is not None:
            self._checkpoints.pin(judged.best.step)
        self._ledger.note(step)
        self._since += time.perf_counter() - before  # a row's seconds are those of its steps

    def read_all(self) -> None:
        if self._waiting is None:
            return
        (step, objective, metrics, batch), self._waiting = self._waiting, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            if self._sums.steps:
                self._write_row(step - 1)  # how it went until then
            raise self._not_finite(step, objective, values, batch)
        self._sums.add(objective, values)
        if step % self._config.train.log_every == 0:
            self._write_row(step)

    def _write_row(self, step: int) -> None:
        now = time.perf_counter()
        seconds, steps = now - self._since, self._sums.steps
        self._writer.write(
            {
                "step": step,
                **self._sums.row(),
                f"{self._unit}_per_second": steps * self._config.data.global_batch_size / seconds,
                "step_seconds": seconds / steps,
                "data_wait_fraction": min(1.0, self._data_seconds / seconds),
            }
        )
        self._ledger.note(step)
        self._sums, self._data_seconds, self._since = MetricSums(), 0.0, now

    def _not_finite(self, step: int, objective: str, values: dict[str, float], batch: Any) -> TrainingError:
        with self._ledger.spending("save"):
            self._checkpoints.wait()  # one that is under way is of a good step
            steps = self._checkpoints.steps()
            last = steps[-1] if steps else None
            kept = keep_nonfinite_step(self._folder.path, step, objective, values, batch, last)
        good = f"the last good checkpoint is step {last}" if steps else "no checkpoint was written before"
        return TrainingError(
            f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}: not finite; {good}. Nothing "
            f"of this step was saved but its batch and its numbers, in {kept}. The same command comes to the same "
            "step again. Lower optimizer.peak_learning_rate or lengthen optimizer.warmup_steps (in a new run folder)."
        )


class _StopOnSignal:
    """While open, SIGTERM, SIGINT and SIGHUP (its terminal was closed) ask the loop to save and stop after the step
    under way. One that the caller ignores, as nohup does, stays ignored."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_StopOnSignal":
        # Python delivers signals to the main thread only; elsewhere the caller keeps its own handling.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._request)
        return self

    def _request(self, number: int, frame: Any) -> None:
        self.requested = True
        signal.signal(number, self._before[number])  # a second signal acts at once

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
