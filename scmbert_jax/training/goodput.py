"""Where the time of a run went, over all of its starts: how much of it trained the model that is kept.

Every second between the first start and the last row belongs to one category of `CATEGORIES`. The ledger is
`goodput.jsonl` in the run folder: rows are only appended, whenever metrics are written or a checkpoint is saved.

    {"time": T, "start": S}                                              a process started at T, to continue from step S
    {"time": T, "from_step": A, "to_step": B, "seconds": {category: s}}  spent since the row before

When a run continues from a checkpoint of step S, rows that go beyond S tell of steps that are done a second time; what
they spent is lost, and so is the time between the last row and the next start. T is in seconds since 1970 (UTC), and
only tells how long nothing ran: durations come from a clock that never goes back.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scmbert_jax.errors import TrainingError
from scmbert_jax.training.run_folder import read_metrics

CATEGORIES = {
    "init": "start-up: imports, data, mesh, restoring a checkpoint",
    "compile": "tracing and compiling: the first call of each objective's step",
    "data_wait": "waiting for batches",
    "step": "training steps",
    "save": "waiting for checkpoints to be written",
    "eval": "evaluation within the run",
    "lost": "lost to restarts: steps that were done again, and the time until the next start",
}
# What of a row is lost with its steps; start-up and compilation are needed by every start, and are told apart.
_LOST_WITH_STEPS = ("data_wait", "step", "save", "eval")


class GoodputLedger:
    """Counts the seconds of this process, each in one category, and appends them to the file.

    Args:
      path: goodput.jsonl, or None: nothing is written (processes other than the coordinator).
      started: when the process started, by `monotonic`; None: now.
      monotonic, wall: clocks, in seconds; durations by the first, dates by the second.
    """

    def __init__(
        self,
        path: Path | None,
        started: float | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ):
        self._path, self._monotonic, self._wall = path, monotonic, wall
        now = monotonic()
        self._since = now if started is None else started
        self._started = wall() - (now - self._since)
        self._category, self._seconds = "init", defaultdict[str, float](float)
        self._step = 0

    def begin(self, step: int) -> None:
        """Ends start-up: the run continues from `step`, and time is of category `step` unless it is said otherwise."""
        self._switch_to("step")
        self._step = step
        if self._path is not None:
            _cut_torn_line(self._path)
        self._append({"time": self._started, "start": step})
        self.note(step)

    @contextmanager
    def spending(self, category: str) -> Iterator[None]:
        """What happens inside is counted as `category`."""
        before = self._category
        self._switch_to(category)
        try:
            yield
        finally:
            self._switch_to(before)

    def note(self, step: int) -> None:
        """Appends what was spent since the last row, to come to `step`. Raises `TrainingError`."""
        self._switch_to(self._category)
        seconds = {name: round(spent, 6) for name, spent in self._seconds.items()}
        self._append({"time": self._wall(), "from_step": self._step, "to_step": step, "seconds": seconds})
        self._step = step
        self._seconds.clear()

    def _switch_to(self, category: str) -> None:
        now = self._monotonic()
        self._seconds[self._category] += now - self._since
        self._category, self._since = category, now

    def _append(self, row: dict[str, Any]) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise TrainingError(f"{self._path}: cannot be written ({error.strerror}).") from error


@dataclass(frozen=True)
class Goodput:
    """The ledger, summed.

    Attributes:
      seconds: category -> seconds.
      wall: seconds from the first start to the last row: all `seconds`.
      starts: how often the run was started.
      steps_again: steps that were done more than once, each time they were.
      idle: seconds between a death and the next start; part of `lost`.
    """

    seconds: dict[str, float]
    wall: float
    starts: int
    steps_again: int
    idle: float

    @property
    def fraction(self) -> float:
        """Of the time, that which trained the model that is kept."""
        return self.seconds["step"] / self.wall if self.wall > 0 else 0.0

    def table(self) -> list[dict[str, str]]:
        """Rows to print: what, hours:minutes:seconds, fraction."""
        rows = [
            {"time went to": words, "time": _clock(self.seconds[name]), "share": self._percent(self.seconds[name])}
            for name, words in CATEGORIES.items()
        ]
        return [*rows, {"time went to": "all", "time": _clock(self.wall), "share": self._percent(self.wall)}]

    def sentence(self) -> str:
        again = f"; {self.steps_again:,} steps were done again" if self.steps_again else ""
        idle = f", {_clock(self.idle)} passed between a death and the next start" if self.starts > 1 else ""
        return f"goodput {self.fraction:.1%} of {_clock(self.wall)}; started {self.starts}x{again}{idle}"

    def text(self) -> str:
        """`sentence` and below it the table, for a terminal."""
        rows = self.table()
        width = max(len(row["time went to"]) for row in rows)
        lines = [f"  {row['time went to']:<{width}}  {row['time']:>11}  {row['share']:>6}" for row in rows]
        return "\n".join([self.sentence(), *lines])

    def _percent(self, seconds: float) -> str:
        return f"{seconds / self.wall:.1%}" if self.wall > 0 else "-"


def read_goodput(run_dir: Path) -> Goodput | None:
    """The summed ledger of a run folder; None where there is none (runs of earlier versions)."""
    path = run_dir / "goodput.jsonl"
    rows = read_metrics(path) if path.is_file() else []
    return summed(rows) if rows else None


def summed(rows: Sequence[Mapping[str, Any]]) -> Goodput:
    """Sums the rows of a ledger, of which there is at least one."""
    kept: list[tuple[int, int, dict[str, float]]] = []  # (from step, to step, what would be lost with them)
    seconds = dict.fromkeys(CATEGORIES, 0.0)
    starts, steps_again, idle = 0, 0, 0.0
    before = rows[0]["time"]
    for row in rows:
        if "start" in row:
            starts += 1
            idle += max(0.0, row["time"] - before)
            lost = [part for part in kept if part[1] > row["start"]]
            kept = [part for part in kept if part[1] <= row["start"]]
            for from_step, to_step, spent in lost:
                steps_again += to_step - from_step
                seconds["lost"] += sum(spent.values())
        else:
            spent = row["seconds"]
            at_risk = {name: spent[name] for name in spent if name in _LOST_WITH_STEPS}
            kept.append((row["from_step"], row["to_step"], at_risk))
            for name in spent.keys() - at_risk.keys():
                seconds[name] += spent[name]
        before = row["time"]
    for _, _, spent in kept:
        for name in spent:
            seconds[name] += spent[name]
    seconds["lost"] += idle
    return Goodput(seconds, sum(seconds.values()), starts, steps_again, idle)


def seconds_of_steps(rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Step -> seconds of training steps until then, ascending; of steps that were done again, the last time alone."""
    kept: list[tuple[int, float]] = []
    for row in rows:
        if "start" in row:
            kept = [part for part in kept if part[0] <= row["start"]]
        else:
            kept.append((row["to_step"], row["seconds"].get("step", 0.0)))
    total, until = 0.0, {}
    for step, seconds in kept:
        total += seconds
        until[step] = total
    return until


def _clock(seconds: float) -> str:
    """3:07:09, or 9.3 s below a minute."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _cut_torn_line(path: Path) -> None:
    """Removes a last line that a kill cut off, so that the next row does not become part of it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
            os.fsync(file.fileno())
