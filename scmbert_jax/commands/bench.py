"""Verbs that measure speed: bench objectives, bench input."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scmbert_jax.commands.terminal import print_json, say
from scmbert_jax.errors import ConfigError

if TYPE_CHECKING:
    from scmbert_jax.benchmarks.input_scaling import InputScaling
    from scmbert_jax.benchmarks.input_speed import InputSpeeds
    from scmbert_jax.benchmarks.stored_sizes import StoredSizes


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
class BenchInput:
    """Cells per second of the input pipeline, beside the loaders of annbatch and scDataset.

    Synthetic cells (1,635 genes each of 36,601), the same for all; every loader reads its own kind of store, in a
    process of its own, and they take turns. The others need a Python that has them; annbatch, 3.12 or later.

    Example:  scmbert bench input --annbatch-python other/bin/python
              scmbert bench input --cells 16384 --lengths 2048 --json
              scmbert bench input --scaling
              scmbert bench input --files example:pbmc_mosaic my.h5ad
    """

    cells: int = 32_768
    """Of an epoch."""
    lengths: tuple[int, ...] = (1024, 2048)
    """Tokens per cell."""
    front_ends: tuple[Literal["threads", "tfdata"], ...] = ("threads",)
    """Ways to make batches ahead; the ratios are those of the first. Every loader takes about 0.5 GB of memory."""
    zero_fractions: tuple[float, ...] = (0.0, 0.25)
    """Shares of tokens that are measured zeros; the ratios are those of 0."""
    annbatch_python: str | None = None
    """A Python with "annbatch[zarrs]"."""
    scdataset_python: str | None = None
    """A Python with scdataset and anndata."""
    rounds: int = 5
    """Each figure is the median over so many epochs of every loader."""
    scaling: bool = False
    """Instead of the above: speed and memory against corpus size, tokens per cell, window and streams; mixing; hosts;
    a cold page cache."""
    files: tuple[str, ...] = ()
    """Instead of the above: bytes per cell of these counts files as a corpus, as gzip h5ad and as zarr."""
    folder: Path | None = None
    """For the stores, which are used again; otherwise they are made in a temporary folder and removed."""
    json: bool = False
    """One JSON document on stdout."""

    def run(self) -> int:
        import tempfile

        if self.files:
            from scmbert_jax.benchmarks.stored_sizes import measure_sizes

            return self._show(measure_sizes(self.files, say=say))
        for name, number in {
            "cells": self.cells,
            "rounds": self.rounds,
            "lengths": min(self.lengths, default=0),
        }.items():
            if number < 1:
                raise ConfigError(f"--{name} {number}: expected 1 or more.")
        if not self.front_ends or not self.zero_fractions:
            raise ConfigError("--front-ends and --zero-fractions: expected at least one each.")
        if self.scaling and self.cells < 8192:
            raise ConfigError(
                f"--cells {self.cells}: --scaling needs 8192 or more, as it also reads an eighth of them."
            )
        with tempfile.TemporaryDirectory(prefix="scmbert_bench_") as temporary:
            folder = self.folder or Path(temporary)
            if self.scaling:
                from scmbert_jax.benchmarks.input_scaling import measure_scaling

                return self._show(measure_scaling(folder, self.cells, self.rounds, say=say))
            from scmbert_jax.benchmarks.input_speed import measure_input

            return self._show(
                measure_input(
                    folder,
                    self.cells,
                    self.lengths,
                    self.front_ends,
                    self.zero_fractions,
                    self.annbatch_python,
                    self.scdataset_python,
                    self.rounds,
                    say,
                )
            )

    def _show(self, found: "InputSpeeds | InputScaling | StoredSizes") -> int:
        if self.json:
            print_json(found.to_dict())
        else:
            print(found.text())
            print(", ".join(f"{name} {value}" for name, value in found.settings.items()))
        return 0
