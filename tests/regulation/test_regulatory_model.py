"""A model fitted to sequences with a planted motif: better than chance, a function, repeated, stored."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from data_pipelines.genome.bases import encode, one_hot, reverse_complement
from data_pipelines.genome.motifs import MotifSet
from scmbert_jax.errors import CheckpointError, ConfigError, InputError
from scmbert_jax.regulation.fit import FitOptions, fit_regulatory, split_off
from scmbert_jax.regulation.labelled import LabelledSequences, Task
from scmbert_jax.regulation.linear_part import LinearDefinition, matrix_of
from scmbert_jax.regulation.losses import weights_as_in
from scmbert_jax.regulation.model import combine
from scmbert_jax.regulation.model_folder import load_regulatory, save_regulatory
from scmbert_jax.regulation.network import ENCODER, MOTIF_NETWORK, SEQUENCE, NetworkOptions
from scmbert_jax.sequences.gradients import integrated_gradients
from scmbert_jax.sequences.kmer_counts import kmer_counts
from scmbert_jax.sequences.mutagenesis import mutagenesis
from scmbert_jax.sequences.sequence_function import outputs

MOTIF, BINARY = "TGACGT", Task("binary", ("no", "yes"))
NETWORK = NetworkOptions(
    replace(ENCODER, embed_dim=16, num_heads=2, head_dim=8, mlp_dim=16),
    replace(SEQUENCE, stem_channels=16, stem_kernel=7),
    hidden=16,
    motif_dim=4,
    epochs=2,
    patience=1,
    fewest_steps=60,
)
OF_MOTIFS = replace(MOTIF_NETWORK, motif_dim=8, batch_size=32, epochs=2, fewest_steps=60)
OPTIONS = FitOptions(network=NETWORK, motif_network=OF_MOTIFS, linear=("kmers", "motifs"))
LINEAR = FitOptions(network=None, motif_network=None)


def planted(number: int, seed: int) -> LabelledSequences:
    """Half of them with the motif, on either strand."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, (number, 40)).astype(np.uint8)
    has = np.arange(number) % 2
    for row in np.flatnonzero(has):
        motif = encode(MOTIF) if rng.random() < 0.5 else reverse_complement(encode(MOTIF))
        start = rng.integers(0, 35)
        codes[row, start : start + 6] = motif
    return LabelledSequences(codes, np.full(number, 40, np.int32), has[:, None].astype(np.float32), BINARY)


def motif_set() -> MotifSet:
    counts = one_hot(encode(MOTIF)) * 19.0
    other = one_hot(encode("CCAATGG")) * 19.0
    return MotifSet(("M1", "M2"), ("PLANTED", "OTHER"), (counts, other), np.array([19.0, 19.0]), "two motifs")


@pytest.fixture(scope="module")
def model():
    return fit_regulatory(planted(240, 0), OPTIONS, dev=planted(80, 1), test=planted(120, 2), motifs=motif_set())


def test_a_planted_motif_is_found_and_told_with_an_interval(model):
    for who in ("model", "linear parts alone"):
        mcc = model.info["scores"]["test"][who]["mcc"]
        assert mcc.low <= mcc.value <= mcc.high
        assert mcc.low > 0.6, who
    assert {part.definition.name() for part in model.parts} >= {"motifs"}
    assert (model.combination.weights >= 0).all()


def test_f_is_the_model_and_every_operation_reads_it(model):
    data = planted(6, 3)
    found = outputs(model.f, one_hot(data.codes))
    np.testing.assert_allclose(found, model.outputs(data.codes), atol=1e-4)
    assert found.shape == (6, 1)
    probabilities = model.probabilities(data.codes)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(probabilities[:, 1] > 0.5, found[:, 0] > 0)
    planted_once = np.zeros((1, 40), np.uint8)
    planted_once[0, 10:16] = encode(MOTIF)
    changed = np.abs(mutagenesis(model.f, one_hot(planted_once)).importance()[0, :, 0])
    assert changed[10:16].mean() > 3 * np.delete(changed, slice(10, 16)).mean()
    explained = integrated_gradients(model.f, one_hot(data.codes), "uniform", steps=16, most_incomplete=0.5)
    assert np.isfinite(explained.hypothetical).all()


def test_a_network_of_both_strands_says_the_same_of_the_other_strand(model):
    of_motifs, network = model.networks
    assert of_motifs.definition.encoder is None
    assert network.definition.both
    alone = replace(model, parts=(network,), combination=replace(model.combination, weights=np.ones(1, np.float32)))
    codes = planted(8, 4).codes
    np.testing.assert_allclose(alone.outputs(codes), alone.outputs(reverse_complement(codes)), atol=1e-4)


def test_the_same_seed_gives_the_same_model_and_another_one_another(model):
    again = fit_regulatory(planted(240, 0), OPTIONS, dev=planted(80, 1), motifs=motif_set())
    assert again.name == model.name
    quick = replace(OPTIONS, network=None)
    one, other = (
        fit_regulatory(planted(240, 0), replace(quick, seed=seed), dev=planted(80, 1), motifs=motif_set())
        for seed in (0, 1)
    )
    assert other.name != one.name


