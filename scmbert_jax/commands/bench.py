"""Verbs that measure speed: bench objectives, bench build."""

from dataclasses import dataclass
from pathlib import Path

from scmbert_jax.commands.terminal import print_json, say, staged_progress
from scmbert_jax.errors import ConfigError


@dataclass(frozen=True)
class BenchObjectives:
    """Time and memory of a training step of each objective, beside one of masked modelling.

    Synthetic cells, one model size, the objectives in turns; no file is needed.

    Example:  scmbert bench objectives
              scmbert bench objectives --batch-size 64 --embed-dim 256 --num-layers 6 --json
    """

    batch_size: int = 32
    """Cells per step."""
    embed_dim: int = 128
    """Width of the model; a multiple of 32."""
    num_layers: int = 4
    """Of the encoder."""
    num_tokens: tuple[int, int] = (192, 96)
    """Of RNA and of protein per cell."""
    turns: int = 7
    """Each figure is the median over so many."""
    steps_per_turn: int = 3
    """Timed together."""
    json: bool = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from scmbert_jax.benchmarks.objective_speed import measure_objectives

        sizes = {"batch-size": self.batch_size, "num-layers": self.num_layers, "turns": self.turns}
        sizes |= {"steps-per-turn": self.steps_per_turn, "num-tokens": min(self.num_tokens)}
        for name, number in sizes.items():
            if number < 1:
                raise ConfigError(f"--{name} {number}: expected 1 or more.")
        if self.embed_dim < 32 or self.embed_dim % 32:
            raise ConfigError(f"--embed-dim {self.embed_dim}: expected a multiple of 32.")
        found = measure_objectives(
            batch_size=self.batch_size,
            embed_dim=self.embed_dim,
            num_layers=self.num_layers,
            num_tokens=self.num_tokens,
            turns=self.turns,
            steps_per_turn=self.steps_per_turn,
            say=say,
        )
        if self.json:
            print_json(found.to_dict())
        else:
            print(found.text())
            print(", ".join(f"{name} {value}" for name, value in found.settings.items()))
        return 0


@dataclass(frozen=True)
class BenchBuild:
    """Time, memory and disk of building a corpus of synthetic cells, and the wait for the first batch of it.

    Example:  scmbert bench build --cells 100000
              scmbert bench build --cells 5000000 --workers 8 --folder /scratch --json
    """

    cells: int
    """How many; of 36,601 genes, about 1,635 with a count."""
    workers: int | None = None
    """Processes; left out: one for each CPU."""
    folder: Path | None = None
    """Where to build, with about 4 kB of room per cell; what is built is removed. Left out: the temporary folder."""
    json: bool = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from scmbert_jax.benchmarks.build_speed import measure_build

        for name, number in {"cells": self.cells, "workers": self.workers}.items():
            if number is not None and number < 1:
                raise ConfigError(f"--{name} {number}: expected 1 or more.")
        if self.folder is not None and not self.folder.is_dir():
            raise ConfigError(f"--folder {self.folder}: no such folder.")
        found = measure_build(self.cells, self.workers, self.folder, staged_progress())
        if self.json:
            print_json(found.to_dict())
        else:
            print(found.text())
            print(", ".join(f"{name} {value}" for name, value in found.settings.items()))
        return 0
