"""What a step keeps, how it lies and what it moves, for a few (experiment, topology), as JSON beside this file.

    python tests/golden/goldens.py             shows what differs from the files
    python tests/golden/goldens.py --refresh   and writes them anew

A golden that fails is no error by itself: see whether what it shows was meant, refresh, and commit the difference.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_pipelines.synthetic.cells import synthetic_layout
from scmbert_jax.config import (
    DataConfig,
    ExperimentConfig,
    MeshConfig,
)
from scmbert_jax.experiment_files import load_experiment
from scmbert_jax.planning.compile_process import compile_apart
from scmbert_jax.planning.compiled_step import CompiledExperiment
from scmbert_jax.planning.program_text import summary
from scmbert_jax.planning.topologies import topology_named

FOLDER = Path(__file__).resolve().parent
# Memory may grow by this fraction before a golden fails: schedulers differ a little between machines.
MARGIN = 0.05
_COMPILERS = ("jax", "jaxlib", "libtpu")


class Case(NamedTuple):
    """An experiment, changed so that it compiles fast, on a topology, with features of (RNA, protein, ATAC)."""

    experiment: str
    topology: str
    change: Callable[[ExperimentConfig], ExperimentConfig]
    features: tuple[int, int, int]

    def config(self) -> ExperimentConfig:
        return self.change(load_experiment(self.experiment))


def _small(config: ExperimentConfig) -> ExperimentConfig:
    # `xla`: what `xla_chunked` does on a CPU says how its arrays lie, so that the residual stream need not.
    model = replace(config.model, num_layers=2, attention="xla")
    return replace(config, data=DataConfig(global_batch_size=16, num_streams=2), model=model)


def _on_all_axes(config: ExperimentConfig) -> ExperimentConfig:
    return replace(
        config, mesh=MeshConfig(replica=2, fsdp=2, tensor=2), train=replace(config.train, num_microbatches=2)
    )


def _on_tpu(config: ExperimentConfig) -> ExperimentConfig:
    # 8 cells a chip at a time on 16 chips.
    data = replace(config.data, global_batch_size=128)
    return replace(config, model=replace(config.model, attention="splash"), data=data)


def _on_many(config: ExperimentConfig) -> ExperimentConfig:
    return replace(config, model=replace(config.model, attention="splash"), mesh=MeshConfig(replica=16))


CASES = {
    f"{case.experiment}.{case.topology}": case
    for case in (
        Case("small_10m", "cpu-8", _small, (2000, 100, 1000)),
        Case("tiny", "cpu-8", _on_all_axes, (200, 20, 100)),
        Case("small_10m", "v5e-16", _on_tpu, (36_601, 228, 200_000)),
        Case("small_10m", "v6e-256", _on_many, (36_601, 228, 200_000)),
    )
}


def compiled(name: str) -> CompiledExperiment:
    case = CASES[name]
    return compile_apart(case.config(), synthetic_layout(*case.features), topology_named(case.topology)).experiment


def compiler_versions() -> dict[str, str]:
    """Of what decides a program; "" where it is not installed."""

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return ""

    return {package: of(package) for package in _COMPILERS}


def pinned_versions() -> dict[str, str]:
    """The same of constraints.txt, with which the goldens are made."""
    lines = (FOLDER.parents[1] / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {package: pins[package] for package in _COMPILERS}


def snapshot(experiment: CompiledExperiment) -> dict[str, Any]:
    """What a golden file holds."""
    return {
        "made_with": compiler_versions(),
        "mesh": experiment.mesh,
        "memory_bytes": {step.objective: step.memory.total for step in experiment.steps},
        "collectives": {
            step.objective: {
                kind: [row["instructions"], row["times"]] for kind, row in summary(step.collectives).items()
            }
            for step in experiment.steps
        },
        "params": {
            path: f"{list(shape)} ({spec}) {list(of_a_chip)}"
            for path, (shape, spec, of_a_chip) in experiment.params.items()
        },
    }


def read(name: str) -> dict[str, Any] | None:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def differences(golden: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What a golden test fails for, one line each."""
    lines = []
    for objective in sorted(golden["memory_bytes"].keys() | found["memory_bytes"].keys()):
        before, now = golden["memory_bytes"].get(objective), found["memory_bytes"].get(objective)
        if before is None or now is None:
            lines.append(f"objective {objective}: {'new' if before is None else 'gone'}")
        elif now > before * (1 + MARGIN):
            lines.append(f"memory of {objective}: {now / 2**20:,.1f} MiB a chip, the golden is {before / 2**20:,.1f}")
    for part in ("mesh", "collectives", "params"):
        before, now = _flat(golden[part]), _flat(found[part])
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                lines.append(f"{part} {key}: {now.get(key, 'none')}, the golden has {before.get(key, 'none')}")
    return lines


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key} ") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def main(refresh: bool) -> int:
    differ = 0
    for name, case in CASES.items():
        if topology_named(case.topology).platform == "tpu" and not compiler_versions()["libtpu"]:
            print(f"{name}: left as it is, libtpu is not installed (pip install 'scmbert_jax[tpu]')")
            continue
        found, golden = snapshot(compiled(name)), read(name)
        lines = ["is new"] if golden is None else differences(golden, found)
        if golden and golden["memory_bytes"] != found["memory_bytes"]:
            lines.append(f"memory {golden['memory_bytes']} -> {found['memory_bytes']}")
        differ += bool(lines)
        print(f"{name}: " + ("\n  ".join(["differs", *lines]) if lines else "as the golden"))
        if refresh:
            (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0 if refresh or not differ else 1


if __name__ == "__main__":
    raise SystemExit(main("--refresh" in sys.argv[1:]))
