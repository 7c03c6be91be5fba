"""What may change when a run continues, and what is told of it.

A run is its data and their order, its objectives, the shape of its model and its optimizer: with another of those it
would be another run, and is refused. How long it takes, how often it reports and how the machine works on it may
change: parameters and optimizer state are the same arrays for all of them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scmbert_jax.config import differing_fields
from scmbert_jax.dna_config import Experiment
from scmbert_jax.errors import ConfigError
from scmbert_jax.models.attention.backends import BACKENDS
from scmbert_jax.training.optimizer import learning_rate_schedule

# Numbers may differ by rounding after some of them, `model.compute_dtype` above all; the computation is the same.
_MAY_CHANGE = (
    "train.num_steps",
    "train.num_microbatches",
    "train.row_widths",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "model.remat",
    "model.scan_layers",
    "model.compute_dtype",
)
_PARTS_THAT_MAY_CHANGE = ("mesh.", "validation.")

Changes = dict[str, tuple[Any, Any]]  # dotted field -> (value there, value now)


def changes(folder: Path, there: Experiment, now: Experiment) -> Changes:
    """The fields in which a run that continues differs from what it was started with.

    Raises `ConfigError` naming those that make it another run.
    """
    changed = differing_fields(there, now)
    refused = {name: values for name, values in changed.items() if not _may_change(name, *values)}
    if refused:
        listed = "; ".join(f"{name}: {old!r} there, {new!r} now" for name, (old, new) in refused.items())
        raise ConfigError(
            f"{folder}: this run folder was started with another configuration ({listed}), which makes another run. "
            "Continue with the same fields, or use another run folder (--init-from starts from this one's weights)."
        )
    return changed


def _may_change(name: str, old: Any, new: Any) -> bool:
    if name == "model.attention":
        return all(BACKENDS[backend].num_random_features is None for backend in (old, new))
    return name in _MAY_CHANGE or name.startswith(_PARTS_THAT_MAY_CHANGE)


def check_not_beyond(folder: Path, config: Experiment, done: int, steps: Sequence[int]) -> None:
    """Raises `ConfigError` where more steps are `done` than `train.num_steps`; `steps`: those with a checkpoint."""
    num_steps = config.train.num_steps
    if done > num_steps:
        older = [step for step in steps if step <= num_steps]
        back = f", or go back to an older checkpoint first: --restore-step {older[-1]}" if older else ""
        raise ConfigError(
            f"train.num_steps is {num_steps}, but {folder} is at step {done} already, and what was trained since "
            f"cannot be taken back. Give {done} or more{back}."
        )


def changes_in_words(changed: Changes, there: Experiment, now: Experiment, step: int) -> list[str]:
    """One line per field, for a run that continues from `step`."""
    lines = [
        f"{name}: {json.dumps(old)} until step {step}, now {json.dumps(new)}" for name, (old, new) in changed.items()
    ]
    if "train.num_steps" in changed:
        before, after = learning_rate_schedule(there), learning_rate_schedule(now)
        lines.append(
            f"the learning rate follows the schedule of {now.train.num_steps} steps from here: "
            f"{float(after(step)):.3g} at step {step}, where that of {there.train.num_steps} has "
            f"{float(before(step)):.3g}"
        )
    return lines


def row_of_changes(changed: Mapping[str, tuple[Any, Any]], step: int) -> dict[str, Any]:
    """The row of metrics.jsonl."""
    return {"step": step, "changed": {name: list(values) for name, values in changed.items()}}
