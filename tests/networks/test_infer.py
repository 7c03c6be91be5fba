"""`scmbert networks infer`: the same edges in any order of genes and cells, formats that others read, and refusals."""

import json
import shutil
from dataclasses import replace

import anndata
import jax
import jax.numpy as jnp
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import scmbert, scmbert_ok, shaken

from data_pipelines.networks.edge_table import read_edge_table
from data_pipelines.readers.example_reader import example_path
from data_pipelines.synthetic.networks import with_synthetic_network
from scmbert_jax.annotation.representation import Reading
from scmbert_jax.config import LinkPredictionConfig
from scmbert_jax.errors import InputError
from scmbert_jax.models.link_decoders import EDGE, SIGN
from scmbert_jax.networks.attention import attention_times
from scmbert_jax.networks.embedding import gene_states
from scmbert_jax.networks.infer import InferOptions, infer_networks, top_pairs
from scmbert_jax.networks.regulators import read_regulators
from scmbert_jax.networks.scores import Resampling
from scmbert_jax.pretrained import load_model
from scmbert_jax.scmbert import ModelDefinition

pytestmark = pytest.mark.filterwarnings("ignore::scmbert_jax.errors.ScmbertWarning")
REGULATOR, TARGET = 3, 11  # whose counts are made to go together
FEW = ("--allow-low-coverage", "--batch-size", "32", "--bootstraps", "4")


@pytest.fixture(scope="module")
def cells():
    """96 cells x 50 genes of two types and one cell of a third."""
    whole = mudata.read_h5mu(example_path("pbmc_mosaic")).mod["rna"]
    most = np.sort(np.argsort(-np.asarray((whole.X > 0).mean(axis=0)).ravel(), kind="stable")[:50])
    found = whole[:97, most].copy()
    counts = np.asarray(found.X.todense() if sp.issparse(found.X) else found.X).astype(np.float32)
    counts[:, REGULATOR] = np.random.default_rng(0).integers(0, 40, 97)
    counts[:, TARGET] = counts[:, REGULATOR] * 2
    obs = pd.DataFrame({"kind": ["A", "B/1"] * 48 + ["rare"]}, index=found.obs_names)
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=found.var)


