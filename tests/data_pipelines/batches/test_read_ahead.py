"""Batches: the cells the order names, complete in every field, the same however they are made ahead."""

import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data_pipelines.batches.batch_reader import BatchReader
from data_pipelines.batches.collate import TokenSampling
from data_pipelines.batches.read_ahead import FRONT_ENDS, ReadAhead, thread_batches
from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.synthetic.cells import synthetic_cells
from scmbert_jax.batch import CellBatch
from scmbert_jax.errors import ConfigError, CorpusError

SAMPLING = {
    "rna": TokenSampling(40, 0.25, profile_tokens=100),
    "protein": TokenSampling(12, 0.5, profile_tokens=5),
    "atac": TokenSampling(0),
}
SETTINGS = {"seed": 3, "global_batch_size": 24, "num_streams": 4, "window_blocks": 2}


@pytest.fixture(scope="module")
def cells():
    return synthetic_cells(330, 100, 12, 50, num_batches=6, seed=0)


@pytest.fixture(scope="module")
def corpus_path(cells, tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus") / "corpus"
    build_corpus(out, [cells.to_mudata()], min_genes=5, block_size=12)
    return out


@pytest.fixture
def corpus(corpus_path):
    with open_corpus(corpus_path) as corpus:
        yield corpus


@pytest.fixture
def reader(corpus):
    return BatchReader(corpus, SAMPLING, **SETTINGS, covariates=("technical_batch", "cell_type"))


def arrays_of(batch: CellBatch) -> dict[str, np.ndarray]:
    found = {
        f"{name}.{field}": values
        for name, tokens in batch.modalities.items()
        for field, values in tokens._asdict().items()
    }
    found |= {
        f"{name}.profile.{field}": values
        for name, profile in (batch.profiles or {}).items()
        for field, values in profile._asdict().items()
    }
    return {**found, **batch.covariates, "cell_index": batch.cell_index, "row": batch.row}


def assert_same(first: CellBatch, second: CellBatch) -> None:
    left, right = arrays_of(first), arrays_of(second)
    assert list(left) == list(right)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
        assert left[name].dtype == right[name].dtype, name


def test_every_token_is_a_count_of_the_cell_it_names(cells, corpus, reader):
    obs = corpus.obs()
    source = {cell: row for row, cell in enumerate(cells.cell_ids)}
    dense = {name: counts.toarray() for name, counts in cells.counts.items()}
    order = {name: np.argsort(ids) for name, ids in cells.feature_ids.items()}
    for step in range(reader.steps_per_epoch):
        batch = reader.batch_at(step)
        assert list(batch.modalities) == ["rna", "protein"], "atac has no tokens: it is not read"
        for row, index in enumerate(batch.cell_index):
            cell = source[obs["cell_id"][index]]
            for name, tokens in batch.modalities.items():
                first = corpus.feature_space.slices[name][0]
                true = dense[name][cell][order[name]]
                assert tokens.measured[row] == cells.measured[name][cell]
                assert tokens.library_size[row] == true.sum()
                real = tokens.lengths[row]
                np.testing.assert_array_equal(
                    tokens.counts[row, :real], true[tokens.feature_ids[row, :real] - first], err_msg=name
                )
                # Of the whole cell: all that it expresses, or as many as there is room for; and what was measured.
                profile, most = batch.profiles[name], SAMPLING[name].profile_tokens
                assert profile.lengths[row] == min(most, (true > 0).sum())
                ids = profile.feature_ids[row, : profile.lengths[row]] - first
                assert len(set(ids.tolist())) == len(ids)
                np.testing.assert_array_equal(profile.counts[row, : profile.lengths[row]], true[ids], err_msg=name)
                assert (true[ids] > 0).all()
                panel = np.unpackbits(profile.panel[row], count=len(true), bitorder="little")
                assert (panel == cells.measured[name][cell]).all()
            code = batch.covariates["technical_batch"][row]
            assert corpus.vocabularies["technical_batch"][code] == "mudata/" + cells.technical_batch[cell]


def test_an_epoch_has_every_cell_at_most_once(reader):
    seen = np.concatenate([reader.batch_at(step).cell_index for step in range(reader.steps_per_epoch)])
    assert len(np.unique(seen)) == len(seen) == reader.steps_per_epoch * SETTINGS["global_batch_size"]


def test_the_batch_of_a_step_does_not_depend_on_what_was_read_before(corpus, reader):
    steps = [5, 0, reader.steps_per_epoch + 2, 5, 1]
    batches = [reader.batch_at(step) for step in steps]
    for step, batch in zip(steps, batches, strict=True):
        assert_same(BatchReader(corpus, SAMPLING, **SETTINGS, covariates=reader.covariates).batch_at(step), batch)


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_make_the_rows_of_the_one_batch(corpus, reader, process_count):
    processes = [
        BatchReader(
            corpus,
            SAMPLING,
            **SETTINGS,
            covariates=reader.covariates,
            process_index=index,
            process_count=process_count,
        )
        for index in range(process_count)
    ]
    for step in (0, 7, reader.steps_per_epoch):
        parts = [arrays_of(process.batch_at(step)) for process in processes]
        for name, whole in arrays_of(reader.batch_at(step)).items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole, err_msg=name)


