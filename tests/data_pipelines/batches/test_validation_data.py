"""Cells that are held out by a rule, in a corpus and out of a run; the batches that evaluators get of them."""

import jax
import numpy as np
import pandas as pd
import pytest

from data_pipelines.batches.batch_reader import BatchReader
from data_pipelines.batches.collate import TokenSampling
from data_pipelines.batches.validation_data import ValidationData, held_out_mixture
from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.build.describe import describe_corpus
from data_pipelines.cells.held_out import HeldOutRule, held_out_cells
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.sampling.mixture import Mixture, MixtureOptions
from data_pipelines.synthetic.cells import synthetic_cells
from scmbert_jax.errors import ConfigError, InputError

SMALL = {"min_genes": 5, "block_size": 16}


@pytest.fixture(scope="module")
def cells():
    """160 cells of RNA, of eight donors; ids with barcodes."""
    rna = synthetic_cells(160, 100, 0, 0, num_batches=4, seed=0).to_mudata().mod["rna"]
    barcodes = np.random.default_rng(0).choice(list("ACGT"), (rna.n_obs, 16))
    rna.obs_names = ["".join(letters) + "-1" for letters in barcodes]
    rna.obs["donor"] = [f"d{row % 8}" for row in range(rna.n_obs)]
    return rna


@pytest.fixture(scope="module")
def corpora(cells, tmp_path_factory):
    """`all`, of which a rule holds donors out; its halves `first` and `some`; `genes`, with another gene."""
    folder = tmp_path_factory.mktemp("corpora")
    more = cells[100:].copy()
    more.var_names = [*more.var_names[:-1], "MALAT1"]
    built = {
        "all": build_corpus(folder / "all", [cells.copy()], **SMALL, held_out=["donor=0.3"]),
        "some": build_corpus(folder / "some", [cells[80:].copy()], **SMALL),
        "first": build_corpus(folder / "first", [cells[:80].copy()], **SMALL),
        "genes": build_corpus(folder / "genes", [more], **SMALL),
    }
    opened = {name: open_corpus(corpus.path) for name, corpus in built.items()}
    yield opened
    for corpus in opened.values():
        corpus.close()


def reader(mixture, index=0, count=1):
    sampling = {"rna": TokenSampling(8)}
    settings = {"seed": 0, "global_batch_size": 16, "num_streams": 2, "window_blocks": 1}
    return BatchReader(mixture, sampling, **settings, process_index=index, process_count=count)


def ids(corpus, mixture):
    return set(corpus.obs()["cell_id"].iloc[mixture.drawn_rows(0)])


def test_a_rule_depends_on_the_value_alone_and_a_larger_fraction_holds_out_more(cells):
    obs = pd.DataFrame({"dataset": "x", "cell_id": cells.obs_names, "donor": cells.obs["donor"].to_numpy()})
    for field in ("cell", "donor"):
        few, many = (HeldOutRule.parse(f"{field}={fraction}").cells(obs, "x") for fraction in (0.3, 0.6))
        assert few.any()
        assert not (few & ~many).any()
        order = np.random.default_rng(1).permutation(len(obs))[:90]
        np.testing.assert_array_equal(HeldOutRule.parse(f"{field}=0.3").cells(obs.iloc[order], "x"), few[order])
    held = HeldOutRule.parse("donor=0.3").cells(obs, "x")
    assert not set(obs["donor"][held]) & set(obs["donor"][~held])
    # Written down: other values would hold out other cells of corpora that exist.
    assert sorted(set(obs["donor"][held])) == ["d3", "d7"]
    np.testing.assert_array_equal(held_out_cells(obs, ["donor=d1,d2"], "x"), obs["donor"].isin(["d1", "d2"]))


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        (["cell=AAAC"], ConfigError, "cell=AAAC"),
        (["donor"], ConfigError, "FIELD=FRACTION"),
        (["donor=0.001"], InputError, "no donor of x would be held out"),
        (["donor=0.99999"], InputError, "every donor of x would be held out"),
        (["tissue=0.2"], InputError, "tissue"),
        (["donor=d9"], InputError, "d9"),
    ],
)
def test_rules_that_fit_no_cells_are_refused_with_the_reason(cells, rules, error, message):
    obs = pd.DataFrame({"dataset": "x", "cell_id": cells.obs_names, "donor": cells.obs["donor"].to_numpy()})
    with pytest.raises(error, match=message):
        held_out_cells(obs, rules, "x")


