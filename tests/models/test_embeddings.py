import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import padded
from flax import nnx

from scmbert_jax.batch import ModalityTokens
from scmbert_jax.feature_layout import FeatureLayout, FeatureStatistics
from scmbert_jax.modalities import ModalityConfig
from scmbert_jax.models.embeddings import VALUE_ENCODINGS, TokenValues
from scmbert_jax.models.token_sequence import pack_tokens
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.value_scales import expression_bins, relative_expression


def build(config, layout, seed=0):
    definition = ModelDefinition(config, layout)
    params = jax.jit(definition.init)(jax.random.key(seed))
    return definition, params, definition.merge(params, definition.constants)


@partial(jax.jit, static_argnums=0)
def cell_embedding(definition, params, batch):
    model = definition.merge(params, definition.constants)
    return model.cell_embedding(model.feature_table(), batch)


def test_bins_are_those_of_scbert():
    # floor(log2(1 + CP10K)) clipped at 5: the edges lie at 1, 3, 7, 15, 31
    cp10k = jnp.asarray([0.0, 0.999, 1.0, 2.999, 3.0, 6.999, 7.0, 14.9, 15.0, 30.9, 31.0, 1e6])
    assert expression_bins(cp10k, 6, jnp).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_one_count_in_a_shallow_cell_is_already_bin_three():
    # 1 of 1,000 counts = 10 CP10K: the known trap that bins encode library size
    assert int(expression_bins(relative_expression(jnp.asarray(1.0), jnp.asarray(1000.0), 1e4, jnp), 6, jnp)) == 3