@pytest.fixture(scope="module")
def file(cells, tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    cells.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def regulators(cells, tmp_path_factory):
    path = tmp_path_factory.mktemp("regulators") / "tfs.txt"
    path.write_text("\n".join([*cells.var_names[:10], "NOSUCHGENE", "GATA1"]) + "\n")
    return path


def infer(model, file, regulators, output, *more):
    return scmbert("networks", "infer", model, file, "--regulators", regulators, "-o", output, *FEW, *more)


# --- the numbers -----------------------------------------------------------------------------------------------------


def shuffled(cells, regulators, folder):
    """The same cells and regulators, cells, genes and names in another order."""
    rng = np.random.default_rng(1)
    cells[rng.permutation(cells.n_obs)][:, rng.permutation(cells.n_vars)].copy().write_h5ad(folder / "cells.h5ad")
    (folder / "tfs.txt").write_text("\n".join(rng.permutation(regulators.read_text().split())))
    return folder / "cells.h5ad", folder / "tfs.txt"


def test_any_order_of_genes_and_cells_gives_the_same_file(pbmc_model, cells, file, regulators, tmp_path):
    """With bootstraps, which draw cells; of more cells than are drawn."""
    options = ("--max-cells", "80", "--method", "embedding", "perturbation", "attention", "spearman")
    other = shuffled(cells, regulators, tmp_path)
    for (source, listed), name in (((file, regulators), "a"), (other, "b")):
        ran = infer(pbmc_model, source, listed, tmp_path / f"{name}.csv", *options)
        assert ran.code == 0, ran.err
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert infer(pbmc_model, file, regulators, tmp_path / "c.csv", *options, "--seed", "1").code == 0
    assert (tmp_path / "a.csv").read_bytes() != (tmp_path / "c.csv").read_bytes()
    table = pd.read_csv(tmp_path / "a.csv")
    assert table.groupby("method").size().min() > 50
    assert table["stability"].between(0, 1).all()
    assert (table["weight"] > 0).all()
    assert not (table["source"] == table["target"]).any()
    first = table[table["method"] == "spearman"].iloc[0]
    assert [first["source"], first["target"]] == [cells.var_names[REGULATOR], cells.var_names[TARGET]]
    assert first["sign"] == first["stability"] == 1


def test_boosting_does_not_see_the_order_of_genes_either(pbmc_model, cells, regulators, tmp_path):
    few = cells[:, :12].copy()
    few.write_h5ad(tmp_path / "few.h5ad")
    options = ("--method", "boosting", "--bootstraps", "1")
    other = shuffled(few, regulators, tmp_path)
    for (source, listed), name in (((tmp_path / "few.h5ad", regulators), "a"), (other, "b")):
        assert infer(pbmc_model, source, listed, tmp_path / f"{name}.csv", *options).code == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    table = pd.read_csv(tmp_path / "a.csv")
    of_target = table[table["target"] == cells.var_names[TARGET]]
    assert of_target["source"].iloc[0] == cells.var_names[REGULATOR]


def test_states_are_means_over_the_cells_that_express_a_gene(pbmc_model, cells, regulators):
    """A cell that counts three times is the cell thrice."""
    found = infer_networks([load_model(pbmc_model)], cells, regulators, reading=Reading(allow_low_coverage=True))
    (population,), reader = found.populations, found.readers[0]
    weights = np.random.default_rng(0).integers(0, 3, (1, population.cells.number))
    states = gene_states(population, reader, weights)[0]
    thrice = population.cells.of(np.repeat(np.arange(weights.shape[1]), weights[0]))
    again = gene_states(
        population.__class__("", thrice, 0, population.genes, population.regulators),
        reader,
        np.ones((1, thrice.number), np.int64),
    )
    np.testing.assert_allclose(states, again[0], atol=1e-4)
    assert np.abs(states).max() > 0.1


def test_attention_times_columns_is_the_product_with_the_whole_matrix():
    keys = jax.random.split(jax.random.key(0), 3)
    q, k = (jax.random.normal(key, (2, 150, 2, 4)) for key in keys[:2])
    flow, lengths = jax.random.normal(keys[2], (2, 150, 3)), jnp.array([150, 40])
    found = attention_times(q, k, flow, lengths)
    for row, length in enumerate((150, 40)):
        logits = np.einsum("qhd,khd->hqk", q[row], k[row, :length]) / 2
        attention = np.asarray(jax.nn.softmax(logits, axis=-1)).mean(axis=0)
        np.testing.assert_allclose(found[row], attention @ flow[row, :length], atol=1e-5)


def test_the_first_of_equal_pairs_is_taken_and_never_a_gene_with_itself():
    weight = np.array([[9.0, 1.0, 0.0], [1.0, 1.0, 2.0]])
    is_pair = np.array([[False, True, True], [True, False, True]])
    assert top_pairs(weight, is_pair, 2).tolist() == [5, 1]
    assert top_pairs(weight, is_pair, 9).tolist() == [5, 1, 3]


def test_stability_is_the_fraction_of_bootstraps_or_of_models_with_the_edge_on_top(pbmc_model, cells, regulators):
    model = load_model(pbmc_model)
    options = InferOptions(methods=("embedding",), top=40, bootstraps=0)
    reading = Reading(allow_low_coverage=True)
    twins = infer_networks([model, model.untrained(1), model.untrained(2)], cells, regulators, options, reading=reading)
    (together,) = twins.networks()
    alone = [
        next(infer_networks([own], cells, regulators, options, reading=reading).networks())
        for own in (model, model.untrained(1), model.untrained(2))
    ]
    edges = [set(zip(own.source.tolist(), own.target.tolist(), strict=True)) for own in alone]
    expected = [
        sum(edge in own for own in edges) / 3
        for edge in zip(together.source.tolist(), together.target.tolist(), strict=True)
    ]
    np.testing.assert_allclose(together.stability, expected)
    assert 0 < together.stability.mean() < 1
    assert np.isnan(alone[0].stability).all()
    drawn = Resampling(3, 0).weights(50)
    assert (drawn.sum(axis=1) == 50).all()
    assert (drawn[0] == 1).all()


def test_the_decoder_of_links_ranks_pairs_of_gene_rows_and_of_rows_that_know_cells(pbmc_model, cells, regulators):
    """Of a model with a decoder, here untrained. Rows know nothing of cells, so nothing is resampled of them."""
    model = load_model(pbmc_model)
    objectives = replace(model.config.objectives, link_prediction=LinkPredictionConfig(weight=1.0, context=True))
    own = replace(model.config.model, networks=("a.csv",))
    config = replace(model.config, objectives=objectives, model=own)
    definition = ModelDefinition(config, with_synthetic_network(model.definition.layout, 200, hears=False))
    params = shaken(definition.init(jax.random.key(0)))
    model = replace(model, config=config, definition=definition, params=params, constants=definition.constants)
    options = InferOptions(methods=("links", "contextual_links"), top=30, bootstraps=2)
    found = infer_networks([model], cells, regulators, options, reading=Reading(allow_low_coverage=True))
    of_rows, in_cells = found.networks()
    built = definition.merge(params, definition.constants)
    rows = built.feature_table()[definition.layout.slices["rna"][0] :]
    logits = built.link_head(rows[of_rows.source], rows[of_rows.target])
    np.testing.assert_allclose(of_rows.weight, jax.nn.sigmoid(logits[:, EDGE]), rtol=1e-4)
    np.testing.assert_array_equal(of_rows.sign > 0, logits[:, SIGN] > 0)
    assert np.isnan(of_rows.stability).all()
    assert found.resampled("links")[0] == 0
    assert in_cells.stability.max() > 0
    assert not np.array_equal(of_rows.target, in_cells.target)
    with pytest.raises(InputError, match="--method links: the model was not trained with link_prediction"):
        infer_networks([load_model(pbmc_model)], cells, regulators, options)


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "ending"), [("adjacencies", "csv"), ("genernib", "h5ad"), ("beeline", "csv")])
def test_each_format_holds_the_same_edges(kind, ending, pbmc_model, file, regulators, tmp_path):
    given = ("--method", "spearman", "--top", "60")
    assert infer(pbmc_model, file, regulators, tmp_path / "usual.csv", *given).code == 0
    usual = read_edge_table(tmp_path / "usual.csv")
    path = tmp_path / f"other.{ending}"
    assert infer(pbmc_model, file, regulators, path, "--format", kind, *given).code == 0
    other = read_edge_table(path)
    assert len(usual) == 60
    for name in ("source", "target", "weight"):
        np.testing.assert_array_equal(getattr(usual, name), getattr(other, name))
    if kind == "genernib":
        uns = anndata.read_h5ad(path).uns
        assert list(uns["prediction"].columns) == ["source", "target", "weight"]
        assert all(isinstance(value, str) for value in uns["prediction"]["weight"])
        assert (uns["method_id"], uns["dataset_id"]) == ("scmbert spearman", "cells")
    else:
        columns = {"adjacencies": "TF,target,importance", "beeline": "Gene1\tGene2\tEdgeWeight"}
        assert path.read_text().splitlines()[0] == columns[kind]


