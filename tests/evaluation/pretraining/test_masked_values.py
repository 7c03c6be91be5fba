"""Bits per masked token: of models, of what they are compared with, and how they are added up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from data_pipelines.statistics.cell_counts import CellCounts, WholeCells
from data_pipelines.statistics.feature_statistics import feature_statistics
from data_pipelines.synthetic.cells import synthetic_cells, synthetic_layout
from scmbert_jax.config import (
    ExperimentConfig,
    MaskedModelingConfig,
    ModalitiesConfig,
    ModalityConfig,
    ModelConfig,
    ObjectivesConfig,
    WholeProfileConfig,
)
from scmbert_jax.evaluation.pretraining import masked_cells, pca_ridge, profile_tokens
from scmbert_jax.evaluation.pretraining.masked_baselines import CELL_RATE, MARGINAL
from scmbert_jax.evaluation.pretraining.masked_cells import fit_baselines, mask_key, scored_cells, token_batches
from scmbert_jax.evaluation.pretraining.masked_values import (
    MODEL,
    MODEL_FROM_CLS,
    MODEL_PROFILE,
    CellTokens,
    level_names,
    levels_of,
    masked_bits,
    masked_tokens,
)
from scmbert_jax.evaluation.pretraining.pca_ridge import PCA
from scmbert_jax.evaluation.pretraining.profile_tokens import log_rarer_zeros
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.models.token_sequence import pack_tokens
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.scmbert import ModelDefinition

RNA = ModalityConfig(num_tokens=64)


def config_of(**modalities: ModalityConfig) -> ExperimentConfig:
    return ExperimentConfig(
        modalities=ModalitiesConfig(**{"rna": RNA, **modalities}),
        model=ModelConfig(embed_dim=16, num_layers=1, num_heads=2, head_dim=8, mlp_dim=16, linear_path=False),
        objectives=ObjectivesConfig(masked_modeling=MaskedModelingConfig(mask_fraction=0.4)),
    )


def whole(counts: dict[str, sp.csr_matrix]) -> WholeCells:
    """Cells that were measured in everything."""
    modalities = {}
    for name, matrix in counts.items():
        matrix = sp.csr_matrix(matrix, dtype=np.float64)
        number, features = matrix.shape
        modalities[name] = CellCounts(
            cells=np.arange(number),
            counts=matrix,
            library_size=np.asarray(matrix.sum(axis=1)).ravel(),
            mean_log_count=np.asarray(matrix.log1p().mean(axis=1)).ravel(),
            panel_of=np.zeros(number, np.int64),
            panels=np.ones((1, features), bool),
        )
    nothing = np.full(number, -1, np.int32)
    return WholeCells(modalities, nothing, nothing)


@pytest.fixture(scope="module")
def cells():
    """(1,000 training cells, 160 held-out ones, the truth of both): 80 genes, 3 types."""
    truth = synthetic_cells(1160, 80, num_cell_types=3, num_batches=2, seed=3)
    return whole({"rna": truth.counts["rna"][:1000]}), whole({"rna": truth.counts["rna"][1000:]}), truth


@pytest.fixture(scope="module")
def model(cells):
    """Untrained, with the statistics of the very tokens that baselines are fitted on."""
    bare = synthetic_layout(80)
    config = config_of()
    batches = [jax.tree.map(lambda x, n=n: x[:n], batch) for batch, n in token_batches(config, bare, cells[0], 0)]
    statistics = feature_statistics(batches, bare, {"rna": 1e4}, cells[0])
    return untrained(config, dataclasses.replace(bare, statistics=statistics))


def untrained(config: ExperimentConfig, layout: FeatureLayout) -> PretrainedModel:
    definition = ModelDefinition(config, layout)
    return PretrainedModel(
        config, None, definition, jax.jit(definition.init)(jax.random.key(0)), definition.constants, {}
    )


@pytest.fixture(scope="module")
def scored(cells, model):
    """Tokens of the held-out cells; nats of the model and of the baselines, after one draw of the training cells."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masked_cells, "_MOST_DRAWS", 1)
        patch.setattr(pca_ridge, "COMPONENTS", (8,))
        patch.setattr(pca_ridge, "STRENGTHS", (30.0, 300.0))
        baselines = fit_baselines(model.config, model.definition.layout, cells[0], 0)
    tokens, nll = scored_cells(model, cells[1], 5)["rna"]
    return tokens, {**nll, **baselines.nll({"rna": tokens}, 160)["rna"]}


