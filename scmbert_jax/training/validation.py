"""How a run is judged while it trains: evaluators on cells it does not see, when they are due, and what follows of it.

The loop knows an evaluator as a function of (step, params, constants); what it computes stands in evaluators/. Each
call of one is a row of metrics.jsonl:

    {"step": 200, "validation/loss/loss": 1.93, "validation/loss/rna_nll": ..., "validation/cells": "1024 of 3fa9..."}
    {"step": 200, "validation/probe/error": "ValueError: ...", "validation/cells": ...}      of one that failed

These rows are all there is to know: what is due at a restart, which checkpoint was best, whether to stop early and
whether an evaluator failed are decided from them, on process 0, which tells the others.
"""

import contextlib
import json
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from scmbert_jax.config import ValidationConfig
from scmbert_jax.dna_config import Experiment
from scmbert_jax.errors import ConfigError
from scmbert_jax.parallel.multihost import from_process_zero, on_any_process
from scmbert_jax.training.run_folder import RunFolder, write_whole

BEST = "best.json"
PREFIX = "validation/"
_CELLS = PREFIX + "cells"


class Evaluator(Protocol):
    """A judgement of a model. All processes of a run call it together, and it gives all of them the same numbers: a
    pure function of (seed, step, weights) and of its cells, whatever the mesh and however many the processes are."""

    def __call__(self, step: int, params: Any, constants: Any) -> Mapping[str, float]:
        """Metric -> value, after `step` steps.

        Args:
          step: optimizer steps that were done.
          params: as the run's state holds them, on its mesh; not to be donated.
          constants: `Definition.constants`, on the mesh.
        """
        ...


@dataclass(frozen=True)
class Validation:
    """What `pretrain` evaluates.

    Attributes:
      identity: a few words that are the same for the same held-out cells; values of other cells are not compared.
      make: the evaluators by name: of those that `config.validation` names, the ones that this run can have.
    """

    identity: str
    make: Callable[[Any, Mesh], Mapping[str, Evaluator]]


class Best(NamedTuple):
    """step, and the value of `metric` after it."""

    step: int
    metric: str
    value: float


class ValidationRun:
    """Evaluates what is due and draws the conclusions.

    Args:
      evaluators: by name; none: nothing is ever due.
      identity: of the held-out cells.
      folder: of the run; its rows are read here, once.
      first: the step that the run continues from; rows of later steps are gone.
      checkpoint_steps: steps of which there are checkpoints.

    Attributes:
      failures: evaluations that failed in this run, over all its starts.
      best: the best step of which there is a checkpoint; None: no `best` is asked for, or nothing was evaluated yet.
    """

    def __init__(
        self,
        config: Experiment,
        evaluators: Mapping[str, Evaluator],
        identity: str,
        folder: RunFolder,
        first: int,
        checkpoint_steps: Sequence[int],
    ):
        self._config, self._evaluators = config.validation, evaluators
        self._num_steps, self._identity, self._folder, self._first = config.train.num_steps, identity, folder, first
        self._metric = config.validation.best.partition(":")[0]
        rows = _rows_of_evaluations(folder.metrics_path) if folder.is_coordinator else []
        history = _history(rows, self._metric, identity)
        known = from_process_zero(
            lambda: {
                "done": np.array([_has_row(rows, first, name, identity) for name in evaluators], bool),
                "steps": np.array([step for step, _ in history], np.int64),
                "values": np.array([value for _, value in history], np.float64),
                "failures": np.array(sum(key.endswith("/error") for row in rows for key in row)),
            }
        )
        self._done_at_first = {name for name, done in zip(evaluators, known["done"].tolist(), strict=True) if done}
        self._values = list(zip(known["steps"].tolist(), known["values"].tolist(), strict=True))
        self.failures = int(known["failures"])
        self.best: Best | None = None
        self._find_best([step for step in checkpoint_steps if step <= first])

    @property
    def stopped(self) -> bool:
        """Whether `patience` is at its end: the run is done at the step of the last evaluation."""
        return _is_out_of_patience(self._values, self._config)

    def due(self, step: int) -> list[str]:
        """The evaluators to be called after `step`, but for those whose row of the step that the run began at is
        there: at multiples of their steps, all of them at the end."""
        if step == 0:
            return []
        at_end = step >= self._num_steps or self.stopped
        due = [
            name
            for name, every in self._config.schedules().items()
            if name in self._evaluators and (at_end or (every and step % every == 0))
        ]
        return [name for name in due if not (step == self._first and name in self._done_at_first)]

    def evaluate(self, step: int, params: Any, constants: Any, write: Callable[[dict[str, Any]], None]) -> None:
        """Calls what is due after `step`, of which there is a checkpoint; a row each goes to `write`.

        Raises `ConfigError` where `validation.best` names a metric that its evaluator does not give.
        """
        done: set[str] = set()
        while left := [name for name in self.due(step) if name not in done]:  # the end may come by what is found
            name = left[0]
            done.add(name)
            with jax.transfer_guard("allow"):
                values, error = self._values_of(name, step, params, constants)
            row: dict[str, Any] = {"step": step}
            row |= {f"{PREFIX}{name}/{metric}": value for metric, value in values.items()}
            if error:
                row[f"{PREFIX}{name}/error"] = error
                self.failures += 1
            write({**row, _CELLS: self._identity})
            if self._metric.startswith(f"{name}/") and not error:
                self._remember(step, values, name)

    def _values_of(self, name: str, step: int, params: Any, constants: Any) -> tuple[dict[str, float | None], str]:
        """(metric -> value, null where it is not finite; what went wrong), the same on every process."""
        values, error = {}, ""
        try:
            found = self._evaluators[name](step, params, constants)
            values = {str(metric): float(value) for metric, value in found.items()}
        except Exception as failure:  # whatever it is, training is worth more
            error = f"{type(failure).__name__}: {(str(failure).strip().splitlines() or [''])[0][:300]}"
            with contextlib.suppress(OSError):
                traceback.print_exc()
                print(
                    f"scmbert: step {step}: the evaluator {name} failed ({error}); training continues, and the run "
                    "will end with an exit code that says so",
                    file=sys.stderr,
                    flush=True,
                )
        if on_any_process(bool(error)):
            return {}, error or "it failed in another process of the run, which has said why"
        agreed = from_process_zero(lambda: {metric: np.array(value) for metric, value in values.items()})
        finite = {metric: float(value) if np.isfinite(value) else None for metric, value in agreed.items()}
        return finite, ""

    def _remember(self, step: int, values: Mapping[str, float | None], name: str) -> None:
        metric = self._metric.removeprefix(f"{name}/")
        if metric not in values:
            raise ConfigError(
                f"validation.best is {self._config.best!r}, but the evaluator {name} gives "
                f"{', '.join(sorted(values))}. The same command continues with another --validation.best."
            )
        value = values[metric]
        self._values.append((step, math.nan if value is None else value))
        kept = [] if self.best is None else [self.best.step]
        self._find_best([*kept, step])

    def _find_best(self, with_checkpoint: Sequence[int]) -> None:
        """The best of the steps that have a checkpoint; best.json says it."""
        found = _best_of([(step, value) for step, value in self._values if step in with_checkpoint], self._config)
        self.best = None if found is None else Best(found[0], self._metric, found[1])
        if self._folder.is_coordinator and self.best is not None:
            write_whole(self._folder.path / BEST, json.dumps(self.best._asdict()) + "\n")