@pytest.mark.slow
def test_all_front_ends_give_the_same_batches_bit_for_bit(reader):
    start, stop = 3, reader.steps_per_epoch + 4
    expected = [reader.batch_at(step) for step in range(start, stop)]
    assert list(FRONT_ENDS) == ["tfdata", "threads", "grain"]
    ways = [ReadAhead(name, num_threads=3) for name in FRONT_ENDS]
    ways += [ReadAhead(name, num_threads=1, prefetch=0) for name in FRONT_ENDS]
    for way in [*ways, ReadAhead()]:
        steps, found = zip(*way.batches(reader, start, stop), strict=True)
        assert list(steps) == list(range(start, stop))
        for batch, right in zip(found, expected, strict=True):
            assert type(batch) is CellBatch
            assert_same(batch, right)


@pytest.mark.parametrize("front_end", ["threads", "grain"])
def test_batches_are_made_ahead_in_threads_of_their_own_and_no_more_than_that(reader, front_end, monkeypatch):
    made = []
    plain = reader.batch_at
    monkeypatch.setattr(reader, "batch_at", lambda step: made.append((step, threading.current_thread())) or plain(step))
    batches = FRONT_ENDS[front_end](reader, 0, 1000, num_threads=2, prefetch=3)
    next(batches)
    until = time.monotonic() + 10
    while len(made) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    batches.close()
    assert 5 <= len(made) <= 8
    assert threading.current_thread() not in [thread for _, thread in made]


def test_a_front_end_that_is_not_installed_says_what_to_install(reader, monkeypatch):
    for name, package in (("grain", "grain"), ("tfdata", "tensorflow")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ConfigError, match=rf"--reader {name} needs the package {package}.*\[{package}\].*threads"):
            next(FRONT_ENDS[name](reader, 0, 3))


def test_tf_data_reads_where_tensorflow_is_installed_and_threads_elsewhere_and_it_is_said(monkeypatch):
    assert ReadAhead().chosen == "tfdata"
    assert "tf.data (--reader tfdata; TensorFlow is installed): made by 2 threads, up to 4" in ReadAhead().in_words()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert ReadAhead().chosen == "threads"
    said = ReadAhead(num_threads=8, prefetch=1).in_words()
    assert "threads (--reader threads; TensorFlow is not installed): made by 8 threads, up to 1" in said
    assert ReadAhead("tfdata").chosen == "tfdata", "what is asked for is never replaced"


@pytest.mark.parametrize(
    ("values", "named"),
    [({"front_end": "torch"}, "reader 'torch'"), ({"num_threads": 0}, "--reader-threads 0"), ({"prefetch": -1}, "-1")],
)
def test_no_other_way_to_read_ahead_is_taken(values, named):
    with pytest.raises(ConfigError, match=named):
        ReadAhead(**values)


def test_many_threads_may_share_a_reader(corpus, reader):
    steps = np.random.default_rng(0).integers(0, 3 * reader.steps_per_epoch, 60).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(reader.batch_at, steps))
    fresh = BatchReader(corpus, SAMPLING, **SETTINGS, covariates=reader.covariates)
    for step, batch in zip(steps, found, strict=True):
        assert_same(batch, fresh.batch_at(step))


def test_the_windows_in_memory_are_bounded(reader):
    for step in range(2 * reader.steps_per_epoch):
        reader.batch_at(step)
    (windows,) = reader._windows
    assert len(windows._cache) <= windows._capacity <= 3 * SETTINGS["num_streams"]


