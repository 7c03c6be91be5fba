"""The benchmark of the sequence encoder says what it measured; a peer that cannot run is named. No speed here."""

import sys

import numpy as np
import pytest
from conftest import scmbert

from scmbert_jax.benchmarks import sequence_speed
from scmbert_jax.errors import ConfigError


@pytest.fixture(autouse=True)
def unbound(monkeypatch):
    """This process keeps its CPUs for the other tests."""
    monkeypatch.setattr(sequence_speed, "bind_to_cpus", lambda threads: None)


def test_ours_is_measured_alone_where_no_peer_is_named():
    size = sequence_speed.size_of(64, 1)
    found = sequence_speed.measure_sequences((12,), size, batch_size=2, rounds=2, steps_per_round=1, threads=1)
    (row,) = found.to_dict()["rows"]
    assert row["seconds"] > 0
    assert row["bases_per_second"] == pytest.approx(24 / row["seconds"])
    assert row["speed"] is row["peer_loss"] is None
    assert abs(row["loss"] - np.log(4)) < 1.5  # of four bases, not trained
    assert "12" in found.text()


def test_a_peer_that_cannot_be_used_is_refused_with_what_to_do():
    # The Python of these tests has no torch.
    with pytest.raises(ConfigError, match="pip install torch numpy transformers"):
        sequence_speed.measure_sequences(
            (12,), sequence_speed.size_of(64, 1), sys.executable, batch_size=2, rounds=1, threads=1
        )


def test_sizes_that_cannot_be_are_refused():
    for options, said in ((("--embed-dim", "65"), "multiple of 64"), (("--rounds", "0"), "expected 1 or more")):
        ran = scmbert("bench", "sequence", *options)
        assert ran.code == 4
        assert said in ran.err
