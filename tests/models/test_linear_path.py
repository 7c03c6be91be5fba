"""Principal components beside the transformer: what they are, and what they must not see."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import cells_of_batch, shaken, without
from flax import nnx
from sklearn.neighbors import KNeighborsRegressor

from data_pipelines.statistics.feature_statistics import feature_statistics
from scmbert_jax.batch import CellBatch, ModalityTokens
from scmbert_jax.config import (
    CrossModalTranslationConfig,
    ExperimentConfig,
    ModalitiesConfig,
    ModalityConfig,
    ObjectivesConfig,
)
from scmbert_jax.errors import ConfigError
from scmbert_jax.feature_layout import NEIGHBOUR_COMPONENTS, NUM_FOLDS, NUM_NEIGHBOURS, FeatureLayout, fold_of
from scmbert_jax.models.linear_path import LinearPath, NeighbourMean, scores_of_counts
from scmbert_jax.models.token_sequence import pack_tokens, subsample_tokens
from scmbert_jax.scmbert import ModelDefinition

NUM_CELLS, NUM_GENES, NUM_PROTEINS = 100, 10, 6
CONFIG = ExperimentConfig(
    modalities=ModalitiesConfig(rna=ModalityConfig(num_tokens=16), protein=ModalityConfig(num_tokens=16)),
    objectives=ObjectivesConfig(cross_modal_translation=CrossModalTranslationConfig(weight=1.0)),
)
LAYOUT = FeatureLayout(slices={"rna": (0, NUM_GENES), "protein": (NUM_GENES, NUM_GENES + NUM_PROTEINS)})


def whole_cells(counts: np.ndarray, first_row: int) -> ModalityTokens:
    """Cells whose every feature is a token; counts int [n, F]."""
    number, width = counts.shape
    length = np.full(number, width, np.int32)
    return ModalityTokens(
        feature_ids=np.broadcast_to(first_row + np.arange(width, dtype=np.int32), counts.shape),
        counts=counts.astype(np.int32),
        lengths=length,
        library_size=counts.sum(1).astype(np.float32),
        measured=np.ones(number, bool),
        num_expressed=(counts > 0).sum(1).astype(np.int32),
        num_measured=length,
        mean_log_count=np.log1p(counts).mean(1).astype(np.float32),
    )


@pytest.fixture(scope="module")
def counts() -> dict[str, np.ndarray]:
    """Counts [n, F] of two modalities that follow the same two factors."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(NUM_CELLS, 2))
    return {
        "rna": rng.poisson(3 * np.exp(factors @ rng.normal(size=(2, NUM_GENES)))),
        "protein": rng.poisson(20 * np.exp(factors @ rng.normal(size=(2, NUM_PROTEINS)))),
    }


@pytest.fixture(scope="module")
def batch(counts) -> CellBatch:
    modalities = {name: whole_cells(own, LAYOUT.slices[name][0]) for name, own in counts.items()}
    return CellBatch(modalities, {}, np.arange(NUM_CELLS), np.arange(NUM_CELLS))


def linear_path_of(batch: CellBatch, objectives: ObjectivesConfig = CONFIG.objectives) -> LinearPath:
    """The path at the start of a run whose first cells are `batch`."""
    statistics = feature_statistics([batch], LAYOUT, {"rna": 1e4, "protein": 1e4}, cells_of_batch(batch, LAYOUT))
    config = dataclasses.replace(CONFIG, objectives=objectives)
    return LinearPath(config, dataclasses.replace(LAYOUT, statistics=statistics), nnx.Rngs(params=0))


@pytest.fixture(scope="module")
def path(batch) -> LinearPath:
    return linear_path_of(batch)


def nothing_hidden(tokens) -> jax.Array:
    return jnp.zeros(tokens.valid.shape, bool)


