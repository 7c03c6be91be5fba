"""Several hosts: each reads its own streams alone, and together they make the batches of one, at any number."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from mixed_corpora import two_corpora

from data_pipelines.batches.batch_reader import BatchReader
from data_pipelines.batches.collate import TokenSampling
from data_pipelines.cells.cell_selection import CellSelection
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.sampling.mixture import Mixture, MixtureOptions
from scmbert_jax.batch import CellBatch

SAMPLING = {"rna": TokenSampling(24, 0.25), "protein": TokenSampling(8, 0.5)}
SETTINGS = {"seed": 5, "global_batch_size": 32, "num_streams": 8, "window_blocks": 2}
KINDS = {
    "plain": (1, MixtureOptions()),
    "filtered": (1, MixtureOptions(CellSelection({"cell_type": ("type0", "type2")}))),
    "together": (2, MixtureOptions(together="technical_batch")),
    "mixture": (2, MixtureOptions(corpus_weights=(2, 1))),
    "balanced": (2, MixtureOptions(CellSelection({}, {"technical_batch": ("batch1",)}), balance_by="cell_type")),
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return [str(one.path) for one in two_corpora(tmp_path_factory.mktemp("mixed"))]


def reader_of(paths, kind: str, index: int = 0, count: int = 1) -> BatchReader:
    """With corpora of its own, as in another process."""
    number, options = KINDS[kind]
    mixture = Mixture([open_corpus(path) for path in paths[:number]], options)
    return BatchReader(
        mixture, SAMPLING, **SETTINGS, covariates=("technical_batch",), process_index=index, process_count=count
    )


def arrays_of(batch: CellBatch) -> list[np.ndarray]:
    tokens = [array for of_modality in batch.modalities.values() for array in of_modality]
    return [*tokens, *batch.covariates.values(), batch.cell_index, batch.row]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hosts_may_come_and_go_while_a_run_goes_on(paths, kind):
    """One host, then eight, two, four, one: the same batches as if one had made them all."""
    alone = reader_of(paths, kind)
    hosts = {count: [reader_of(paths, kind, index, count) for index in range(count)] for count in (1, 2, 4, 8)}
    for step, count in enumerate([1, 1, 8, 8, 2, 2, 4, 4, 4, 1, 8, 2, 1]):
        parts = [arrays_of(host.batch_at(step)) for host in hosts[count]]
        for whole, *of_hosts in zip(arrays_of(alone.batch_at(step)), *parts, strict=True):
            np.testing.assert_array_equal(np.concatenate(of_hosts), whole)


def blocks_read(reader: BatchReader, steps: int) -> Counter:
    """(corpus, block) -> how often it was read in some steps."""
    read: Counter = Counter()
    for number, corpus in enumerate(reader.mixture.joined.corpora):
        plain = corpus.read_packed_block

        def counted(index, modalities, obs_fields, number=number, plain=plain):
            read[number, index] += 1
            return plain(index, modalities, obs_fields)

        corpus.read_packed_block = counted
    for step in range(steps):
        reader.batch_at(step)
    return read


def test_each_host_reads_its_own_blocks_once_an_epoch_and_nobody_elses(paths):
    steps = reader_of(paths, "plain").steps_per_epoch
    alone = blocks_read(reader_of(paths, "plain"), steps)
    assert set(alone.values()) == {1}
    for count in (2, 4, 8):
        read = [blocks_read(reader_of(paths, "plain", index, count), steps) for index in range(count)]
        assert sum(read, Counter()) == alone  # so no block is read by two
        assert max(map(len, read)) - min(map(len, read)) <= len(alone) / count / 2


def virtual_blocks_read(reader: BatchReader, steps: int) -> Counter:
    """(source, block of the source) -> how often it was read in some steps."""
    read: Counter = Counter()
    for source, windows in enumerate(reader._windows):
        plain = windows._blocks.read_blocks

        def counted(numbers, modalities, obs_fields, source=source, plain=plain):
            read.update((source, number) for number in numbers.tolist())
            return plain(numbers, modalities, obs_fields)

        windows._blocks.read_blocks = counted
    for step in range(steps):
        reader.batch_at(step)
    return read


@pytest.mark.parametrize("kind", ["filtered", "mixture", "balanced"])
@pytest.mark.parametrize("count", [2, 4])
def test_hosts_share_the_blocks_of_filters_and_mixtures_among_them(paths, kind, count):
    """A block of a source of many blocks is read by one host alone; a small source stays in the memory of all."""
    alone = reader_of(paths, kind)
    steps = 4  # less than an epoch of every source
    hosts = [virtual_blocks_read(reader_of(paths, kind, index, count), steps) for index in range(count)]
    together = virtual_blocks_read(alone, steps)
    for (source, block), times in together.items():
        shared = sum((source, block) in read for read in hosts)
        partitions = alone.order.source_orders[source].num_partitions
        assert times == 1
        assert shared == 1 if partitions >= count else shared <= count // partitions
        assert all(read[source, block] <= 1 for read in hosts)


CODE = """
import sys
import numpy as np
from test_hosts import KINDS, arrays_of, reader_of
from data_pipelines.batches.read_ahead import thread_batches

index, count, out, *paths = sys.argv[1:]
for kind in KINDS:
    batches = thread_batches(reader_of(paths, kind, int(index), int(count)), 2, 9)
    columns = zip(*(arrays_of(batch) for _, batch in batches), strict=True)
    np.savez(f"{out}/{kind}{index}.npz", *(np.stack(column) for column in columns))
"""


@pytest.mark.slow
def test_two_real_processes_make_together_the_batches_of_one(paths, tmp_path):
    folders = (REPOSITORY, REPOSITORY / "tests", Path(__file__).parents[1], Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-c", CODE]
    processes = [subprocess.Popen([*command, str(n), "2", str(tmp_path), *paths], env=environment) for n in (0, 1)]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    for kind in KINDS:
        alone = reader_of(paths, kind)
        parts = [np.load(tmp_path / f"{kind}{index}.npz") for index in (0, 1)]
        expected = [arrays_of(alone.batch_at(step)) for step in range(2, 9)]
        for place, name in enumerate(parts[0].files):
            together = np.concatenate([part[name] for part in parts], axis=1)
            np.testing.assert_array_equal(together, np.stack([arrays[place] for arrays in expected]))
