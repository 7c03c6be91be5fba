"""Arms of the `regulatory` suite: the same fit with other beginnings, through `fit_regulatory`."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from planted_sequences import SITE, motif_set, with_site, write_set

from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluation.regulatory import arms as of_suite
from scmbert_jax.evaluation.regulatory.arms import (
    FROZEN,
    ONE_HOT,
    OURS,
    OURS_LINEAR,
    RANDOM,
    SCRATCH,
    SHUFFLED,
    TUNED,
    Pretrained,
    arms,
    ours,
)
from scmbert_jax.evaluation.regulatory.labelled import score_task
from scmbert_jax.evaluation.regulatory.tasks import read_task
from scmbert_jax.regulation.fit import FitOptions
from scmbert_jax.regulation.network import NetworkDefinition, NetworkOptions

TINY = NetworkOptions(epochs=2, fewest_steps=20, hidden=8, motif_dim=4)
TINY = replace(
    TINY,
    encoder=replace(TINY.encoder, embed_dim=8, num_heads=1, head_dim=8, mlp_dim=8),
    sequence=replace(TINY.sequence, stem_channels=8, stem_kernel=7, most_bases=40),
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def task(tmp_path, rng):
    return read_task(write_set(tmp_path / "sites", rng, lambda codes: with_site(rng, codes), (120, 40, 60)))


def pretrained(seed):
    definition = NetworkDefinition(TINY.encoder, TINY.sequence, TINY.hidden, 0, 1, True)
    return Pretrained(TINY, definition.init(jax.random.key(seed))["sequence"])


def test_every_arm_begins_where_it_says(task, monkeypatch):
    begun = {}
    simple = of_suite.fit_regulatory(task.splits[0].train, FitOptions(linear=("bases",), network=None))

    def fit(train, options, **given):
        begun[len(begun)] = (options, given["pretrained"])
        return simple

    monkeypatch.setattr(of_suite, "fit_regulatory", fit)
    first, other = pretrained(1), pretrained(2)
    methods = arms(first, other)
    assert [method.name for method in methods] == [ONE_HOT, RANDOM, SCRATCH, FROZEN, TUNED, SHUFFLED]
    score_task(task, methods, None, num_seeds=1)
    by = dict(zip([method.name for method in methods], begun.values(), strict=True))
    assert by[ONE_HOT][0].network is None
    assert by[SCRATCH][1] is None
    assert (by[FROZEN][1].encoder, by[FROZEN][1].frozen) == (first.encoder, True)
    assert (by[TUNED][1].encoder, by[TUNED][1].frozen) == (first.encoder, False)
    assert (by[SHUFFLED][1].encoder, by[SHUFFLED][1].frozen) == (other.encoder, False)
    assert by[RANDOM][1].frozen
    shapes = [jax.tree.map(np.shape, by[name][1].encoder) for name in (RANDOM, FROZEN)]
    assert shapes[0] == shapes[1]
    assert all(options.network is None or not options.network.motif_dim for options, _ in by.values())


def test_a_control_of_another_shape_is_refused():
    larger = Pretrained(replace(TINY, encoder=replace(TINY.encoder, mlp_dim=16)), None)
    with pytest.raises(ConfigError, match="no control"):
        arms(pretrained(0), larger)
    with pytest.raises(ConfigError, match="no control"):
        arms(None, larger)


@pytest.mark.nightly  # compiles the steps of four trainings
def test_arms_are_fitted(task):
    rows = score_task(task, arms(pretrained(1), pretrained(2)), None, num_seeds=1)
    assert {row.method for row in rows} == {ONE_HOT, RANDOM, SCRATCH, FROZEN, TUNED, SHUFFLED}
    assert all(np.isfinite(row.mean) for row in rows)
    fitted = {row.method: row.num_parameters for row in rows}
    assert 0 < fitted[FROZEN] == fitted[RANDOM] < fitted[TUNED] == fitted[SCRATCH]


@pytest.mark.nightly  # compiles a training
def test_ours_has_a_row_without_its_network(task):
    methods = ours(motif_set(SITE, "GGGCGG"), FitOptions(network=TINY, linear=("motifs",)))
    rows = {(row.method, row.metric): row for row in score_task(task, methods, None, num_seeds=1)}
    assert rows[OURS_LINEAR, "mcc"].mean > 80
    assert rows[OURS, "mcc"].mean > 80
    assert rows[OURS, "mcc"].num_parameters > rows[OURS_LINEAR, "mcc"].num_parameters