@pytest.fixture(scope="module")
def bits(scored):
    tokens, nll = scored
    masked = tokens.at(tokens.masked)
    return masked_bits("rna", RNA, masked, nll, np.arange(160))


def test_each_feature_alone_knows_that_zeros_are_rarer_among_tokens(scored):
    """The model starts from one distribution of each feature's tokens, shown zeros and expressed ones alike."""
    _, nll = scored
    np.testing.assert_allclose(nll[MODEL], nll[MODEL_FROM_CLS], rtol=1e-4, atol=1e-4)
    assert nll[MARGINAL].mean() < nll[MODEL].mean() - 0.02


def test_all_methods_are_scored_on_the_same_tokens_and_levels_add_up_to_the_whole(scored, bits):
    tokens, nll = scored
    masked = tokens.at(tokens.masked)
    assert {len(values) for values in nll.values()} == {len(masked.cells)}
    assert bits.tokens.sum() == len(masked.cells)
    for method, values in nll.items():
        np.testing.assert_allclose(bits.bits[method].sum() * np.log(2), values.sum(), rtol=1e-6)
        parts = [bits.mean(method, level) * bits.tokens[:, level].sum() for level in bits.used_levels]
        assert sum(parts) / bits.tokens.sum() == pytest.approx(bits.mean(method))


def test_components_say_more_than_rates_and_single_features_and_the_truth_says_most(cells, scored, bits):
    """The oracle knows each cell's type and the true means; what a token is was drawn for its count, so it is told."""
    assert bits.interval(PCA, minus=MARGINAL).high < -0.01, "types are low-rank; knowing them exactly saves 0.09"
    assert bits.interval(PCA, minus=CELL_RATE).high < -0.01
    tokens, _ = scored
    masked, truth = tokens.at(tokens.masked), cells[2]
    positive = masked.counts > 0
    types = np.char.replace(truth.cell_type[1000:], "type", "").astype(int)[masked.cells[positive]]
    mean = truth.profiles["rna"][types, masked.features[positive]] * masked.library_size[positive]
    best = -stats.nbinom.logpmf(masked.counts[positive], 2.0, 2.0 / (2.0 + mean))
    best += np.log(-np.expm1(2.0 * np.log(2.0 / (2.0 + mean))))  # given that it is above zero
    oracle = best.mean() / np.log(2)
    expressed = [level for level in bits.used_levels if level > 0]
    number = bits.tokens[:, expressed].sum()
    of_pca = bits.bits[PCA][:, expressed].sum() / number
    of_marginal = bits.bits[MARGINAL][:, expressed].sum() / number
    assert oracle < of_pca < of_marginal


def test_a_cell_keeps_its_tokens_and_masks_whatever_stands_beside_it(cells, model, monkeypatch):
    among, _ = scored_cells(model, cells[1], 5)["rna"]
    all_of, nothing = cells[1].modalities["rna"], cells[1].folds[:70]
    first = CellCounts(*(column[:70] for column in all_of[:-1]), all_of.panels)
    monkeypatch.setattr(masked_cells, "ROWS", 48)
    alone, _ = scored_cells(model, WholeCells({"rna": first}, nothing, nothing), 5)["rna"]
    for mine, theirs in zip(alone, among.at(among.cells < 70), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)  # sums over a row differ in the last bit
    another, _ = scored_cells(model, cells[1], 6)["rna"]
    assert another.features.tolist() != among.features.tolist()


def test_levels_are_doublings_of_counts_bins_and_open_or_closed():
    counts = np.array([0, 1, 2, 3, 4, 7, 8, 127, 128, 5000], np.float32)
    tokens = CellTokens(
        *(np.zeros(10, np.int64),) * 2, counts, np.full(10, 1e4, np.float32), *(counts,) * 3, counts > -1
    )
    names = np.array(level_names(RNA))
    assert names[levels_of(RNA, tokens)].tolist() == [
        "0", "1", "2-3", "2-3", "4-7", "4-7", "8-15", "64-127", "128+", "128+",
    ]  # fmt: skip
    bins = ModalityConfig(num_tokens=8, likelihood="bins")
    assert levels_of(bins, tokens).tolist() == [0, 1, 1, 2, 2, 3, 3, 5, 5, 5]
    openness = ModalityConfig(num_tokens=8, likelihood="bernoulli")
    assert levels_of(openness, tokens).tolist() == [0] + 9 * [1]


