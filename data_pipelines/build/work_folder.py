"""The unfinished work of a build, in `OUT.building`: what it belongs to, and what its tasks share.

    plan.json        inputs and options; another plan starts anew
    work/            arrays that every task reads, finished checks, segments, what is known of finished shards
    shard-*.tfrecord finished shards, already where they will stay

`plan.json` names a file by its path, size and time of change, so that nothing is read twice to find out that it is the
same. What is in memory has no such name: it is never taken up again.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_pipelines.corpus.cell_block import BLOCK_VERSION
from data_pipelines.corpus.manifest import FORMAT_VERSION
from data_pipelines.files.atomic_files import GrowingFolder, growing_file, sweep, writing
from data_pipelines.readers.dataset import Dataset
from scmbert_jax.errors import CorpusError

PLAN = "plan.json"
_WORK_VERSION = 1  # of what lies in the folder


@dataclass(frozen=True)
class WorkFolder:
    """Where the tasks of a build find what they share. `path` is absolute: tasks may run anywhere."""

    path: Path

    def save_array(self, name: str, values: np.ndarray) -> None:
        with growing_file(self.path / f"{name}.npy") as file:
            np.save(file, values, allow_pickle=False)

    def load_array(self, name: str) -> np.ndarray:
        """Read from the disk as it is needed, and not before. Raises CorpusError: gone or damaged."""
        path = self.path / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise CorpusError(damaged_work(path, error)) from error

    def segments(self, number: int) -> Path:
        return self.path / "segments" / f"{number:06d}.segments"

    def segment_files(self) -> list[Path]:
        return sorted((self.path / "segments").glob("*.segments"))


def damaged_work(path: Path, error: Exception) -> str:
    """What is said where a part of an unfinished build is not as it was written."""
    return (
        f"{path}: gone or damaged ({error}), though this build wrote it; was it changed meanwhile? Remove the "
        "unfinished build (OUT.building), and run the command again"
    )


def open_work(folder: GrowingFolder, plan: dict[str, Any], notice: Callable[[str], None]) -> WorkFolder:
    """The work of this plan: as far as it was done before, or none. `notice` is told which.

    Raises CorpusError when the disk refuses.
    """
    path = folder.path / PLAN
    work = WorkFolder((folder.path / "work").resolve())
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        before = None
    if before == json.loads(json.dumps(plan)):
        notice(f"{folder.path}: going on with a build that was not finished")
    else:
        if any(folder.path.iterdir()):
            notice(f"{folder.path}: what lies there belongs to other inputs or options; it is removed")
        folder.clear()
        with growing_file(path) as file:
            file.write(json.dumps(plan, indent=1).encode())
    with writing(work.path):
        (work.path / "segments").mkdir(parents=True, exist_ok=True)
        sweep(work.path)
        sweep(work.path / "segments")
    return work


def remove_work(folder: GrowingFolder, work: WorkFolder) -> None:
    """What is not of the corpus. If it is killed midway, the next call continues, and finds its shards finished."""
    with writing(folder.path):
        shutil.rmtree(work.path / "segments")
        shutil.rmtree(work.path)
        (folder.path / PLAN).unlink()


def plan_of(specs: Sequence[Any], datasets: Sequence[Dataset], options: dict[str, Any]) -> dict[str, Any]:
    """What the work belongs to.

    Args:
      specs: as `build_corpus` takes them.
      datasets: opened from them.
      options: all that change the bytes of the corpus.
    """
    in_memory = any(not isinstance(spec, (str, os.PathLike)) for spec in specs)
    return {
        "versions": [_WORK_VERSION, FORMAT_VERSION, BLOCK_VERSION],
        "options": options,
        "inputs": [_identity(dataset) for dataset in datasets],
        "in_memory": secrets.token_hex(8) if in_memory else None,
    }


def _identity(dataset: Dataset) -> dict[str, Any]:
    paths = dict.fromkeys(matrix.path for matrix in dataset.matrices)
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(inner for inner in path.rglob("*") if inner.is_file())
        files += [path] if path.is_file() else []
    stats = [(str(path.resolve()), path.stat()) for path in files]
    names = [dataset.cell_ids, *(matrix.feature_names for matrix in dataset.matrices)]
    return {
        "files": [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats],
        # of a 10x folder, cells and features lie in other files than the counts
        "names": [hashlib.sha256(pd.util.hash_array(array.astype(object))).hexdigest() for array in names],
    }
