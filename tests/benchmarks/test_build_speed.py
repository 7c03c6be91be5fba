"""The benchmark of a build runs and says what it measured; how fast anything is, no test asks."""

import json
from pathlib import Path

import pytest
from conftest import scmbert, scmbert_ok

from data_pipelines.corpus.corpus import open_corpus


@pytest.mark.nightly
def test_a_build_is_measured_with_its_memory_disk_and_first_batch(tmp_path):
    command = ("bench", "build", "--cells", "1500", "--workers", "2", "--folder", tmp_path, "--starts", "1", "--json")
    found = json.loads(scmbert_ok(*command))
    assert found["cells"] == 1500
    assert 1500 < found["genes_per_cell"] < 1800
    assert found["intact"]
    assert 1500 < found["bytes_per_cell"] < 2000
    assert set(found["stages"]) == {"checking", "reading", "writing"}
    assert 0 < sum(found["stages"].values()) <= found["seconds"]
    assert found["worker_peak_bytes"] > 50e6
    assert len(found["first_batch_seconds"]) == 2
    assert min(found["first_batch_seconds"].values()) > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_corpus_that_was_built_can_be_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("scmbert_jax.benchmarks.build_speed._seconds_to_first_batch", lambda *_: 1.0)
    command = ("bench", "build", "--cells", "1100", "--workers", "1", "--folder", tmp_path, "--keep", "--json")
    found = json.loads(scmbert_ok(*command))
    assert found["worker_peak_bytes"] == found["builder_peak_bytes"] > 50e6, "one worker is the builder itself"
    assert found["intact"]
    assert 0 < sum(found["stages"].values()) <= found["seconds"]
    (folder,) = tmp_path.iterdir()
    assert Path(found["settings"]["corpus"]).parent == folder
    with open_corpus(Path(found["settings"]["corpus"])) as corpus:
        assert corpus.num_cells == 1100


def test_sizes_and_places_that_cannot_be_are_refused(tmp_path):
    for options, said in (
        (("--cells", "0"), "expected 1 or more"),
        (("--cells", "10", "--workers", "0"), "expected 1 or more"),
        (("--cells", "10", "--starts", "0"), "expected 1 or more"),
        (("--cells", "10", "--folder", tmp_path / "none"), "no such folder"),
    ):
        ran = scmbert("bench", "build", *options)
        assert ran.code == 4
        assert said in ran.err
