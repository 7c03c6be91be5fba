import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_genomes import CELL_TYPES, MOTIFS, small_genome

from data_pipelines.genome.corpus_layout import layout_of, load_layout, save_layout
from data_pipelines.genome.genome_reader import GenomeReader, batch_of
from scmbert_jax.config import ModelConfig
from scmbert_jax.dna_config import (
    DnaDataConfig,
    DnaExperiment,
    DnaObjectivesConfig,
    RegionConfig,
    SequenceConfig,
)
from scmbert_jax.dna_model import DnaDefinition
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.genome_layout import GenomeLayout
from scmbert_jax.objectives.mixture import objective_at, objectives_of
from scmbert_jax.objectives.sequence_region.config import (
    MaskedRegionsConfig,
    MaskedSequenceConfig,
    MatchingConfig,
    MotifOccurrenceConfig,
)
from scmbert_jax.objectives.sequence_region.matching import comparable, hard_negatives
from scmbert_jax.random_keys import init_key, row_keys, step_key
from scmbert_jax.training.train_step import sum_of_gradients

CONFIG = DnaExperiment(
    data=DnaDataConfig(global_batch_size=8, num_streams=1),
    model=ModelConfig(embed_dim=8, num_layers=1, num_heads=2, head_dim=4, mlp_dim=16),
    sequence=SequenceConfig(most_bases=24, stem_channels=6, stem_kernel=5, stem_pool=2),
    regions=RegionConfig(num_regions=3, num_layers=1, patch_columns=4, window_regions=2),
    objectives=DnaObjectivesConfig(
        MaskedSequenceConfig(span=3, mask_fraction=0.4),
        MaskedRegionsConfig(weight=1.0),
        MatchingConfig(weight=0.5, projection_dim=4),
        MotifOccurrenceConfig(weight=0.5),
    ),
)
CORPUS = small_genome()
LAYOUT = layout_of(CORPUS, 0.5)
KEY = step_key(0, 3)
# Sums of losses and of weights of the batch of step 0 with the key of step 3. Others say that training goes another way
# than before; where that is meant (another loss, other draws), say so in the CHANGELOG.
GOLDEN = {
    "masked_sequence": (91.0359, 60.0),
    "masked_regions": (42.56090, 23.0),
    "matching": (75.31480, 32.0),
    "motif_occurrence": (5.449119, 8.0),
}
NAMES = ("masked_sequence", "masked_regions", "matching", "motif_occurrence")


@pytest.fixture(scope="module")
def trained():
    """(definition, parameters, batch, name -> jitted sums and gradients of (params, batch))."""
    model = DnaDefinition(CONFIG, LAYOUT)
    params = jax.jit(model.init)(init_key(CONFIG.seed))
    batch = GenomeReader(CORPUS, seed=0, global_batch_size=8, num_neighbours=3).batch_at(0)

    def compiled(objective, parts):
        return jax.jit(
            lambda params, batch: sum_of_gradients(model, objective, parts, params, model.constants, batch, KEY)
        )

    steps = {name: compiled(own, 1) for name, own in objectives_of(CONFIG).items()}
    return model, params, batch, steps