def values_of(counts, name) -> np.ndarray:
    """The values whose components are taken, written out: log1p of counts per median library; CLR."""
    own = counts[name].astype(float)
    if name == "rna":
        library = own.sum(1, keepdims=True)
        return np.log1p(own / library * np.median(library))
    return np.log1p(own / np.exp(np.log1p(own).mean(1, keepdims=True)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rna", "protein"])
def test_a_cell_that_is_shown_whole_has_the_scores_of_a_pca(path, batch, counts, name):
    tokens = pack_tokens(batch)
    found = np.asarray(path.scores(tokens, nothing_hidden(tokens))[name])
    values = values_of(counts, name)
    centred = values - values.mean(0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    number = centred.shape[1] - 1  # as many as a truncated decomposition gives
    variance = (singular[:number] ** 2).sum() / NUM_CELLS
    wanted = left[:, :number] * singular[:number] * np.sqrt(64 / variance)
    signs = np.sign((found[:, :number] * wanted).sum(0))
    np.testing.assert_allclose(found[:, :number] * signs, wanted, atol=0.01)  # loadings are rounded to 4 digits
    assert np.abs(found[:, number:]).max() == 0
    assert (found**2).sum(1).mean() == pytest.approx(64, rel=0.01)


@pytest.mark.parametrize("name", ["rna", "protein"])
def test_scores_of_counts_are_those_of_tokens_that_show_all(path, batch, counts, name):
    statistics = feature_statistics([batch], LAYOUT, {"rna": 1e4, "protein": 1e4}, cells_of_batch(batch, LAYOUT))
    tokens, rows = pack_tokens(batch), slice(*LAYOUT.slices[name])
    own, everything = sp.csr_matrix(counts[name]), np.ones(counts[name].shape[1], bool)
    found = scores_of_counts(np.asarray(path.loadings[...])[rows], statistics, name, rows, own, everything)
    np.testing.assert_allclose(found, path.scores(tokens)[name], atol=2e-3)  # offsets are rounded to 4 digits


def test_scores_that_come_with_the_tokens_are_taken_unless_something_is_hidden(path, batch):
    given = {name: np.full((NUM_CELLS, 64), 7.0, np.float32) for name in batch.modalities}
    tokens = pack_tokens(batch._replace(scores=given))
    assert path.scores(tokens)["rna"][0, 0] == 7
    of_tokens = path.scores(pack_tokens(batch), nothing_hidden(tokens))
    for name, scores in path.scores(tokens, nothing_hidden(tokens)).items():
        np.testing.assert_array_equal(scores, of_tokens[name])
    (alone,) = pack_tokens(batch._replace(scores=given), ("protein",)).scores
    assert alone == "protein"


def test_the_value_of_a_hidden_token_never_matters(path, batch):
    tokens = pack_tokens(batch)
    hidden = jax.random.bernoulli(jax.random.key(0), 0.4, tokens.valid.shape)
    lie = dataclasses.replace(tokens, counts=jnp.where(hidden, tokens.counts * 7 + 5, tokens.counts))
    truth = path.scores(tokens, hidden)
    for name, scores in path.scores(lie, hidden).items():
        np.testing.assert_array_equal(scores, truth[name])
    seen = path.scores(lie, nothing_hidden(tokens))["rna"] - path.scores(tokens, nothing_hidden(tokens))["rna"]
    assert np.abs(seen).max() > 1


@pytest.mark.slow
def test_scores_of_a_part_of_the_tokens_are_those_of_the_cell_on_average(path, batch):
    tokens = pack_tokens(jax.tree.map(lambda x: x[:20], batch), ("rna",))
    whole = path.scores(tokens, nothing_hidden(tokens))["rna"]

    def drawn(key):
        part = subsample_tokens(tokens, 0.5, jax.random.split(key, 20))
        return path.scores(part, nothing_hidden(part))["rna"]

    scores = np.asarray(jax.jit(jax.vmap(drawn))(jax.random.split(jax.random.key(1), 400)))
    error = scores.std(0) / np.sqrt(len(scores))
    assert error.max() > 0.01  # draws do differ
    assert np.abs(scores.mean(0) - whole).max() < 5 * error.max()


def test_hidden_tokens_are_made_up_for_by_the_others_on_average(path, batch):
    tokens = pack_tokens(jax.tree.map(lambda x: x[:20], batch), ("rna",))
    whole = path.scores(tokens, nothing_hidden(tokens))["rna"]

    def half_hidden(key):
        draw = jax.random.uniform(key, tokens.valid.shape)
        return path.scores(tokens, draw < jnp.median(draw, axis=1, keepdims=True))["rna"]

    scores = np.asarray(jax.jit(jax.vmap(half_hidden))(jax.random.split(jax.random.key(2), 400)))
    assert np.abs(scores.mean(0) - whole).max() < 5 * scores.std(0).max() / np.sqrt(len(scores))


def test_a_modality_that_was_not_measured_has_no_scores_and_adds_nothing(path, batch):
    protein = batch.modalities["protein"]
    empty = protein._replace(**{name: np.zeros_like(getattr(protein, name)) for name in protein._fields})
    tokens = pack_tokens(batch._replace(modalities={**batch.modalities, "protein": empty}))
    alone = pack_tokens(batch, ("rna",))
    assert np.abs(path.scores(tokens, nothing_hidden(tokens))["protein"]).max() == 0
    found, wanted = path(tokens, nothing_hidden(tokens)), path(alone, nothing_hidden(alone))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("embed_dim", [64, 30])
def test_each_modality_starts_with_dimensions_of_its_own(batch, embed_dim):
    """What is added of one modality is orthogonal to what is added of the other, and no shorter than its scores."""
    statistics = feature_statistics([batch], LAYOUT, {"rna": 1e4, "protein": 1e4}, cells_of_batch(batch, LAYOUT))
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, embed_dim=embed_dim))
    path = LinearPath(config, dataclasses.replace(LAYOUT, statistics=statistics), nnx.Rngs(params=0))
    own_size = embed_dim // 2
    blocks = np.concatenate([path.into_cell[name][...][:own_size] for name in ("rna", "protein")])
    np.testing.assert_allclose(blocks @ blocks.T, np.eye(2 * own_size), atol=1e-5)
    assert all(np.abs(path.into_cell[name][...][own_size:]).max() == 0 for name in ("rna", "protein"))
    tokens = pack_tokens(batch)
    scores = path.scores(tokens, nothing_hidden(tokens))
    wanted = sum((np.asarray(own)[:, :own_size] ** 2).sum(axis=1) for own in scores.values())
    np.testing.assert_allclose((np.asarray(path(tokens, nothing_hidden(tokens))) ** 2).sum(axis=1), wanted, rtol=1e-3)


def explained(path, batch, counts) -> float:
    """Fraction of the variance of the proteins' CLR that the path predicts from RNA."""
    ids = jnp.broadcast_to(NUM_GENES + jnp.arange(NUM_PROTEINS), (NUM_CELLS, NUM_PROTEINS))
    std = np.asarray(path.scale[...])[NUM_GENES : NUM_GENES + NUM_PROTEINS, 1]
    predicted = np.asarray(path.outputs(pack_tokens(batch, ("rna",)), "protein", ids)) * std
    truth = values_of(counts, "protein")
    truth = truth - truth.mean(0)
    return 1 - ((truth - predicted) ** 2).sum() / (truth**2).sum()


def test_a_translation_starts_from_the_linear_map_of_the_pairs(path, batch, counts):
    values = {name: values_of(counts, name) for name in counts}
    centred = {name: own - own.mean(0) for name, own in values.items()}
    fitted = centred["rna"] @ np.linalg.lstsq(centred["rna"], centred["protein"], rcond=1e-3)[0]
    best = 1 - ((centred["protein"] - fitted) ** 2).sum() / (centred["protein"] ** 2).sum()
    assert best > 0.5
    # about what least squares explain of the same cells: the regression is penalised, the nearest pairs add to it
    assert best - 0.15 < explained(path, batch, counts) < best + 0.05


def test_without_pairs_a_translation_starts_from_the_mean_of_each_feature(batch, counts):
    """The same cells, each as one of RNA and another of proteins: components are as before, maps are none."""
    twice = jax.tree.map(lambda x: np.concatenate([x, x]), batch)
    first, second = np.arange(2 * NUM_CELLS) < NUM_CELLS, np.arange(2 * NUM_CELLS) >= NUM_CELLS
    alone = without(without(twice, "rna", second), "protein", first)
    path = linear_path_of(alone._replace(cell_index=np.arange(2 * NUM_CELLS)))
    assert explained(path, batch, counts) == 0
    assert path.between["rna>protein"].neighbours is None
    assert np.abs(path.loadings[...]).max() > 0.1


def test_a_run_that_uses_no_pairs_does_not_start_from_them(batch, counts):
    """`pair_weight` 0 on a corpus that has pairs."""
    cycles = CrossModalTranslationConfig(weight=1.0, pair_weight=0.0, cycle_weight=1.0)
    path = linear_path_of(batch, objectives=ObjectivesConfig(cross_modal_translation=cycles))
    assert explained(path, batch, counts) == 0
    assert path.between["rna>protein"].neighbours is None


@pytest.mark.slow
def test_neighbours_are_the_nearest_cells_of_other_folds():
    rng = np.random.default_rng(0)
    keys, values = rng.normal(size=(200, 64)), rng.normal(size=(200, 8))
    folds, asked = rng.integers(1, 4, 200), rng.normal(size=(30, 64))
    memory = NeighbourMean(keys, values, folds)

    def wanted(kept, cells):
        nearest = KNeighborsRegressor(NUM_NEIGHBOURS).fit(keys[kept, :NEIGHBOUR_COMPONENTS], values[kept])
        return nearest.predict(cells[:, :NEIGHBOUR_COMPONENTS])

    np.testing.assert_allclose(memory(jnp.asarray(asked)), wanted(folds > 0, asked), atol=1e-5)
    own = jnp.full(30, 2)
    np.testing.assert_allclose(memory(jnp.asarray(asked), own), wanted(folds != 2, asked), atol=1e-5)
    # A cell of the memory does not find itself in training.
    alone = memory(jnp.asarray(keys), jnp.asarray(folds))
    for fold in (1, 2, 3):
        np.testing.assert_allclose(alone[folds == fold], wanted(folds != fold, keys[folds == fold]), atol=1e-5)


def test_in_training_a_cell_is_predicted_by_the_map_that_has_not_seen_it(path, batch):
    tokens = pack_tokens(batch, ("rna",))
    ids = jnp.broadcast_to(NUM_GENES + jnp.arange(NUM_PROTEINS), (NUM_CELLS, NUM_PROTEINS))
    folds = fold_of(batch.cell_index)
    found = np.asarray(path.outputs(tokens, "protein", ids, jnp.asarray(folds)))
    for fold in range(1, 1 + NUM_FOLDS):
        each = np.asarray(path.outputs(tokens, "protein", ids, jnp.full(NUM_CELLS, fold)))
        np.testing.assert_array_equal(found[folds == fold], each[folds == fold])
        assert np.abs(found[folds != fold] - each[folds != fold]).max() > 1e-3


# --- the control: the linear path without the transformer -------------------------------------------------------------


@pytest.mark.slow
def test_the_linear_path_alone_hears_nothing_of_the_transformer(mixed_config, known_layout, tiny_batch):
    """Embedding, alignment and translation stay as they are whatever the transformer's parameters are."""
    whole = ModelDefinition(mixed_config, known_layout)
    batch = tiny_batch()
    params = shaken(jax.jit(whole.init)(jax.random.key(0)))
    others = shaken(params, size=1.0)
    kept = ("linear", "alignment_head")
    others |= {name: params[name] for name in kept}
    bias = {name: params["translation_head"][name] for name in ("feature_bias", "spread")}
    others["translation_head"] = others["translation_head"] | bias
    rows = np.arange(*known_layout.slices["protein"], dtype=np.int32)[None]

    @partial(jax.jit, static_argnums=0)
    def said(definition, params):
        model = definition.merge(params, definition.constants)
        table = model.feature_table()
        cell, aligned = model.cell_embedding(table, batch), model.aligned_embedding(table, batch)
        expected = model.linear(pack_tokens(batch), jnp.zeros(pack_tokens(batch).valid.shape, bool))
        return cell, aligned, model.translate(table, batch, "rna", "protein", rows).value, expected

    alone, alone_after = said(whole.linear_path_alone, params), said(whole.linear_path_alone, others)
    for before, after, with_transformer in zip(alone[:3], alone_after[:3], said(whole, params)[:3], strict=True):
        np.testing.assert_array_equal(before, after)
        assert np.abs(np.asarray(before) - np.asarray(with_transformer)).max() > 1e-3
    np.testing.assert_allclose(alone[0], alone[3], rtol=1e-5, atol=1e-5)
    assert np.asarray(alone[2]).std(0).max() > 1e-3, "cells differ in what the linear path says of them"


def test_a_model_without_linear_path_has_none_alone(mixed_config, known_layout):
    config = dataclasses.replace(mixed_config, model=dataclasses.replace(mixed_config.model, linear_path=False))
    with pytest.raises(ConfigError, match=r"model\.linear_path is off"):
        _ = ModelDefinition(config, known_layout).linear_path_alone
