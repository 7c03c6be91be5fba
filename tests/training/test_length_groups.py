"""Rows cut to what their cells need give the loss and the gradients of padded rows, on any mesh."""

from dataclasses import replace

import chex
import jax
import numpy as np
import pytest
from conftest import shaken

from scmbert_jax.config import MeshConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.models.token_sequence import pack_tokens
from scmbert_jax.objectives.mixture import objectives_of
from scmbert_jax.parallel.mesh import batch_to_devices, make_mesh
from scmbert_jax.random_keys import step_key
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.length_groups import by_length, cut, row_widths, total_lengths
from scmbert_jax.training.train_step import split_microbatches, sum_of_gradients


@pytest.fixture
def uneven(tiny_batch):
    """Sixteen cells, of one token to all of them, in no order."""
    fractions = np.random.default_rng(0).permutation(16) / 15

    def shorten(tokens):
        few = np.ceil(tokens.lengths * fractions).astype(np.int32)
        real = np.arange(tokens.feature_ids.shape[1])[None] < few[:, None]
        return tokens._replace(
            lengths=few, feature_ids=np.where(real, tokens.feature_ids, 0), counts=np.where(real, tokens.counts, 0)
        )

    batch = tiny_batch()
    return batch._replace(modalities={name: shorten(tokens) for name, tokens in batch.modalities.items()})


def grouped(config, number, widths):
    return replace(config, train=replace(config.train, num_microbatches=number, row_widths=widths))


def sums(config, layout, batch, objective, mesh=None):
    model = ModelDefinition(config, layout)
    params = shaken(jax.jit(model.init)(jax.random.key(0)))

    def function(params, batch):
        own = objectives_of(config)[objective]
        number = config.train.num_microbatches
        return sum_of_gradients(model, own, number, params, model.constants, batch, step_key(0, 7))

    if mesh is None:
        return jax.jit(function)(params, batch)
    with jax.set_mesh(mesh):
        return jax.jit(function)(params, batch_to_devices(batch, mesh))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["masked_modeling", "cross_modal_translation"])
def test_cut_rows_give_the_loss_and_gradients_of_padded_rows(mixed_config, tiny_layout, uneven, objective):
    translation = replace(mixed_config.objectives.cross_modal_translation, directions=("rna>protein",))  # one compiles
    objectives = replace(mixed_config.objectives, cross_modal_translation=translation)
    config = replace(mixed_config, objectives=objectives)
    plain, plain_gradients = sums(config, tiny_layout, uneven, objective)
    found, gradients = sums(grouped(config, 4, (10, 21)), tiny_layout, uneven, objective)
    padding, positions = found.metrics["padding"]
    assert "padding" not in plain.metrics
    assert positions <= 0.75 * 16 * config.most_tokens  # or nothing was cut, and nothing is shown
    assert padding == positions - total_lengths(uneven).sum()
    np.testing.assert_allclose(found.weight, plain.weight, rtol=1e-6)  # of translation, a sum of fractions
    np.testing.assert_allclose(found.total, plain.total, rtol=1e-5)
    # float32 sums over cells in another order
    chex.assert_trees_all_close(gradients, plain_gradients, rtol=2e-4, atol=2e-3)


@pytest.mark.slow
def test_a_mesh_cuts_by_the_longest_row_of_all_its_devices(tiny_config, tiny_layout, uneven):
    """Devices must agree on the program they run: here each has one row of a microbatch, of another length."""
    config = grouped(tiny_config, 2, (8, 16, 24))
    plain, plain_gradients = sums(tiny_config, tiny_layout, uneven, "masked_modeling")
    found, gradients = sums(config, tiny_layout, uneven, "masked_modeling", make_mesh(MeshConfig(replica=2, fsdp=4)))
    assert found.weight == plain.weight
    assert found.metrics["padding"][1] < 16 * config.most_tokens
    np.testing.assert_allclose(found.total, plain.total, rtol=1e-5)
    chex.assert_trees_all_close(gradients, plain_gradients, rtol=2e-4, atol=2e-3)


def test_microbatches_are_of_like_length_and_no_cell_leaves_its_device(uneven):
    ordered = by_length(uneven, 4)
    assert sorted(ordered.row.tolist()) == uneven.row.tolist()
    for name, tokens in ordered.modalities.items():
        original = uneven.modalities[name].feature_ids[np.asarray(ordered.row)]
        np.testing.assert_array_equal(tokens.feature_ids, original)
    parts = np.asarray(total_lengths(split_microbatches(ordered, 4)))  # [4, 4]
    np.testing.assert_array_equal(np.sort(parts.ravel()), np.sort(parts.ravel(), kind="stable"))
    assert (parts[:-1].max(axis=1) <= parts[1:].min(axis=1)).all()
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=8))):
        rows = jax.jit(lambda batch: by_length(batch, 2))(uneven).row
    assert [sorted(pair) for pair in np.asarray(rows).reshape(8, 2).tolist()] == [[2 * i, 2 * i + 1] for i in range(8)]


def test_the_whole_row_is_always_one_of_the_widths(tiny_config):
    assert row_widths(tiny_config) == (32,)
    assert row_widths(grouped(tiny_config, 1, (6, 13))) == (6, 13, 32)
    assert row_widths(grouped(tiny_config, 1, (6, 32))) == (6, 32)


@pytest.mark.parametrize("widths", [(0, 8), (8, 8), (16, 8), (33,)])
def test_widths_that_no_row_can_have_are_refused(tiny_config, widths):
    with pytest.raises(ConfigError, match=r"train\.row_widths"):
        grouped(tiny_config, 1, widths)


def test_a_cut_row_holds_the_tokens_of_the_whole_row(uneven):
    longest = int(total_lengths(uneven).max())
    whole, narrow = pack_tokens(uneven), pack_tokens(cut(uneven, longest))
    assert narrow.valid.shape == (16, longest)
    assert longest < whole.valid.shape[1] or longest == 32
    for name in ("feature_ids", "counts", "weight", "modality"):
        got, expected = (np.where(own.valid, getattr(own, name), 0) for own in (narrow, whole))
        np.testing.assert_array_equal(got, expected[:, :longest])
    assert narrow.valid.sum() == whole.valid.sum()
