"""The `networks` suite: metrics against scikit-learn, splits that leak nothing, and planted networks that are found."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import scmbert, scmbert_ok
from sklearn.metrics import average_precision_score, roc_auc_score

from data_pipelines.networks.edge_table import EdgeTable
from data_pipelines.networks.parts import SPLITS, parts_of_edges
from data_pipelines.networks.shuffled_edges import shuffled_targets
from data_pipelines.synthetic.regulation import planted_network
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.networks import graph_network
from scmbert_jax.evaluation.networks.baselines import BASELINES, Given
from scmbert_jax.evaluation.networks.inputs import read_labels
from scmbert_jax.evaluation.networks.pairs import Pairs, pairs_of, split_pairs, with_drawn_tests
from scmbert_jax.evaluation.networks.prior_graph import PriorGraph
from scmbert_jax.evaluation.networks.scores import auprc, auroc, early_precision_ratio, precision_at, score_pairs
from scmbert_jax.evaluation.networks.split_files import read_splits, write_splits
from scmbert_jax.evaluation.networks.suite import evaluate_networks

IDENTITY = BASELINES[0].name


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def planted(rng, regulators=20, genes=60):
    """Edges by the degrees of both sides, nothing else."""
    names = np.array([f"GENE{number}" for number in range(genes)])
    odds = rng.normal(-2, 1.5, regulators)[:, None] + rng.normal(0, 1.5, genes)[None]
    is_edge = rng.random(odds.shape) < 1 / (1 + np.exp(-odds))
    is_pair = names[:regulators, None] != names[None]
    return Pairs(names[:regulators], names, is_edge & is_pair, is_pair, names[:regulators])


def edge_file(pairs, path, weights=None):
    rows, columns = np.nonzero(pairs.is_edge)
    table = pd.DataFrame({"source": pairs.regulators[rows], "target": pairs.genes[columns]})
    if weights is not None:
        table["weight"] = weights[rows, columns]
    table.to_csv(path, index=False)
    return path


def test_areas_are_those_of_scikit_learn_with_ties(rng):
    scores, truth = rng.integers(0, 9, 400).astype(float), rng.random(400) < 0.2
    assert auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))
    assert auprc(scores, truth) == pytest.approx(average_precision_score(truth, scores))
    assert np.isnan(auroc(scores, np.zeros(400, bool)))


def test_early_precision_takes_ties_at_their_expectation():
    truth = np.array([True, True, False, False, False, False])
    assert early_precision_ratio(np.array([3.0, 2, 1, 0, 0, 0]), truth) == pytest.approx(3)
    assert early_precision_ratio(np.zeros(6), truth) == pytest.approx(1)
    assert early_precision_ratio(np.array([1.0, 0, 1, 0, 0, 0]), truth) == pytest.approx(1.5)


def test_precision_at_k_takes_ties_at_their_expectation():
    truth = np.array([True, False, True, False, False, True])
    scores = np.array([3.0, 2, 2, 1, 1, 1])
    at = np.arange(1, 7)
    by_hand = [1, 1.5 / 2, 2 / 3, (2 + 1 / 3) / 4, (2 + 2 / 3) / 5, 3 / 6]
    np.testing.assert_allclose(precision_at(scores, truth, at), by_hand)
    np.testing.assert_allclose(precision_at(np.zeros(6), truth, at), 0.5)


@pytest.mark.parametrize("split", SPLITS)
def test_what_a_split_tests_is_unseen_and_does_not_depend_on_the_order_of_genes(split, rng):
    pairs = planted(rng)
    part = split_pairs(pairs, split, 3)
    assert not (part.train & part.test).any()
    assert not (part.validation & (part.test | part.train)).any()
    for axis, asked in ((1, ("regulator", "both")), (0, ("target", "both"))):
        shared = (part.train | part.validation).any(axis) & part.test.any(axis)
        assert shared.any() == (split not in asked)
    rows, columns = rng.permutation(len(pairs.regulators)), rng.permutation(len(pairs.genes))
    other = Pairs(
        pairs.regulators[rows],
        pairs.genes[columns],
        pairs.is_edge[rows][:, columns],
        pairs.is_pair[rows][:, columns],
        pairs.listed,
    )
    np.testing.assert_array_equal(split_pairs(other, split, 3).test, part.test[rows][:, columns])
    assert (split_pairs(pairs, split, 4).test != part.test).any()


@pytest.mark.parametrize("split", SPLITS)
def test_no_pair_tests_or_chooses_whose_reverse_learns(split, rng):
    """STRING has no directions: the reverse of a tested edge would be the answer."""
    pairs = planted(rng)
    part = split_pairs(pairs, split, 3)
    learns, asked = (
        {(pairs.regulators[row], pairs.genes[column]) for row, column in np.argwhere(own)}
        for own in (part.train, part.validation | part.test)
    )
    assert learns
    assert asked
    assert not {(gene, regulator) for regulator, gene in asked} & learns
    source, target = np.array(sorted(learns | asked)).T
    of_edges = parts_of_edges(source, target, split, 3)
    known = set(zip(source[of_edges == 0], target[of_edges == 0], strict=True))
    assert not known & set(zip(target[of_edges > 0], source[of_edges > 0], strict=True))


def test_the_identity_finds_degree_where_it_was_seen_and_nothing_where_neither_side_was(rng):
    pairs = planted(rng)
    of = {}
    for split in SPLITS:
        part = split_pairs(pairs, split, 0)
        scores = BASELINES[0].score(pairs, part, Given(), 0)
        of[split] = score_pairs(scores, pairs.is_edge, part.test)["auroc"]
    assert of["edge"] > 0.8
    assert min(of["regulator"], of["target"]) > 0.65
    assert of["both"] == pytest.approx(0.5)


@pytest.mark.parametrize("method", [own for own in BASELINES if own.learns and not own.needs], ids=lambda own: own.name)
@pytest.mark.parametrize("split", SPLITS)
def test_methods_do_not_see_edges_that_are_tested(method, split, rng):
    pairs = planted(rng)
    part = split_pairs(pairs, split, 0)
    without_them = Pairs(pairs.regulators, pairs.genes, pairs.is_edge & ~part.test, pairs.is_pair, pairs.regulators)
    own, other = (method.score(given, part, Given(), 0) for given in (pairs, without_them))
    np.testing.assert_array_equal(own, other)


def test_a_shuffled_prior_has_the_same_degrees_and_another_wiring(rng):
    pairs = planted(rng)
    prior = with_a_prior(pairs, rng, noise=0).prior
    other = prior.shuffled(0)
    for axis in (0, 1):
        np.testing.assert_array_equal(prior.edges.sum(axis), other.edges.sum(axis))
    assert (prior.is_edge != other.is_edge).mean() > 0.1
    part = split_pairs(pairs, "both", 0)
    of = {own.name: own.score(pairs, part, Given(prior=prior), 0) for own in BASELINES if own.needs.startswith("prior")}
    found = {name: score_pairs(scores, pairs.is_edge, part.test)["auroc"] for name, scores in of.items()}
    assert found["boosting of pair features, shuffled prior"] < 0.9 < found["boosting of pair features"]


def test_neighbours_among_training_pairs_find_groups_of_genes_that_degree_does_not(rng):
    pairs = planted(rng)
    same_group = np.arange(20)[:, None] % 2 == np.arange(60)[None] % 2
    is_edge = pairs.is_pair & (rng.random((20, 60)) < np.where(same_group, 0.5, 0.05))
    pairs = Pairs(pairs.regulators, pairs.genes, is_edge, pairs.is_pair, pairs.regulators)
    part = split_pairs(pairs, "edge", 0)
    of = {own.name: own.score(pairs, part, Given(), 0) for own in BASELINES if own.learns and not own.needs}
    found = {name: score_pairs(scores, is_edge, part.test)["auroc"] for name, scores in of.items()}
    assert found["degrees and neighbours among training pairs"] > max(0.75, found[IDENTITY] + 0.15)


@pytest.mark.parametrize("name", [method.name for method in BASELINES if method.needs == "cells"])
def test_co_expression_finds_regulators_whose_targets_follow_them(name, rng):
    pairs = planted(rng, regulators=10, genes=30)
    drivers = rng.normal(size=(300, 10))
    strength = pairs.is_edge / np.maximum(pairs.is_edge.sum(0), 1)
    values = np.exp(drivers @ strength + 0.3 * rng.normal(size=(300, 30)))
    values[:, :10] = np.exp(drivers)
    method = next(own for own in BASELINES if own.name == name)
    scores = method.score(pairs, split_pairs(pairs, "both", 0), Given(values.astype(np.float32)), 0)
    looked_at = pairs.is_pair & (np.arange(30)[None] >= 10)
    assert score_pairs(scores, pairs.is_edge, looked_at)["auroc"] > 0.85


def test_a_network_that_somebody_brings_is_judged_beside_the_identity(rng, tmp_path):
    pairs = planted(rng)
    true = edge_file(pairs, tmp_path / "true.csv")
    mine = edge_file(pairs, tmp_path / "mine.csv", 1 + rng.random(pairs.is_edge.shape))
    found = json.loads(
        scmbert_ok("evaluate", "networks", true, "--network", mine, "--prior", mine, "--num-seeds", "3", "--json")
    )
    of = {(row["split"], row["method"], row["metric"]): row["mean"] for row in found["rows"]}
    assert of["both", "network: mine.csv", "auroc"] == pytest.approx(1)
    assert of["both", "edges of the prior", "auroc"] == pytest.approx(1)
    assert of["both", IDENTITY, "auroc"] == pytest.approx(0.5)
    assert of["both", IDENTITY, "auroc_new"] is None  # all edges are the prior's
    assert "needs --data" in found["missing"].values()
    assert "a BEELINE folder lists them" in found["missing"]["the gene is a regulator, too"]
    assert "it knows" in found["notes"][2]


def test_the_report_shows_every_split_and_what_is_missing(rng, tmp_path):
    pairs = planted(rng)
    true = edge_file(pairs, tmp_path / "true.csv")
    none = edge_file(replace(pairs, is_edge=pairs.is_pair & ~pairs.is_edge), tmp_path / "none.csv")
    options = ("--split", "edge", "both", "--report", tmp_path / "r.html", "--overwrite")
    shown = {}
    for mine in (true, none):
        scmbert_ok("evaluate", "networks", true, "--network", mine, *options)
        shown[mine] = (tmp_path / "r.html").read_text()
        for text in ("Unseen: edge", "Unseen: both", "Rows that are missing", "measure memory of node degree"):
            assert text in shown[mine]
        assert "Precision among the highest scores, unseen: both" in shown[mine]
        assert f"Two regulators by network: {mine.name}" in shown[mine]
        assert re.search(r"identity \(degree among training pairs\): regulators 0\.[89]\d, genes 0\.[89]", shown[mine])
    found, of = re.search(r"GENE\d+: (\d+) of (\d+) true targets found, 0 wrong", shown[true]).groups()
    assert int(found) == int(of) > 0
    assert re.search(rf"GENE\d+: 0 of {of} true targets found, [1-9]\d* wrong", shown[none])


def test_what_cannot_be_judged_is_refused(rng, tmp_path):
    pairs = planted(rng)
    true = edge_file(pairs, tmp_path / "true.csv")
    (tmp_path / "other.csv").write_text("source,target\nX,Y\n")
    with pytest.raises(InputError, match="none of its 1 edges is among the pairs; it has X -> Y"):
        evaluate_networks(true, brought=[tmp_path / "other.csv"])
    with pytest.raises(InputError, match="at least 8 of each are needed"):
        evaluate_networks(tmp_path / "other.csv")
    mouse = tmp_path / "mouse.csv"
    mouse.write_text("source,target\nTrp53,Cdkn1a\nMyc,Tert\n")
    with pytest.raises(InputError, match=r"mouse.csv: none of its genes is among the pairs; it has Cdkn1a, Myc.*GENE"):
        evaluate_networks(true, priors=[mouse])
    with pytest.raises(InputError, match=r"the pairs GENE.* but 2 are mouse genes: give a network of human"):
        evaluate_networks(true, brought=[mouse])
    with pytest.raises(
        InputError, match=r"none of its .* is between genes of the cells; it has GENE.*, the cells ENSG"
    ):
        evaluate_networks(true, data="example:pbmc_mosaic")
    with pytest.raises(ConfigError, match="--prior: example:network has cells and a prior of its own"):
        evaluate_networks(priors=[true])
    with pytest.raises(ConfigError, match="--split half: expected edge, regulator"):
        evaluate_networks(true, splits=["half"])
    with pytest.raises(ConfigError, match="--skip 'luck': there are 'identity"):
        evaluate_networks(true, skip=["luck"])


def test_two_networks_of_one_name_are_two_rows(rng, tmp_path):
    pairs = planted(rng)
    true = edge_file(pairs, tmp_path / "true.csv")
    paths = [tmp_path / side / "net.csv" for side in "ab"]
    for path, scores in zip(paths, (pairs.is_edge.astype(float), rng.random(pairs.is_edge.shape)), strict=True):
        path.parent.mkdir()
        edge_file(replace(pairs, is_edge=pairs.is_pair), path, scores)
    found = evaluate_networks(true, brought=paths, splits=["edge"], num_seeds=2)
    means = {row.method: row.mean for row in found.rows if row.metric == "auroc"}
    assert means[f"network: {paths[0]}"] == 1.0
    assert 0.3 < means[f"network: {paths[1]}"] < 0.7
    with pytest.raises(ConfigError, match=r"net\.csv: is given twice"):
        evaluate_networks(true, brought=[paths[0], paths[0]], splits=["edge"], num_seeds=1)


@pytest.fixture(scope="module")
def example():
    """The suite without arguments, but for the method that takes seconds."""
    return json.loads(scmbert_ok("evaluate", "networks", "--skip", BASELINES[-1].name, "--num-seeds", "3", "--json"))


def test_without_arguments_a_drawn_network_is_judged_and_what_should_find_it_does(example):
    of = {(row["split"], row["method"], row["metric"]): row["mean"] for row in example["rows"]}
    assert of["both", IDENTITY, "auroc"] == pytest.approx(0.5)
    assert 0.65 < of["edge", IDENTITY, "auroc"] < 0.8
    for split in SPLITS:
        assert of[split, "identity, permuted labels", "auroc"] == pytest.approx(0.5, abs=0.1)
        for method in ("|Pearson|", "|Spearman|", "boosting of pair features"):
            assert of[split, method, "auroc"] > max(0.75, of[split, IDENTITY, "auroc"] + 0.08), (split, method)
    assert example["missing"] == {}
    assert set(example["licences"].values()) == {"Apache-2.0 (drawn by this package)"}


@pytest.mark.slow
def test_gradient_boosting_finds_the_drawn_network_best_of_what_looks_at_cells_alone():
    found = evaluate_networks(splits=["both"], num_seeds=3)
    of = {row.method: row.mean for row in found.rows if row.metric == "auprc"}
    assert of["gradient boosting (GRNBoost2-type)"] > of["|Pearson|"] > 3 * of[IDENTITY]


def test_a_drawn_network_is_the_same_again_and_goes_in_no_circles():
    one, same, other = (planted_network(seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.counts, same.counts)
    assert (one.counts != other.counts).any()
    place = {name: number for number, name in enumerate(one.genes.tolist())}
    assert all(place[source] < place[target] for source, target in zip(one.edges.source, one.edges.target, strict=True))


@pytest.mark.slow
def test_the_floors_of_a_beeline_folder_are_the_known_ones(shared_data):
    networks = shared_data / "networks"
    found = evaluate_networks(
        networks / "beeline_tfs500" / "STRING_hESC",
        priors=[networks / "collectri_human.csv.gz", networks / "trrust_rawdata.human.tsv.gz"],
        splits=["both"],
        num_seeds=3,
    )
    assert found.row("both", IDENTITY).mean == pytest.approx(0.5)
    assert found.row("both", "in-degree in the prior").mean == pytest.approx(0.665, abs=0.03)
    assert found.row("both", "the gene is a regulator, too").mean == pytest.approx(0.67, abs=0.03)
    assert found.row("both", "boosting of pair features").mean > 0.73
    pairs = pairs_of(read_labels(networks / "beeline_tfs500" / "Specific_hESC", "human"), "")
    assert pairs.is_edge.shape == (34, 910)
    assert pairs.without_edges == 376


@pytest.mark.parametrize("name", ["splits.parquet", "splits.tsv"])
def test_parts_that_are_written_are_read_again_whatever_the_order(name, rng, tmp_path):
    pairs, path = planted(rng), tmp_path / name
    parts = {(split, seed): split_pairs(pairs, split, seed) for split in ("both", "edge") for seed in (0, 7)}
    write_splits(path, pairs, parts)
    order = rng.permutation(len(pairs.genes))
    moved = Pairs(pairs.regulators, pairs.genes[order], pairs.is_edge[:, order], pairs.is_pair[:, order], pairs.listed)
    found = read_splits(path, moved)
    assert list(found) == list(parts)
    for key, part in parts.items():
        for own in ("train", "validation", "test"):
            np.testing.assert_array_equal(getattr(found[key], own), getattr(part, own)[:, order])
    other = Pairs(pairs.regulators, pairs.genes, pairs.is_edge ^ pairs.is_pair, pairs.is_pair, pairs.regulators)
    with pytest.raises(InputError, match="is an edge in one of the file and this network, and not in the other"):
        read_splits(path, other)
    other = Pairs(pairs.regulators, np.char.add("X", pairs.genes), pairs.is_edge, pairs.is_pair, pairs.regulators)
    with pytest.raises(InputError, match=r"column target: .* names are none of this network's"):
        read_splits(path, other)


def test_a_file_of_parts_that_cannot_be_used_is_refused(rng, tmp_path):
    pairs, path = planted(rng), tmp_path / "splits.tsv"
    write_splits(path, pairs, {("both", 0): split_pairs(pairs, "both", 0)})
    good = pd.read_csv(path, sep="\t", dtype=str)
    for changed, why in (
        (pd.concat([good, good[:1]]), "is there twice"),
        (good.assign(both_0="tset"), "has another part than train, validation, test or - in both_0"),
        (good.assign(both_0="train"), "0 pairs test"),
        (good.rename(columns={"both_0": "half_0"}), "no column of a split"),
    ):
        changed.to_csv(path, sep="\t", index=False)
        with pytest.raises(InputError, match=why):
            read_splits(path, pairs)


def test_a_tool_is_judged_on_the_pairs_of_a_file(rng, tmp_path):
    true, file = edge_file(planted(rng), tmp_path / "true.csv"), tmp_path / "splits.parquet"
    split = ("--split", "edge", "--num-seeds", "2", "--negatives", "degree_aware")
    first, second = (
        json.loads(scmbert_ok("evaluate", "networks", true, "--json", *more))
        for more in ((*split, "--write-splits", file), ("--read-splits", file))
    )
    assert first["rows"] == second["rows"]
    assert "degree_aware" in first["notes"][1]
    of = {(row["method"], row["metric"]): row["mean"] for row in first["rows"]}
    assert of[IDENTITY, "auroc"] == pytest.approx(0.5, abs=0.06)
    assert of[IDENTITY, "auprc_ratio"] < 1.2
    assert "leave out --split" in scmbert("evaluate", "networks", true, "--read-splits", file, "--split", "edge").err


@pytest.mark.parametrize("name", ["Specific_hESC", "STRING_hHEP"])
def test_degree_says_nothing_of_degree_aware_negatives_and_much_of_uniform_ones(name, shared_data):
    labels = read_labels(shared_data / "networks" / "beeline_tfs500" / name, "human")
    pairs = pairs_of(labels, name)
    part = split_pairs(pairs, "edge", 0)
    scores = BASELINES[0].score(pairs, part, Given(), 0)
    of = {}
    for kind in ("uniform", "degree_aware"):
        test = with_drawn_tests(pairs, part, kind, 0).test
        assert 2 * pairs.is_edge[test].sum() == test.sum()
        of[kind] = auroc(scores[test], pairs.is_edge[test])
    assert of["uniform"] > 0.85
    assert of["degree_aware"] == pytest.approx(0.5, abs=0.02)


# --- the graph network -----------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    for name, value in {"_STEPS": 40, "_VALIDATE_EVERY": 20, "_DIM": 16, "_EDGES_A_STEP": 64}.items():
        monkeypatch.setattr(graph_network, name, value)


def with_a_prior(pairs, rng, noise):
    """The pairs' own edges, some of them others."""
    edges = pairs.is_edge ^ (rng.random(pairs.is_edge.shape) < noise)
    rows, columns = np.nonzero(edges & pairs.is_pair)
    ones = np.ones(len(rows))
    table = EdgeTable(pairs.regulators[rows], pairs.genes[columns], ones, ones, ones, "prior", {})
    return Given(prior=PriorGraph.of([table], pairs.regulators, pairs.genes))


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["graph", "no graph", "shuffled graph"])
def test_labels_of_tested_pairs_do_not_reach_the_scores(arm, rng, quick):
    pairs = planted(rng)
    part, given = split_pairs(pairs, "both", 0), with_a_prior(pairs, rng, 0.02)
    other = Pairs(pairs.regulators, pairs.genes, pairs.is_edge ^ part.test, pairs.is_pair, pairs.regulators)
    first, second = (graph_network.learned_graph(own, part, given, 0, arm) for own in (pairs, other))
    np.testing.assert_allclose(first[part.test], second[part.test], rtol=1e-4, atol=1e-5)


def test_shuffled_edges_keep_all_degrees_and_none_is_there_twice(rng):
    pairs = planted(rng, 30, 200)
    source, target = np.nonzero(pairs.is_edge)
    kind = rng.integers(0, 2, len(source))
    found = shuffled_targets(source, target, kind, 0)
    for own in (0, 1):
        mine = kind == own
        np.testing.assert_array_equal(np.sort(found[mine]), np.sort(target[mine]))
        assert len(set(zip(source[mine], found[mine], strict=True))) == mine.sum()
    assert (found != source).all()
    assert (found != target).mean() > 0.8


@pytest.mark.slow
def test_the_suite_trains_a_graph_network_beside_its_controls(rng, quick, tmp_path):
    true = edge_file(planted(rng), tmp_path / "true.csv")
    found = evaluate_networks(true, priors=[true], splits=["edge"], num_seeds=1, graph_network=True)
    rows = {row.method: row.mean for row in found.rows if row.metric == "auroc"}
    assert rows["graph network"] > 0.75
    assert {"graph network, no graph", "graph network, shuffled graph"} <= set(rows)
