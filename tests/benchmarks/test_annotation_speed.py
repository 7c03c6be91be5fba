"""The benchmark of annotation runs and says what it measured; a peer that cannot run is named. No speed here."""

import json
import sys

import pytest


@pytest.mark.slow
def test_all_genes_and_the_expressed_ones_are_measured(run_scmbert):
    small = ("--genes", "40", "--expressed", "10", "--layers", "1", "--rounds", "2", "--threads", "1")
    ran = run_scmbert("bench", "annotation", *small, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert [(row["genes"], row["tokens"]) for row in found["rows"]] == [(40, 40), (40, 10)]
    for row in found["rows"]:
        assert row["cells_per_second"] > 0
        assert row["speed"] is row["peer_cells_per_second"] is None
    assert found["rows"][0]["over_all_genes"] == 1.0
    # The Python of these tests has no performer-pytorch.
    ran = run_scmbert("bench", "annotation", *small, "--torch-python", sys.executable)
    assert ran.code == 4
    assert "--torch-python" in ran.err
    assert "pip install torch" in ran.err
