"""What one training step of each objective computes, as JSON beside this file: sums of losses, norms of gradients.

    python tests/golden/step_numbers.py             shows what differs from the file
    python tests/golden/step_numbers.py --refresh   and writes it anew

The step is the one that `pretrain` compiles, at XLA's default optimisation level, from where a run starts, on fixed
cells of three modalities. A golden that fails says that training would go another way than before. Where that is meant
(another loss, other draws, another optimizer), refresh, commit the difference, and say so in the CHANGELOG.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (1, 2)]

import jax
import jax.numpy as jnp
import numpy as np
import optax
from conftest import XLA_DEFAULT  # before JAX starts
from fixed_numbers import fixed, with_fixed_statistics

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
    OptimizerConfig,
    TrainConfig,
    WholeProfileConfig,
)
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.objectives.mixture import objectives_of
from scmbert_jax.random_keys import init_key
from scmbert_jax.training.optimizer import make_optimizer
from scmbert_jax.training.train_state import TrainState
from scmbert_jax.training.train_step import make_train_step

GOLDEN = Path(__file__).resolve().parent / "step_numbers.json"
# float32 sums in another order, on other processors; without any optimisation the numbers differ by 5e-7.
RTOL = 2e-5
TOKENS = {"rna": 16, "protein": 8, "atac": 8}
STEP = 3  # in the middle of the warm-up, so that the learning rate is neither 0 nor the peak
CONFIG = ExperimentConfig(
    # One encoding and one likelihood each.
    modalities=ModalitiesConfig(
        rna=ModalityConfig(num_tokens=TOKENS["rna"]),
        protein=ModalityConfig(
            num_tokens=TOKENS["protein"], zero_fraction=0.0, value_encoding="bins", likelihood="bins"
        ),
        atac=ModalityConfig(num_tokens=TOKENS["atac"], likelihood="bernoulli"),
    ),
    data=DataConfig(global_batch_size=16, num_streams=2, window_blocks=2),
    model=ModelConfig(embed_dim=16, num_layers=2, num_heads=2, head_dim=8, mlp_dim=32, covariates=("technical_batch",)),
    objectives=ObjectivesConfig(
        masked_modeling=MaskedModelingConfig(keep_fraction=0.1),
        cross_modal_translation=CrossModalTranslationConfig(
            weight=1.0,
            directions=("rna>protein", "protein>atac", "atac>rna"),
            cycle_weight=0.5,
            cycle_features=6,
            source_fraction=0.75,
        ),
        contrastive_alignment=ContrastiveAlignmentConfig(weight=1.0, projection_dim=8, link_weight=0.5),
        whole_profile=WholeProfileConfig(weight=1.0, hidden_dim=16, profile_tokens=8, features_per_step=10),
    ),
    optimizer=OptimizerConfig(warmup_steps=5),
    train=TrainConfig(num_steps=20, num_microbatches=2),
)
# A model whose rows hear their neighbours.
NETWORK_CONFIG = replace(
    CONFIG,
    model=replace(CONFIG.model, networks=("synthetic",), graph="learned"),
    objectives=ObjectivesConfig(
        MaskedModelingConfig(weight=0.0), link_prediction=LinkPredictionConfig(weight=1.0, edges_per_step=24)
    ),
)


def numbers() -> dict[str, dict[str, float]]:
    """Objective -> name -> number: sums of losses and of their weights, the norm of the gradient, that of each part of
    the model after clipping, and the norm of the update."""
    layout = synthetic_layout(40, 12, 20, {"technical_batch": 3})
    return _numbers(CONFIG, layout) | _numbers(NETWORK_CONFIG, with_synthetic_network(layout, 100))


def _numbers(config: ExperimentConfig, layout: FeatureLayout) -> dict[str, dict[str, float]]:
    model = with_fixed_statistics(config, layout, lowest=0.5, linear_scale=0.003)
    # Where a run starts, shaken: output layers start at zero, where nothing behind them shows.
    params = jax.tree.map(
        lambda x, noise: x + noise, jax.jit(model.init)(init_key(0)), fixed(model.abstract_params, 0.1)
    )
    optimizer = make_optimizer(config, model)
    batch = synthetic_batch(layout, 16, TOKENS, seed=1, step=2, mosaic=True, profile_tokens=config.profile_tokens)
    opt_state = optimizer.init(params)
    opt_state = jax.tree.map(lambda x: x + STEP if jnp.issubdtype(x.dtype, jnp.integer) else x, opt_state)
    found: dict[str, dict[str, float]] = {}
    for name, objective in objectives_of(config).items():
        step = jax.jit(make_train_step(model, objective, optimizer), compiler_options=XLA_DEFAULT)
        after, metrics = step(TrainState(params, opt_state, jnp.int32(STEP)), model.constants, batch)
        own = {key: float(value) for key, value in metrics.items()}
        sums = {key: value * own.get(f"{key}_weight", 1.0) for key, value in own.items()}
        # What was zero is now this fraction of the gradient.
        moments = optax.tree_utils.tree_get(after.opt_state, "mu")
        parts = {f"gradient of {part}": norm(tree) / (1 - config.optimizer.beta1) for part, tree in moments.items()}
        update = norm(jax.tree.map(jnp.subtract, after.params, params))
        found[name] = {key: float(f"{value:.8g}") for key, value in {**sums, **parts, "update": update}.items()}
    return found


def norm(tree: Any) -> float:
    """Of all its arrays together."""
    return float(np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(tree))))


def differences(golden: dict[str, dict[str, float]], found: dict[str, dict[str, float]]) -> list[str]:
    """What the golden test fails for, one line each."""
    lines = []
    for objective in sorted(golden.keys() | found.keys()):
        before, now = golden.get(objective, {}), found.get(objective, {})
        for name in [*before, *(name for name in now if name not in before)]:
            one, other = before.get(name), now.get(name)
            if one is None or other is None or not np.isclose(other, one, rtol=RTOL, atol=0):
                lines.append(f"{objective}, {name}: {other}, the golden has {one}")
    return lines


def main(refresh: bool) -> int:
    found = numbers()
    lines = differences(json.loads(GOLDEN.read_text()), found) if GOLDEN.is_file() else ["is new"]
    print("step_numbers: " + ("\n  ".join(["differs", *lines]) if lines else "as the golden"))
    if refresh:
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if refresh or not lines else 1


if __name__ == "__main__":
    raise SystemExit(main("--refresh" in sys.argv[1:]))
