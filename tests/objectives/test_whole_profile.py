"""All that was measured of a cell, from its embedding: which features ask, for how much, and what of it is learned."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from conftest import cells_of_batch, shaken
from flax import nnx

from data_pipelines.batches.collate import TokenSampling, collate_counts
from data_pipelines.statistics.feature_statistics import feature_statistics
from data_pipelines.synthetic.cells import synthetic_cells
from scmbert_jax.config import MaskedModelingConfig, MeshConfig, ModalityConfig, ObjectivesConfig, WholeProfileConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.models.likelihoods import Truth
from scmbert_jax.models.token_sequence import pack_tokens
from scmbert_jax.objectives.mixture import objectives_of
from scmbert_jax.objectives.whole_profile.head import ProfileHead, draw_features
from scmbert_jax.objectives.whole_profile.objective import WholeProfile
from scmbert_jax.parallel.mesh import batch_to_devices, make_mesh
from scmbert_jax.random_keys import step_key
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.train_step import sum_of_gradients

KEY = jax.random.key(0)
NUM_CELLS = 16
SIZES = {"rna": 40, "protein": 12, "atac": 20}


@pytest.fixture(scope="module")
def config(tiny_config):
    own = WholeProfileConfig(weight=1.0, hidden_dim=8)
    return replace(tiny_config, objectives=ObjectivesConfig(MaskedModelingConfig(weight=0.0), whole_profile=own))


@pytest.fixture(scope="module")
def panels():
    rng = np.random.default_rng(1)
    return {name: rng.random(size) < 0.8 for name, size in SIZES.items()}


@pytest.fixture(scope="module")
def counts(panels):
    """Modality -> int32 CSR [cells, features] of a mosaic of three types, and bool [cells], which measured it."""
    ids = {name: np.array([f"{name}{number}" for number in range(size)]) for name, size in SIZES.items()}
    cells = synthetic_cells(NUM_CELLS, *SIZES.values(), num_cell_types=3, num_batches=6, seed=2, feature_ids=ids)
    return {name: own.multiply(panels[name]).tocsr() for name, own in cells.counts.items()}, cells.measured


@pytest.fixture(scope="module")
def batch(counts, panels, tiny_layout):
    """Few tokens, whole profiles."""
    sampling = {
        name: TokenSampling(number, 0.25, profile_tokens=64) for name, number in zip(SIZES, (12, 6, 6), strict=True)
    }
    codes = {"technical_batch": np.arange(NUM_CELLS) % 3}
    matrices, measured = counts
    return collate_counts(matrices, sampling, tiny_layout.slices, panels, measured_cells=measured, covariates=codes)


def at(config, name, likelihood):
    modality = replace(getattr(config.modalities, name), target_likelihood=likelihood)
    return replace(config, modalities=replace(config.modalities, **{name: modality}))


def head_of(config, layout):
    """(head with noise on every number, cell embeddings float32 [cells, 16])."""
    graph, params = nnx.split(ProfileHead(config, layout, nnx.Rngs(3)), nnx.Param)
    head = nnx.merge(graph, shaken(params, 0.3))
    return head, jax.random.normal(KEY, (NUM_CELLS, 16))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "likelihood"),
    [
        ("rna", "negative_binomial"),
        ("rna", "gaussian_log1p"),
        ("protein", "negative_binomial_background"),
        ("protein", "gaussian_clr"),
        ("atac", "bernoulli"),
    ],
)
def test_the_sum_over_zeros_and_expressed_is_the_sum_over_all_that_was_measured(
    config, tiny_layout, batch, counts, panels, name, likelihood
):
    head, cell = head_of(at(config, name, likelihood), tiny_layout)
    tokens, profile = batch.modalities[name], batch.profiles[name]
    found = jax.jit(lambda cell: head.nll(name, cell, tokens, profile, batch.covariates))(cell)
    outputs, log_dispersion = head.outputs(name, cell, batch.covariates)
    dense, measured = counts[0][name].toarray(), panels[name] & counts[1][name][:, None]
    library, mean_log = tokens.library_size[:, None], tokens.mean_log_count[:, None]
    if likelihood == "negative_binomial":
        # From the definition, without a line of ours: fractions of the measured features, mean and theta.
        odds = np.where(measured, np.exp(np.asarray(outputs[..., 0], np.float64)), 0.0)
        mean = library * odds / np.maximum(odds.sum(1, keepdims=True), 1e-300)
        theta = np.exp(np.asarray(log_dispersion, np.float64))
        expected = -scipy.stats.nbinom.logpmf(dense, theta, theta / (theta + mean))
    else:
        truth = Truth(jnp.asarray(dense, jnp.float32), library, mean_log)
        expected = np.asarray(head.likelihoods[name].nll(outputs, log_dispersion[None], truth))
    np.testing.assert_allclose(found, np.where(measured, expected, 0.0).sum(1), rtol=2e-5, atol=1e-4)
    assert (np.asarray(found)[~counts[1][name]] == 0).all()
    assert 0 < counts[1][name].sum() < NUM_CELLS  # a mosaic, or nothing is shown


@pytest.mark.slow
def test_a_feature_that_was_not_measured_has_no_loss_and_no_fraction_of_the_library(config, tiny_layout, batch, panels):
    head, cell = head_of(config, tiny_layout)
    graph, params = nnx.split(head, nnx.Param)

    def total(params, name):
        head = nnx.merge(graph, params)
        own = batch.modalities[name], batch.profiles[name]
        return head.nll(name, cell, *own, batch.covariates).sum()

    for name, panel in panels.items():
        first, stop = tiny_layout.slices[name]
        by_bias = np.abs(jax.jit(jax.grad(total), static_argnums=1)(params, name)["feature_bias"][...][first:stop, 0])
        assert (by_bias[~panel] == 0).all()
        assert (by_bias[panel] > 0).all()


@pytest.mark.slow
def test_features_that_are_drawn_stand_for_all(config, tiny_layout, batch):
    head, cell = head_of(config, tiny_layout)
    own = batch.modalities["atac"], batch.profiles["atac"], batch.covariates

    def estimate(key):
        return head.nll("atac", cell, *own, draw_features(key, 20, 6))

    drawn = np.asarray(jax.jit(jax.vmap(estimate))(jax.random.split(KEY, 2000)))
    exact = np.asarray(jax.jit(lambda cell: head.nll("atac", cell, *own))(cell))
    # Five standard errors.
    assert (np.abs(drawn.mean(0) - exact) <= 5 * drawn.std(0) / np.sqrt(2000) + 1e-3).all()
    assert drawn.std(0).max() > 0.1
    assert draw_features(KEY, 20, 0) is draw_features(KEY, 20, 20) is None
    some = draw_features(KEY, 20, 6)
    assert some.weights.sum() == 20
    assert (np.diff(some.places) > 0).all()
    seen = jax.vmap(lambda key: draw_features(key, 20, 6).places)(jax.random.split(KEY, 100))
    assert set(np.unique(seen)) == set(range(20))


@pytest.fixture(scope="module")
def built(config, tiny_layout, batch):
    """Parameters and the jitted (sums, gradients) of a batch; starts at the marginal model of the batch's own cells."""
    cells = cells_of_batch(everything(batch), tiny_layout)
    target_sums = {name: modality.target_sum for name, modality in config.modalities.in_use().items()}
    statistics = feature_statistics([batch], tiny_layout, target_sums, cells)
    definition = ModelDefinition(config, replace(tiny_layout, statistics=statistics))

    def total(params, batch):
        model = definition.merge(params, definition.constants)
        sums = WholeProfile(config).loss(model, model.feature_table(), batch, KEY)
        return sums.total / sums.weight, sums

    return jax.jit(definition.init)(jax.random.key(3)), jax.jit(jax.value_and_grad(total, has_aux=True))


