"""What building a corpus costs, per million cells, and how long a run waits for its first batch.

Cells are synthetic and made as they are read, so that no file is needed; making them takes time too, which is measured
apart. Memory and disk are looked at twice a second from outside the build, in /proc (Linux; elsewhere not known).
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.build.runners import available_cores
from data_pipelines.corpus.manifest import building_path
from data_pipelines.corpus.verify import verify_corpus
from data_pipelines.readers.stored_matrix import chunks_between
from data_pipelines.synthetic.atlas import synthetic_atlas
from scmbert_jax.benchmarks.first_batch import TOKENS, open_reader
from scmbert_jax.benchmarks.peer_process import resident_peak
from scmbert_jax.config import DataConfig

CELLS_PER_DATASET = 250_000
_GENERATED_CELLS = 2048  # to measure what making cells costs
_SECONDS_BETWEEN_LOOKS = 0.5
_EPOCH_OF_LATE_STEP = 3


@dataclass(frozen=True)
class BuildCost:
    """One build.

    Attributes:
      cells, genes_per_cell: built, and expressed on average.
      seconds: from the call to the corpus.
      seconds_per_million: of them.
      stages: stage -> seconds.
      generator_seconds: of CPU that making the cells took: they are read twice, by the check and by pass 1.
      worker_peak_bytes: of memory, the largest of any worker; None where it is not known.
      builder_peak_bytes: of the process that waits for them (or does all, where there are no others).
      spool_peak_bytes: on disk between the passes.
      disk_peak_bytes: with the shards that were there.
      bytes_per_cell: of the shards.
      first_batch_seconds: step -> from the start of a process to its first batch.
      intact: what verifying every byte says.
      settings: what was measured on what.
    """

    cells: int
    genes_per_cell: float
    seconds: float
    seconds_per_million: float
    stages: dict[str, float]
    generator_seconds: float
    worker_peak_bytes: int | None
    builder_peak_bytes: int | None
    spool_peak_bytes: int
    disk_peak_bytes: int
    bytes_per_cell: float
    first_batch_seconds: dict[int, float]
    intact: bool
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.stages.items())
        first = ", ".join(f"step {step:,}: {seconds:.2f} s" for step, seconds in self.first_batch_seconds.items())
        return "\n".join(
            [
                f"{self.cells:,} cells, {self.genes_per_cell:,.0f} genes each: {self.seconds:.1f} s ({stages})",
                f"  {self.seconds_per_million:.0f} s per million cells; of {self.settings['workers']} x "
                f"{self.seconds:.1f} s of CPU, {self.generator_seconds:.1f} s made the cells",
                f"  memory: {_gigabytes(self.worker_peak_bytes)} per worker, {_gigabytes(self.builder_peak_bytes)} "
                "in the builder",
                f"  disk: {self.spool_peak_bytes / 1e9:.2f} GB between the passes, {self.disk_peak_bytes / 1e9:.2f} GB "
                f"at most; {self.bytes_per_cell:,.0f} bytes per cell in the corpus",
                f"  first batch after the start of a process: {first}",
                f"  every byte verified: {'intact' if self.intact else 'DAMAGED'}",
            ]
        )


def _gigabytes(size: int | None) -> str:
    return "not known" if size is None else f"{size / 1e9:.2f} GB"


def measure_build(
    num_cells: int,
    workers: int | None = None,
    folder: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    starts: int = 3,
    keep: bool = False,
) -> BuildCost:
    """Builds, verifies and opens a synthetic corpus.

    Args:
      num_cells: N.
      workers: processes; None: one for each CPU.
      folder: where the corpus is built; None: the temporary folder.
      progress: see `build_corpus`.
      starts: of a process, for each first batch; the least counts, since the first one of an installation compiles.
      keep: the corpus is left where it was built (`settings` says where); else it is removed.
    """
    workers = workers or available_cores()
    place = Path(tempfile.mkdtemp(prefix="scmbert-build-", dir=folder))
    out = place / "corpus"
    stages: dict[str, list[float]] = {}

    def tell(stage: str, done: int, total: int) -> None:
        stages.setdefault(stage, []).append(time.perf_counter())
        if progress is not None:
            progress(stage, done, total)

    try:
        atlas = synthetic_atlas(num_cells, CELLS_PER_DATASET)
        genes_per_cell, seconds_per_cell = _cost_of_cells(atlas[0].matrices[0].stored)
        watcher = _Watcher(building_path(out))
        begun = time.perf_counter()
        with watcher, build_corpus(out, atlas, workers=workers, progress=tell) as corpus:
            seconds = time.perf_counter() - begun
            bytes_per_cell = sum(shard["bytes"] for shard in corpus.manifest["shards"]) / corpus.num_cells
        del atlas
        intact = verify_corpus(out, None if progress is None else lambda *what: tell("verifying", *what)).ok
        late = _late_step(out)
        first = {step: _seconds_to_first_batch(out, step, starts) for step in (0, late)}
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)
    return BuildCost(
        cells=num_cells,
        genes_per_cell=genes_per_cell,
        seconds=seconds,
        seconds_per_million=seconds / num_cells * 1e6,
        stages={name: times[-1] - times[0] for name, times in stages.items() if name != "verifying"},
        generator_seconds=2 * seconds_per_cell * num_cells,
        worker_peak_bytes=watcher.worker_peak if workers > 1 else watcher.builder_peak,
        builder_peak_bytes=watcher.builder_peak,
        spool_peak_bytes=watcher.spool_peak,
        disk_peak_bytes=watcher.disk_peak,
        bytes_per_cell=bytes_per_cell,
        first_batch_seconds=first,
        intact=intact,
        settings={
            "workers": workers,
            "cpus": available_cores(),
            **({"corpus": str(out)} if keep else {}),
            "tokens per cell": TOKENS,
            **asdict(DataConfig()),
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
    )


def _cost_of_cells(stored: Any) -> tuple[float, float]:
    """(genes with a count, seconds of CPU) of a cell, after the generator was compiled."""
    size = min(_GENERATED_CELLS, stored.shape[0])
    list(chunks_between(stored, 64, 0, min(64, size)))
    begun = time.process_time()
    parts = [part for _, part in chunks_between(stored, size, 0, size)]
    return sum(part.nnz for part in parts) / size, (time.process_time() - begun) / size


class _Watcher:
    """Looks at a build from outside, in a thread: memory of this process and of those it started, and the disk."""

    def __init__(self, building: Path):
        self._building = building
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watcher")
        self.worker_peak: int | None = None
        self.builder_peak: int | None = None
        self.spool_peak = self.disk_peak = 0

    def __enter__(self) -> "_Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_SECONDS_BETWEEN_LOOKS):
            self._look()

    def _look(self) -> None:
        self.builder_peak = resident_peak(os.getpid())
        for pid in _children(os.getpid()):
            found = resident_peak(pid)
            if found is not None:
                self.worker_peak = max(self.worker_peak or 0, found)
        self.spool_peak = max(self.spool_peak, _size(self._building / "work" / "segments"))
        self.disk_peak = max(self.disk_peak, _size(self._building))


def _children(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            continue
        if parent == pid:
            found.append(int(folder.name))
    return found


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # renamed or removed meanwhile
            continue
    return total


# --- the first batch -------------------------------------------------------------------------------------------------


def _late_step(folder: Path) -> int:
    return _EPOCH_OF_LATE_STEP * open_reader(folder).steps_per_epoch + 17


def _seconds_to_first_batch(folder: Path, step: int, starts: int) -> float:
    """From the start of a process that knows nothing but the step to its first batch: the least of so many."""
    seconds = []
    for _ in range(starts):
        begun = time.time()
        done = subprocess.run(
            [sys.executable, "-m", "scmbert_jax.benchmarks.first_batch", str(folder), str(step)],
            check=True,
            capture_output=True,
            text=True,
        )
        seconds.append(json.loads(done.stdout)["time"] - begun)
    return min(seconds)
