"""Checkpoints of a run and weights of a model folder. The only file that imports Orbax.

A checkpoint holds `{params, opt_state, step}`. It is written whole beside its place and renamed, so a killed save
leaves the previous one. One that cannot be read is an error with its path; nothing falls back to an older one or to
step 0 by itself.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from scmbert_jax.errors import CheckpointError
from scmbert_jax.training.train_state import TrainState

# Orbax reports a failed write or read by many types, of its own and of tensorstore; by a bare Exception for an array
# that is cut short.
_IO_ERRORS = Exception


def _is_no_failure_of_orbax(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


# Its threads log the traceback of a failed write besides raising it; it is raised to us, and told once.
logging.getLogger("absl").addFilter(_is_no_failure_of_orbax)


def _all_but_late_writes(tell: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            tell(unraisable)

    return hook


# When one of its writes fails, the others end later, find that nobody waits, and print a traceback of that.
sys.unraisablehook = _all_but_late_writes(sys.unraisablehook)


class RunCheckpoints:
    """The `checkpoints` folder of a run: asynchronous saves, the newest `keep` are kept.

    Raises `CheckpointError` where the folder cannot be read.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = folder.absolute()
        try:
            self._checkpointer = ocp.training.Checkpointer(
                self.folder,
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                cleanup_tmp_directories=True,
            )
        except OSError as error:
            raise CheckpointError(f"{self.folder}: checkpoints cannot be read here ({error.strerror}).") from error

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving; the arrays are copied first, so the caller may donate them. Raises `CheckpointError`."""
        if step in self.steps():
            return
        try:
            self._checkpointer.save_async(step, state._asdict())
        except _IO_ERRORS as error:
            raise self._save_error(step, error) from error

    def wait(self) -> None:
        """Blocks until the save that is under way is complete on disk. Raises `CheckpointError` when it failed."""
        try:
            self._checkpointer.wait()
        except _IO_ERRORS as error:
            raise self._save_error(None, error) from error

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of `step`, placed as `abstract` says (any mesh). Raises `CheckpointError`."""
        try:
            return TrainState(**self._checkpointer.load(step, abstract._asdict()))
        except _IO_ERRORS as error:
            raise self._load_error(step, error) from error

    def restore_params(self, step: int, abstract_params: Any) -> Any:
        """Only the parameters of `step`; the optimizer's state is not read. Raises `CheckpointError`."""
        try:
            context = ocp.Context()
            context.pytree.loading.partial_load = True
            with context:
                return ocp.load(self.folder / str(step), {"params": abstract_params})["params"]
        except _IO_ERRORS as error:
            raise self._load_error(step, error) from error

    def close(self) -> None:
        self._checkpointer.close()

    def _load_error(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.folder / str(step)}: this checkpoint cannot be read ({_first_line(error)}). The run stops rather "
            f"than start again or go back. Complete checkpoints here: steps {self.steps()}. To continue from an older "
            "one, move this folder away; to start anew, use another run folder."
        )

    def _save_error(self, step: int | None, error: Exception) -> CheckpointError:
        what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        steps = self.steps()
        last = f"the last good checkpoint is step {steps[-1]}" if steps else "there is no good checkpoint yet"
        return CheckpointError(
            f"{self.folder}: {what} could not be saved ({_first_line(error)}); {last}. "
            "Make room or mend the permissions, then run the same command again: it continues from there."
        )


def save_weights(folder: Path, params: Any) -> None:
    """Writes parameters alone (a model folder's weights). Raises `CheckpointError`."""
    try:
        ocp.save(folder.absolute(), params)
    except _IO_ERRORS as error:
        raise CheckpointError(f"{folder}: weights could not be saved ({_first_line(error)}).") from error


def load_weights(folder: Path, abstract_params: Any) -> Any:
    """Parameters as `abstract_params` places them. Raises `CheckpointError`: missing, damaged, other shapes."""
    try:
        params = ocp.load(folder.absolute(), abstract_params)
    except _IO_ERRORS as error:
        raise CheckpointError(
            f"{folder}: these weights cannot be read ({_first_line(error)}). Export the model again."
        ) from error
    for (path, wanted), found in zip(
        jax.tree_util.tree_leaves_with_path(abstract_params), jax.tree.leaves(params), strict=True
    ):
        if wanted.shape != found.shape:
            raise CheckpointError(
                f"{folder}: parameter {jax.tree_util.keystr(path)} has shape {found.shape}, the configuration asks "
                f"for {wanted.shape}. The weights belong to another model."
            )
    return params


def _first_line(error: BaseException) -> str:
    if type(error) is Exception and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
