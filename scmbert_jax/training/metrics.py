"""The numbers of a run: summed over the steps since the last row, and where they go.

A row of metrics.jsonl, and the same numbers in TensorBoard and where --log-to says (trackers.py):

    step, steps              the step it was written at, and of how many steps, with that one, it tells
    loss                     what the run lowers: each step's objective by its own loss below, as often as it was drawn;
                             null where no step had anything to learn from
    loss_weight              sum of the weights of all steps, e.g. masked tokens
    grad_norm                mean over the steps
    learning_rate            of the last step
    OBJECTIVE/steps          how many of the steps were of this objective
    OBJECTIVE/loss, OBJECTIVE/METRIC, ..._weight     sum over the steps / sum of their weights, and that sum
    cells_per_second, step_seconds (mean), data_wait_fraction (fraction of the time spent waiting for data); of DNA
                             sequences_per_second

and rows of evaluations, validation/... (validation.py).
"""

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scmbert_jax.config import flat_fields
from scmbert_jax.dna_config import Experiment
from scmbert_jax.errors import TrainingError
from scmbert_jax.training.run_folder import RunFolder
from scmbert_jax.training.trackers import Tracker


class MetricSums:
    """Metrics of some steps, summed."""

    def __init__(self) -> None:
        self.steps = 0
        self._grad_norm, self._learning_rate = 0.0, math.nan
        self._steps: dict[str, int] = {}  # objective -> its steps
        self._sums: dict[str, list[float]] = {}  # OBJECTIVE/METRIC -> [sum of value * weight, sum of weights]

    def add(self, objective: str, values: Mapping[str, float]) -> None:
        """`values`: what `train_step` gives of one step; each metric but two has its weight beside it."""
        self.steps += 1
        self._grad_norm += values["grad_norm"]
        self._learning_rate = values["learning_rate"]
        self._steps[objective] = self._steps.get(objective, 0) + 1
        for name, value in values.items():
            weight = values.get(f"{name}_weight")
            if weight is not None:
                sums = self._sums.setdefault(f"{objective}/{name}", [0.0, 0.0])
                sums[0] += value * weight
                sums[1] += weight

    def row(self) -> dict[str, Any]:
        """The means over all steps that were added, at least one; metrics that nothing was measured of are left out."""
        means = {name: total / weight for name, (total, weight) in self._sums.items() if weight > 0}
        losses = [(self._steps[name], means[f"{name}/loss"]) for name in self._steps if f"{name}/loss" in means]
        row = {
            "steps": self.steps,
            "loss": sum(steps * loss for steps, loss in losses) / sum(steps for steps, _ in losses) if losses else None,
            "loss_weight": sum(self._sums[f"{name}/loss"][1] for name in self._steps),
            "grad_norm": self._grad_norm / self.steps,
            "learning_rate": self._learning_rate,
        }
        for objective, steps in sorted(self._steps.items()):
            row[f"{objective}/steps"] = steps
            for name, (_, weight) in self._sums.items():
                if name in means and name.startswith(f"{objective}/"):
                    row |= {name: means[name], f"{name}_weight": weight}
        return row


_HELD_OUT_LOSS = "validation/loss/loss"


