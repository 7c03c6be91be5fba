"""How many cells per second of processor time the input pipeline gives, beside the loaders of other projects.

All read the same synthetic cells (input_cells.py), each from its own kind of store, each in a process of its own
(loader_process.py). They are measured alternately, so that a noisy machine is noisy for all of them; a ratio is the
median over the rounds of the ratios within a round. Ours gives sampled, padded tokens (ids and counts int32 [B, L]);
the others give CSR float32 that still has to be made into tokens.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from scmbert_jax.benchmarks import loader_process
from scmbert_jax.benchmarks.peer_process import peer_program
from scmbert_jax.errors import ConfigError
from scmbert_jax.text_table import markdown_table

NUM_DATASETS = 8
BLOCK_CELLS = 256
OUR_DEFAULTS: dict[str, Any] = {
    "loader": "scmbert_jax",
    "front_end": "threads",
    "zero_fraction": 0.0,
    "batch_size": 1024,
    "num_streams": 4,
    "window_blocks": 8,  # 4 streams x 8 blocks x 256: 8,192 cells are shuffled together, as in annbatch's best setting
    "threads": 2,
    "cold": False,
    "steps": 0,
}
# Of annbatch's README, of its defaults, and one that its documentation does not name, the fastest of those tried here;
# all give batches of 4,096 cells.
ANNBATCH_SETTINGS = {
    "README": {"chunk_size": 32, "preload_nchunks": 256},
    "defaults": {"chunk_size": 512, "preload_nchunks": 32},
    "fastest found": {"chunk_size": 512, "preload_nchunks": 16},
}
SCDATASET_SETTINGS = {"batch_size": 64, "block_size": 64, "fetch_factor": 64}
REFERENCE = "annbatch"


@dataclass(frozen=True)
class LoaderSpeed:
    """One loader with one setting; medians over the rounds.

    Attributes:
      name: which one.
      cells_per_cpu_second: of user and system time of the whole process.
      cells_per_second: on the wall.
      peak_rss_mib: of the process, until the end.
      ratio: of cells per CPU-second to the fastest setting of annbatch, documented or not; None where not measured.
    """

    name: str
    cells_per_cpu_second: float
    cells_per_second: float
    peak_rss_mib: float
    ratio: float | None


@dataclass(frozen=True)
class InputSpeeds:
    """All of one call; `settings` says what was measured on what, `not_measured` what was not, and why."""

    rows: tuple[LoaderSpeed, ...]
    ratios: dict[str, float]
    bytes_per_cell: dict[str, float]
    not_measured: dict[str, str]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.ratios,
            "bytes_per_cell": self.bytes_per_cell,
            "rows": [asdict(row) for row in self.rows],
            "not_measured": self.not_measured,
            "settings": self.settings,
        }

    def text(self) -> str:
        head = ["loader", "cells per CPU-second", "cells/s (wall)", "peak memory (MiB)", f"compared with {REFERENCE}"]
        lines = [
            [
                row.name,
                f"{row.cells_per_cpu_second:,.0f}",
                f"{row.cells_per_second:,.0f}",
                f"{row.peak_rss_mib:,.0f}",
                "?" if row.ratio is None else f"{row.ratio:.2f}x",
            ]
            for row in self.rows
        ]
        sizes = markdown_table(["store", "bytes per cell"], [[k, f"{v:,.0f}"] for k, v in self.bytes_per_cell.items()])
        documented = "; ".join(f"{k} {v:.2f}" for k, v in self.ratios.items() if k.endswith("documented"))
        missing = "".join(f"\n{name} was not measured: {why}" for name, why in self.not_measured.items())
        return f"{markdown_table(head, lines)}\n\n{documented}\n\n{sizes}{missing}"


def measure_input(
    folder: Path,
    num_cells: int = 32_768,
    lengths: tuple[int, ...] = (1024, 2048),
    front_ends: tuple[str, ...] = ("threads",),
    zero_fractions: tuple[float, ...] = (0.0, 0.25),
    annbatch_python: str | None = None,
    scdataset_python: str | None = None,
    rounds: int = 5,
    say: Callable[[str], None] = lambda message: None,
) -> InputSpeeds:
    """Makes the stores in `folder` (those that are there are used again) and measures all loaders.

    Args:
      folder: for about 25 kB per cell.
      num_cells: of an epoch.
      lengths: tokens per cell.
      front_ends: of `loader_process.corpus_batches`.
      zero_fractions: fractions of tokens that are measured zeros; others than 0 with codec zstd only.
      annbatch_python, scdataset_python: Pythons that have these packages; None: not measured.
      rounds: every loader goes through an epoch once a round, after one to warm up.
    """
    peers = str(peer_program("loaders.py")) if annbatch_python or scdataset_python else ""
    files, corpora = make_stores(folder, num_cells, say)
    loaders: dict[str, dict[str, Any]] = {}
    for codec, length, zero_fraction, front_end in product(corpora, lengths, zero_fractions, front_ends):
        if codec == "none" and zero_fraction:
            continue  # the codec and the zeros do not know of each other
        setting: dict[str, Any] = {"num_tokens": length, "zero_fraction": zero_fraction, "front_end": front_end}
        name = our_name(codec, length, zero_fraction, front_end)
        loaders[name] = {**OUR_DEFAULTS, "corpus": str(corpora[codec]), **setting}
    pythons = dict.fromkeys(loaders, sys.executable)
    sizes = {f"ours, {codec}": bytes_of_counts(corpus) / num_cells for codec, corpus in corpora.items()}
    sizes["h5ad, gzip"] = sum(path.stat().st_size for path in files) / num_cells
    not_measured = {}
    if annbatch_python is None:
        not_measured["annbatch"] = 'no --annbatch-python (Python >= 3.12 with "annbatch[zarrs]")'
    else:
        store = folder / "annbatch.zarr"
        common = {"loader": "annbatch", "files": list(map(str, files)), "store": str(store), "batch_size": 4096}
        for origin, chunks in ANNBATCH_SETTINGS.items():
            name = f"annbatch, {chunks['preload_nchunks']} chunks of {chunks['chunk_size']} ({origin})"
            loaders[name] = {**common, **chunks, "peers": peers}
            pythons[name] = annbatch_python
    if scdataset_python is None:
        not_measured["scdataset"] = "no --scdataset-python (with scdataset and anndata)"
    else:
        for compression in ("gzip", None):
            name = f"scdataset, h5ad {compression or 'plain'}"
            path = _one_file(folder, files, compression)
            sizes[f"h5ad, {compression or 'plain'}"] = path.stat().st_size / num_cells
            loaders[name] = {"loader": "scdataset", "file": str(path), **SCDATASET_SETTINGS, "peers": peers}
            pythons[name] = scdataset_python
    found, versions = in_rounds(loaders, pythons, rounds, say)
    if annbatch_python is not None:
        sizes["annbatch"] = sum(p.stat().st_size for p in store.rglob("*") if p.is_file()) / num_cells
    return _summary(found, sizes, not_measured, lengths, front_ends[0], _settings(num_cells, rounds, versions))


def our_name(codec: str, length: int, zero_fraction: float, front_end: str) -> str:
    zeros = f", {zero_fraction:.0%} zeros" if zero_fraction else ""
    return f"ours, {codec}, L {length}{zeros}, {front_end}"


def make_stores(folder: Path, num_cells: int, say: Callable[[str], None]) -> tuple[list[Path], dict[str, Path]]:
    """The .h5ad files, and a corpus of them per codec; made where they are not there yet."""
    from data_pipelines.build.build_corpus import build_corpus
    from scmbert_jax.benchmarks.input_cells import write_datasets

    folder.mkdir(parents=True, exist_ok=True)
    made_of = folder / "cells.json"
    if not made_of.is_file():
        if any(folder.iterdir()):
            raise ConfigError(f"{folder}: holds other things than the stores of this benchmark: name another folder")
        say(f"drawing {num_cells:,} cells")
        files = write_datasets(folder, num_cells, NUM_DATASETS)
        made_of.write_text(json.dumps({"num_cells": num_cells, "files": [path.name for path in files]}))
    known = json.loads(made_of.read_text())
    if known["num_cells"] != num_cells:
        raise ConfigError(f"{folder} holds {known['num_cells']} cells, not {num_cells}: name another folder")
    files = [folder / name for name in known["files"]]
    corpora = {}
    for codec in ("zstd", "none"):
        corpora[codec] = folder / f"corpus_{codec}"
        if not corpora[codec].is_dir():
            say(f"building {corpora[codec].name}")
            build_corpus(corpora[codec], files, codec=codec, block_size=BLOCK_CELLS, min_genes=1)
    return files, corpora


def bytes_of_counts(corpus: Path) -> int:
    """Of the shards and their offsets."""
    return sum(path.stat().st_size for path in corpus.glob("shard-*"))


def _one_file(folder: Path, files: list[Path], compression: str | None) -> Path:
    """All cells in one .h5ad, in an order that is not the files', as scDataset is told to have them."""
    import anndata

    path = folder / f"all_{compression or 'plain'}.h5ad"
    if not path.is_file():
        cells = anndata.concat([anndata.read_h5ad(file) for file in files])
        order = np.random.default_rng(0).permutation(cells.n_obs)
        cells[order].copy().write_h5ad(path, compression=compression)
    return path


