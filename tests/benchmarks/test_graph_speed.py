"""The benchmark of graph networks runs and says what it measured; how fast anything is, no test asks."""

import json

import pytest
from conftest import scmbert, scmbert_ok

from scmbert_jax.models.regulatory_graph import AGGREGATIONS


@pytest.mark.slow
def test_every_aggregation_is_measured_beside_its_fewest_edges():
    sizes = ("--nodes", "50", "--edges", "100", "200", "--embed-dim", "8", "--batch-size", "8", "--rounds", "1")
    rows = json.loads(scmbert_ok("bench", "graph", *sizes, "--neighbours", "0", "2", "--json"))["rows"]
    assert {(row["aggregation"], row["neighbours"]) for row in rows} == {
        (name, heard) for name in AGGREGATIONS for heard in (0, 2)
    }
    assert all(row["time_ratio"] == 1 for row in rows if row["edges"] == 100)
    assert all(row["ms_per_step"] > 0 and row["peak_bytes"] > 0 for row in rows)


def test_sizes_that_cannot_be_are_refused():
    for options, said in (
        (("--embed-dim", "6"), "multiple of 4"),
        (("--aggregation", "luck"), "expected sage, gat, mean, attention"),
        (("--edges", "100"), "at least --batch-size"),
        (("--nodes", "50"), "at most 612 of such nodes"),
    ):
        ran = scmbert("bench", "graph", *options)
        assert ran.code == 4
        assert said in ran.err
