"""The benchmark of a build runs and says what it measured; how fast anything is, no test asks."""

import json

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_build_is_measured_with_its_memory_disk_and_first_batch(run_scmbert, tmp_path, workers):
    ran = run_scmbert("bench", "build", "--cells", "1500", "--workers", workers, "--folder", tmp_path, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
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


def test_sizes_and_places_that_cannot_be_are_refused(run_scmbert, tmp_path):
    for options, said in (
        (("--cells", "0"), "expected 1 or more"),
        (("--cells", "10", "--workers", "0"), "expected 1 or more"),
        (("--cells", "10", "--folder", tmp_path / "none"), "no such folder"),
    ):
        ran = run_scmbert("bench", "build", *options)
        assert ran.code == 4
        assert said in ran.err