def in_rounds(
    loaders: dict[str, dict[str, Any]], pythons: dict[str, str], rounds: int, say: Callable[[str], None]
) -> tuple[dict[str, list[dict[str, float]]], dict[str, dict[str, str]]]:
    """Per loader: what each round took, and the versions that it runs with."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in loaders}
    versions = {}
    with ExitStack() as stack:
        epochs = {}
        for name, settings in loaders.items():
            say(f"starting {name}")
            epochs[name], versions[settings["loader"]] = stack.enter_context(_started(settings, pythons[name]))
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for name, measure in epochs.items():
                found[name].append(measure())
    return found, versions


@contextmanager
def _started(settings: dict[str, Any], python: str) -> Iterator[tuple[Callable[[], dict[str, float]], dict[str, str]]]:
    """A process of loader_process.py: (a function that has it go through an epoch, its versions)."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if python != sys.executable:
        environment.pop("PYTHONPATH", None)  # our packages are not for another Python
    command = [python, loader_process.__file__, json.dumps(settings)]
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe that nobody reads would stop a process that says much
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=environment
        )
    except OSError as error:
        said.close()
        raise ConfigError(f"{python} cannot be run ({error.strerror}); needed for {settings['loader']}") from error

    def answer() -> dict[str, Any]:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            said.seek(0)
            raise ConfigError(f"{python} with {settings['loader']} stopped: {said.read().strip()[-2000:]}")
        return json.loads(line)

    def measure() -> dict[str, float]:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        return answer()

    try:
        yield measure, answer()["versions"]
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, said):
            if stream is not None:
                stream.close()