def test_each_cell_type_has_a_network_and_those_of_few_cells_are_reported(pbmc_model, file, regulators, tmp_path):
    given = ("--by", "kind", "--method", "spearman", "--json")
    ran = infer(pbmc_model, file, regulators, tmp_path / "edges.csv", *given)
    document = json.loads(ran.out)
    assert {(own["cell_type"], own["cells"]) for own in document["networks"]} == {("A", 48), ("B/1", 48)}
    assert document["passed_over"] == {"rare": "1 cells; at least 20 are needed"}
    assert "no network of rare" in ran.err
    table = pd.read_csv(tmp_path / "edges.csv")
    of_a, of_b = (table[table["cell_type"] == name].reset_index(drop=True) for name in ("A", "B/1"))
    assert not of_a["weight"].equals(of_b["weight"])
    assert json.loads((tmp_path / "edges.csv.json").read_text()) == document
    assert document["regulators"] == {"named": 12, "in_the_model": 10, "no_gene": 1, "not_in_the_model": 1}
    ran = infer(pbmc_model, file, regulators, tmp_path / "beeline.csv", *given, "--format", "beeline")
    assert {own["file"] for own in json.loads(ran.out)["networks"]} == {"beeline.A.csv", "beeline.B_1.csv"}
    assert len(read_edge_table(tmp_path / "beeline.B_1.csv")) == len(of_b)


def test_all_networks_of_a_file_are_judged_each_by_itself(pbmc_model, file, regulators, tmp_path):
    given = ("--by", "kind", "--method", "spearman", "pearson", "--bootstraps", "1")
    assert infer(pbmc_model, file, regulators, tmp_path / "edges.csv", *given).code == 0
    truth = ("--method", "spearman", "--top", "150")
    assert infer(pbmc_model, file, regulators, tmp_path / "true.csv", *truth).code == 0
    told = scmbert_ok(
        *("evaluate", "networks", tmp_path / "true.csv", "--network", tmp_path / "edges.csv"),
        *("--split", "edge", "--num-seeds", "2", "--json"),
    )
    methods = {row["method"] for row in json.loads(told)["rows"]}
    expected = {f"network: edges.csv, {method}, {kind}" for method in ("spearman", "pearson") for kind in ("A", "B_1")}
    assert expected <= methods


