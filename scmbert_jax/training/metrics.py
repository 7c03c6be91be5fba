"""Where the numbers of a run go: metrics.jsonl, TensorBoard, a progress line."""

import sys
import time
from typing import Any

from scmbert_jax.training.run_folder import RunFolder


class MetricsWriter:
    """Writes rows of the coordinator process; other processes write nothing.

    Rows hold `step`, `objective`, `loss`, the objective's metrics, `learning_rate`, and of the steps since the last
    row: `cells_per_second`, `step_seconds` (mean) and `data_wait_fraction` (share of the time spent waiting for data).
    """

    def __init__(self, folder: RunFolder, num_steps: int, first_step: int, show_progress: bool = True):
        self._folder = folder
        self._tensorboard = None
        self._progress = None
        if not folder.is_coordinator:
            return
        from tensorboardX import SummaryWriter

        self._tensorboard = SummaryWriter(str(folder.path / "tensorboard"), purge_step=first_step + 1, flush_secs=10)
        self._progress = _progress_display(num_steps, first_step) if show_progress else None

    def write(self, row: dict[str, Any]) -> None:
        self._folder.write_metrics(row)
        if self._tensorboard is not None:
            for name, value in row.items():
                if name != "step" and isinstance(value, float):
                    self._tensorboard.add_scalar(name, value, row["step"])
        if self._progress is not None:
            self._progress.show(row)

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._progress is not None:
            self._progress.close()


def _line(row: dict[str, Any]) -> str:
    return (
        f"loss {row['loss']:.4f}  {row['cells_per_second']:.0f} cells/s  {row['step_seconds'] * 1e3:.0f} ms/step  "
        f"data wait {row['data_wait_fraction']:.0%}"
    )


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

    def show(self, row: dict[str, Any]) -> None:
        self._progress.update(self._task, completed=row["step"], description=_line(row))

    def close(self) -> None:
        self._progress.stop()


class _LogProgress:
    """A line every ten seconds at most, for logs."""

    def __init__(self, num_steps: int, first_step: int):
        self._num_steps, self._last = num_steps, 0.0

    def show(self, row: dict[str, Any]) -> None:
        if time.monotonic() - self._last > 10 or row["step"] == self._num_steps:
            print(f"step {row['step']}/{self._num_steps}  {_line(row)}", file=sys.stderr, flush=True)
            self._last = time.monotonic()

    def close(self) -> None:
        """Nothing is left open."""


def _progress_display(num_steps: int, first_step: int) -> Any:
    return (_TerminalProgress if sys.stderr.isatty() else _LogProgress)(num_steps, first_step)
