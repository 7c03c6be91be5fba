"""A network that begins with the encoder of a model of DNA, and the embeddings of such a model."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from small_genomes import small_genome

from data_pipelines.genome.bases import encode, reverse_complement
from data_pipelines.genome.corpus_layout import layout_of
from scmbert_jax.dna_model import DnaDefinition
from scmbert_jax.errors import CheckpointError, ConfigError
from scmbert_jax.experiment_files import load_any_experiment
from scmbert_jax.pretrained_dna import DnaPretrained
from scmbert_jax.regulation import pretrained_encoder
from scmbert_jax.regulation.fit import FitOptions, fit_regulatory
from scmbert_jax.regulation.labelled import LabelledSequences, Task
from scmbert_jax.regulation.network import NetworkOptions
from scmbert_jax.regulation.pretrained_encoder import embedder_of, pretrained_network


@pytest.fixture(scope="module")
def pretrained():
    tiny = load_any_experiment("genebert:tiny")
    config = replace(tiny, sequence=replace(tiny.sequence, most_bases=24))
    layout = layout_of(small_genome(), 0.99)
    definition = DnaDefinition(config, layout)
    params = jax.jit(definition.init)(jax.random.key(3))
    return DnaPretrained(config, layout, definition, params, definition.constants, {"step": 0})


@pytest.fixture
def folder(pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained_encoder, "open_dna_model", lambda folder: pretrained)
    (tmp_path / "model.json").write_text(json.dumps({"format_version": 1, "step": 0, "provenance": {}}))
    return tmp_path


def labelled() -> LabelledSequences:
    codes = np.random.default_rng(0).integers(0, 4, (120, 24)).astype(np.uint8)
    codes[::2, 8:14] = encode("TGACGT")
    targets = (np.arange(120) % 2 == 0)[:, None].astype(np.float32)
    return LabelledSequences(codes, np.full(120, 24, np.int32), targets, Task("binary", ("no", "yes")))


def test_a_frozen_encoder_stays_and_one_that_is_fine_tuned_moves(pretrained, folder):
    options = NetworkOptions(hidden=8, motif_dim=0, epochs=1, fewest_steps=20, batch_size=16, strands="given")
    moved, numbers = {}, {}
    for frozen in (True, False):
        network, start = pretrained_network(folder, options, frozen)
        model = fit_regulatory(labelled(), FitOptions(linear=(), network=network), pretrained=start)
        found = model.networks[0].params["network"]["sequence"]
        differ = jax.tree.map(lambda own, first: float(np.abs(own - first).max()), found, pretrained.params["sequence"])
        moved[frozen] = max(jax.tree.leaves(differ))
        assert model.info["pretrained"] == ("frozen" if frozen else "fine-tuned")
        numbers[frozen] = model.num_parameters
    assert numbers[False] - numbers[True] == sum(leaf.size for leaf in jax.tree.leaves(pretrained.params["sequence"]))
    assert moved[True] < 1e-6
    assert moved[False] > 1e-4


def test_longer_sequences_than_the_encoder_reads_are_refused(folder):
    network, start = pretrained_network(folder, NetworkOptions(), False)
    data = labelled()
    long = replace(data, codes=np.tile(data.codes, 2), lengths=data.lengths * 2)
    with pytest.raises(ConfigError, match="cut windows of that"):
        fit_regulatory(long, FitOptions(linear=(), network=network), pretrained=start)


def test_embeddings_are_those_of_both_strands_whatever_the_batch(folder):
    embed, length = embedder_of(folder, 16)
    assert length == 24
    codes = labelled().codes[:20]
    vectors = embed(codes)
    assert vectors.shape[0] == 20
    assert vectors.std(0).max() > 0
    np.testing.assert_allclose(embed(reverse_complement(codes)), vectors, atol=1e-5)
    with pytest.raises(CheckpointError, match="neither a regulatory model"):
        embedder_of(folder / "nothing", 16)