def test_a_corpus_says_what_is_held_out_of_it_and_a_run_draws_the_rest(corpora):
    corpus = corpora["all"]
    assert describe_corpus(corpus.path)["held_out"] == ["donor=0.3"]
    assert "held out of training, and what runs are judged by: donor=0.3" in (corpus.path / "DATA_CARD.md").read_text()
    training = Mixture([corpus])
    held_out = held_out_mixture(training)
    assert not ids(corpus, training) & ids(corpus, held_out)
    assert ids(corpus, training) | ids(corpus, held_out) == set(corpus.obs()["cell_id"])
    drawn = {int(index) for step in range(20) for index in reader(training).batch_at(step).cell_index}
    assert drawn == set(training.drawn_rows(0).tolist())
    other = Mixture([corpus], MixtureOptions(held_out=("cell=0.2",)))  # a run's own rule, in place of the corpus's
    assert ids(corpus, held_out_mixture(other)) != ids(corpus, held_out)
    assert held_out_mixture(Mixture([corpus], MixtureOptions(held_out=()))) is None
    assert other.fingerprint != training.fingerprint


def test_each_held_out_cell_is_in_the_batches_once_on_one_and_two_processes(corpora):
    training = Mixture([corpora["all"]])
    held_out = held_out_mixture(training)
    alone = ValidationData(held_out, reader(training), 37)
    assert (alone.num_cells, alone.num_batches) == (37, 3)
    both = [ValidationData(held_out, reader(training, index, 2), 37) for index in (0, 1)]
    assert [len(one.batches) for one in both] == [
        3,
        3,
    ]  # the second has nothing in its last: it takes part all the same
    for whole, *parts in zip(alone.batches, *(one.batches for one in both), strict=True):
        for left, right in zip(jax.tree.leaves(whole), jax.tree.leaves(jax.tree.map(_joined, *parts)), strict=True):
            np.testing.assert_array_equal(left, right)
    measured = np.concatenate([batch.modalities["rna"].measured for batch in alone.batches])
    np.testing.assert_array_equal(measured, np.arange(48) < 37)
    seen = np.concatenate([batch.cell_index for batch in alone.batches])[:37]
    np.testing.assert_array_equal(seen, held_out.drawn_rows(0)[:37])
    np.testing.assert_array_equal(np.concatenate([batch.row for batch in alone.batches])[:37], np.arange(37))
    assert {one.identity for one in both} == {alone.identity}
    assert alone.identity != ValidationData(held_out, reader(training), 36).identity


def _joined(first, second):
    return np.concatenate([first, second])


def test_another_corpus_judges_a_run_that_has_none_of_its_cells(corpora):
    training = Mixture([corpora["first"]])
    data = ValidationData(held_out_mixture(training, corpora["some"]), reader(training), 1000)
    assert data.num_cells == corpora["some"].num_cells
    found = data.labels("donor")
    np.testing.assert_array_equal(found, corpora["some"].obs()["donor"].astype(str))
    assert data.labels("disease") is None
    # Held out of the run, they may judge it, though they are in its corpus.
    without = Mixture([corpora["all"]], MixtureOptions(held_out=("donor=d0,d1,d2,d3",)))
    with pytest.raises(ConfigError, match=r"some: 40 of its 80 cells"):
        held_out_mixture(without, corpora["some"])


def test_a_corpus_that_cannot_judge_a_run_is_refused(corpora, monkeypatch):
    training = Mixture([corpora["first"]])
    with pytest.raises(ConfigError, match=r"genes: 1 features of rna, such as ENSG00000251562"):
        held_out_mixture(training, corpora["genes"])
    with pytest.raises(ConfigError, match="80 of its 80 cells are among those that the run trains on"):
        held_out_mixture(training, corpora["first"])
    monkeypatch.setattr(corpora["some"], "num_cells", 0)
    with pytest.raises(ConfigError, match=r"some: it has no cell; build it with some, or leave it out"):
        held_out_mixture(training, corpora["some"])