class MetricsWriter:
    """Writes rows of the coordinator process; other processes write nothing."""

    def __init__(
        self,
        folder: RunFolder,
        config: Experiment,
        first_step: int,
        show_progress: bool = True,
        about: Sequence[str] = (),
        log_to: Sequence[str] = (),
    ):
        """`about`: lines that say what the run is; shown before its progress. `log_to`: names of `SERVICES`."""
        num_steps = config.train.num_steps
        self._folder = folder
        self._tensorboard = None
        self._progress = None
        self._training, self._validation = "", ""
        self._trackers: list[Tracker] = []
        if not folder.is_coordinator:
            return
        self._tensorboard = _TensorBoard(folder.path / "tensorboard", first_step)
        if show_progress:
            with contextlib.suppress(OSError):
                print("\n".join(about), file=sys.stderr, flush=True)
            self._progress = _progress_display(num_steps, first_step)
        if log_to:
            fields, earlier = flat_fields(config), folder.metrics_rows()
            self._trackers = [Tracker(name, folder.path, fields, num_steps, earlier, show_progress) for name in log_to]

    def write(self, row: dict[str, Any]) -> None:
        self._folder.write_metrics(row)
        if self._tensorboard is not None:
            self._tensorboard.write(row)
        for tracker in self._trackers:
            tracker.write(row)
        if self._progress is not None and ("loss" in row or _HELD_OUT_LOSS in row):
            try:
                self._progress.show(self._shown_with(row), row["step"])
            except OSError:  # a terminal that was closed, a log on a full disk: no reason to stop training
                self._progress = None

    def _shown_with(self, row: dict[str, Any]) -> str:
        """What progress shows: the newest row of training, and the newest loss on held-out cells."""
        if "loss" in row:
            self._training = _line(row)
        else:
            newest = row[_HELD_OUT_LOSS]
            self._validation = "" if newest is None else f"validation loss {newest:.4f}"
        return "  ".join(part for part in (self._training, self._validation) if part)

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._progress is not None:
            with contextlib.suppress(OSError):
                self._progress.close()
        for tracker in self._trackers:
            tracker.close()


class _TensorBoard:
    """Rows as events of TensorBoard, on disk when `write` returns: a killed run has every row of metrics.jsonl here.

    tensorboardX's own SummaryWriter hands events to a thread that writes them later, and lets two starts in one second
    write into one file.
    """

    def __init__(self, folder: Path, first_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._folder, self._event, self._summary = folder, Event, Summary
        with self._told():
            folder.mkdir(exist_ok=True)
            self._file = EventsWriter(str(folder / "events"), filename_suffix=f".{time.time_ns()}")
            # Hides what earlier starts wrote of later steps.
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(wall_time=time.time(), step=first_step + 1, session_log=start))

    def write(self, row: Mapping[str, Any]) -> None:
        scalars = [
            self._summary.Value(tag=name, simple_value=value) for name, value in row.items() if isinstance(value, float)
        ]
        event = self._event(wall_time=time.time(), step=row["step"], summary=self._summary(value=scalars))
        with self._told():
            self._file.write_event(event)
            self._file.flush()

    def close(self) -> None:
        with self._told():
            self._file.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(f"{self._folder}: cannot be written ({error.strerror}).") from error


def _line(row: dict[str, Any]) -> str:
    losses = {name.removesuffix("/loss"): value for name, value in row.items() if name.endswith("/loss")}
    each = f" ({', '.join(f'{name} {value:.4f}' for name, value in losses.items())})" if len(losses) > 1 else ""
    loss = "-" if row["loss"] is None else f"{row['loss']:.4f}"
    name = next(name for name in row if name.endswith("_per_second"))
    speed = f"{row[name]:.0f} {name.removesuffix('_per_second')}/s  {row['step_seconds'] * 1e3:.0f} ms/step"
    return f"loss {loss}{each}  {speed}  data wait {row['data_wait_fraction']:.0%}"


class _TerminalProgress:
    """A bar that is redrawn, for people at a terminal."""

    def __init__(self, num_steps: int, first_step: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("pretrain"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("compiling", total=num_steps, completed=first_step)
        self._progress.start()

    def show(self, line: str, step: int) -> None:
        self._progress.update(self._task, completed=step, description=line)

    def close(self) -> None:
        self._progress.stop()


class _LogProgress:
    """A line every ten seconds at most, and the last one, for logs."""

    def __init__(self, num_steps: int, first_step: int):
        self._num_steps, self._last, self._unseen = num_steps, 0.0, ""

    def show(self, line: str, step: int) -> None:
        self._unseen = f"step {step}/{self._num_steps}  {line}"
        if time.monotonic() - self._last > 10:
            self.close()

    def close(self) -> None:
        if self._unseen:
            print(self._unseen, file=sys.stderr, flush=True)
            self._last, self._unseen = time.monotonic(), ""


def _progress_display(num_steps: int, first_step: int) -> Any:
    return (_TerminalProgress if sys.stderr.isatty() else _LogProgress)(num_steps, first_step)
