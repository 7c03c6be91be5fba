"""No two uses of a seed share a random key."""

import zlib
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from data_pipelines.synthetic.cells import synthetic_batch
from scmbert_jax.config import (
    ContrastiveAlignmentConfig,
    CrossModalTranslationConfig,
    MaskedModelingConfig,
    ObjectivesConfig,
    WholeProfileConfig,
)
from scmbert_jax.evaluation.pretraining.masked_cells import mask_key
from scmbert_jax.evaluators.held_out_losses import fixed_key
from scmbert_jax.models.attention import favor
from scmbert_jax.objectives.contrastive_alignment import objective as contrastive_alignment
from scmbert_jax.objectives.mixture import objectives_of
from scmbert_jax.objectives.whole_profile import objective as whole_profile
from scmbert_jax.random_keys import KeyPurpose, row_keys, run_key, step_key
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training import train_state

STEP, MANY = 3, np.arange(100)
ALL_STEPS = 10**8  # more than any run has


@pytest.fixture
def drawn_with(tiny_config, known_layout, monkeypatch) -> dict[str, list]:
    """Use -> the numbers of the keys that the code draws with: of a new run, and of step 3 of each objective."""
    objectives = ObjectivesConfig(
        masked_modeling=MaskedModelingConfig(weight=0.0),
        cross_modal_translation=CrossModalTranslationConfig(
            weight=1.0, directions=("rna>protein", "protein>rna"), cycle_weight=0.5, cycle_features=6
        ),
        contrastive_alignment=ContrastiveAlignmentConfig(weight=1.0, projection_dim=8, link_weight=0.5),
        whole_profile=WholeProfileConfig(weight=1.0, hidden_dim=16, profile_tokens=8, features_per_step=10),
    )
    config = replace(tiny_config, objectives=objectives)
    model, found = ModelDefinition(config, known_layout), {"links": [], "profile": [], "cycle": []}

    def spied(module, name, use, place):
        plain = getattr(module, name)

        def spy(*args, **kwargs):
            jax.debug.callback(found[use].append, jax.random.key_data(args[place]))
            return plain(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)

    with monkeypatch.context() as patch:
        patch.setattr(ModelDefinition, "init", lambda self, key: key)
        streams = nnx.Rngs(params=train_state._initial_params(model))
    found["parameters"] = [jax.random.key_data(streams.params()) for _ in MANY]
    spied(contrastive_alignment, "_link_loss", "links", 2)
    spied(whole_profile, "draw_features", "profile", 0)
    spied(jax.random, "permutation", "cycle", 0)
    tokens = {name: modality.num_tokens for name, modality in config.modalities.in_use().items()}
    batch = synthetic_batch(known_layout, 16, tokens, seed=1, step=2, profile_tokens=config.profile_tokens)

    @jax.jit
    def step(params, constants, batch):
        merged, key = model.merge(params, constants), step_key(config.seed, STEP)
        for own in objectives_of(config).values():
            own.loss(merged, merged.feature_table(), batch, key)

    # Keys depend on no parameter, and nothing but keys is computed of a step that returns nothing.
    step(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), model.abstract_params), model.constants, batch)
    jax.effects_barrier()
    return found


def test_no_two_uses_of_a_seed_share_a_key(drawn_with, tiny_config):
    seed = tiny_config.seed
    keys = {
        "run": [run_key(seed)],
        "steps": [step_key(seed, step) for step in MANY],
        "rows": list(row_keys(step_key(seed, STEP), MANY)),
        "held-out losses": [fixed_key(seed)],
        "evaluation": [mask_key(seed)],
    }
    numbers = {use: [jax.random.key_data(key) for key in own] for use, own in keys.items()} | drawn_with
    users: dict[tuple, set[str]] = {}
    for use, own in numbers.items():
        assert own, use
        for key in own:
            users.setdefault(tuple(np.asarray(key).tolist()), set()).add(use)
    # Each objective has steps of its own, so two of them may choose features alike.
    assert not [shared for shared in users.values() if len(shared) > 1 and shared != {"profile", "cycle"}]


@pytest.mark.parametrize("sharing", ["shared", "multiway", "per_modality"])
def test_no_place_of_random_directions_is_a_step_or_a_purpose(tiny_config, tiny_layout, monkeypatch, sharing):
    places = []

    def spy(text: bytes) -> int:
        places.append(zlib.crc32(text))
        return places[-1]

    monkeypatch.setattr(favor, "zlib", SimpleNamespace(crc32=spy))
    model = replace(tiny_config.model, attention="favor", encoder_sharing=sharing, linear_path=False)
    ModelDefinition(replace(tiny_config, model=model), tiny_layout)
    assert places
    assert min(places) > ALL_STEPS
    assert not set(places) & set(KeyPurpose)
