"""The shuffle on disk: an order that depends on the cells alone, and segments that give back what was put in."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.build import external_shuffle
from data_pipelines.build.external_shuffle import (
    SegmentFile,
    SegmentWriter,
    bucket_edges,
    cell_hashes,
    read_bucket,
    shuffled_order,
)
from scmbert_jax.errors import CorpusError


def test_hashes_depend_on_seed_data_set_and_cell_alone():
    ids = np.array(["a", "b", "c"])
    base = cell_hashes(0, 0, ids)
    np.testing.assert_array_equal(cell_hashes(0, 0, ids[::-1]), base[::-1])
    assert not set(base) & (set(cell_hashes(1, 0, ids)) | set(cell_hashes(0, 1, ids)))


def test_cells_of_equal_hash_are_ordered_by_data_set_and_id():
    hashes = np.array([5, 5, 1, 5, 9, 9], np.uint64)
    datasets = np.array([1, 0, 0, 0, 0, 0], np.int32)
    ids = [np.array(["z", "m", "a"]), np.array(["b"])]
    order = shuffled_order(hashes, datasets, ids, np.array([0, 0, 1, 2, 1, 2]))
    assert order.tolist() == [2, 3, 1, 0, 5, 4]


@given(st.integers(1, 500), st.integers(0, 10**12), st.integers(0, 60))
def test_every_block_is_in_one_bucket_and_every_bucket_in_one_shard(num_blocks, num_entries, num_shards):
    edges = bucket_edges(num_blocks, num_entries, num_shards)
    assert edges.buckets[0] == edges.shards[0] == 0
    assert edges.buckets[-1] == num_blocks
    assert edges.shards[-1] == len(edges.buckets) - 1
    assert len(edges.shards) - 1 == max(1, min(num_shards, num_blocks))
    assert np.all(np.diff(edges.buckets) > 0)
    assert np.all(np.diff(edges.shards) > 0)
    in_shards = np.diff(edges.buckets[edges.shards])
    assert in_shards.max() - in_shards.min() <= 1


def test_a_corpus_of_five_million_cells_has_buckets_of_about_a_gibibyte():
    edges = bucket_edges(19_532, 8_175_000_000, 16)
    entries = 8_175_000_000 * np.diff(edges.buckets) / 19_532
    assert entries.max() < 1.05 * external_shuffle.BUCKET_ENTRIES
    assert entries.min() > 0.8 * external_shuffle.BUCKET_ENTRIES


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 4), st.integers(1, 200))
def test_what_is_written_is_read_whatever_the_sizes(seed, num_cells, num_buckets, gather):
    rng = np.random.default_rng(seed)
    counts = scipy.sparse.random(num_cells, 30, 0.3, "csr", dtype=np.int64, rng=rng)
    counts.data = rng.integers(1, 1000, counts.nnz)
    counts.sort_indices()
    rows = rng.permutation(num_cells)
    edges = np.sort(np.concatenate([[0, num_cells], rng.integers(0, num_cells + 1, num_buckets - 1)]))
    path = Path(tempfile.mkdtemp()) / "000000.segments"
    with pytest.MonkeyPatch.context() as patched, open(path, "wb") as file:
        patched.setattr(external_shuffle, "GATHER_ENTRIES", gather)
        writer = SegmentWriter(file, "rna", edges)
        for first in range(0, num_cells, 7):
            writer.add(rows[first : first + 7], counts[first : first + 7])
        writer.finish()
    found = np.zeros(counts.shape, np.int64)
    for bucket in range(num_buckets):
        cells = read_bucket([SegmentFile(path)], bucket, ["rna"])["rna"]
        assert set(cells.rows) == set(range(edges[bucket], edges[bucket + 1]))
        cell = np.repeat(cells.rows, np.diff(cells.starts))
        found[cell, cells.feature_ids] += cells.counts
    shutil.rmtree(path.parent)
    np.testing.assert_array_equal(found[rows], counts.toarray())


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-3], lambda data: data[:-1] + b"x"])
def test_a_file_that_is_not_whole_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "000001.segments"
    with open(path, "wb") as file:
        writer = SegmentWriter(file, "rna", np.array([0, 3]))
        writer.add(np.array([2, 0, 1]), scipy.sparse.csr_matrix(np.eye(3, dtype=np.int64)))
        writer.finish()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorpusError, match=r"000001\.segments: not whole"):
        SegmentFile(path)
