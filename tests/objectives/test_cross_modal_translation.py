"""Translation: what it reads, what weighs, where it starts. A modality that no cell has: test_encoder_sharing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shaken, without
from scipy import stats

from scmbert_jax.batch import CellBatch
from scmbert_jax.config import CrossModalTranslationConfig, ExperimentConfig, ObjectivesConfig
from scmbert_jax.models.token_sequence import cell_weights
from scmbert_jax.objectives.cross_modal_translation.objective import CrossModalTranslation
from scmbert_jax.scmbert import ModelDefinition

KEY = jax.random.key(5)
EVERY = ("rna_to_protein_nll", "protein_to_rna_nll", "cycle_rna_to_protein_nll", "cycle_protein_to_rna_nll")


def translating(config: ExperimentConfig, **fields) -> ExperimentConfig:
    """RNA and protein, translation alone, one layer."""
    modalities = replace(
        config.modalities,
        rna=replace(config.modalities.rna, loss_weight=2.0),
        atac=replace(config.modalities.atac, num_tokens=0),
    )
    objectives = ObjectivesConfig(
        replace(config.objectives.masked_modeling, weight=0.0),
        CrossModalTranslationConfig(weight=1.0, cycle_weight=0.5, cycle_features=6, **fields),
    )
    return replace(config, modalities=modalities, objectives=objectives, model=replace(config.model, num_layers=1))


class Built:
    """A model and its objective, compiled once."""

    def __init__(self, config, layout):
        self.config, self.layout, self.definition = config, layout, ModelDefinition(config, layout)
        self.params = shaken(jax.jit(self.definition.init)(jax.random.key(0)))
        objective = CrossModalTranslation(config)

        def total(params, constants, batch):
            model = self.definition.merge(params, constants)
            found = objective.loss(model, model.feature_table(), batch, KEY)
            return found.total, found

        self._loss = jax.jit(jax.value_and_grad(total, has_aux=True))
        self._translate = jax.jit(self._translated, static_argnums=(3, 4))

    def loss(self, batch, params=None, constants=None):
        return self._of(self._loss, params, constants, batch)[0][1]

    def gradients(self, batch):
        return self._of(self._loss, None, None, batch)[1]

    def _of(self, function, params, constants, *others):
        own = self.params, self.definition.constants
        return function(own[0] if params is None else params, own[1] if constants is None else constants, *others)

    def _translated(self, params, constants, batch, source, target, ids):
        model = self.definition.merge(params, constants)
        return model.translate(model.feature_table(), batch, source, target, ids)

    def translate(self, batch, source, target, ids, params=None, constants=None) -> np.ndarray:
        asked = jnp.asarray(ids, jnp.int32)[None]
        found = self._of(self._translate, params, constants, batch, source, target, asked)
        assert np.isfinite(found.std).all()
        assert (np.asarray(found.std) > 0).all()
        return np.asarray(found.value)


@pytest.fixture(scope="module")
def built(tiny_config, known_layout) -> Built:
    return Built(translating(tiny_config), known_layout)


@pytest.fixture
def batch(tiny_batch) -> CellBatch:
    whole = tiny_batch()
    return whole._replace(modalities={name: own for name, own in whole.modalities.items() if name != "atac"})


def permuted(batch: CellBatch, name: str) -> CellBatch:
    """The cells with the tokens of `name` dealt anew, so that no cell keeps its own."""
    order = np.roll(np.arange(len(batch.row)), 3)
    tokens = jax.tree.map(lambda x: x[order], batch.modalities[name])
    return batch._replace(modalities={**batch.modalities, name: tokens})


def values(found, name) -> tuple[float, float]:
    return tuple(float(x) for x in found.metrics[name])


@pytest.mark.slow
def test_all_directions_are_predicted_with_pairs_and_in_cycles(built, batch):
    found = built.loss(batch)
    assert set(found.metrics) == set(EVERY)
    # (weight of the term) x (loss_weight of what is predicted: the target, or of a cycle the source)
    scales = dict(zip(EVERY, (1.0, 2.0, 0.5 * 2.0, 0.5 * 1.0), strict=True))
    total = sum(scale * values(found, name)[0] for name, scale in scales.items())
    weight = sum(scale * values(found, name)[1] for name, scale in scales.items())
    assert float(found.total) == pytest.approx(total, rel=1e-5)
    assert float(found.weight) == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize(
    ("other", "term"), [("protein", "cycle_rna_to_protein_nll"), ("rna", "cycle_protein_to_rna_nll")]
)
def test_a_cycle_reads_no_pair(built, batch, other, term):
    """Dealing the other modality anew, or taking it away, leaves every bit of the term; pairs are lost by it."""
    before = built.loss(batch)
    dealt, gone = built.loss(permuted(batch, other)), built.loss(without(batch, other))
    assert values(dealt, term) == values(before, term) == values(gone, term)
    assert values(before, term)[1] > 0
    for pair in ("rna_to_protein_nll", "protein_to_rna_nll"):
        assert abs(values(dealt, pair)[0] - values(before, pair)[0]) > 1.0
        assert values(gone, pair)[1] == 0


@pytest.mark.slow
def test_a_run_of_cycles_alone_gets_the_same_gradients_whoever_is_whose_partner(tiny_config, known_layout, batch):
    """Bit for bit: the proof that `pair_weight` 0 uses no pair."""
    built = Built(translating(tiny_config, directions=("rna>protein",), pair_weight=0.0), known_layout)
    before, dealt = built.gradients(batch), built.gradients(permuted(batch, "protein"))
    assert set(built.loss(batch).metrics) == {"cycle_rna_to_protein_nll"}
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(dealt), strict=True):
        np.testing.assert_array_equal(one, other)
    # The way there is trained by the way back.
    assert np.abs(before["translation_head"]["outputs"]["protein"]).max() > 0


def test_cells_that_lack_the_source_or_the_target_weigh_nothing(built, batch):
    half = without(batch, "protein", slice(0, 8))
    tokens = half.modalities["rna"]
    counts = tokens.counts.copy()
    counts[:8] *= 3  # of the cells without proteins only
    changed = half._replace(modalities={**half.modalities, "rna": tokens._replace(counts=counts)})
    before, after = built.loss(half), built.loss(changed)
    for pair in ("rna_to_protein_nll", "protein_to_rna_nll"):
        assert values(before, pair) == values(after, pair)
        assert 0 < values(before, pair)[1] < values(built.loss(batch), pair)[1]
    # but they do take part in the cycle of RNA
    assert values(before, "cycle_rna_to_protein_nll")[0] != values(after, "cycle_rna_to_protein_nll")[0]


@pytest.mark.slow
def test_a_prediction_reads_the_source_and_nothing_of_the_target(built, batch):
    for source, target in (("rna", "protein"), ("protein", "rna")):
        ids = np.arange(*built.layout.slices[target])
        before = built.translate(batch, source, target, ids)
        np.testing.assert_array_equal(built.translate(permuted(batch, target), source, target, ids), before)
        np.testing.assert_array_equal(built.translate(without(batch, target), source, target, ids), before)
        moved = np.abs(built.translate(permuted(batch, source), source, target, ids) - before)
        assert moved.max() > 1e-3


def test_a_feature_is_predicted_alike_whatever_else_is_asked(built, batch):
    first, stop = built.layout.slices["protein"]
    whole = built.translate(batch, "rna", "protein", np.arange(first, stop))
    few = built.translate(batch, "rna", "protein", [first + 7, first + 2, first + 7])
    np.testing.assert_allclose(few, whole[:, [7, 2, 7]], rtol=1e-5, atol=1e-5)


def test_a_protein_that_no_cell_ever_showed_is_predicted_through_its_gene(built, batch):
    """Its row is that of its gene, projected: another gene row, another prediction."""
    rows, genes = built.layout.links["protein"]
    unseen, gene = int(rows[0]), int(genes[0])
    silent = dict(built.params)
    # As after a training that never met it: nothing was learned of the row itself.
    learned = silent["table"]["learned"].at[unseen].set(0.0)
    silent["table"] = {**silent["table"], "learned": learned}
    before = built.translate(batch, "rna", "protein", [unseen], silent)
    assert before.std() > 1e-4  # it differs from cell to cell
    other = {**silent, "table": {**silent["table"], "learned": learned.at[gene].multiply(-1.0)}}
    assert np.abs(built.translate(batch, "rna", "protein", [unseen], other) - before).max() > 1e-3


@pytest.mark.slow
def test_training_sees_the_maps_of_other_folds_and_prediction_the_map_of_all_pairs(built, batch):
    """In training, what predicts a cell linearly has not seen it."""
    linear = built.layout.statistics.linear

    def start_with(keep) -> tuple[float, np.ndarray]:
        maps = np.where(keep[:, None, None, None, None], linear.translation_maps, 0.0).astype(np.float32)
        changed = linear._replace(translation_maps=maps, neighbour_fractions=np.zeros_like(linear.neighbour_fractions))
        layout = replace(built.layout, statistics=built.layout.statistics._replace(linear=changed))
        definition = ModelDefinition(built.config, layout)
        params = jax.jit(definition.init)(jax.random.key(0))
        first, stop = built.layout.slices["protein"]
        ids = np.arange(first, stop)
        own = params, definition.constants
        loss = values(built.loss(batch, *own), "rna_to_protein_nll")[0]
        return loss, built.translate(batch, "rna", "protein", ids, *own)

    of_all = np.arange(len(linear.translation_maps)) == 0
    loss, predicted = start_with(np.ones_like(of_all))
    loss_without, predicted_without = start_with(~of_all)
    assert loss_without == loss
    assert np.abs(predicted_without - predicted).max() > 1e-3
    loss_without, predicted_without = start_with(of_all)
    assert loss_without != loss
    np.testing.assert_array_equal(predicted_without, predicted)


def test_the_first_step_has_the_loss_of_predicting_each_feature_by_itself(built, batch):
    """The marginal model of cells, by scipy: without pairs to start from, a new model knows each feature's mean and
    spread, and nothing of a cell. (With pairs, the linear path starts from a regression on them.)"""
    statistics = built.layout.statistics
    names = ("translation_maps", "neighbour_fractions")
    nothing = {name: np.zeros_like(getattr(statistics.linear, name)) for name in names}
    unpaired = statistics._replace(linear=statistics.linear._replace(**nothing))
    start = ModelDefinition(built.config, replace(built.layout, statistics=unpaired))
    found = built.loss(batch, jax.jit(start.init)(jax.random.key(0)), start.constants)

    def weighted(name, nll):
        tokens = batch.modalities[name]
        weights = np.asarray(cell_weights(tokens))
        weights = weights * (tokens.lengths / weights.sum(1))[:, None]
        return (nll * weights).sum(), weights.sum()

    protein = batch.modalities["protein"]
    clr = np.log1p(protein.counts / np.exp(protein.mean_log_count)[:, None])
    mean, std = statistics.clr_mean[protein.feature_ids], statistics.clr_std[protein.feature_ids]
    np.testing.assert_allclose(
        values(found, "rna_to_protein_nll"), weighted("protein", -stats.norm.logpdf(clr, mean, std)), rtol=1e-4
    )
    rna = batch.modalities["rna"]
    mean = rna.library_size[:, None] * statistics.cell_fraction[rna.feature_ids]
    theta = np.exp(statistics.cell_log_dispersion[rna.feature_ids])
    nll = -stats.nbinom.logpmf(rna.counts, theta, theta / (theta + mean))
    np.testing.assert_allclose(values(found, "protein_to_rna_nll"), weighted("rna", nll), rtol=1e-4)