def everything(batch):
    """The same cells, their tokens those of the profiles."""
    whole = {
        name: tokens._replace(
            **{field: getattr(batch.profiles[name], field) for field in ("feature_ids", "counts", "lengths")}
        )
        for name, tokens in batch.modalities.items()
    }
    return batch._replace(modalities=whole)


@pytest.mark.slow
def test_a_count_that_was_not_shown_is_asked_for(built, config, tiny_layout, batch):
    params, loss = built
    profile = batch.profiles["rna"]
    shown = (profile.feature_ids[:, :, None] == batch.modalities["rna"].feature_ids[:, None]).any(2)
    unseen = ~shown & (profile.counts > 0)
    assert unseen.any(1)[counts_measured(batch)].all()
    more = profile._replace(counts=np.where(unseen, profile.counts + 5, profile.counts).astype(np.int32))
    other = batch._replace(profiles={**batch.profiles, "rna": more})
    (_, before), _ = loss(params, batch)
    (_, after), _ = loss(params, other)
    assert abs(before.metrics["rna_profile_nll"][0] - after.metrics["rna_profile_nll"][0]) > 1
    assert before.metrics["protein_profile_nll"][0] == after.metrics["protein_profile_nll"][0]
    jax.tree.map(np.testing.assert_array_equal, pack_tokens(batch), pack_tokens(other))


def counts_measured(batch):
    return np.asarray(batch.modalities["rna"].num_expressed > batch.modalities["rna"].lengths)


