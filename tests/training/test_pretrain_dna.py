"""Runs on DNA, from a corpus to a model folder, through the loop that trains on cells."""

import json
import os
import shutil
import signal
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import scmbert, scmbert_ok
from small_genomes import MOTIFS, small_genome

from data_pipelines.genome.genome_reader import GenomeReader, batch_of
from data_pipelines.genome.sealed_chromosomes import SealedChromosomes
from scmbert_jax.config import TrainConfig, ValidationConfig
from scmbert_jax.dna_config import DnaExperiment, DnaObjectivesConfig, load_any_config
from scmbert_jax.errors import CheckpointError, ConfigError
from scmbert_jax.experiment_files import load_any_experiment
from scmbert_jax.objectives.sequence_region.config import MaskedSequenceConfig, MotifOccurrenceConfig
from scmbert_jax.parallel.mesh import make_mesh
from scmbert_jax.pretrained import export_model, load_model
from scmbert_jax.pretrained_dna import export_dna_model, open_dna_model
from scmbert_jax.pretraining import pretrain
from scmbert_jax.training import loop
from scmbert_jax.training.run_folder import RunFolder

TINY = load_any_experiment("genebert:tiny")
CONFIG = replace(
    TINY,
    sequence=replace(TINY.sequence, most_bases=24),
    # Two tasks that compile fast; the others are in tests/objectives.
    objectives=DnaObjectivesConfig(
        MaskedSequenceConfig(with_regions=False, span=3), motif_occurrence=MotifOccurrenceConfig(weight=1.0)
    ),
    train=TrainConfig(num_steps=6, log_every=2, checkpoint_every=2),
    validation=ValidationConfig(every=4, evaluators=("loss",), cells=12),
)


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Of the eight that tests have: what is compiled for one compiles faster, and sums have one order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_mesh", lambda config, devices: make_mesh(config, jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "regions.npz"
    small_genome().save(path)
    return path


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    return pretrain(CONFIG, corpus, tmp_path_factory.mktemp("runs") / "1", reader="threads", progress=False)


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("sequences_per_second", "step_seconds", "data_wait_fraction")
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


@pytest.mark.slow
def test_a_run_leaves_what_is_needed_to_repeat_it(run):
    assert (run.step, run.interrupted) == (6, False)
    there = load_any_config(run.folder / "config.json")
    assert isinstance(there, DnaExperiment)
    assert there == CONFIG
    provenance = json.loads((run.folder / "provenance.json").read_text())
    assert provenance["corpus_fingerprint"] == small_genome().fingerprint
    assert provenance["information"]["sequences"] == {"train": 32, "validation": 8, "test": 8}
    metrics = run.metrics()
    assert metrics["sequences_per_second"].dropna().gt(0).all()
    assert np.isfinite(metrics["validation/loss/loss"].dropna()).all()
    assert metrics["validation/loss/masked_sequence/loss"].notna().sum() == 2  # at step 4, and at the end


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(run, corpus, tmp_path, monkeypatch):
    plain, told = GenomeReader.batch_at, []

    def batch_at(self, step):
        if step == 3 and not told:
            told.append(os.kill(os.getpid(), signal.SIGTERM))
        return plain(self, step)

    monkeypatch.setattr(GenomeReader, "batch_at", batch_at)
    first = pretrain(CONFIG, corpus, tmp_path / "run", reader="threads", reader_prefetch=0, progress=False)
    assert first.interrupted
    assert first.step < 6
    second = pretrain(CONFIG, corpus, tmp_path / "run", reader="threads", progress=False)
    assert second.step == 6
    ours, theirs = (export_dna_model(own.folder, tmp_path / str(n)) for n, own in enumerate((run, second)))
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_array_equal(a, b)
    losses = [{row["step"]: row for row in rows_of(own.folder) if "loss" in row} for own in (run, second)]
    assert losses[0][6] == losses[1][6]


@pytest.mark.slow
def test_a_model_folder_opens_again_as_what_was_trained(run, tmp_path):
    exported = run.export(tmp_path / "model")
    opened = open_dna_model(tmp_path / "model")
    assert opened.layout.regulators == MOTIFS
    assert opened.steps_in_words() == "6 of 6"
    for a, b in zip(jax.tree.leaves(exported.params), jax.tree.leaves(opened.params), strict=True):
        np.testing.assert_array_equal(a, b)
    batch = batch_of(small_genome(), np.arange(4), np.arange(4), np.zeros(4, bool), 1)
    states = opened.model().encode(batch).pooled
    one_hot = jax.nn.one_hot(batch.codes, 4)
    np.testing.assert_allclose(opened.sequence_encoder(one_hot, batch.lengths).pooled, states, atol=1e-5)
    assert np.abs(np.asarray(opened.untrained(1).model().encode(batch).pooled - states)).max() > 0.01
    hidden = jnp.zeros(batch.codes.shape, bool).at[:, 3].set(True)
    told = opened.model().base_log_probabilities(one_hot, batch.lengths, hidden)
    changed = opened.model().base_log_probabilities(one_hot.at[:, 3].set(0.25), batch.lengths, hidden)
    np.testing.assert_array_equal(told, changed)
    assert np.exp(np.asarray(told)).sum(-1)[:, 3].max() < 1.001
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    for told in ("masked_sequence, motif_occurrence", "32 train, 8 validation, 8 test", "chr7", "tokens `kmers`"):
        assert told in card
    with pytest.raises(CheckpointError, match="a model of DNA, not of cells"):
        load_model(tmp_path / "model")
    with pytest.raises(CheckpointError, match="a run on DNA, not on cells"):
        export_model(run.folder, tmp_path / "of_cells")
    layout = tmp_path / "model" / "genome_layout.npz"
    layout.write_bytes(layout.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"genome_layout\.npz: is not what was written"):
        open_dna_model(tmp_path / "model")