def test_each_window_is_decoded_once_an_epoch(corpus, reader, monkeypatch):
    read = []
    plain = corpus.read_packed_block
    monkeypatch.setattr(corpus, "read_packed_block", lambda index, *more: read.append(index) or plain(index, *more))
    for step in range(reader.steps_per_epoch):
        reader.batch_at(step)
    assert 0 < len(read) == len(set(read)) <= corpus.num_blocks


def tokens_of_cells(reader: BatchReader, epoch: int) -> dict[int, tuple[int, ...]]:
    """Corpus row -> RNA features drawn in that epoch, of the cells measured in RNA."""
    found = {}
    for step in range(epoch * reader.steps_per_epoch, (epoch + 1) * reader.steps_per_epoch):
        batch = reader.batch_at(step)
        rna = batch.modalities["rna"]
        found |= {
            int(cell): tuple(ids.tolist())
            for cell, ids, measured in zip(batch.cell_index, rna.feature_ids, rna.measured, strict=True)
            if measured
        }
    return found


def test_the_epochs_sample_other_tokens_of_a_cell(reader):
    first, second = tokens_of_cells(reader, 0), tokens_of_cells(reader, 1)
    shared = set(first) & set(second)
    assert len(shared) > 100
    assert np.mean([first[cell] == second[cell] for cell in shared]) < 0.1


def test_what_is_sampled_of_a_cell_does_not_depend_on_its_place_in_the_epoch(corpus, reader):
    other = BatchReader(corpus, SAMPLING, seed=SETTINGS["seed"], global_batch_size=10, num_streams=2, window_blocks=5)
    first, second = tokens_of_cells(reader, 0), tokens_of_cells(other, 0)
    shared = set(first) & set(second)
    assert len(shared) > 100
    assert all(first[cell] == second[cell] for cell in shared)


def test_a_damaged_block_is_named_by_every_front_end(corpus_path, tmp_path):
    broken = shutil.copytree(corpus_path, tmp_path / "broken")
    shard = broken / "shard-00000.tfrecord"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with open_corpus(broken) as corpus:
        reader = BatchReader(corpus, SAMPLING, **SETTINGS)
        for batches in FRONT_ENDS.values():
            with pytest.raises(CorpusError, match=r"shard-00000\.tfrecord: block \d+ "):
                list(batches(reader, 0, reader.steps_per_epoch))


def test_closing_the_iterator_stops_the_threads(reader):
    before = threading.active_count()
    batches = thread_batches(reader, 0, 10**9)
    next(batches)
    batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": {"rna": TokenSampling(0)}}, "no modality has num_tokens"),
        ({"covariates": ("donor",)}, "covariate 'donor' is not known.*technical_batch"),
        ({"num_streams": 5}, "24 is not a multiple of num_streams 5"),
        ({"process_count": 3}, "3 processes cannot share 4 streams"),
    ],
)
def test_settings_that_do_not_fit_the_corpus_are_refused_at_once(corpus, change, message):
    settings = {**SETTINGS, "sampling": SAMPLING, **change}
    sampling = settings.pop("sampling")
    with pytest.raises(ConfigError, match=message):
        BatchReader(corpus, sampling, **settings)


def test_a_modality_the_corpus_has_not_is_refused(tmp_path):
    rna = synthetic_cells(60, 70, num_batches=2, mosaic=False).to_mudata().mod["rna"]
    corpus = build_corpus(tmp_path / "rna", [rna], min_genes=5, block_size=8)
    with pytest.raises(ConfigError, match=r"12 tokens of 'protein'.*has only \['rna'\]"):
        BatchReader(corpus, SAMPLING, **SETTINGS)


@pytest.mark.slow
def test_reading_needs_neither_tensorflow_nor_grain(corpus_path):
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("tensorflow", "grain")))
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.batches.batch_reader import BatchReader
from data_pipelines.batches.collate import TokenSampling
from data_pipelines.batches.read_ahead import thread_batches
from data_pipelines.batches.read_ahead import FRONT_ENDS
from data_pipelines.batches.read_ahead import ReadAhead
reader = BatchReader(open_corpus({str(corpus_path)!r}), {{"rna": TokenSampling(16, 0.2)}}, **{json.dumps(SETTINGS)})
print(sum(len(batch.row) for _, batch in thread_batches(reader, 0, 3)))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "72"