def test_a_stored_model_gives_what_it_gave_and_a_damaged_one_is_refused_by_name(model, tmp_path):
    save_regulatory(model, tmp_path / "model")
    loaded = load_regulatory(tmp_path / "model")
    codes = planted(30, 5).codes
    np.testing.assert_array_equal(loaded.outputs(codes), model.outputs(codes))
    np.testing.assert_array_equal(loaded.embed(codes), model.embed(codes))
    np.testing.assert_array_equal(loaded.linear_alone().outputs(codes), model.linear_alone().outputs(codes))
    assert loaded.name == model.name
    with pytest.raises(CheckpointError, match="is there already"):
        save_regulatory(model, tmp_path / "model")
    data = bytearray((tmp_path / "model" / "regulatory.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model" / "regulatory.npz").write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"regulatory.npz: is not what was written.*scmbert regulate fit"):
        load_regulatory(tmp_path / "model")


@pytest.mark.parametrize(
    "definition",
    [
        LinearDefinition("kmers", (3, 4), True),
        LinearDefinition("gapped", (5, 3), True),
        LinearDefinition("gapped", (6, 4)),
        LinearDefinition("bases", (1, 2)),
    ],
)
def test_features_on_the_host_are_those_of_one_hot(definition):
    codes = planted(5, 6).codes
    codes[0, 7], codes[1, 30:] = 4, 4
    found = matrix_of(definition, codes).toarray()
    np.testing.assert_allclose(found, jax.jit(definition.features)(one_hot(codes)), atol=1e-6)


def test_kmers_are_counted_exactly():
    codes = np.concatenate([encode("ACGTACGNA"), encode("TTTTTTTTT")]).reshape(2, 9)
    counts = np.asarray(kmer_counts(one_hot(codes), 3))
    assert counts[0].sum() == 5
    assert counts[0, 0b000110] == 2  # ACG
    assert counts[1, 63] == 7


def test_values_are_predicted_in_their_own_units():
    data = planted(240, 7)
    values = np.concatenate([500 + 100 * data.targets, 1 - data.targets], axis=1)
    values[3, 0] = np.nan
    numbers = replace(data, targets=values.astype(np.float32), task=Task("values", ("high", "low")))
    model = fit_regulatory(numbers, replace(LINEAR, linear=("motifs",)), motifs=motif_set())
    found = model.outputs(data.codes)
    assert abs(found[:, 0].mean() - 550) < 10
    assert np.corrcoef(found[:, 0], data.targets[:, 0])[0, 1] > 0.8
    assert abs(found[:, 1].mean() - 0.5) < 0.1


def test_classes_and_several_labels_are_learned():
    data = planted(240, 8)
    codes, third = data.codes.copy(), np.arange(240) % 3 == 0
    codes[third, 5:12] = encode("CCAATGG")
    options = replace(LINEAR, linear=("motifs",))
    labels = np.stack([data.targets[:, 0], third], 1).astype(np.float32)
    several = replace(data, codes=codes, targets=labels, task=Task("labels", ("a", "b")))
    of_labels = fit_regulatory(several, options, motifs=motif_set())
    assert of_labels.info["scores"]["dev"]["model"]["auroc"].value > 0.9
    classes = np.where(third, 2, data.targets[:, 0])[:, None].astype(np.float32)
    one_of = replace(data, codes=codes, targets=classes, task=Task("classes", ("no", "a", "b")))
    of_classes = fit_regulatory(one_of, options, motifs=motif_set())
    assert of_classes.info["scores"]["dev"]["model"]["mcc"].value > 0.6
    np.testing.assert_allclose(of_classes.outputs(codes).sum(1), 0, atol=1e-4)


def test_a_dev_with_other_proportions_teaches_no_bias():
    outputs = [np.zeros((40, 1), np.float32)]
    targets = (np.arange(40) < 8)[:, None].astype(np.float32)
    dev, train = planted(40, 1), planted(40, 2)
    weights = weights_as_in(replace(dev, targets=targets), train)
    none, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    assert combine("binary", outputs, targets, none, one, [0]).bias[0] < -1
    assert abs(combine("binary", outputs, targets, none, one, [0], weights).bias[0]) < 0.01


def test_what_cannot_be_fitted_is_refused():
    data, linear = planted(60, 9), LINEAR
    with pytest.raises(InputError, match=r"all .* are 'yes'; expected at least two classes"):
        fit_regulatory(replace(data, targets=np.ones((60, 1), np.float32)), linear)
    with pytest.raises(InputError, match="give all parts the same labels"):
        fit_regulatory(data, linear, dev=replace(data, task=Task("binary", ("a", "b"))))
    with pytest.raises(InputError, match="nothing is left"):
        fit_regulatory(data, replace(linear, duplicates="drop"), dev=data)
    with pytest.raises(InputError, match="target 2 of sequence 0"):
        replace(data, targets=np.full((60, 1), 2, np.float32))
    with pytest.raises(ConfigError, match="nothing would be fitted"):
        replace(LINEAR, linear=())
    with pytest.raises(InputError, match="too few to choose by"):
        fit_regulatory(data.take(np.arange(10)), linear)


def test_dev_is_whole_chromosomes_or_has_no_twin_in_train():
    data = planted(200, 10)
    names = np.array([f"chr{place % 10}" for place in range(200)])
    train, dev = split_off(replace(data, chromosome=names), 0)
    assert not set(train.chromosome) & set(dev.chromosome)
    assert len(train) + len(dev) == 200
    twins = replace(data, codes=np.concatenate([data.codes[:100], reverse_complement(data.codes[:100])]))
    train, dev = split_off(twins, 0)
    assert not {row.tobytes() for row in train.codes} & {row.tobytes() for row in reverse_complement(dev.codes)}