def test_intervals_resample_what_was_measured_together(bits):
    by_cell = bits.interval(MARGINAL)
    assert by_cell.low < by_cell.mean < by_cell.high
    one = dataclasses.replace(bits, groups=np.zeros(160, np.int64))
    assert np.isnan(one.interval(MARGINAL).low), "one donor says nothing of another"
    assert by_cell.mean == pytest.approx(bits.mean(MARGINAL))
    assert one.interval(MARGINAL).mean == pytest.approx(bits.mean(MARGINAL))


@pytest.mark.slow
def test_bins_and_open_regions_have_baselines_too(monkeypatch):
    monkeypatch.setattr(masked_cells, "_MOST_DRAWS", 2)
    monkeypatch.setattr(pca_ridge, "COMPONENTS", (2,))  # what three types differ by
    monkeypatch.setattr(pca_ridge, "STRENGTHS", (30.0,))
    truth = synthetic_cells(900, 40, 0, 60, num_cell_types=3, num_batches=3, seed=1, mosaic=False)
    config = config_of(
        rna=ModalityConfig(num_tokens=32, likelihood="bins", target_sum=100.0),
        atac=ModalityConfig(num_tokens=48, likelihood="bernoulli"),
    )
    model = untrained(config, synthetic_layout(40, 0, 60))
    fitted, held_out = (
        whole({name: own[rows] for name, own in truth.counts.items()}) for rows in (slice(800), slice(800, 900))
    )
    baselines = fit_baselines(config, model.definition.layout, fitted, 0)
    tokens = {name: of for name, (of, _) in scored_cells(model, held_out, 5).items()}
    for name, nll in baselines.nll(tokens, 100).items():
        assert all(np.isfinite(values).all() for values in nll.values()), name
        assert nll[PCA].mean() < nll[MARGINAL].mean(), name
        assert nll[PCA].mean() < nll[CELL_RATE].mean(), name


@pytest.mark.slow
def test_a_decoder_of_whole_profiles_speaks_of_tokens_as_they_were_drawn(cells, model, scored, monkeypatch):
    """Probabilities of all counts of a token add up to one; before training it is nearly each feature alone."""
    objectives = dataclasses.replace(
        model.config.objectives,
        masked_modeling=dataclasses.replace(model.config.objectives.masked_modeling, weight=0.0),
        whole_profile=WholeProfileConfig(weight=1.0, hidden_dim=8),
    )
    config = dataclasses.replace(model.config, objectives=objectives)
    profiled = untrained(config, model.definition.layout)
    _, nll = scored_cells(profiled, cells[1], 5)["rna"]
    assert list(nll) == [MODEL_PROFILE]
    # It starts from each feature alone: whatever it is ahead of the baselines by is not the shape of its likelihood.
    assert nll[MODEL_PROFILE].mean() == pytest.approx(scored[1][MARGINAL].mean(), rel=0.01)

    batch, _ = next(iter(token_batches(config, model.definition.layout, cells[1], 5)))
    packed = pack_tokens(batch)
    masked = masked_tokens(config, batch, mask_key(0)).masked
    rarer = np.exp(log_rarer_zeros(packed, packed.valid, True))
    np.testing.assert_allclose(rarer, _rarer(batch.modalities["rna"]), rtol=1e-5)
    assert (np.exp(log_rarer_zeros(packed, packed.valid, False)) < 1e-20).all()
    network = profiled.definition.merge(profiled.params, profiled.constants)
    row, place = np.argwhere(np.asarray(masked))[3]
    monkeypatch.setattr(profile_tokens, "log_rarer_zeros", lambda tokens, *_: jnp.full(64, np.log(0.3)))

    def of_count(count: jax.Array) -> jax.Array:
        asked = dataclasses.replace(packed, counts=jnp.asarray(packed.counts).at[row, place].set(count))
        found = profile_tokens.profile_nll(config, network, network.feature_table(), batch, asked, masked)
        return jnp.exp(-found[row, place])

    total = jax.jit(lambda: jax.lax.map(of_count, jnp.arange(400.0)).sum())()
    assert float(total) == pytest.approx(1.0, abs=1e-3)


def _rarer(tokens) -> np.ndarray:
    """Fraction of a cell's zeros that became tokens over that of its expressed features."""
    real = np.arange(tokens.counts.shape[1]) < tokens.lengths[:, None]
    zeros, expressed = (real & (tokens.counts == 0)).sum(1), (real & (tokens.counts > 0)).sum(1)
    return zeros / (tokens.num_measured - tokens.num_expressed) / (expressed / tokens.num_expressed)
