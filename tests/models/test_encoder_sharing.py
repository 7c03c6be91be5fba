"""What modalities share of the encoder: everything, the attention, nothing. Their invariances: test_embeddings."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import without

from scmbert_jax.config import ModalityConfig
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.models.token_sequence import pack_tokens
from scmbert_jax.objectives.mixture import objectives_of
from scmbert_jax.scmbert import ModelDefinition

SHARINGS = ("shared", "multiway", "per_modality")


def definition_of(config, layout, how):
    model = dataclasses.replace(config.model, encoder_sharing=how)
    return ModelDefinition(dataclasses.replace(config, model=model), layout)


def start_of(definition):
    return jax.jit(definition.init)(jax.random.key(0))


@partial(jax.jit, static_argnums=0)
def states_of(definition, params, batch):
    """Token states float32 [B, 1 + S, D] and their modality int32 [B, S], -1 where padding."""
    model, tokens = definition.merge(params, definition.constants), pack_tokens(batch)
    return model.encode(model.feature_table(), tokens), jnp.where(tokens.valid, tokens.modality, -1)


def counts_gone(batch, modality):
    """The same tokens, all of count 0: an input that no bin hides."""
    tokens = batch.modalities[modality]
    return batch._replace(modalities={**batch.modalities, modality: tokens._replace(counts=tokens.counts * 0)})


@pytest.mark.slow
@pytest.mark.parametrize("how", SHARINGS)
def test_a_modality_that_no_cell_measured_leaves_every_objective_finite(mixed_config, known_layout, tiny_batch, how):
    """Two modalities, so that it compiles in bearable time."""
    two = dataclasses.replace(mixed_config.modalities, atac=ModalityConfig())
    definition = definition_of(dataclasses.replace(mixed_config, modalities=two), known_layout, how)
    objectives = objectives_of(definition.config)
    batch = tiny_batch()
    batch = batch._replace(modalities={name: own for name, own in batch.modalities.items() if name != "atac"})

    def total(params, batch):
        model = definition.merge(params, definition.constants)
        table = model.feature_table()
        sums = {name: own.loss(model, table, batch, jax.random.key(1)) for name, own in objectives.items()}
        return sum(own.total for own in sums.values()), sums

    value_and_gradients = jax.jit(jax.value_and_grad(total, has_aux=True))
    params = start_of(definition)
    (_, whole), _ = value_and_gradients(params, batch)
    (_, part), gradients = value_and_gradients(params, without(batch, "protein"))
    assert all(np.isfinite(own.total) for own in part.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert float(whole["contrastive_alignment"].metrics["rna_protein_info_nce"][1]) == 16
    assert float(part["contrastive_alignment"].weight) == 0  # nothing to compare, and nothing of it in the mean
    for direction in ("rna_to_protein", "protein_to_rna", "cycle_protein_to_rna"):
        assert float(whole["cross_modal_translation"].metrics[f"{direction}_nll"][1]) > 0
        assert float(part["cross_modal_translation"].metrics[f"{direction}_nll"][1]) == 0
    # From RNA to imagined proteins and back needs no measured protein.
    assert float(part["cross_modal_translation"].metrics["cycle_rna_to_protein_nll"][1]) > 0
    assert float(part["masked_modeling"].metrics["protein_nll"][1]) == 0


@pytest.mark.slow
def test_encoders_of_their_own_never_see_the_tokens_of_another_modality(tiny_config, known_layout, tiny_batch):
    for how, independent in (("per_modality", True), ("shared", False), ("multiway", False)):
        definition = definition_of(tiny_config, known_layout, how)
        params = start_of(definition)
        before, modality = states_of(definition, params, tiny_batch())
        after, _ = states_of(definition, params, counts_gone(tiny_batch(), "protein"))
        assert before.shape == (16, 33, 16)
        moved = np.abs(after - before)[:, 1:].max(-1) > 1e-6
        assert moved[modality == MODALITIES.index("protein")].all()
        others = moved[(modality >= 0) & (modality != MODALITIES.index("protein"))]
        assert not others.any() if independent else others.mean() > 0.9
        assert (np.abs(after - before)[:, 0].max(-1) > 1e-4).all()  # the cell embedding reads all of them


@pytest.mark.slow
def test_a_cell_is_the_mean_of_the_modalities_it_has(tiny_config, known_layout, tiny_batch):
    config = dataclasses.replace(tiny_config, model=dataclasses.replace(tiny_config.model, linear_path=False))
    definition = definition_of(config, known_layout, "per_modality")
    params = start_of(definition)
    batch = without(tiny_batch(), "atac", slice(0, 8))

    def cell(batch):
        return states_of(definition, params, batch)[0][:, 0]

    alone = {name: cell(without(without(batch, *others), *more)) for name, others, more in _all_but()}
    joint = cell(batch)
    two, three = slice(0, 8), slice(8, 16)
    np.testing.assert_allclose(joint[two], (alone["rna"] + alone["protein"])[two] / 2, atol=2e-5)
    np.testing.assert_allclose(joint[three], sum(alone.values())[three] / 3, atol=2e-5)


def _all_but():
    """(the modality that stays, two that go as arguments of `without`)."""
    for name in MODALITIES:
        first, second = (other for other in MODALITIES if other != name)
        yield name, (first,), (second,)


def experts_of(params, change):
    """Parameters in which the feed-forward weights of every block are `change`d; [layers, experts, ...]."""
    blocks = dict(params["encoder"]["blocks"])
    for name in ("mlp_in", "mlp_in_bias", "mlp_out", "mlp_out_bias"):
        blocks[name] = change(blocks[name])
    return {**params, "encoder": {**params["encoder"], "blocks": blocks}}


@pytest.mark.slow
def test_equal_experts_are_one_shared_layer(tiny_config, known_layout, tiny_batch):
    shared, multiway = (definition_of(tiny_config, known_layout, how) for how in ("shared", "multiway"))
    params = start_of(shared)
    batch = without(tiny_batch(), "atac", slice(0, 4))
    wanted, modality = states_of(shared, params, batch)
    repeated = experts_of(params, lambda x: jnp.repeat(x, 4, axis=1))
    found, _ = states_of(multiway, repeated, batch)
    real = np.pad(modality >= 0, ((0, 0), (1, 0)), constant_values=True)
    np.testing.assert_allclose(found[real], wanted[real], atol=2e-5)  # float32, other shapes of the same products

    # Another expert for proteins: cells without proteins are as they were, the others are not.
    batch = without(batch, "protein", slice(4, 10))
    protein = 1 + MODALITIES.index("protein")
    other = experts_of(repeated, lambda x: x.at[:, protein].multiply(1.5))
    moved = np.abs(states_of(multiway, other, batch)[0] - states_of(multiway, repeated, batch)[0])[:, 0].max(-1)
    bias_only = np.abs(np.asarray(repeated["encoder"]["blocks"]["mlp_out_bias"])).max()
    assert bias_only == 0  # biases start at zero, so that scaling moves nothing but the product
    assert (moved[4:10] == 0).all()
    assert (np.delete(moved, slice(4, 10)) > 1e-4).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"scan_layers": False, "remat": "full"},
        {"encoder_sharing": "multiway"},
        {"encoder_sharing": "per_modality", "attention": "favor"},
        {"num_layers": 1, "linear_path": True},
    ],
    ids=str,
)
def test_the_cell_alone_is_the_cell_of_all_states_with_its_gradients(tiny_config, known_layout, tiny_batch, change):
    config = dataclasses.replace(tiny_config, model=dataclasses.replace(tiny_config.model, **change))
    definition = ModelDefinition(config, known_layout)
    batch = tiny_batch()

    @partial(jax.jit, static_argnums=1)
    def cell_and_gradients(params, cell_only):
        def loss(params):
            model, tokens = definition.merge(params, definition.constants), pack_tokens(batch)
            cell = model.encode(model.feature_table(), tokens, covariates=batch.covariates, cell_only=cell_only)[:, 0]
            return (cell**3).sum(), cell

        return jax.grad(loss, has_aux=True)(params)

    params = start_of(definition)
    whole, alone = cell_and_gradients(params, False), cell_and_gradients(params, True)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(a).max()))
