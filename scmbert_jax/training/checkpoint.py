"""Checkpoints of a run and weights of a model folder. The only file that imports Orbax.

A checkpoint holds `{params, opt_state, step, digests}`. It is written whole beside its place and renamed, so a killed
save leaves the previous one. One that cannot be read, or whose arrays are not those that were saved, is an error with
its path; nothing falls back to an older one or to step 0 by itself.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices
from orbax.checkpoint import v1 as ocp

from scmbert_jax.errors import CheckpointError
from scmbert_jax.training.state_digest import changed_arrays, digests
from scmbert_jax.training.train_state import TrainState

# Orbax reports a failed write or read by many types, of its own and of tensorstore; by a bare Exception for an array
# that is cut short.
_IO_ERRORS = Exception


class _PinnedStep(ocp.training.preservation_policies.PreservationPolicy):
    """Keeps the checkpoint of a step that changes while a run continues; Orbax's `CustomSteps` copies its argument."""

    def __init__(self) -> None:
        self.step: int | None = None

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class RunCheckpoints:
    """The `checkpoints` folder of a run: asynchronous saves; the newest `keep` are kept, and for ever those of steps
    that are multiples of `keep_every` (0: none).

    Raises `CheckpointError` where the folder cannot be read.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int = 0):
        self.folder = folder.absolute()
        policies = ocp.training.preservation_policies
        self._pinned = _PinnedStep()
        kept = [
            policies.LatestN(keep),
            self._pinned,
            *([policies.EveryNSteps(keep_every)] if keep_every else []),
        ]
        try:
            self._checkpointer = ocp.training.Checkpointer(
                self.folder,
                preservation_policy=policies.AnyPreservationPolicy(kept),
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                cleanup_tmp_directories=True,
            )
        except OSError as error:
            raise CheckpointError(f"{self.folder}: checkpoints cannot be read here ({error.strerror}).") from error
        self._under_way: ocp.AsyncResponse[bool] | None = None

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def pin(self, step: int) -> None:
        """The checkpoint of `step` is kept, however old it gets, until another is pinned."""
        self._pinned.step = step

    def go_back(self, step: int) -> None:
        """Makes the checkpoint of `step` the newest: later ones are moved to `set_aside/after-step-STEP` beside the
        folder. Called by all processes; process 0 moves, and says so on standard error.

        The folder `set_aside/after-step-STEP` is also the mark that it was done: a command that a scheduler repeats
        after a preemption must not throw away what was trained since. Where it exists already, nothing is moved.

        Raises `CheckpointError` when there is no such checkpoint, or the folder cannot be changed.
        """
        done, steps = self.folder.parent / "set_aside" / f"after-step-{step}", self.steps()
        if step not in steps and not done.exists():
            raise CheckpointError(
                f"{self.folder}: no checkpoint of step {step} to go back to; complete ones: {steps or 'none'}."
            )
        if jax.process_index() == 0:
            print(f"scmbert: {_set_aside(self.folder, steps, step, done)}", file=sys.stderr, flush=True)
        if jax.process_count() > 1:
            sync_global_devices("checkpoints are set aside")
        self._checkpointer.reload()

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving; the arrays are copied first, so the caller may donate them. Raises `CheckpointError`."""
        if step in self.steps():
            return
        parts = state._asdict()
        self.wait()  # Orbax would, too
        try:
            self._under_way = self._checkpointer.save_async(
                step, {**parts, "digests": {name: digests(part) for name, part in parts.items()}}
            )
        except _IO_ERRORS as error:
            _pass_if_a_host_is_lost(error)
            raise self._save_error(step, error) from error

    def wait(self) -> None:
        """Blocks until the save that is under way is complete on disk. Raises `CheckpointError` when it failed."""
        under_way, self._under_way = self._under_way, None
        try:
            self._checkpointer.wait()  # first: it tells an error once, and `close` would tell it again
            if under_way is not None:
                under_way.result()  # a thread per save lives until somebody asks
        except _IO_ERRORS as error:
            _pass_if_a_host_is_lost(error)
            raise self._save_error(None, error) from error

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of `step`, placed as `abstract` says (any mesh). Raises `CheckpointError`."""
        try:
            return TrainState(**self._read(step, abstract._asdict()))
        except _IO_ERRORS as error:
            _pass_if_a_host_is_lost(error)
            raise self._load_error(step, error) from error

    def restore_params(self, step: int, abstract_params: Any) -> Any:
        """Only the parameters of `step`; the optimizer's state is not read. Raises `CheckpointError`."""
        try:
            return self._read(step, {"params": abstract_params})["params"]
        except _IO_ERRORS as error:
            _pass_if_a_host_is_lost(error)
            raise self._load_error(step, error) from error

    def _read(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """The parts of a checkpoint that `abstract` names, whose arrays are those that were saved."""
        folder = self.folder / str(step)
        stored = ocp.metadata(folder).metadata
        if stored is None:
            raise _Damaged("the list of its arrays is damaged or missing")
        other = sorted(_names(stored["params"]) ^ _names(abstract["params"]))
        if other:
            raise _Damaged(
                f"its parameters are not those of this program's model: {other[0]} and {len(other) - 1} more. Continue "
                "or export this run with the program that started it: git_commit of its provenance.json"
            )
        if "digests" in stored:
            numbers = {name: np.zeros(stored["digests"][name].shape, np.uint32) for name in abstract}
        elif jax.process_index() == 0:
            print(f"scmbert: {folder}: by an earlier version, without digests: not verified", file=sys.stderr)
        context = ocp.Context()
        context.pytree.loading.partial_load = len(abstract) < len(TrainState._fields)
        with context:
            if "digests" not in stored:
                return ocp.load(folder, abstract)
            read = ocp.load(folder, {**abstract, "digests": numbers})
        expected = read.pop("digests")
        damaged = [part + name for part in read for name in changed_arrays(read[part], expected[part])]
        if damaged:
            listed = ", ".join(damaged[:3]) + (f" and {len(damaged) - 3} more" if len(damaged) > 3 else "")
            raise _Damaged(f"{len(damaged)} of its arrays are not what was saved: {listed}")
        return read

    def close(self) -> None:
        self._checkpointer.close()

    def _load_error(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.folder / str(step)}: this checkpoint cannot be read ({_first_line(error)}). The run stops rather "
            f"than start again or go back by itself. {_way_back([other for other in self.steps() if other < step])}"
        )

    def _save_error(self, step: int | None, error: Exception) -> CheckpointError:
        what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        steps = self.steps()
        last = f"the last good checkpoint is step {steps[-1]}" if steps else "there is no good checkpoint yet"
        return CheckpointError(
            f"{self.folder}: {what} could not be saved ({_first_line(error)}); {last}. "
            "Make room or mend the permissions, then run the same command again: it continues from there."
        )