def _summary(
    found: dict[str, list[dict[str, float]]],
    sizes: dict[str, float],
    not_measured: dict[str, str],
    lengths: tuple[int, ...],
    front_end: str,
    settings: dict[str, Any],
) -> InputSpeeds:
    per_cpu = {name: np.array([r["cells"] / r["cpu_s"] for r in results]) for name, results in found.items()}
    wall = {name: np.array([r["cells"] / r["wall_s"] for r in results]) for name, results in found.items()}
    references = [name for name in found if name.startswith(REFERENCE)]
    documented = [name for name in references if "fastest found" not in name]

    def fastest(names: list[str]) -> str | None:
        return max(names, key=lambda name: float(np.median(per_cpu[name])), default=None)

    best = fastest(references)

    def ratio(name: str, other: str | None) -> float | None:
        return None if other is None else float(np.median(per_cpu[name] / per_cpu[other]))

    rows = tuple(
        LoaderSpeed(
            name,
            float(np.median(per_cpu[name])),
            float(np.median(wall[name])),
            max(result["peak_rss_mib"] for result in results),
            ratio(name, best),
        )
        for name, results in found.items()
    )
    ratios = {}
    for what, other in (("annbatch", best), ("annbatch_documented", fastest(documented))):
        for codec, short in (("zstd", "zstd"), ("none", "raw")):
            for length in lengths:
                value = ratio(our_name(codec, length, 0.0, front_end), other) if other is not None else None
                if value is not None:
                    ratios[f"ratio_{short}_L{length}_vs_{what}"] = value
    return InputSpeeds(rows, ratios, sizes, not_measured, {**settings, "front end of the ratios": front_end})


def _settings(num_cells: int, rounds: int, versions: dict[str, dict[str, str]]) -> dict[str, Any]:
    return {
        "cells": num_cells,
        "rounds": rounds,
        "method": "cells per second of user and system time of the loader's process, loaders alternating; medians",
        "ours": {name: value for name, value in OUR_DEFAULTS.items() if name not in ("loader", "cold")},
        "scdataset": SCDATASET_SETTINGS,
        "processors": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "load average": [round(load, 1) for load in os.getloadavg()],
        "versions": versions,
    }