def _history(rows: Sequence[Mapping[str, Any]], metric: str, identity: str) -> list[tuple[int, float]]:
    """(step, value) of NAME/METRIC on the held-out cells of `identity`; nan where it was not finite."""
    key = PREFIX + metric
    return [
        (row["step"], math.nan if row[key] is None else float(row[key]))
        for row in rows
        if key in row and row.get(_CELLS) == identity
    ]


def _best_of(values: Sequence[tuple[int, float]], config: ValidationConfig) -> tuple[int, float] | None:
    """(step, value) of the first of the best; None where there is no number."""
    sign = -1.0 if config.best.endswith(":highest") else 1.0
    numbers = [(step, value) for step, value in values if not math.isnan(value)]
    return min(numbers, key=lambda pair: sign * pair[1], default=None)


def _is_out_of_patience(values: Sequence[tuple[int, float]], config: ValidationConfig) -> bool:
    best = _best_of(values, config)
    return bool(config.patience) and best is not None and len(values) - 1 - values.index(best) >= config.patience


def stopped_early(run_dir: Path, config: Experiment) -> int | None:
    """The step at which `validation.patience` ended a run; None: it continues to its last step."""
    path = run_dir / "metrics.jsonl"
    if not config.validation.patience or not path.exists():
        return None
    rows = _rows_of_evaluations(path)
    metric = config.validation.best.partition(":")[0]
    values = _history(rows, metric, rows[-1].get(_CELLS, "")) if rows else []
    return values[-1][0] if _is_out_of_patience(values, config.validation) else None


def _rows_of_evaluations(path: Path) -> list[dict[str, Any]]:
    """Those of a metrics.jsonl; the others, which may be a hundred thousand, are not parsed."""
    mark = f'"{PREFIX}'.encode()
    with path.open("rb") as file:
        return [json.loads(line) for line in file if mark in line]


def _has_row(rows: Sequence[Mapping[str, Any]], step: int, name: str, identity: str) -> bool:
    return any(
        (row.get("step"), row.get(_CELLS)) == (step, identity)
        and any(key.startswith(f"{PREFIX}{name}/") for key in row)
        for row in rows
    )


def read_best(run_dir: Path) -> Best | None:
    """What best.json of a run folder says; None where there is none. Raises `ConfigError` where it is damaged."""
    path = run_dir / BEST
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Best(int(found["step"]), str(found["metric"]), float(found["value"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); say the step of a checkpoint: --step") from error