def test_a_modality_that_a_cell_lacks_weighs_nothing(built, batch):
    params, loss = built
    (_, sums), _ = loss(params, batch)
    for name, tokens in batch.modalities.items():
        nll, weight = sums.metrics[f"{name}_profile_nll"]
        assert weight == tokens.num_expressed.sum()
        assert nll > 0
    gone = jax.tree.map(np.zeros_like, (batch.modalities["protein"], batch.profiles["protein"]))
    (_, sums), gradients = loss(
        params,
        batch._replace(
            modalities={**batch.modalities, "protein": gone[0]}, profiles={**batch.profiles, "protein": gone[1]}
        ),
    )
    assert sums.metrics["protein_profile_nll"] == (0, 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.slow
def test_a_few_steps_beat_the_marginal_model_and_train_all_that_makes_the_embedding(built, batch):
    params, loss = built
    (marginal, _), _ = loss(params, batch)
    optimizer = optax.adam(1e-2)
    state = optimizer.init(params)
    update = jax.jit(lambda gradients, state: optimizer.update(gradients, state))
    for _ in range(60):
        _, gradients = loss(params, batch)
        updates, state = update(gradients, state)
        params = optax.apply_updates(params, updates)
    (learned, _), gradients = loss(params, batch)
    assert learned < 0.9 * marginal
    reached = {jax.tree_util.keystr(path): np.abs(leaf).max() for path, leaf in jax.tree.leaves_with_path(gradients)}
    for part in ("encoder", "embedding']['cls", "table", "profile_head"):
        assert max(size for path, size in reached.items() if part in path) > 0, part


@pytest.mark.slow
def test_eight_devices_microbatches_and_cut_rows_give_what_one_device_gives(config, tiny_layout, batch):
    def sums(config, mesh=None):
        model = ModelDefinition(config, tiny_layout)
        params = shaken(jax.jit(model.init)(jax.random.key(0)))
        (own,) = objectives_of(config).values()

        def function(params, batch):
            number = config.train.num_microbatches
            return sum_of_gradients(model, own, number, params, model.constants, batch, step_key(0, 7))

        if mesh is None:
            return jax.jit(function)(params, batch)
        with jax.set_mesh(mesh):
            return jax.jit(function)(params, batch_to_devices(batch, mesh))

    own = replace(config.objectives.whole_profile, features_per_step=8, source_fraction=0.6)
    two = replace(config.modalities, protein=ModalityConfig())  # compiles faster than three
    config = replace(config, objectives=replace(config.objectives, whole_profile=own), modalities=two)
    # Every other cell is shown at most one token of each: half of the microbatches can be cut. Its profile stays.
    few = np.arange(NUM_CELLS) % 2

    def shortened(tokens):
        lengths = np.where(few, np.minimum(tokens.lengths, 1), tokens.lengths).astype(np.int32)
        real = np.arange(tokens.counts.shape[1]) < lengths[:, None]
        ids, counts = (np.where(real, own, 0) for own in (tokens.feature_ids, tokens.counts))
        return tokens._replace(feature_ids=ids, counts=counts, lengths=lengths)

    batch = batch._replace(
        modalities={name: shortened(batch.modalities[name]) for name in ("rna", "atac")},
        profiles={name: batch.profiles[name] for name in ("rna", "atac")},
    )
    one, one_gradients = sums(config)
    parts = replace(config, train=replace(config.train, num_microbatches=2, row_widths=(4,)))
    many, many_gradients = sums(parts, make_mesh(MeshConfig(replica=2, fsdp=4)))
    assert many.weight == one.weight
    assert many.metrics["padding"][1] < NUM_CELLS * config.most_tokens  # or nothing was cut
    np.testing.assert_allclose(many.total, one.total, rtol=1e-5)
    # float32 sums over cells in another order
    chex.assert_trees_all_close(many_gradients, one_gradients, rtol=2e-4, atol=2e-3)


def test_a_batch_without_profiles_is_refused_with_what_to_do(config, tiny_layout, tiny_batch):
    with pytest.raises(ConfigError, match=r"profile_tokens="):
        WholeProfile(config).loss(None, None, tiny_batch(), KEY)


def test_only_models_that_were_trained_for_it_have_its_head(config, tiny_config, tiny_layout):
    assert "profile_head" in ModelDefinition(config, tiny_layout).abstract_params
    assert not {"token_head", "cell_head", "cell_decoder"} & set(ModelDefinition(config, tiny_layout).abstract_params)
    assert "profile_head" not in ModelDefinition(tiny_config, tiny_layout).abstract_params
    assert config.profile_tokens == 2048
    assert tiny_config.profile_tokens == 0
