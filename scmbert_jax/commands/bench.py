"""Verbs that measure speed: bench objectives, bench favor."""

from dataclasses import dataclass
from pathlib import Path

from scmbert_jax.commands.terminal import print_json, say
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
class BenchFavor:
    """Time and memory of the encoder with `favor` attention at scBERT's sizes, beside performer-pytorch's.

    One row of 16,907 tokens in float32 on CPUs: a forward pass and a training step, the two programs by turns; and
    whether their attentions agree, given the same random directions.

    Example:  scmbert bench favor --torch-python peer/bin/python
    """

    torch_python: Path | None = None
    """A Python that has torch and performer-pytorch (python -m venv peer; peer/bin/pip install torch
    performer-pytorch); without it, ours is measured alone."""
    tokens: int = 16_907
    """Per row."""
    layers: int = 6
    """Of the encoder."""
    turns: int = 3
    """Each figure is the median over so many."""
    threads: int = 2
    """CPUs that either may use."""
    json: bool = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from scmbert_jax.benchmarks.favor_speed import EncoderSizes, measure_favor

        sizes = {"tokens": self.tokens, "layers": self.layers}
        for name, number in (sizes | {"turns": self.turns, "threads": self.threads}).items():
            least = 2 if name == "tokens" else 1
            if number < least:
                raise ConfigError(f"--{name} {number}: expected {least} or more.")
        found = measure_favor(EncoderSizes(**sizes), self.torch_python, self.turns, self.threads, say)
        if self.json:
            print_json(found.to_dict())
        else:
            print(found.text())
            print(", ".join(f"{name} {value}" for name, value in found.settings.items()))
        return 0