def _names(tree: Any) -> set[str]:
    # Orbax stores a key that is a number as text.
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves}


class _Damaged(Exception):
    """Arrays of a checkpoint are not those that were saved, or not those of this model."""


def _set_aside(folder: Path, steps: list[int], step: int, done: Path) -> str:
    """Moves the checkpoints after `step` into `done`; says what was done. Raises `CheckpointError`."""
    if done.exists():
        return (
            f"{done} is there: this run went back to step {step} already, and continues from its newest checkpoint. "
            "To go back once more, rename that folder."
        )
    later = [other for other in steps if other > step]
    # A process that is killed in between leaves the partial folder, and the next one moves what remains.
    partial = done.with_name(f"{done.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        for other in reversed(later):
            shutil.move(folder / str(other), partial / str(other))
        partial.rename(done)
    except OSError as error:
        raise CheckpointError(f"{done}: checkpoints cannot be set aside ({error.strerror}).") from error
    return f"going back to step {step}: checkpoints of steps {later or 'none'} were moved to {done}"


def _way_back(steps: list[int]) -> str:
    if not steps:
        return "There is no older checkpoint: start anew in another run folder."
    return (
        f"Older ones are complete at steps {steps}: to continue from one of them, pretrain --restore-step {steps[-1]}."
    )


def save_weights(folder: Path, params: Any) -> None:
    """Writes parameters alone (a model folder's weights). Raises `CheckpointError`."""
    try:
        ocp.save(folder.absolute(), params)
        # Orbax writes into it where the folder lay, under the machine's name; that it is there is what counts.
        (folder / "commit_success.txt").write_text("Checkpoint commit was successful\n")
    except _IO_ERRORS as error:
        raise CheckpointError(f"{folder}: weights could not be saved ({_first_line(error)}).") from error


def load_weights(folder: Path, abstract_params: Any) -> Any:
    """Parameters as `abstract_params` places them. Raises `CheckpointError`: missing, damaged, other shapes."""
    context = ocp.Context()
    # Earlier versions stored what the linear path has of the corpus among the parameters; it is made from
    # feature_statistics.npz, so theirs is left where it lies.
    context.pytree.loading.partial_load = True
    try:
        with context:
            params = ocp.load(folder.absolute(), abstract_params)
        absent = sorted(_names(abstract_params) - _names(ocp.metadata(folder.absolute()).metadata))
        if absent:  # which a partial load leaves out without a word
            raise _Damaged(f"without {', '.join(absent[:3])}")
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


def _pass_if_a_host_is_lost(error: Exception) -> None:
    """Raises an error of the network, not of the disk: a save or a read waits for all hosts, and another one died.

    The exit code differs: starting again helps against this, and not against a full disk or a damaged checkpoint.
    """
    words = ("Gloo", "NCCL", "coordination", "barrier", "heartbeat", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Connection")
    if jax.process_count() > 1 and any(word in str(error) for word in words):
        raise error


def _first_line(error: BaseException) -> str:
    if type(error) is Exception and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, _Damaged):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
