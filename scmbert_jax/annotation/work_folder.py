"""What a fine-tuning leaves while it runs, so that it can be killed and go on: work.json, history.json, checkpoints/.

`work.json` says of which model, cells and options it is; nothing else may continue in its folder. Whoever writes the
result removes the folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scmbert_jax.errors import CheckpointError
from scmbert_jax.training.checkpoint import RunCheckpoints
from scmbert_jax.training.run_folder import locked, write_whole
from scmbert_jax.training.train_state import TrainState

History = list[dict[str, Any]]

_MARK = "work.json"


class WorkFolder:
    """The folder of one fine-tuning.

    Raises `CheckpointError` where the folder is of something else, or of a fine-tuning that differs in `identity`
    (name -> what JSON can hold); the names that differ are told.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder = folder
        identity = json.loads(json.dumps(identity))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            names = {entry.name for entry in folder.iterdir()} - {"lock", f"{_MARK}.partial"}
            if names and _MARK not in names:
                raise CheckpointError(
                    f"{folder}: holds {min(names)!r} and is no work folder of a fine-tuning; name another folder, or "
                    "an empty one."
                )
            self._lock = locked(folder / "lock")
        except OSError as error:
            raise CheckpointError(f"{folder}: the work folder cannot be used ({error.strerror}).") from error
        try:
            if names:
                _require_same(folder, json.loads((folder / _MARK).read_text(encoding="utf-8")), identity)
            else:
                write_whole(folder / _MARK, json.dumps(identity, indent=1) + "\n")
            self._checkpoints = RunCheckpoints(folder / "checkpoints", keep=2)
        except (OSError, ValueError) as error:
            self._lock.close()
            raise CheckpointError(f"{folder / _MARK}: cannot be read or written ({error}).") from error
        except CheckpointError:
            self._lock.close()
            raise

    def restore(self, abstract: TrainState) -> tuple[TrainState, History] | None:
        """The newest state and the history up to it; None: no checkpoint yet. Raises `CheckpointError`."""
        steps = self._checkpoints.steps()
        if not steps:
            return None
        try:
            history = json.loads((self.folder / "history.json").read_text(encoding="utf-8"))
            rows = [row for row in history if row["step"] <= steps[-1]]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{self.folder / 'history.json'}: cannot be read ({error}); remove {self.folder} to start anew."
            ) from error
        return self._checkpoints.restore(steps[-1], abstract), rows

    def save(self, state: TrainState, history: History) -> None:
        """Starts saving. The history comes first: rows later than the newest checkpoint are passed over."""
        try:
            write_whole(self.folder / "history.json", json.dumps(history, indent=1) + "\n")
        except OSError as error:
            raise CheckpointError(f"{self.folder}: the history cannot be written ({error.strerror}).") from error
        self._checkpoints.save(int(state.step), state)

    def close(self) -> None:
        """Waits for the save that is under way."""
        try:
            self._checkpoints.wait()
            self._checkpoints.close()
        finally:
            self._lock.close()


def _require_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        told = "; ".join(f"{name}: {_short(before.get(name))} there, {_short(now.get(name))} here" for name in names)
        raise CheckpointError(
            f"{folder}: a fine-tuning was begun here that differs ({told}). Give the same again to continue it, or "
            "remove the folder to start anew."
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