@pytest.mark.slow
def test_every_task_has_a_finite_loss_and_trains_what_it_reads(trained):
    _, params, batch, steps = trained
    reads = {
        "masked_sequence": {"sequence", "regions", "fusion", "sequence_head"},
        "masked_regions": {"sequence", "regions", "fusion", "region_head"},
        "matching": {"sequence", "regions", "fusion", "matching_head"},
        "motif_occurrence": {"sequence", "motif_head"},
    }
    for name, step in steps.items():
        sums, gradients = step(params, batch)
        np.testing.assert_allclose((sums.total, sums.weight), GOLDEN[name], rtol=2e-5)  # float32, other processors
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(gradients))
        sizes = {part: [np.abs(leaf).max() for leaf in jax.tree.leaves(own)] for part, own in gradients.items()}
        trains = {part for part, own in sizes.items() if max(own, default=0) > 0}
        assert trains == reads[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masked_sequence", "masked_regions", "motif_occurrence"])
def test_losses_are_sums_whatever_the_microbatches(trained, name):
    _, params, batch, steps = trained
    whole = steps[name](params, batch)[0]
    # The other half is padding, which weighs nothing; so one compiled program serves all.
    halves = []
    for part in range(2):
        own = np.arange(8) % 2 == part
        rest = [np.where(own.reshape(-1, *(1,) * (x.ndim - 1)), x, y) for x, y in zip(batch, padding(), strict=True)]
        halves.append(steps[name](params, type(batch)(*rest))[0])
    for total, first, second in zip(jax.tree.leaves(whole), *map(jax.tree.leaves, halves), strict=True):
        np.testing.assert_allclose(float(total), float(first) + float(second), rtol=2e-5)


def padding():
    return batch_of(CORPUS, np.full(8, -1), np.zeros(8, int), np.zeros(8, bool), 3)


@pytest.mark.slow
def test_padding_weighs_nothing_in_any_task(trained):
    _, params, _, steps = trained
    for name in NAMES:
        sums, _ = steps[name](params, padding())
        assert float(sums.weight) == float(sums.total) == 0


def test_hidden_bases_are_not_seen_and_masks_are_of_seed_step_and_row(trained):
    """Bases that are hidden change the loss as its targets, never the states: nothing else of the batch tells them."""
    model, params, batch, _ = trained

    @jax.jit
    def read(batch):
        """(hidden bases, what the encoder made of the others) of the task's own forward pass."""
        own, seen = model.merge(params, model.constants), []
        encode = own.encode
        own.encode = lambda batch, hidden=None: (seen.append((hidden, encode(batch, hidden))), seen[-1][1])[1]
        objectives_of(CONFIG)["masked_sequence"].loss(own, None, batch, KEY)
        return seen[-1]

    hidden, plain = jax.tree.map(np.asarray, read(batch))
    assert 0.2 < hidden.sum() / batch.lengths.sum() < 0.6
    edges = np.diff(np.pad(hidden.astype(int), ((0, 0), (1, 1))), axis=1)
    runs = np.concatenate(
        [np.flatnonzero(row == -1) - np.flatnonzero(row == 1) for row in edges if not row[[0, 20]].any()]
    )
    assert runs.min() >= 3  # a span
    codes = np.where(hidden, 3 - np.minimum(batch.codes, 3), batch.codes).astype(np.uint8)
    same_hidden, changed = read(batch._replace(codes=codes))
    np.testing.assert_array_equal(hidden, same_hidden)
    np.testing.assert_array_equal(plain.pooled, changed.pooled)


def test_hidden_regions_are_predicted_without_being_seen(trained):
    model, params, batch, _ = trained
    read = jax.jit(
        lambda batch, hidden, closed: model.merge(params, model.constants).read_regions(
            batch, row_keys(KEY, batch.row), hidden, closed
        )
    )
    hidden = np.zeros((8, 3), bool)
    hidden[:, 2] = True
    none = np.zeros((8, 3), bool)
    plain = read(batch, hidden, none)
    values = np.where(hidden[..., None], batch.regulators + 5, batch.regulators)
    changed = read(batch._replace(regulators=values), hidden, none)
    np.testing.assert_array_equal(plain.states[plain.present], changed.states[plain.present])
    assert np.abs(np.asarray(plain.regulators - changed.regulators)[plain.present & hidden]).min() > 0
    reads = np.where(hidden[..., None] & (batch.accessibility > 0), batch.accessibility + 7, batch.accessibility)
    closed = read(batch._replace(accessibility=reads), none, hidden)
    again = read(batch, none, hidden)
    np.testing.assert_array_equal(closed.states[plain.present], again.states[plain.present])


def test_the_cell_type_is_told_by_open_regions_and_accessibility(trained):
    model, params, batch, _ = trained
    own = model.merge(params, model.constants)
    found = [own.read_regions(batch, cell_type=jnp.full(8, number)) for number in range(len(CELL_TYPES))]
    for number, one in enumerate(found):
        is_open = batch.accessibility[..., number] > 0
        middle = np.arange(3) == 1
        np.testing.assert_array_equal(one.present, (batch.neighbours >= 0) & (is_open | middle[None]))
    assert np.abs(np.asarray(found[0].own - found[1].own)).max() > 0.01
    untold = own.read_regions(batch)
    np.testing.assert_array_equal(untold.present, batch.neighbours >= 0)
    drawn = np.asarray(own.drawn_cell_types(row_keys(KEY, jnp.arange(300))))
    assert np.bincount(drawn).min() > 60


def test_a_hard_negative_is_another_region_and_the_likelier_the_more_alike():
    regions = np.array([4, 9, 4, 20, -1])
    batch = batch_of(CORPUS, regions, np.arange(5), np.zeros(5, bool), 3)
    batch = batch._replace(neighbours=np.where(regions[:, None] < 0, -1, regions[:, None] + np.array([[-1, 0, 1]])))
    allowed = np.asarray(comparable(batch))
    assert allowed[:4, :4].tolist() == [[0, 1, 0, 1], [1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 0]]
    assert not allowed[4].any()
    similarity = jnp.zeros((5, 5)).at[0, 3].set(3.0)
    counts = np.zeros((2, 5, 5), int)
    draw = jax.jit(hard_negatives)
    for step in range(60):
        for side, drawn in enumerate(draw(similarity, jnp.asarray(allowed), row_keys(step_key(0, step), batch.row))):
            counts[side][np.arange(5), np.asarray(drawn)] += 1
    assert (counts[0][:4][~allowed[:4]] == 0).all()
    assert (counts[1][:4][~allowed.T[:4]] == 0).all()
    assert counts[0][0, 3] > 50  # e^3 : 1
    assert 10 < counts[0][1, 0] < 35  # one of three


@pytest.mark.slow
def test_every_task_can_be_learned(trained):
    """A few steps on one batch: the loss of every task falls."""
    _, params, batch, steps = trained
    for name in NAMES:
        own, losses = params, []
        for _ in range(6):
            sums, gradients = steps[name](own, batch)
            losses.append(float(sums.total / sums.weight))
            own = jax.tree.map(lambda p, g: p - 0.03 * g / sums.weight, own, gradients)  # noqa: B023
        assert losses[-1] < losses[0], name


def test_two_strands_are_each_read_with_the_regions():
    config = dataclasses.replace(CONFIG, sequence=dataclasses.replace(CONFIG.sequence, strands="both"))
    model = DnaDefinition(config, LAYOUT)

    def read(params, batch):
        own = model.merge(params, model.constants)
        return own.fused(own.encode(batch), own.read_regions(batch, row_keys(KEY, batch.row)))

    found = jax.eval_shape(read, model.abstract_params, padding())
    assert found.encoded.states.shape == found.encoded.opposite.shape == (8, 12, 8)
    assert (found.pooled.shape, found.regions.shape) == ((8, 8), (8, 3, 8))


def test_which_task_trains_is_a_function_of_seed_and_step():
    drawn = [objective_at(CONFIG, step) for step in range(300)]
    assert drawn == [objective_at(CONFIG, step) for step in range(300)]
    assert {name: drawn.count(name) > 30 for name in NAMES} == dict.fromkeys(NAMES, True)


def test_scales_are_of_training_regions_and_come_back_from_a_file(tmp_path):
    train = CORPUS.chromosome == "chr1"
    values = CORPUS.regulators.values.toarray()[train]
    np.testing.assert_allclose(LAYOUT.regulator_mean, values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(LAYOUT.regulator_scale, values.std(0), rtol=1e-5)
    np.testing.assert_allclose(LAYOUT.occurs_above, np.quantile(values, 0.5, axis=0))
    reads = np.log1p(CORPUS.accessibility.values.toarray()[train])
    np.testing.assert_allclose(LAYOUT.accessibility_scale, reads.std(0), rtol=1e-5)
    assert (LAYOUT.regulators, LAYOUT.cell_types) == (MOTIFS, CELL_TYPES)
    save_layout(LAYOUT, tmp_path)
    back = load_layout(tmp_path)
    for own in dataclasses.fields(GenomeLayout):
        np.testing.assert_array_equal(getattr(back, own.name), getattr(LAYOUT, own.name))
    below = CORPUS.accessibility.values.copy()
    below.data[:] = -1
    matrix = dataclasses.replace(CORPUS.accessibility, values=below)
    with pytest.raises(InputError, match=r"accessibility of -1"):
        layout_of(dataclasses.replace(CORPUS, accessibility=matrix), 0.5)


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (DnaObjectivesConfig(), r"masked_sequence reads regions.*with_regions False"),
        (
            DnaObjectivesConfig(MaskedSequenceConfig(with_regions=False), MaskedRegionsConfig(weight=1.0)),
            r"masked_regions reads regions.*masked_regions.weight 0",
        ),
        (
            DnaObjectivesConfig(
                MaskedSequenceConfig(with_regions=False), motif_occurrence=MotifOccurrenceConfig(weight=1.0)
            ),
            r"motif_occurrence asks for regulators",
        ),
    ],
)
def test_a_task_without_its_matrix_is_refused(objectives, message):
    with pytest.raises(ConfigError, match=message):
        DnaDefinition(dataclasses.replace(CONFIG, objectives=objectives), GenomeLayout())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelConfig(covariates=("donor",))}, r"model\.covariates.*no model of DNA reads it"),
        ({"sequence": SequenceConfig(tokens="bpe")}, r"sequence\.tokens"),
        ({"sequence": SequenceConfig(stem_pool=2, stem_pooling="max")}, r"sequence\.stem_pooling"),
        ({"regions": RegionConfig(num_regions=0)}, r"regions\.num_regions is 0"),
        ({"data": DnaDataConfig(global_batch_size=6, num_streams=4)}, r"data\.num_streams is 4"),
        ({"objectives": DnaObjectivesConfig(MaskedSequenceConfig(span=0))}, r"masked_sequence\.span is 0"),
        ({"objectives": DnaObjectivesConfig(MaskedSequenceConfig(weight=0))}, r"objectives\.\*\.weight"),
        ({"objectives": DnaObjectivesConfig(matching=MatchingConfig(max_temperature=0.01))}, r"initial_temperature"),
    ],
)
def test_impossible_experiments_are_refused_by_the_field(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **changes)
