"""No two uses of a run's seed in its steps share a random key."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from data_pipelines.synthetic.cells import synthetic_batch
from scmbert_jax.config import (
    ContrastiveAlignmentConfig,
    CrossModalTranslationConfig,
    MaskedModelingConfig,
    ObjectivesConfig,
    WholeProfileConfig,
)
from scmbert_jax.models.scmbert import ModelDefinition
from scmbert_jax.objectives import contrastive_alignment, whole_profile
from scmbert_jax.objectives.mixture import objectives_of
from scmbert_jax.random_keys import row_keys, run_key, step_key

STEP, MANY = 3, np.arange(100)


@pytest.fixture
def drawn_with(tiny_config, known_layout, monkeypatch) -> dict[str, list]:
    """Use -> the keys that the code draws with: of step 3 of each objective."""
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
            found[use].append(args[place])
            return plain(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)

    params = model.init(run_key(1))
    spied(contrastive_alignment, "_link_loss", "links", 2)
    spied(whole_profile, "draw_features", "profile", 0)
    spied(jax.random, "permutation", "cycle", 0)
    merged = model.merge(params, model.constants)
    tokens = {name: modality.num_tokens for name, modality in config.modalities.in_use().items()}
    batch = synthetic_batch(known_layout, 16, tokens, seed=1, step=2, profile_tokens=config.profile_tokens)
    for objective in objectives_of(config).values():
        objective.loss(merged, merged.feature_table(), batch, step_key(config.seed, STEP))
    return found


def test_no_two_uses_of_a_step_share_a_key(drawn_with, tiny_config):
    seed = tiny_config.seed
    keys = {
        "run": [run_key(seed)],
        "steps": [step_key(seed, step) for step in MANY],
        "rows": list(row_keys(step_key(seed, STEP), MANY)),
        **drawn_with,
    }
    users: dict[tuple, set[str]] = {}
    for use, own in keys.items():
        assert own, use
        for key in own:
            users.setdefault(tuple(np.asarray(jax.random.key_data(key)).tolist()), set()).add(use)
    # Each objective has steps of its own, so two of them may choose features alike.
    assert not [shared for shared in users.values() if len(shared) > 1 and shared != {"profile", "cycle"}]
