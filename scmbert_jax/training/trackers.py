"""Rows of metrics.jsonl in Weights & Biases and in MLflow, for those who follow many runs in one place.

A service is slower than a disk, and is away more often. A thread of its own talks to it, so that training waits for it
at the end only; what it does not take is said once, and offered again with later rows and by the next start.

RUN_DIR/trackers/NAME.json remembers the id of the run there and the last row that was sent, so that a run that
continues, continues there, and no row is sent twice. A row is noted before it is sent: of a process that is killed in
between, the service lacks that row; metrics.jsonl has it.
"""

import importlib.util
import json
import os
import queue
import re
import secrets
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from scmbert_jax.errors import ConfigError, ScmbertWarning
from scmbert_jax.plain_text import say, without_secrets
from scmbert_jax.training.run_folder import write_whole

_SECONDS_BETWEEN_TRIES = 60.0
_SECONDS_TO_FINISH = 60.0
_SECRET = re.compile(r"KEY|TOKEN|PASSWORD|SECRET", re.IGNORECASE)  # in the name of an environment variable


class RunNames(NamedTuple):
    """What a run is called by a service, unless its own environment variables say otherwise."""

    project: str
    run: str


def run_names(run_dir: Path) -> RunNames:
    """The folder that holds the run's folder, and that itself: runs/blood_1 is run blood_1 of project runs."""
    path = run_dir.absolute()
    project, run = (re.sub(r"[^\w.-]+", "_", name) for name in (path.parent.name, path.name))
    return RunNames(project or "scmbert", run or "run")


class Service(Protocol):
    """A run of one service, open. Whatever is called may raise anything."""

    run_id: str
    where: str | None  # for people

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, finished: bool) -> None: ...


class _WandB:
    """Names and place by WANDB_PROJECT, WANDB_NAME, WANDB_RUN_ID, WANDB_ENTITY, WANDB_MODE, WANDB_DIR."""

    def __init__(self, folder: Path, names: RunNames, run_id: str | None, fields: Mapping[str, Any]):
        import wandb

        self.run_id = run_id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        self._run = wandb.init(
            project=None if "WANDB_PROJECT" in os.environ else names.project,
            name=None if "WANDB_NAME" in os.environ else names.run,
            dir=None if "WANDB_DIR" in os.environ else str(folder),
            id=self.run_id,
            resume="allow",
            config=dict(fields),
            reinit="create_new",  # the caller may have a run of their own
            # No command line, which may hold a signed URL, and nothing of what is printed.
            settings=wandb.Settings(
                console="off",
                silent=True,
                x_disable_meta=True,
                disable_git=True,
                disable_code=True,
                finish_timeout=50.0,
            ),
        )
        # An axis of our own: theirs drops rows of a step that it has seen, such as a validation's.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self.where = None if self._run.offline else self._run.url

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class _MLflow:
    """Names and place by MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME or _ID, MLFLOW_RUN_NAME, MLFLOW_RUN_ID."""

    _PARAMS_AT_ONCE = 100  # of the service

    def __init__(self, folder: Path, names: RunNames, run_id: str | None, fields: Mapping[str, Any]):
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, self._client = Metric, MlflowClient()
        self.where: str | None = None
        known = run_id or os.environ.get("MLFLOW_RUN_ID")
        if known:
            self.run_id = known
            self._client.update_run(known, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_RUN_NAME") or names.run
        self.run_id = self._client.create_run(self._experiment(names.project), run_name=name).info.run_id
        params = [Param(field, str(value)) for field, value in fields.items()]
        for first in range(0, len(params), self._PARAMS_AT_ONCE):
            self._client.log_batch(self.run_id, params=params[first : first + self._PARAMS_AT_ONCE])

    def _experiment(self, project: str) -> str:
        if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return number
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or project
        there = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if there is None else there.experiment_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = time.time_ns() // 1_000_000
        self._client.log_batch(self.run_id, [self._metric(name, value, now, step) for name, value in values.items()])

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self.run_id, status="FINISHED" if finished else "KILLED")


# Names of --log-to, of the packages, and of the extras that bring them.
SERVICES: dict[str, Callable[[Path, RunNames, str | None, Mapping[str, Any]], Service]] = {
    "wandb": _WandB,
    "mlflow": _MLflow,
}


def check_trackers(names: Sequence[str]) -> None:
    """Raises `ConfigError` for one that there is not, or whose package is not installed."""
    for name in names:
        if name not in SERVICES:
            raise ConfigError(f"--log-to {name}: expected {' or '.join(SERVICES)}.")
        try:
            found = importlib.util.find_spec(name) is not None
        except ValueError:  # it is loaded, and from no file
            found = True
        if not found:
            raise ConfigError(f"--log-to {name} needs the extra: pip install 'scmbert_jax[{name}]'.")


