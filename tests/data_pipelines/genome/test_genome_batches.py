"""Batches of sequences are a function of (seed, step), of their own part alone, with the values of their regions."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from data_pipelines.batches.read_ahead import tf_batches, thread_batches
from data_pipelines.genome.bases import reverse_complement
from data_pipelines.genome.fasta import Fasta
from data_pipelines.genome.genome_corpus import GenomeCorpus, genome_corpus, open_genome_corpus
from data_pipelines.genome.genome_reader import GenomeReader
from data_pipelines.genome.interval import Interval
from data_pipelines.genome.interval_table import intervals_of
from data_pipelines.genome.region_matrix import RegionMatrix
from data_pipelines.genome.sealed_chromosomes import SealedChromosomes
from data_pipelines.genome.windows import cut_windows
from scmbert_jax.errors import ConfigError, CorpusError, InputError

SETTINGS = {"seed": 3, "global_batch_size": 8, "num_streams": 4, "num_neighbours": 3}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("genome") / "a.fa"
    path.write_text("".join(f">chr{i}\n{''.join(rng.choice(list('ACGT'), 1000))}\n" for i in range(1, 10)))
    places = [(f"chr{i}", 40 * at) for i in range(1, 10) for at in rng.permutation(20)]
    table = intervals_of([Interval(name, start, start + 20) for name, start in places])
    windows = cut_windows(Fasta(path), table, 30, edges="pad")
    shuffled = rng.permutation(len(table))
    values = np.arange(len(table) * 2, dtype=np.float32).reshape(-1, 2) + 1
    matrix = RegionMatrix(table.ids[shuffled], np.array(["Sox2", "CTCF"]), sp.csr_array(values[shuffled]))
    return genome_corpus(table, windows, regulators=matrix)


def arrays(batch):
    return [np.asarray(part) for part in batch if part is not None]


def test_any_number_of_processes_and_either_front_end_gives_the_same_batches(corpus):
    whole = GenomeReader(corpus, **SETTINGS)
    for step in (0, 5, whole.steps_per_epoch + 1):
        parts = [GenomeReader(corpus, **SETTINGS, process_index=i, process_count=2).batch_at(step) for i in range(2)]
        joined = [np.concatenate(pair) for pair in zip(*map(arrays, parts), strict=True)]
        for one, other in zip(arrays(whole.batch_at(step)), joined, strict=True):
            np.testing.assert_array_equal(one, other)
    for make in (thread_batches, tf_batches):
        for step, batch in make(whole, 5, 8):
            for one, other in zip(arrays(batch), arrays(whole.batch_at(step)), strict=True):
                np.testing.assert_array_equal(one, other)
                assert one.dtype == other.dtype


def test_an_epoch_has_every_region_of_the_part_once_and_none_of_another(corpus):
    for part, chromosomes in (("train", 6), ("validation", 1), ("test", 2)):
        reader = GenomeReader(corpus, part, **{**SETTINGS, "global_batch_size": 4, "num_streams": 1})
        assert reader.steps_per_epoch == chromosomes * 20 // 4
        seen = np.concatenate([reader.batch_at(step).region for step in range(reader.steps_per_epoch)])
        assert sorted(seen) == corpus.rows(part).tolist()
        names = {f"chr{i}" for i in {"train": range(1, 7), "validation": (7,), "test": (8, 9)}[part]}
        assert set(corpus.chromosome[seen]) == names
        around = np.concatenate([reader.batch_at(step).neighbours.ravel() for step in range(reader.steps_per_epoch)])
        assert set(corpus.chromosome[around[around >= 0]]) == names


def test_a_row_has_the_sequence_and_the_values_of_its_region(corpus):
    reader = GenomeReader(corpus, **SETTINGS)
    turned = []
    for step in range(6):
        batch = reader.batch_at(step)
        turned += batch.turned.tolist()
        for at, region in enumerate(batch.region.tolist()):
            forward = corpus.codes[region]
            expected = reverse_complement(forward) if batch.turned[at] else forward
            np.testing.assert_array_equal(batch.codes[at], expected)
            assert batch.neighbours[at, 1] == region
            assert batch.regulators[at, 1].tolist() == [2 * region + 1, 2 * region + 2]
            left, right = batch.neighbours[at, [0, 2]]
            assert left < 0 or corpus.start[left] == corpus.start[region] - 40
            assert right < 0 or corpus.start[right] == corpus.start[region] + 40
            assert left >= 0 or not batch.regulators[at, 0].any()
    assert 0.25 < np.mean(turned) < 0.75
    assert not GenomeReader(corpus, **SETTINGS, both_strands=False).batch_at(0).turned.any()
    other = GenomeReader(corpus, **{**SETTINGS, "seed": 4}).batch_at(0)
    assert (other.region != reader.batch_at(0).region).any()


def test_a_corpus_is_the_same_after_it_was_saved_and_a_changed_one_is_refused(corpus, tmp_path):
    corpus.save(tmp_path / "a.npz")
    found = open_genome_corpus(tmp_path / "a.npz")
    assert found.fingerprint == corpus.fingerprint
    assert found.chromosomes == corpus.chromosomes
    for one, other in zip(*(arrays(GenomeReader(c, **SETTINGS).batch_at(2)) for c in (corpus, found)), strict=True):
        np.testing.assert_array_equal(one, other)
    with np.load(tmp_path / "a.npz") as stored:
        changed = {name: stored[name] for name in stored.files}
    changed["codes"] = changed["codes"].copy()
    changed["codes"][0, 0] ^= 1
    np.savez(tmp_path / "b.npz", **changed)
    with pytest.raises(CorpusError, match="damaged"):
        open_genome_corpus(tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(b"no archive")
    with pytest.raises(CorpusError, match="build it again"):
        open_genome_corpus(tmp_path / "c.npz")


def test_what_would_mix_parts_or_rows_is_refused(corpus):
    with pytest.raises(ConfigError, match="chr8 is in two of the parts"):
        SealedChromosomes(validation=("chr8",))
    with pytest.raises(ConfigError, match="a part without chromosomes"):
        SealedChromosomes(test=())
    parts = (getattr(corpus, name)[:5] for name in ("codes", "lengths", "chromosome", "start", "regions"))
    few = GenomeCorpus(*parts, SealedChromosomes())
    with pytest.raises(InputError, match="no region is on a chromosome of the part test"):
        few.rows("test")
    turned = RegionMatrix(corpus.regions[::-1], corpus.regulators.columns, corpus.regulators.values)
    with pytest.raises(InputError, match="the same regions in another order"):
        replace(corpus, regulators=turned)
    with pytest.raises(ConfigError, match="num_neighbours is 0"):
        GenomeReader(corpus, **{**SETTINGS, "num_neighbours": 0})


def test_parts_that_call_a_chromosome_otherwise_would_seal_nothing(corpus):
    with pytest.raises(InputError, match="the parts name chromosome '8', the corpus calls it 'chr8'"):
        replace(corpus, chromosomes=SealedChromosomes(("chr7",), ("8",)))


def test_a_fingerprint_is_also_of_the_assembly(corpus):
    assert replace(corpus, assembly="hg38").fingerprint != replace(corpus, assembly="hg19").fingerprint
