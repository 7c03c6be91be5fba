"""Rows of models in the suite of networks: what a model has seen in training tests no method."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import scmbert_ok

from data_pipelines.networks.edge_table import merged_edges
from data_pipelines.networks.gene_network import network_of_genes
from data_pipelines.networks.model_network import with_networks
from data_pipelines.networks.parts import parts_of_edges, parts_of_pairs
from scmbert_jax.config import LinkPredictionConfig
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.networks.inputs import read_labels
from scmbert_jax.evaluation.networks.model_rows import model_rows
from scmbert_jax.evaluation.networks.pairs import pairs_of
from scmbert_jax.evaluation.networks.suite import evaluate_networks
from scmbert_jax.pretrained import load_model
from scmbert_jax.scmbert import ModelDefinition


@pytest.fixture(scope="module")
def plain(pbmc_model):
    return load_model(pbmc_model)


@pytest.fixture(scope="module")
def true(plain, tmp_path_factory):
    """12 regulators of 60 of the model's genes, and one gene that no model knows."""
    rng = np.random.default_rng(0)
    genes = plain.feature_space.modalities["rna"].ids[:60]
    rows, columns = np.nonzero(rng.random((12, 60)) < 0.3)
    table = pd.DataFrame({"source": genes[rows], "target": genes[columns]})
    table.loc[len(table)] = [genes[0], "NOGENE"]
    path = tmp_path_factory.mktemp("true") / "true.csv"
    table[table["source"] != table["target"]].to_csv(path, index=False)
    return path


def trained_on(plain, true, split):
    """The model with a network and an untrained decoder."""
    labels = read_labels(true, "human").edges
    edges = merged_edges(labels.source, labels.target, labels.sign, labels.confidence, labels.weight, "true")
    config = replace(
        plain.config,
        model=replace(plain.config.model, networks=("true.csv",), network_split=split),
        objectives=replace(plain.config.objectives, link_prediction=LinkPredictionConfig(weight=1.0)),
    )
    layout = with_networks(
        plain.definition.layout,
        plain.feature_space,
        [network_of_genes(edges)],
        split=split,
        graph="off",
        negatives="uniform",
        seed=config.seed,
    )
    definition = ModelDefinition(config, layout)
    return replace(plain, config=config, definition=definition, constants=definition.constants).untrained(0)


def test_a_model_without_a_network_has_a_row_of_its_gene_rows(pbmc_model, true):
    found = json.loads(
        scmbert_ok("evaluate", "networks", true, "--model", pbmc_model, "--split", "edge", "--num-seeds", "2", "--json")
    )
    name = f"cosine of gene rows: {pbmc_model.name}"
    (row,) = [row for row in found["rows"] if (row["method"], row["metric"]) == (name, "auroc")]
    assert 0.2 < row["mean"] < 0.8
    (note,) = [note for note in found["notes"] if note.startswith(f"{pbmc_model.name}: knows")]
    assert re.search(r"knows (\d+) of (\d+) genes; pairs of others have its middle score\.$", note)


@pytest.mark.parametrize("split", ["edge", "regulator"])
def test_no_pair_that_a_model_has_seen_tests_any_method(split, plain, true):
    model = trained_on(plain, true, split)
    pairs = pairs_of(read_labels(true, "human"), "")
    (rows,) = model_rows({"mine": model}, pairs, "human")
    assert [method.name for method in rows.methods] == ["cosine of gene rows: mine", "link decoder: mine"]
    ids = model.feature_space.modalities["rna"].ids
    first = model.feature_space.slices["rna"][0]
    network = model.definition.layout.network
    learned = network.part == 0
    learned &= network.kind == 0
    seen = set(zip(ids[network.source[learned] - first], ids[network.target[learned] - first], strict=True))
    assert seen
    for row, regulator in enumerate(pairs.regulators):
        for column, gene in enumerate(pairs.genes):
            if (regulator, gene) in seen or (gene, regulator) in seen:
                assert rows.seen[row, column]
    assert (pairs.is_edge & ~rows.seen).any()
    assert f"(split {split})" in rows.note
    report = evaluate_networks(true, models={"mine": model}, splits=["edge"], num_seeds=2)
    assert np.isfinite(report.row("edge", "link decoder: mine").mean)
    assert any(note.startswith("Edges that test, once those that models have seen") for note in report.notes)


def test_a_model_that_has_seen_every_edge_is_refused(plain, true):
    genes = plain.feature_space.modalities["rna"].ids
    table = pd.read_csv(true)
    known = true.with_name("known.csv")
    table[table["target"].isin(genes)].to_csv(known, index=False)
    with pytest.raises(InputError, match="were trained on all edges that would test: give another true network"):
        evaluate_networks(known, models={"mine": trained_on(plain, known, "none")}, splits=["edge"], num_seeds=1)
    with pytest.raises(InputError, match="mine: a model of human genes, and the network is of mouse"):
        evaluate_networks(known, models={"mine": plain}, organism="mouse")


@pytest.mark.parametrize("split", ["edge", "regulator", "target", "both"])
def test_parts_of_pairs_are_those_of_edges(split):
    sources, targets = (np.array([f"{side}{number}" for number in range(20)]) for side in "RG")
    pairs = parts_of_pairs(sources, targets, split, 3)
    edges = parts_of_edges(np.repeat(sources, 20), np.tile(targets, 20), split, 3)
    np.testing.assert_array_equal(pairs.ravel(), edges)