class Tracker:
    """Sends the rows of a run to one service.

    Args:
      name: of `SERVICES`.
      run_dir: the run's folder.
      fields: what the run is: dotted name -> JSON value.
      num_steps: the run has finished when a row of this step was sent.
      earlier: rows of earlier starts; those that the service lacks are sent first.
      show_progress: say where the rows can be seen.
    """

    def __init__(
        self,
        name: str,
        run_dir: Path,
        fields: Mapping[str, Any],
        num_steps: int,
        earlier: Sequence[Mapping[str, Any]] = (),
        show_progress: bool = True,
    ):
        self._name, self._run_dir, self._fields, self._num_steps = name, run_dir, fields, num_steps
        self._show_progress = show_progress
        self._folder = run_dir / "trackers"
        self._service: Service | None = None
        self._run_id: str | None = None
        self._sent = self._seen = (-1, 0)  # step of a row, and how many rows of that step there were with it
        self._waiting: deque[tuple[tuple[int, int], dict[str, float]]] = deque()
        self._told, self._next_try = False, 0.0
        self._rows: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        for row in earlier:
            self._rows.put(row)
        self._thread = threading.Thread(target=self._send_all, name=f"to {name}", daemon=True)
        self._thread.start()

    def write(self, row: Mapping[str, Any]) -> None:
        """Takes a row of metrics.jsonl, and does not wait."""
        self._rows.put(row)

    def close(self) -> None:
        """Waits until all is sent, a minute at most."""
        self._rows.put(None)
        self._thread.join(_SECONDS_TO_FINISH)
        if self._thread.is_alive():
            self._tell(f"no answer for {_SECONDS_TO_FINISH:.0f} s")

    def _send_all(self) -> None:
        try:
            self._read_state()
        except Exception as error:
            self._tell(f"{self._state} cannot be read, {error}; delete it to send all rows to a new run")
            return
        while (row := self._rows.get()) is not None:
            step = row["step"]
            self._seen = (step, self._seen[1] + 1 if step == self._seen[0] else 1)
            if self._seen > self._sent:
                numbers = {name: float(value) for name, value in row.items() if type(value) in (int, float)}
                self._waiting.append((self._seen, {k: v for k, v in numbers.items() if k != "step"}))
                self._offer()
        self._next_try = 0.0
        self._offer()
        if self._service is not None:
            try:
                self._service.close(finished=self._sent[0] >= self._num_steps)
            except Exception as error:
                self._tell_of(error)

    def _offer(self) -> None:
        """Sends what waits, unless the service was away a moment ago."""
        if not self._waiting or time.monotonic() < self._next_try:
            return
        try:
            if self._service is None:
                self._service = SERVICES[self._name](self._folder, run_names(self._run_dir), self._run_id, self._fields)
                self._run_id = self._service.run_id
                if self._service.where and self._show_progress:
                    say(f"{self._name}: {self._service.where}")
            while self._waiting:
                place, values = self._waiting[0]
                before = self._sent
                self._note(place)
                try:
                    self._service.log(place[0], values)
                except Exception:
                    self._note(before)
                    raise
                self._waiting.popleft()
        except Exception as error:
            self._next_try = time.monotonic() + _SECONDS_BETWEEN_TRIES
            self._tell_of(error)

    def _read_state(self) -> None:
        self._folder.mkdir(exist_ok=True)
        if self._state.exists():
            state = json.loads(self._state.read_text(encoding="utf-8"))
            self._run_id, self._sent = str(state["run_id"]), (int(state["step"]), int(state["rows"]))

    def _note(self, sent: tuple[int, int]) -> None:
        self._sent = sent
        write_whole(self._state, json.dumps({"run_id": self._run_id, "step": sent[0], "rows": sent[1]}) + "\n")

    @property
    def _state(self) -> Path:
        return self._folder / f"{self._name}.json"

    def _tell_of(self, error: Exception) -> None:
        first_line = next(iter(str(error).strip().splitlines()), "")
        self._tell(f"{type(error).__name__}: {_without_secret_variables(first_line)}")

    def _tell(self, what: str) -> None:
        if not self._told:
            self._told = True
            warnings.warn(
                f"{self._name}: rows are not taken ({what}). Training continues and metrics.jsonl has every row; they "
                "are offered again with later rows, and by the next start.",
                ScmbertWarning,
                stacklevel=2,
            )


def _without_secret_variables(text: str) -> str:
    """Text without passwords of URLs and without values of environment variables that are keys of something."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 4:
            text = text.replace(value, "***")
    return without_secrets(text)
