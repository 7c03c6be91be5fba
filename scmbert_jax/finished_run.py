"""How a call of `pretrain` ends, on cells or on DNA: what is told, and what is left."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from scmbert_jax.dna_config import DnaExperiment, Experiment, load_any_config
from scmbert_jax.parallel.processes import Processes
from scmbert_jax.plain_text import say
from scmbert_jax.training.goodput import read_goodput
from scmbert_jax.training.loop import Outcome
from scmbert_jax.training.run_folder import read_metrics

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Run:
    """What `pretrain` leaves: a run folder, trained up to a step.

    Attributes:
      folder: the run folder.
      step: how many steps were trained, in all starts together.
      num_steps: how many were asked for.
      interrupted: whether a signal stopped it early; the same call continues.
      failed_evaluations: how many evaluations on held-out data failed, in all starts together; metrics say which.
    """

    folder: Path
    step: int
    num_steps: int
    interrupted: bool
    failed_evaluations: int = 0

    def metrics(self) -> "pd.DataFrame":
        """metrics.jsonl as a table: a row per row, a column per metric (training/metrics.py says what they are)."""
        import pandas as pd

        return pd.DataFrame(read_metrics(self.folder / "metrics.jsonl"))

    def export(self, model_dir: str | Path, *, overwrite: bool = False) -> Any:
        """Writes the newest checkpoint as a model folder, also that of an interrupted run, and gives its `Model`, or
        the `DnaPretrained` of a run on DNA.

        Raises `CheckpointError` when there is none, or `model_dir` exists already (with `overwrite`: and is no model
        folder). `scmbert_jax.export` has more options.
        """
        if isinstance(load_any_config(self.folder / "config.json"), DnaExperiment):
            from scmbert_jax.pretrained_dna import export_dna_model

            return export_dna_model(self.folder, Path(model_dir), unfinished=True, overwrite=overwrite)
        from scmbert_jax.tasks.model import export

        return export(self.folder, model_dir, unfinished=True, overwrite=overwrite)


def teller(progress: bool) -> Callable[[str], None]:
    """What tells people how it goes, on standard error: of several processes the first; nobody without `progress`."""
    return say if progress and jax.process_index() == 0 else _say_nothing


def _say_nothing(message: str) -> None:
    """Nobody wants to know, or another process says it."""


def give_up_after(processes: Processes) -> float:
    """Seconds without a step after which a process of several ends."""
    return processes.stall_timeout if jax.process_count() > 1 else math.inf


def finished(run_dir: Path, config: Experiment, outcome: Outcome, tell: Callable[[str], None]) -> Run:
    """Tells how a run ended."""
    goodput = read_goodput(run_dir) if jax.process_index() == 0 else None
    if goodput is not None:
        tell(goodput.text())
    how = "stopped by a signal; the same command continues" if outcome.interrupted else "done"
    if outcome.stopped_early:
        how = f"done: {config.validation.patience} evaluations without a better {config.validation.best}"
    tell(f"{run_dir}: step {outcome.step} of {config.train.num_steps}, {how}")
    return Run(run_dir, outcome.step, config.train.num_steps, outcome.interrupted, outcome.failed_evaluations)
