"""What stands beside a model in the suite of integration: corrections of PCA, and projects in a Python of their own."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scmbert_jax.benchmarks.integration_peers import integration_peers
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.alignment.integration_baselines import (
    INTEGRATION_BASELINES,
    AllCells,
    most_variable,
    pca,
    several_batches,
)
from scmbert_jax.integration.neighbours import mixed_at_random, neighbours_of
from scmbert_jax.tasks.modality_cells import read_modalities

BASELINES = {baseline.name.partition(" (")[0]: baseline for baseline in INTEGRATION_BASELINES}


@pytest.fixture(scope="module")
def rna():
    """The RNA of the example alone: 1,200 cells of three technical batches."""
    return AllCells({"rna": read_modalities("example:pbmc_mosaic")["rna"]})


@pytest.fixture(scope="module")
def thinned(rna):
    """The same cells in two batches, by lot; one of them lost 80% of the counts of every other gene."""
    (side,) = rna.sides
    rng = np.random.default_rng(0)
    second = rng.random(len(side)) < 0.5
    counts = side.counts.tocoo()
    lost = second[counts.row] & (counts.col % 2 == 0)
    counts.data = np.where(lost, rng.binomial(counts.data, 0.2), counts.data)
    return AllCells({"rna": replace(side, counts=counts.tocsr(), technical_batches=np.where(second, "b", "a"))})


@pytest.mark.parametrize("name", ["ComBat", "PCA, soft clusters"])
def test_corrections_mix_batches_and_keep_types(thinned, name):
    baseline = BASELINES[name]
    assert baseline.possible(thinned)
    before = neighbours_of(pca(thinned, None), thinned.batches, thinned.types)
    assert before.own_batch > 0.7  # or there is nothing to take off
    for seed in (None, 1):
        found = baseline.fitted(thinned, seed)
        after = neighbours_of(found, thinned.batches, thinned.types)
        assert found.shape == (len(thinned.ids), 25)
        assert after.own_batch < mixed_at_random(thinned.batches) + 0.1
        assert after.own_label > before.own_label - 0.03


def test_centred_batches_have_one_mean_which_is_not_to_be_mixed(thinned):
    found = BASELINES["PCA, batches centred"].fitted(thinned, None)
    means = [found[thinned.batches == batch].mean(0) for batch in "ab"]
    np.testing.assert_allclose(means, 0.0, atol=1e-12)
    # Types lost counts of different genes, so one shift is not the effect of all of them.
    assert neighbours_of(found, thinned.batches).own_batch > 0.65


def test_cells_of_one_batch_have_nothing_to_correct(rna):
    (side,) = rna.sides
    one = AllCells({"rna": side.take(side.technical_batches == "p1_0")})
    assert not several_batches(one)
    assert not any(BASELINES[name].possible(one) for name in ("ComBat", "PCA, soft clusters"))


def test_features_that_vary_most_are_taken(rna):
    (side,) = rna.sides
    chosen = most_variable(side)
    assert chosen.tolist() == list(range(len(side.features)))  # fewer than are asked for
    assert (np.diff(chosen) > 0).all()


def test_where_a_project_cannot_be_run_the_reason_is_told(rna, monkeypatch):
    for name, package in (("Harmony", "harmonypy"), ("scVI", "scvi-tools")):
        (peer,) = [peer for peer in integration_peers(None) if peer.name == name]
        with pytest.raises(InputError, match=f"name one that has {package}: --peer-python"):
            peer.fitted(rna, None)
    monkeypatch.setenv("PYTHONPATH", "")
    harmony, _ = integration_peers(Path(sys.executable))
    with pytest.raises(InputError, match="has no harmonypy"):
        harmony.fitted(rna, None)
    harmony, _ = integration_peers(Path("/nowhere/python"))
    with pytest.raises(ConfigError, match="--peer-python /nowhere/python: cannot be run"):
        harmony.fitted(rna, None)


def test_what_a_project_says_comes_back_in_the_order_of_the_cells(rna, tmp_path, monkeypatch):
    """A package that stands in for harmonypy: it adds the seed to the scores."""
    (tmp_path / "harmonypy.py").write_text(
        "from types import SimpleNamespace\n"
        "def run_harmony(scores, table, keys, random_state):\n"
        "    assert table[keys[0]].nunique() == 3\n"
        "    return SimpleNamespace(Z_corr=scores + random_state)\n"
    )
    (tmp_path / "harmonypy-2.1.0.dist-info").mkdir()
    (tmp_path / "harmonypy-2.1.0.dist-info" / "METADATA").write_text("Name: harmonypy\nVersion: 2.1.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    harmony, _ = integration_peers(Path(sys.executable))
    np.testing.assert_allclose(harmony.fitted(rna, 3), pca(rna, None) + 3, rtol=1e-5, atol=1e-5)