def levels_of(encoding, counts, config, statistics=None):
    """int [B, S], which vector of its own modality an encoding looks up; counts [B, S] of features 0 .. S - 1, the
    first half RNA, the second protein."""
    number = counts.shape[1]
    layout = FeatureLayout({"rna": (0, number // 2), "protein": (number // 2, number)}, statistics=statistics)
    modality = np.tile((np.arange(number) >= number // 2).astype(np.int32), (len(counts), 1))
    encode = VALUE_ENCODINGS[encoding]({"rna": config, "protein": config}, layout, 4, nnx.Rngs(0))
    encode.table[...] = jnp.tile(jnp.arange(len(encode.table[...]), dtype=jnp.float32)[:, None], (1, 4))
    ids = np.tile(np.arange(number, dtype=np.int32), (len(counts), 1))
    values = TokenValues(jnp.asarray(counts, jnp.float32), ids, modality, jax.nn.one_hot(modality, 3), jnp.zeros(4))
    return np.asarray(encode(values))[..., 0].astype(int) - modality * config.num_bins


def drawn_counts():
    """[5, 34]: 17 features of each modality; a cell of distinct values, one of ties, one of one expressed feature of
    each, one of zeros, one of two modalities of different depths."""
    rng = np.random.default_rng(0)
    counts = np.zeros((5, 34))
    counts[0] = rng.permutation(34) + 1
    counts[1] = rng.integers(0, 3, 34)
    counts[2, [4, 20]] = 3
    counts[4] = np.where(rng.random(34) < 0.5, rng.integers(1, 50, 34), 0) * np.repeat([1, 100], 17)
    return counts


def test_quantile_bins_are_those_of_scgpt():
    """Its preprocessing, by numpy: the edges are quantiles of the expressed values, `digitize` says between which."""
    counts, num_bins = drawn_counts(), 6
    wanted = np.zeros(counts.shape, int)
    for row, half in itertools.product(range(5), (slice(0, 17), slice(17, 34))):
        own = counts[row, half]
        if (own > 0).any():
            edges = np.quantile(own[own > 0], np.linspace(0, 1, num_bins - 1))
            wanted[row, half] = np.where(own > 0, np.digitize(own, edges), 0)
    found = levels_of("quantile_bins", counts, ModalityConfig(num_bins=num_bins))
    np.testing.assert_array_equal(found, wanted)
    assert found.max() == num_bins - 1
    assert set(found[0]) == set(range(1, num_bins))
    scaled = levels_of("quantile_bins", counts * 0.25, ModalityConfig(num_bins=num_bins))
    np.testing.assert_array_equal(scaled, wanted)  # no depth of sequencing


def test_ranks_are_those_of_geneformer():
    """Its tokeniser, by numpy: counts over the feature's usual value, in descending order of the expressed."""
    counts, rng = drawn_counts(), np.random.default_rng(1)
    fractions, detection = rng.random(34).astype(np.float32), rng.uniform(0.2, 1, 34).astype(np.float32)
    nothing = {name: np.ones(34, np.float32) for name in FeatureStatistics._fields[:-2]}
    known = {**nothing, "cell_fraction": fractions, "cell_detection": detection}
    statistics = FeatureStatistics(**known, library_quantiles=np.ones((3, 9), np.float32))
    wanted = np.zeros(counts.shape, int)
    for row, half in itertools.product(range(5), (slice(0, 17), slice(17, 34))):
        own = counts[row, half] / (fractions / detection)[half]
        expressed = np.flatnonzero(own)
        order = expressed[np.argsort(-own[expressed], kind="stable")]
        wanted[row, half][order] = np.arange(1, len(order) + 1)
    found = levels_of("ranks", counts, ModalityConfig(num_bins=18), statistics)
    np.testing.assert_array_equal(found, wanted)
    assert sorted(found[0, :17]) == list(range(1, 18))
    few = levels_of("ranks", counts, ModalityConfig(num_bins=5), statistics)
    np.testing.assert_array_equal(few, np.minimum(wanted, 4))


def test_a_linked_row_moves_with_its_gene_and_an_unlinked_one_does_not(tiny_config):
    layout = FeatureLayout(
        slices={"rna": (0, 40), "protein": (40, 52), "atac": (52, 72)},
        links={"protein": (np.asarray([40, 40], np.int32), np.asarray([3, 5], np.int32))},
    )
    definition, params, model = build(tiny_config, layout)
    before = model.feature_table()
    params["table"]["learned"] = params["table"]["learned"].at[3].add(1.0)
    after = definition.merge(params, definition.constants).feature_table()
    moved = np.abs(np.asarray(after - before)).max(1) > 1e-6
    assert np.flatnonzero(moved).tolist() == [3, 40]


def test_a_protein_row_is_its_own_row_plus_the_projected_mean_of_its_genes(tiny_config):
    layout = FeatureLayout(
        slices={"rna": (0, 40), "protein": (40, 52), "atac": (52, 72)},
        links={"protein": (np.asarray([41, 41], np.int32), np.asarray([0, 2], np.int32))},
    )
    _, params, model = build(tiny_config, layout)
    learned, projection = params["table"]["learned"], params["table"]["link_projections"]["protein"]
    wanted = learned[41] + (learned[0] + learned[2]) / 2 @ projection
    np.testing.assert_allclose(model.feature_table()[41], wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["heads", "tokens"])
def test_hidden_values_never_reach_the_encoder(tiny_config, known_layout, tiny_batch, where):
    model_config = dataclasses.replace(tiny_config.model, covariates=("technical_batch",), covariates_at=where)
    _, _, model = build(dataclasses.replace(tiny_config, model=model_config), known_layout)
    batch = tiny_batch()
    tokens = pack_tokens(batch)
    hidden = (jnp.arange(tokens.valid.shape[1]) % 3 == 0)[None] & tokens.valid
    table = model.feature_table()

    @jax.jit
    def encode(counts):
        return model.encode(table, dataclasses.replace(tokens, counts=counts), hidden, batch.covariates)

    seen = encode(tokens.counts)
    np.testing.assert_array_equal(seen, encode(jnp.where(hidden, tokens.counts + 77, tokens.counts)))
    assert not np.array_equal(seen, encode(jnp.where(hidden, tokens.counts, tokens.counts + 77)))


SHARINGS = ("shared", "multiway", "per_modality")


def sharing(config, how):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, encoder_sharing=how))


@pytest.mark.slow
@pytest.mark.parametrize("how", SHARINGS)
def test_more_padding_changes_no_embedding(tiny_config, known_layout, tiny_batch, how):
    definition, params, _ = build(sharing(tiny_config, how), known_layout)
    narrow, wide = (cell_embedding(definition, params, batch) for batch in (tiny_batch(), padded(tiny_batch(), 5)))
    np.testing.assert_allclose(narrow, wide, atol=2e-5)  # float32 sums over more (zero) terms


@pytest.mark.slow
@pytest.mark.parametrize("how", SHARINGS)
def test_the_order_of_tokens_carries_no_information(tiny_config, known_layout, tiny_batch, how):
    definition, params, _ = build(sharing(tiny_config, how), known_layout)
    batch = tiny_batch()

    def reversed_tokens(tokens: ModalityTokens) -> ModalityTokens:
        columns = np.arange(tokens.feature_ids.shape[1])[None]
        order = np.where(columns < tokens.lengths[:, None], tokens.lengths[:, None] - 1 - columns, columns)
        return tokens._replace(
            feature_ids=np.take_along_axis(tokens.feature_ids, order, 1),
            counts=np.take_along_axis(tokens.counts, order, 1),
        )

    turned = batch._replace(modalities={name: reversed_tokens(tokens) for name, tokens in batch.modalities.items()})
    assert not np.array_equal(turned.modalities["rna"].feature_ids, batch.modalities["rna"].feature_ids)
    before, after = (cell_embedding(definition, params, cells) for cells in (batch, turned))
    np.testing.assert_allclose(before, after, atol=2e-5)  # attention sums in another order, float32


@pytest.mark.slow
def test_a_cell_s_embedding_does_not_depend_on_its_neighbours(tiny_config, known_layout, tiny_batch):
    definition, params, _ = build(tiny_config, known_layout)
    batch = tiny_batch()
    among_others = cell_embedding(definition, params, batch)[3:4]
    alone = cell_embedding(definition, params, jax.tree.map(lambda x: x[3:4], batch))
    np.testing.assert_allclose(among_others, alone, atol=2e-5)
