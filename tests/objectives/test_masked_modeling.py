import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import padded
from flax import nnx

from scmbert_jax.config import MaskedModelingConfig, ObjectivesConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.models.likelihoods import Truth
from scmbert_jax.models.token_sequence import pack_tokens
from scmbert_jax.objectives.masked_modeling.head import LinearHead
from scmbert_jax.objectives.masked_modeling.objective import MaskedModeling, choose_masked
from scmbert_jax.random_keys import row_keys
from scmbert_jax.scmbert import ModelDefinition

KEY = jax.random.key(0)


def chosen_features(tokens, masked) -> list[set[int]]:
    ids = np.take_along_axis(np.asarray(tokens.feature_ids), np.asarray(masked.positions), 1)
    return [set(row[chosen].tolist()) for row, chosen in zip(ids, np.asarray(masked.chosen), strict=True)]


@pytest.mark.slow
def test_the_stated_fraction_of_tokens_is_masked_and_hidden(tiny_batch):
    tokens = pack_tokens(tiny_batch())
    masked = choose_masked(tokens, MaskedModelingConfig(mask_fraction=0.4), row_keys(KEY, jnp.arange(16)))
    wanted = np.maximum(np.floor(0.4 * np.asarray(tokens.lengths) + 0.5), 1)
    np.testing.assert_array_equal(masked.chosen.sum(1), wanted)
    np.testing.assert_array_equal(masked.hidden.sum(1), wanted)
    assert not (np.asarray(masked.hidden) & ~np.asarray(tokens.valid)).any()


@pytest.mark.slow
def test_every_token_is_masked_equally_often(tiny_batch):
    tokens = pack_tokens(tiny_batch())
    config = MaskedModelingConfig(mask_fraction=0.25)
    keys = jax.vmap(lambda step: row_keys(jax.random.fold_in(KEY, step), jnp.arange(16)))(jnp.arange(400))
    hidden = jax.vmap(lambda k: choose_masked(tokens, config, k).hidden)(keys)  # [400, B, S]
    rate = np.asarray(hidden).mean(0)[np.asarray(tokens.valid)]
    # standard error of a fraction of 0.25 over 400 draws: 0.022; five of them
    assert abs(rate.mean() - 0.25) < 0.02
    assert rate.max() < 0.25 + 0.11
    assert rate.min() > 0.25 - 0.11


@pytest.mark.slow
def test_masks_depend_on_the_row_and_the_step_only(tiny_batch):
    tokens = pack_tokens(tiny_batch())
    config = MaskedModelingConfig()
    whole = chosen_features(tokens, choose_masked(tokens, config, row_keys(KEY, jnp.arange(16))))
    part = jax.tree.map(lambda x: x[5:9], tokens)
    assert chosen_features(part, choose_masked(part, config, row_keys(KEY, jnp.arange(5, 9)))) == whole[5:9]
    other_step = chosen_features(tokens, choose_masked(tokens, config, row_keys(jax.random.key(1), jnp.arange(16))))
    assert other_step != whole


@pytest.mark.slow
def test_padding_changes_no_mask(tiny_batch):
    keys = row_keys(KEY, jnp.arange(16))
    narrow, wide = pack_tokens(tiny_batch()), pack_tokens(padded(tiny_batch(), 7))
    config = MaskedModelingConfig()
    assert chosen_features(narrow, choose_masked(narrow, config, keys)) == chosen_features(
        wide, choose_masked(wide, config, keys)
    )


def test_scberts_rules_mask_no_zero_and_keep_a_tenth_visible(tiny_batch):
    tokens = pack_tokens(tiny_batch())
    config = MaskedModelingConfig(mask_fraction=0.5, mask_zeros=False, keep_fraction=0.2)
    masked = choose_masked(tokens, config, row_keys(KEY, jnp.arange(16)))
    counts = np.take_along_axis(np.asarray(tokens.counts), np.asarray(masked.positions), 1)
    assert (counts[np.asarray(masked.chosen)] > 0).all()
    number = np.asarray(masked.chosen).sum(1)
    np.testing.assert_array_equal(np.asarray(masked.hidden).sum(1), number - np.floor(0.2 * number))


