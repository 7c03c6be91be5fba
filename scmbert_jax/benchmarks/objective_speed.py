"""What a training step of each objective costs beside one of masked modelling: time and memory, same cells, same model.

Synthetic cells with both modalities. The objectives are timed alternately, so that a noisy machine is noisy for all of
them; each figure is the median over the rounds.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np

from data_pipelines.synthetic.cells import synthetic_batch, synthetic_layout
from data_pipelines.synthetic.networks import with_synthetic_network
from scmbert_jax.config import (
    ContrastiveAlignmentConfig,
    CrossModalTranslationConfig,
    DataConfig,
    ExperimentConfig,
    LinkPredictionConfig,
    MaskedModelingConfig,
    ModalitiesConfig,
    ModalityConfig,
    ModelConfig,
    ObjectivesConfig,
    WholeProfileConfig,
)
from scmbert_jax.objectives.mixture import objectives_of
from scmbert_jax.parallel.mesh import make_mesh
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.text_table import markdown_table
from scmbert_jax.training.optimizer import make_optimizer
from scmbert_jax.training.train_state import initial_state
from scmbert_jax.training.train_step import make_train_step

REFERENCE = "masked_modeling"
_OFF = MaskedModelingConfig(weight=0.0)
MIXTURES = {
    REFERENCE: ObjectivesConfig(),
    "cross_modal_translation": ObjectivesConfig(_OFF, CrossModalTranslationConfig(weight=1.0)),
    "cross_modal_translation, cycle": ObjectivesConfig(
        _OFF, CrossModalTranslationConfig(weight=1.0, pair_weight=0.0, cycle_weight=1.0)
    ),
    "contrastive_alignment": ObjectivesConfig(
        _OFF, contrastive_alignment=ContrastiveAlignmentConfig(weight=1.0, negatives="all")
    ),
    "whole_profile": ObjectivesConfig(_OFF, whole_profile=WholeProfileConfig(weight=1.0)),
    "link_prediction": ObjectivesConfig(_OFF, link_prediction=LinkPredictionConfig(weight=1.0)),
}
_EDGES = 20_000  # of its network


@dataclass(frozen=True)
class StepCost:
    """One objective.

    Attributes:
      objective: its name.
      ms_per_step: median.
      steps_per_second: 1000 / ms_per_step.
      time_ratio: ms_per_step beside the reference's, median of the ratios within each round.
      peak_bytes: arguments, outputs and temporaries of the compiled step, as XLA reports them; None where it does not.
      memory_ratio: beside the reference's.
    """

    objective: str
    ms_per_step: float
    steps_per_second: float
    time_ratio: float
    peak_bytes: int | None
    memory_ratio: float | None


@dataclass(frozen=True)
class ObjectiveCosts:
    """All of one call; `settings` says what was measured on what."""

    rows: tuple[StepCost, ...]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [asdict(row) for row in self.rows], "settings": self.settings}

    def text(self) -> str:
        head = ["objective", "ms per step", "steps/s", "time", "memory (MiB)", "memory"]
        lines = [
            [
                row.objective,
                f"{row.ms_per_step:.0f}",
                f"{row.steps_per_second:.2f}",
                f"{row.time_ratio:.2f}x",
                "?" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
                "?" if row.memory_ratio is None else f"{row.memory_ratio:.2f}x",
            ]
            for row in self.rows
        ]
        return markdown_table(head, lines)


def measure_objectives(
    batch_size: int = 32,
    embed_dim: int = 128,
    num_layers: int = 4,
    num_tokens: tuple[int, int] = (192, 96),
    rounds: int = 7,
    steps_per_round: int = 3,
    say: Callable[[str], None] = lambda message: None,
) -> ObjectiveCosts:
    """Times the jitted train step, optimizer included, of each objective alone.

    Args:
      batch_size: cells per step, each measured in RNA and protein.
      embed_dim, num_layers: of the model; heads of 32, feed-forward of four times the width.
      num_tokens: of RNA and of protein per cell.
      rounds, steps_per_round: after one step to warm up.
    """
    tokens = {"rna": num_tokens[0], "protein": num_tokens[1]}
    layout = synthetic_layout(2000, 200)
    batch = synthetic_batch(layout, batch_size, tokens, 0, 0, profile_tokens=WholeProfileConfig().profile_tokens)
    batch = jax.tree.map(jax.numpy.asarray, batch)
    heads = embed_dim // 32
    config = ExperimentConfig(
        modalities=ModalitiesConfig(**{name: ModalityConfig(num_tokens=number) for name, number in tokens.items()}),
        data=DataConfig(global_batch_size=batch_size),
        model=ModelConfig(
            embed_dim=embed_dim,
            num_layers=num_layers,
            num_heads=heads,
            head_dim=32,
            mlp_dim=4 * embed_dim,
        ),
    )
    steps, memory = {}, {}
    for name, mixture in MIXTURES.items():
        say(f"compiling {name}")
        model, of_features = config.model, layout
        if mixture.link_prediction.weight > 0:
            model = replace(model, networks=("synthetic",), graph="learned")
            of_features = with_synthetic_network(layout, _EDGES)
        own = replace(config, model=model, objectives=mixture)
        steps[name], memory[name] = _compiled_step(own, of_features, batch)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name, step in steps.items():
            times[name].append(step(steps_per_round))
    reference, reference_memory = np.array(times[REFERENCE]), memory[REFERENCE]
    rows = []
    for name, measured in times.items():
        seconds = float(np.median(measured))
        used = memory[name]
        rows.append(
            StepCost(
                name,
                1000 * seconds,
                1 / seconds,
                float(np.median(np.array(measured) / reference)),
                used,
                used / reference_memory if used and reference_memory else None,
            )
        )
    settings = {
        "cells per step": batch_size,
        "tokens per cell": tokens,
        "embed_dim": embed_dim,
        "num_layers": num_layers,
        "rounds": rounds,
        "steps per round": steps_per_round,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    return ObjectiveCosts(tuple(rows), settings)


def _compiled_step(config: ExperimentConfig, layout, batch) -> tuple[Callable[[int], float], int | None]:
    """(a function that takes so many steps and gives seconds per step, bytes of the compiled step)."""
    definition, mesh = ModelDefinition(config, layout), make_mesh(config.mesh)
    optimizer = make_optimizer(config, definition)
    state = initial_state(definition, optimizer, mesh)
    (objective,) = objectives_of(config).values()
    step = jax.jit(make_train_step(definition, objective, optimizer), donate_argnums=0)
    constants = definition.constants
    with jax.set_mesh(mesh):
        compiled = step.lower(state, constants, batch).compile()
    analysis = compiled.memory_analysis()
    used = None
    if analysis is not None:
        # The state is donated: what is both argument and output is there once.
        used = int(
            analysis.argument_size_in_bytes
            + analysis.output_size_in_bytes
            + analysis.temp_size_in_bytes
            - analysis.alias_size_in_bytes
        )
    held = [state]

    def take(number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            held[0], metrics = compiled(held[0], constants, batch)
        jax.block_until_ready((held[0], metrics))
        return (time.perf_counter() - start) / number

    take(1)
    return take, used