@pytest.mark.slow
def test_another_corpus_or_another_experiment_does_not_continue_a_run(run, tmp_path):
    there = tmp_path / "run"
    shutil.copytree(run.folder, there)
    small_genome(seed=1).save(tmp_path / "other.npz")
    with pytest.raises(CheckpointError, match=r"started on another corpus.*all training regions"):
        pretrain(CONFIG, tmp_path / "other.npz", there, reader="threads", progress=False)
    small_genome().save(tmp_path / "same.npz")
    with pytest.raises(ConfigError, match=r"sequence\.kmer: 3 there, 4 now"):
        pretrain(CONFIG, tmp_path / "same.npz", there, changes={"sequence.kmer": 4}, progress=False)


@pytest.mark.slow
def test_what_does_not_fit_is_refused_by_its_name(run, corpus, pbmc_corpus, tmp_path):
    def refused(message, experiment=CONFIG, data=corpus, **options):
        with pytest.raises(ConfigError, match=message):
            pretrain(experiment, data, tmp_path / "run", progress=False, **options)

    refused(r"a folder, such as a corpus of cells.*scmbert corpus genome", data=pbmc_corpus)
    refused(r"a corpus of sequences, which experiments on DNA read", "tiny")
    refused(r"2 corpora are given", data=[corpus, corpus])
    refused(r"init_from, validation: options of runs on cells", validation="x", init_from="y")
    refused(r"sequence\.most_bases is 20, and .* sequences of 24 bases", changes={"sequence.most_bases": 20})
    refused(r"names 'lift'; of DNA there is loss", changes={"validation.evaluators": ["loss", "lift"]})
    bare = tmp_path / "bare.npz"
    parts = SealedChromosomes(validation=("chr9",), test=("chr8",))
    replace(small_genome(regulators=False), chromosomes=parts).save(bare)
    refused(r"no region on a validation chromosome", data=bare)
    unjudged = {"validation.every": 0}
    refused(r"motif_occurrence asks for regulators, which the corpus does not have", data=bare, changes=unjudged)
    with pytest.raises(ConfigError, match="this run folder is of a run on DNA, the experiment is one on cells"):
        RunFolder(run.folder, load_any_experiment("tiny"), None)
    run_dir = tmp_path / "run"
    ran = scmbert("pretrain", "genebert:tiny", "--corpus", corpus, "--run-dir", run_dir, "--balance-by", "donor")
    assert ran.code == 4
    assert "balance_by: options of runs on cells" in ran.err
    assert not (tmp_path / "run").exists()


@pytest.mark.nightly
def test_the_verbs_lead_from_files_to_a_model(tmp_path):
    """All four tasks, by the command line."""
    random = np.random.default_rng(0)
    text, regions = "", ""
    for name, number in (("chr1", 60), ("chr7", 12), ("chr8", 12)):
        text += f">{name}\n{''.join(random.choice(list('ACGT'), 100 * number))}\n"
        regions += "".join(f"{name}\t{100 * place}\t{100 * place + 60}\n" for place in range(number))
    (tmp_path / "genome.fa").write_text(text)
    (tmp_path / "regions.bed").write_text(regions)
    (tmp_path / "motifs.txt").write_text(">M1 ONE\nA [9 0 0 1]\nC [0 9 0 3]\nG [1 1 9 3]\nT [0 0 1 3]\n")
    corpus, run, model = (tmp_path / name for name in ("corpus.npz", "run", "model"))
    files = [tmp_path / name for name in ("genome.fa", "regions.bed")]
    said = scmbert_ok("corpus", "genome", *files, "-o", corpus, "--motifs", tmp_path / "motifs.txt")
    assert "84 sequences of up to 60 bases (60 train, 12 validation, 12 test)" in said
    scmbert_ok("pretrain", "genebert:tiny", "--corpus", corpus, "--run-dir", run, "--steps", "12")
    assert "model of DNA, step 12 of 12" in scmbert_ok("export", run, model)
    assert open_dna_model(model).layout.regulators == ("M1",)