def test_scberts_head_is_one_linear_layer_and_its_loss_the_cross_entropy_of_seven_classes(tiny_config, tiny_layout):
    rna = dataclasses.replace(tiny_config.modalities.rna, likelihood="bins_and_mask", num_bins=6)
    config = dataclasses.replace(tiny_config, modalities=dataclasses.replace(tiny_config.modalities, rna=rna))
    head = LinearHead(config, tiny_layout, {"rna": "bins_and_mask"}, nnx.Rngs(0))
    head.biases["rna"][...] = jnp.arange(7.0)
    x = jax.random.normal(jax.random.key(1), (2, 6, config.model.embed_dim))
    counts = jnp.tile(jnp.asarray([0.0, 1, 3, 7, 15, 31]), (2, 1))  # of a library of 10,000: the six bins
    library = jnp.full((2, 6), 1e4)
    modality = jnp.zeros((2, 6), jnp.int32).at[1, 5].set(1)
    found = head.nll(x, modality, modality, Truth(counts, library, library), {})
    logits = np.asarray(x) @ np.asarray(head.outputs["rna"][...]) + np.arange(7)
    assert logits.shape == (2, 6, 7)
    wanted = np.log(np.exp(logits).sum(-1)) - logits[:, np.arange(6), np.arange(6)]
    wanted[1, 5] = 0.0  # of another modality
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    changed = dataclasses.replace(config.objectives.masked_modeling, token_head="linear")
    with pytest.raises(ConfigError, match=r"token_head is 'linear'; expected features: counts of rna"):
        dataclasses.replace(tiny_config, objectives=ObjectivesConfig(masked_modeling=changed))


@pytest.fixture(scope="module")
def built(tiny_config, tiny_layout):
    definition = ModelDefinition(tiny_config, tiny_layout)
    params = jax.jit(definition.init)(jax.random.key(3))

    @jax.jit
    def loss(params, batch):
        model = definition.merge(params, definition.constants)
        return MaskedModeling(tiny_config).loss(model, model.feature_table(), batch, KEY)

    return params, loss


@pytest.mark.slow
def test_more_padding_changes_no_loss(built, tiny_batch):
    params, loss = built
    narrow, wide = loss(params, tiny_batch()), loss(params, padded(tiny_batch(), 7))
    assert narrow.weight == wide.weight
    np.testing.assert_allclose(narrow.total, wide.total, rtol=1e-5)


@pytest.mark.slow
def test_a_modality_that_no_cell_measured_adds_nothing(built, tiny_batch):
    params, loss = built
    batch = tiny_batch()
    tokens = batch.modalities["atac"]
    nothing = tokens._replace(
        **{name: np.zeros_like(getattr(tokens, name)) for name in tokens._fields},
    )
    absent = loss(params, batch._replace(modalities={**batch.modalities, "atac": nothing}))
    assert float(absent.metrics["atac_nll"][1]) == 0
    assert np.isfinite(absent.total)
    gradients = jax.grad(lambda p: loss(p, batch._replace(modalities={**batch.modalities, "atac": nothing})).total)(
        params
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients["token_head"]["outputs"]["atac"]).max() == 0


@pytest.mark.slow
def test_a_cell_without_tokens_adds_nothing_and_no_nan(built, tiny_batch):
    params, loss = built
    batch = tiny_batch()
    empty = jax.tree.map(
        lambda x: np.where(np.arange(16).reshape(-1, *[1] * (x.ndim - 1)) == 2, 0, x), batch.modalities
    )
    whole, without = loss(params, batch), loss(params, batch._replace(modalities=empty))
    assert float(without.weight) < float(whole.weight)
    gradients = jax.grad(lambda p: loss(p, batch._replace(modalities=empty)).total)(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.slow
def test_the_cell_embedding_is_trained_only_through_the_cell_head(tiny_config, tiny_layout, tiny_batch):
    """Without cell_weight, the last layer's [CLS] state would get no gradient at all."""

    def gradient(cell_weight):
        objectives = ObjectivesConfig(MaskedModelingConfig(cell_weight=cell_weight))
        config = dataclasses.replace(tiny_config, objectives=objectives)
        definition = ModelDefinition(config, tiny_layout)

        def total(params):
            model = definition.merge(params, definition.constants)
            return MaskedModeling(config).loss(model, model.feature_table(), tiny_batch(), KEY).total

        params = jax.jit(definition.init)(jax.random.key(0))
        # Output layers start at zero, where nothing behind them has a gradient yet.
        outputs = jax.tree.map(lambda x: x + 0.1, params["cell_head"]["outputs"])
        params["cell_head"] = {**params["cell_head"], "outputs": outputs}
        return jax.jit(jax.grad(total))(params)["cell_decoder"]["gate"]

    assert np.abs(gradient(0.0)).max() == 0
    assert np.abs(gradient(1.0)).max() > 0