def test_attention_is_called_no_evidence_wherever_it_appears(pbmc_model, file, regulators, tmp_path):
    for kind, name in (("edges", "a.csv"), ("genernib", "b.h5ad")):
        given = ("--method", "attention", "--format", kind, "--num-tokens", "12")
        ran = infer(pbmc_model, file, regulators, tmp_path / name, *given)
        assert "the transformer was shown" in ran.err  # not all of them, which is said, too
        assert "attention (not evidence of regulation)" in ran.out
        assert json.loads((tmp_path / f"{name}.json").read_text())["networks"][0]["warning"]
    assert set(pd.read_csv(tmp_path / "a.csv")["method"]) == {"attention (not evidence of regulation)"}
    assert "not evidence of regulation" in anndata.read_h5ad(tmp_path / "b.h5ad").uns["method_id"]


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_inferred_is_refused(pbmc_model, cells, file, regulators, tmp_path):
    nobody, mice, edges = (tmp_path / name for name in ("nobody.txt", "mice.txt", "edges.csv"))
    nobody.write_text("GATA1\nNOSUCHGENE\n")
    mice.write_text("Gata1\nSpi1\nENSMUSG00000002111\nNeurod1\n")
    (tmp_path / "empty.txt").write_text("\n")
    few = tmp_path / "few.h5ad"
    cells[:5].write_h5ad(few)
    mouse = tmp_path / "mouse.h5ad"
    other = cells.copy()
    other.var_names = [name.capitalize() for name in cells.var_names]
    other.write_h5ad(mouse)
    heading = tmp_path / "heading.txt"
    heading.write_text("TF\n")
    for given, said in (
        ((file, nobody), "none of its 2 names (GATA1, NOSUCHGENE) is among the model's"),
        ((file, mice), "are mouse genes: give regulators of human"),
        ((file, tmp_path / "empty.txt"), "no regulator in it"),
        ((file, heading), "no regulator in it but the heading TF"),
        ((file, regulators, "--other-seeds", pbmc_model), "a model folder is given twice"),
        ((file, tmp_path / "none.txt"), "regulators cannot be read"),
        ((file, regulators, "--top", "0"), "--top 0: expected 1"),
        ((file, regulators, "--by", "type"), "no column 'type' (--by); it has kind"),
        ((file, regulators, "--method", "embeding"), "Did you mean 'embedding'?"),
        ((file, regulators, "--format", "genernib"), "written as .h5ad"),
        ((few, regulators), "5 cells; at least 20 are needed"),
        ((mouse, regulators, "--organism", "mouse"), "the model knows gene:human"),
    ):
        source, listed, *more = given
        ran = infer(pbmc_model, source, listed, edges, *more)
        assert ran.code, said
        assert said in ran.err, (said, ran.err)
        assert not edges.exists()


def test_nothing_is_replaced_unless_told(pbmc_model, file, regulators, tmp_path):
    edges = tmp_path / "edges.csv"
    given = ("--method", "spearman", "--bootstraps", "0")
    edges.write_text("mine")
    ran = infer(pbmc_model, file, regulators, edges, *given)
    assert ran.code
    assert "is there already" in ran.err
    assert edges.read_text() == "mine"
    assert infer(pbmc_model, file, regulators, edges, *given, "--overwrite").code == 0
    assert pd.read_csv(edges)["stability"].isna().all()
    shutil.copy(file, tmp_path / "cells.csv")
    assert "is what is read" in infer(pbmc_model, tmp_path / "cells.csv", regulators, tmp_path / "cells.csv").err
    assert "source,target,weight" in scmbert_ok("networks", "infer", "--help")


def test_a_list_of_regulators_that_is_too_long_is_refused_and_not_cut(pbmc_model, tmp_path, monkeypatch):
    monkeypatch.setattr("scmbert_jax.networks.regulators._MOST_BYTES", 6)
    listed = tmp_path / "many.txt"
    listed.write_text("SPI1\nGATA1\n")
    genes = load_model(pbmc_model).feature_space.modalities["rna"]
    with pytest.raises(InputError, match="more than 0 MiB of names"):
        read_regulators(listed, genes)
