"""Predictions that were made before: one file per method and task, named by a digest of all that they depend on.

A command that was stopped continues where it stood, and a method that was added is the only one that is fitted. Files
of other data, labels, settings or versions have other names and are not touched.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scmbert_jax.errors import OutputError
from scmbert_jax.evaluation.annotation.task import CellValues, Method, Predictions, Task

Array = np.ndarray

_FORMAT = 1


@dataclass(frozen=True)
class KeptFits:
    """A folder of predictions of the cells with this digest. Raises `OutputError` where it cannot be written."""

    folder: Path
    digest: str

    def path(self, method: Method, task: Task) -> Path:
        return self.folder / f"{_slug(method.name)}-{self._key(method, task)[:24]}.npz"

    def read(self, method: Method, task: Task) -> dict[str, Predictions] | None:
        """What was kept; None where there is nothing, or nothing whole."""
        try:
            with np.load(self.path(method, task), allow_pickle=False) as file:
                arms = json.loads(str(file["arms"]))
                return {arm: _unpacked(file, number, setting) for number, (arm, setting) in enumerate(arms.items())}
        except (OSError, KeyError, ValueError, zipfile.BadZipFile, EOFError):
            return None

    def write(self, method: Method, task: Task, found: Mapping[str, Predictions]) -> None:
        path = self.path(method, task)
        arrays: dict[str, Any] = {}
        for number, predictions in enumerate(found.values()):
            arrays |= _packed(predictions, number)
        arms = json.dumps({arm: dict(predictions.setting) for arm, predictions in found.items()})
        with _written(path) as growing, growing.open("wb") as file:
            np.savez_compressed(file, arms=np.array(arms), **arrays)

    def array(self, name: str, made_from: str, make: Callable[[], Array]) -> Array:
        """An array that takes long to make, such as an embedding; `made_from`: a digest of what it depends on."""
        path = self.folder / f"{_slug(name)}-{digest_of(str(_FORMAT), self.digest, made_from)[:24]}.npy"
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            values = make()
        with _written(path) as growing, growing.open("wb") as file:
            np.save(file, values, allow_pickle=False)
        return values

    def _key(self, method: Method, task: Task) -> str:
        said = [_FORMAT, self.digest, method.identity(), task.seed, task.num_classes]
        parts = np.zeros(0, np.int64) if task.parts is None else task.parts
        return digest_of(json.dumps(said, sort_keys=True), task.train, task.codes, task.groups, parts, task.test)


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """A name to write to, that becomes `path` when it is whole."""
    growing = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield growing
        growing.replace(path)
    except OSError as error:
        growing.unlink(missing_ok=True)
        raise OutputError(f"{path}: predictions cannot be kept ({error.strerror or error}).") from error


def digest_of(*parts: Any) -> str:
    """Of texts and arrays, in order."""
    found = hashlib.blake2b(digest_size=32)
    for part in parts:
        if isinstance(part, str):
            data = part.encode()
        else:
            values = np.ascontiguousarray(part)
            data = f"{values.dtype.str}{values.shape}".encode() + values.tobytes()
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()


def digest_of_cells(cells: CellValues) -> str:
    """Of their counts; not of the vectors, which only some methods read."""
    arrays = [
        part
        for name, counts in cells.counts.items()
        for part in (name, counts.indptr, counts.indices, counts.data, np.array(counts.shape))
    ]
    return digest_of(*arrays)


def _packed(predictions: Predictions, number: int) -> dict[str, Array]:
    arrays = {"probabilities": predictions.probabilities, "left_out": predictions.left_out}
    if predictions.left_out_probabilities is not None:
        arrays["left_out_probabilities"] = predictions.left_out_probabilities
    arrays |= {f"novelty {name}": values for name, values in predictions.novelty.items()}
    return {f"{number} {name}": values for name, values in arrays.items()}


def _unpacked(file: Any, number: int, setting: Mapping[str, Any]) -> Predictions:
    mine = {name.partition(" ")[2]: file[name] for name in file.files if name.partition(" ")[0] == str(number)}
    novelty = {name.partition(" ")[2]: values for name, values in mine.items() if name.startswith("novelty ")}
    return Predictions(
        mine["probabilities"], mine["left_out"], mine.get("left_out_probabilities"), novelty, dict(setting)
    )


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)
