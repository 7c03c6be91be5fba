"""The benchmark of objectives runs and says what it measured; how fast anything is, no test asks."""

import json

import pytest
from conftest import scmbert

from scmbert_jax.benchmarks.objective_speed import MIXTURES, REFERENCE
from scmbert_jax.objectives.mixture import OBJECTIVES


@pytest.mark.nightly
def test_every_objective_is_measured_beside_masked_modelling(run_scmbert):
    options = ("--batch-size", "4", "--embed-dim", "32", "--num-layers", "1", "--num-tokens", "12", "8")
    ran = run_scmbert("bench", "objectives", *options, "--rounds", "1", "--steps-per-round", "1", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    rows = {row["objective"]: row for row in found["rows"]}
    assert list(rows) == list(MIXTURES)
    assert {name.split(",")[0] for name in rows} == set(OBJECTIVES)
    assert rows[REFERENCE]["time_ratio"] == rows[REFERENCE]["memory_ratio"] == 1.0
    assert all(row["ms_per_step"] > 0 and row["peak_bytes"] > 0 for row in rows.values())
    # A cycle holds the way there and the way back.
    assert rows["cross_modal_translation, cycle"]["peak_bytes"] > rows["cross_modal_translation"]["peak_bytes"]
    assert found["settings"]["cells per step"] == 4


def test_sizes_that_cannot_be_are_refused():
    for options, said in ((("--embed-dim", "40"), "multiple of 32"), (("--rounds", "0"), "expected 1 or more")):
        ran = scmbert("bench", "objectives", *options)
        assert ran.code == 4
        assert said in ran.err
