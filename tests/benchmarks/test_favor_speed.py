"""The benchmark of linear attention runs and says what it measured; a peer that cannot run is named. No speed here."""

import json
import sys

import pytest
from conftest import scmbert


@pytest.mark.slow
def test_ours_is_measured_alone_where_no_peer_is_named(run_scmbert):
    ran = run_scmbert("bench", "favor", "--tokens", "40", "--layers", "1", "--rounds", "2", "--threads", "1", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert [row["call"] for row in found["rows"]] == ["forward", "step"]
    for row in found["rows"]:
        assert row["seconds"] > 0
        assert row["peak_bytes"] > 2**20
        assert row["speed"] is row["peer_seconds"] is None
    assert found["agreement"] == {}
    assert found["settings"]["tokens"] == 40


@pytest.mark.slow
def test_a_peer_that_cannot_be_used_is_refused_with_what_to_do(run_scmbert, tmp_path):
    # The Python of these tests has no performer-pytorch.
    for python, words in ((tmp_path / "python", "cannot be run"), (sys.executable, "pip install torch")):
        ran = run_scmbert("bench", "favor", "--tokens", "40", "--threads", "1", "--torch-python", python)
        assert ran.code == 4
        assert "--torch-python" in ran.err
        assert words in ran.err


def test_sizes_that_cannot_be_are_refused():
    for options, said in ((("--tokens", "1"), "expected 2 or more"), (("--rounds", "0"), "expected 1 or more")):
        ran = scmbert("bench", "favor", *options)
        assert ran.code == 4
        assert said in ran.err
