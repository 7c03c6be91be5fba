"""The FLOP formula is that of the compiled program, where XLA can count it; and it counts no padding."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import padded

from data_pipelines.synthetic.cells import profile_of_tokens
from scmbert_jax.config import MaskedModelingConfig, ModalitiesConfig, ModalityConfig, ModelConfig, ObjectivesConfig
from scmbert_jax.models.flops import (
    TokenCounts,
    counts_of_batch,
    counts_of_full_cells,
    encoder_parameters,
    forward_flops,
)
from scmbert_jax.objectives.mixture import mixture_flops, objectives_of, step_flops
from scmbert_jax.scmbert import ModelDefinition

# Wide enough that products of matrices are nearly all; no linear path, whose component scores are not counted.
WIDE = ModelConfig(
    embed_dim=128, num_layers=3, num_heads=4, head_dim=32, mlp_dim=512, scan_layers=False, linear_path=False
)


def full(batch):
    """The same cells without padding in any row."""
    lengths = {
        name: tokens._replace(
            lengths=np.full_like(tokens.lengths, tokens.counts.shape[1]), measured=tokens.measured | True
        )
        for name, tokens in batch.modalities.items()
    }
    return batch._replace(modalities=lengths)


def counted_by_xla(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", ["masked_modeling", "cross_modal_translation", "contrastive_alignment", "whole_profile"]
)
def test_the_formula_is_what_xla_counts_of_the_forward_and_backward_pass(
    mixed_config, tiny_layout, tiny_batch, objective
):
    # Objectives of the mixed run on full rows; XLA counts what is computed, padding and all.
    objectives = mixed_config.objectives
    weights = {name: float(name == objective) for name in (*objectives.weights(), "whole_profile")}
    chosen = {name: replace(getattr(objectives, name), weight=weight) for name, weight in weights.items()}
    modalities = ModalitiesConfig(rna=ModalityConfig(num_tokens=16), protein=ModalityConfig(num_tokens=8))
    config = replace(mixed_config, model=WIDE, objectives=ObjectivesConfig(**chosen), modalities=modalities)
    layout = replace(tiny_layout, links={})  # the feature table is counted apart
    batch = tiny_batch()
    batch = full(batch._replace(modalities={name: batch.modalities[name] for name in ("rna", "protein")}))
    sizes = {name: stop - first for name, (first, stop) in layout.slices.items()}
    profiles = {name: profile_of_tokens(own, 64, sizes[name]) for name, own in batch.modalities.items()}
    batch = batch._replace(profiles=profiles)
    model = ModelDefinition(config, layout)

    def total(params):
        merged = model.merge(params, model.constants)
        return objectives_of(config)[objective].loss(merged, merged.feature_table(), batch, jax.random.key(1)).total

    expected = counted_by_xla(jax.value_and_grad(total), model.abstract_params)
    found = sum(step_flops(config, objective, counts_of_batch(batch)).values())
    assert found == pytest.approx(expected, rel=0.12)  # softmax, norms and likelihoods are a tenth at this width
    assert found < expected


def test_padding_costs_nothing(mixed_config, tiny_batch):
    for objective in mixed_config.objectives.weights():
        narrow, wide = (
            step_flops(mixed_config, objective, counts_of_batch(batch))
            for batch in (tiny_batch(), padded(tiny_batch(), 5))
        )
        assert narrow == wide


def test_a_token_costs_six_times_its_parameters_and_twelve_times_layers_width_and_row(tiny_config):
    """The formula of facts and papers, on rows of S tokens; bins have no matrices in their embedding."""
    config = replace(
        tiny_config,
        modalities=ModalitiesConfig(rna=ModalityConfig(num_tokens=511, value_encoding="bins")),
        model=replace(WIDE, scan_layers=True),
        objectives=ObjectivesConfig(MaskedModelingConfig(mask_fraction=1e-9)),
    )
    tokens = counts_of_full_cells(config, 10)
    parts = step_flops(config, "masked_modeling", tokens)
    per_layer = 4 * 128 * 128 + 2 * 128 * 512
    assert encoder_parameters(config.model) == 3 * per_layer
    assert parts["encoder"] == 6 * 3 * per_layer * 512 * 10
    assert parts["attention"] == 12 * 3 * 512 * 128 * 512 * 10
    assert parts["embedding"] == 0
    # Embedding needs no more of the last layer than [CLS].
    embedding = forward_flops(config, tokens)
    assert embedding["encoder"] == 2 * per_layer * (2 * 512 + 1) * 10
    assert embedding["attention"] == 4 * (2 * 512 * 128 * 512 + 4 * 128 * 512) * 10


def test_favor_grows_with_the_tokens_and_not_with_their_square(tiny_config):
    config = replace(tiny_config, model=replace(WIDE, attention="favor", favor_features=64))

    def attention(length: float) -> float:
        tokens = TokenCounts({"rna": np.full(4, length)}, {"rna": np.full(4, length)})
        return step_flops(config, "masked_modeling", tokens)["attention"]

    assert attention(2 * 1000 + 1) == pytest.approx(2 * attention(1000))
    assert attention(999) == 24 * 3 * 64 * 128 * 1000 * 4


def test_a_cell_without_the_modality_costs_nothing_and_a_mixture_is_the_mean_of_its_objectives(mixed_config):
    both = TokenCounts({"rna": np.array([16.0, 16.0]), "protein": np.array([8.0, 0.0])}, {})
    one = TokenCounts({"rna": np.array([16.0]), "protein": np.array([8.0])}, {})
    one_way = replace(mixed_config.objectives.cross_modal_translation, directions=("protein>rna",))
    config = replace(mixed_config, objectives=replace(mixed_config.objectives, cross_modal_translation=one_way))
    assert step_flops(config, "cross_modal_translation", both) == step_flops(config, "cross_modal_translation", one)
    tokens = counts_of_full_cells(mixed_config, 4)
    each = [sum(step_flops(mixed_config, name, tokens).values()) for name in mixed_config.objectives.weights()]
    assert mixture_flops(mixed_config, tokens) == pytest.approx(sum(each) / len(each))
