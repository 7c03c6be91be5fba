"""A gene is removed from cells, or raised: what a model says of the others, by each of its read-outs."""

import json
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

from data_pipelines.features.feature_mapping import map_genes
from data_pipelines.readers.example_reader import example_path
from scmbert_jax.annotation.representation import Reading
from scmbert_jax.config import MaskedModelingConfig, ObjectivesConfig, WholeProfileConfig
from scmbert_jax.interpretation.matched_null import against_null, matched_genes
from scmbert_jax.interpretation.perturb import PerturbOptions, perturb
from scmbert_jax.interpretation.perturbation import CELL, PROFILE, STATES, CellsToPerturb, read_out_of
from scmbert_jax.models.token_sequence import pack_tokens
from scmbert_jax.pretrained import load_model
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.tasks.embed import feature_table

READING = Reading(allow_low_coverage=True, batch_size=8)
OBJECTIVES = {
    PROFILE: ObjectivesConfig(MaskedModelingConfig(weight=0.0), whole_profile=WholeProfileConfig(1.0, hidden_dim=8)),
    CELL: ObjectivesConfig(MaskedModelingConfig(weight=1.0)),
    STATES: ObjectivesConfig(MaskedModelingConfig(weight=1.0, cell_weight=0.0)),
}
pytestmark = pytest.mark.filterwarnings("ignore::scmbert_jax.errors.ScmbertWarning")


@pytest.fixture(scope="module")
def cells():
    """20 cells x 40 genes, of those that most cells express."""
    whole = mudata.read_h5mu(example_path("pbmc_mosaic")).mod["rna"]
    most = np.sort(np.argsort(-np.asarray((whole.X > 0).mean(axis=0)).ravel(), kind="stable")[:40])
    found = whole[:20, most].copy()
    return anndata.AnnData(sp.csr_matrix(found.X, dtype=np.float32), obs=found.obs[[]], var=found.var)


def model_for(pbmc_model, read_out):
    """A model that was trained for something else, as far as one can see."""
    model = load_model(pbmc_model)
    rna = replace(model.config.modalities.rna, zero_fraction=0.0)  # no zeros are drawn anew where a gene has become one
    modalities = replace(model.config.modalities, rna=rna)
    config = replace(model.config, objectives=OBJECTIVES[read_out], modalities=modalities)
    definition = ModelDefinition(config, model.definition.layout)
    params = shaken(jax.jit(definition.init)(jax.random.key(0)))
    return replace(model, config=config, definition=definition, params=params, constants=definition.constants)


@pytest.mark.parametrize(
    ("read_out", "times"),
    [
        (CELL, 0.0),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((CELL, 3.0), (PROFILE, 0.0), (PROFILE, 3.0))),
        *(pytest.param(STATES, times, marks=pytest.mark.slow) for times in (0.0, 3.0)),
    ],
)
def test_a_response_is_the_change_from_cells_that_were_counted_again(pbmc_model, cells, read_out, times):
    model = model_for(pbmc_model, read_out)
    assert read_out_of(model) == read_out
    opened = CellsToPerturb.open(model, cells, reading=READING)
    counts = opened.drawn.counts["rna"]
    gene = int(np.argsort(-counts.getnnz(axis=0), kind="stable")[5])
    mine = np.flatnonzero(counts[:, [gene]].toarray().ravel())[:6]
    targets = np.flatnonzero(counts.getnnz(axis=0) > 0)[::3]
    found = opened.responses(np.array([gene]), targets=targets, times=times, cells_per_gene=6)
    assert found.cells.tolist() == [6]
    assert found.having[0] == counts[:, [gene]].getnnz()

    changed = counts[mine].tolil()
    changed[:, gene] = changed[:, [gene]].toarray() * times
    drawn = opened.drawn.of(mine)
    before, after = (drawn, replace(drawn, counts={"rna": sp.csr_matrix(changed, dtype=np.int32)}))
    told = [by_hand(opened, read_out, own, drawn, targets) for own in (before, after)]
    change = told[1] - told[0] if read_out != STATES else 1 - (told[0] * told[1]).sum(axis=2)
    says = ~np.isnan(change).all(axis=0)
    np.testing.assert_array_equal(np.isnan(found.mean[0]), ~says)
    expected = np.nanmean(change[:, says], axis=0)
    assert np.nanmax(np.abs(expected)) > 1e-4
    np.testing.assert_allclose(found.mean[0, says], expected, rtol=2e-3, atol=2e-6)
    np.testing.assert_allclose(found.std[0, says], np.nanstd(change[:, says], axis=0), rtol=2e-2, atol=2e-5)


def by_hand(opened, read_out, drawn, whole, targets):
    """[n, T], or of states [n, T, D], of cells that keep the library sizes of `whole`."""
    model, first = opened.model, opened.model.definition.layout.slices["rna"][0]
    batch = opened.cells.batch_of(drawn.chunk(), opened.cells.sampling(None), 0)
    of_whole = opened.cells.batch_of(whole.chunk(), opened.cells.sampling(None), 0)
    rna, size = batch.modalities["rna"], of_whole.modalities["rna"]
    rna = rna._replace(library_size=size.library_size, mean_log_count=size.mean_log_count)
    statistics, genes = model.definition.layout.statistics, slice(*model.definition.layout.slices["rna"])
    median = statistics.library_quantiles[0][len(statistics.library_quantiles[0]) // 2]
    values = np.log1p(drawn.counts["rna"].toarray() / np.asarray(size.library_size)[:, None] * median)
    values -= statistics.linear_mean[genes] * opened.measured
    scores = (values @ np.asarray(model.constants["linear"]["loadings"])[genes]).astype(np.float32)
    batch = batch._replace(modalities={"rna": rna}, scores={"rna": scores})
    table = feature_table(model.definition, model.params, model.constants)
    merged = model.definition.merge(model.params, model.constants)
    tokens = pack_tokens(batch)
    states = jax.jit(merged.encode)(table, tokens, None, batch.covariates)
    if read_out == STATES:
        own = states[:, 1:] / jnp.linalg.norm(states[:, 1:], axis=2, keepdims=True)
        found = np.full((drawn.number, len(targets), own.shape[2]), np.nan)
        for cell, place in zip(*np.nonzero(np.asarray(tokens.valid)), strict=True):
            found[cell, targets + first == tokens.feature_ids[cell, place]] = own[cell, place]
        return found
    ids = jnp.broadcast_to(targets + first, (drawn.number, len(targets)))
    if read_out == CELL:
        vectors = merged.cell_decoder(states[:, 0], table[ids])
        outputs, spread = merged.cell_head("rna", vectors, ids, batch.covariates)
        return np.log1p(merged.cell_head.likelihoods["rna"].expected_counts(outputs, spread))
    outputs, _ = merged.profile_head.outputs("rna", states[:, 0], batch.covariates)
    outputs = np.where(opened.measured, np.asarray(outputs)[..., 0], -np.inf)
    fraction = np.asarray(jax.nn.softmax(outputs, axis=1))[:, targets]
    return np.log1p(fraction * merged.profile_head.likelihoods["rna"].median_library)


# --- against a null --------------------------------------------------------------------------------------------------


def test_genes_of_no_effect_are_rarely_found_and_those_of_an_effect_are():
    rng = np.random.default_rng(0)
    spread = np.exp(rng.normal(size=400))  # downstream genes move more or less, whatever is perturbed

    def perturbed(number):
        strength = np.exp(rng.normal(size=(number, 1)))  # and perturbed genes move more or less
        return strength * spread * rng.standard_t(8, size=(number, 400))

    tested = [against_null(own, perturbed(30)) for own in perturbed(100)]
    assert np.mean([own.found > 0 for own in tested]) <= 0.1
    of_null = np.concatenate([own.found_in_null > 0 for own in tested])
    assert of_null.mean() <= 0.1
    assert abs(np.mean([own.p for own in tested]) - 0.5) < 0.03
    assert 0.02 < np.mean([own.strength_p < 0.1 for own in tested]) < 0.2
    response = perturbed(1)[0]
    response[:8] = 12 * spread[:8]
    found = against_null(response, perturbed(30))
    assert (found.q[:8] < 0.05).all()
    assert (found.q[8:] < 0.05).sum() <= 2
    assert found.like_it == 0


def test_matched_genes_are_the_nearest_and_never_the_gene_itself():
    figures = np.array([[0.0, 1.0], [0.1, 1.0], [5.0, 1.0], [0.2, 1.0], [0.0, 9.0]])
    assert matched_genes(0, figures, np.arange(5), 2).tolist() == [1, 3]
    assert matched_genes(0, figures, np.array([2, 0, 4]), 9).tolist() == [2, 4]


DRIVER, DRIVEN = 7, np.arange(20, 26)


@pytest.fixture(scope="module")
def known_cells():
    """150 cells x 60 genes, drawn one like the other: what drives what is in the model alone."""
    names = mudata.read_h5mu(example_path("pbmc_mosaic")).mod["rna"].var
    rng = np.random.default_rng(3)
    counts = rng.poisson(np.exp(rng.normal(0.3, 0.3, 60)), (150, 60)).astype(np.float32)
    kinds = pd.DataFrame({"kind": np.where(np.arange(150) % 3, "a", "b")}, [f"cell {n}" for n in range(150)])
    return anndata.AnnData(sp.csr_matrix(counts), obs=kinds, var=names.iloc[200:260])


@pytest.fixture(scope="module")
def known_model(pbmc_model, known_cells):
    """Its transformer says nothing. Of each gene the linear path has a little of seven random directions, of which each
    predicted count has a little; and of the driver an eighth, by which the driven genes are predicted."""
    model = model_for(pbmc_model, PROFILE)
    first = model.definition.layout.slices["rna"][0]
    rows = first + model.feature_space.modalities["rna"].index_of(
        map_genes(known_cells.var_names.to_numpy(str), "human").ids
    )
    assert (rows >= first).all()
    rng = np.random.default_rng(0)
    params = jax.tree.map(np.array, model.params)
    params["encoder"]["final_norm"] = jax.tree.map(np.zeros_like, params["encoder"]["final_norm"])
    loadings = np.zeros_like(model.constants["linear"]["loadings"])
    loadings[rows, :7] = 0.02 * rng.normal(size=(60, 7))
    loadings[rows[DRIVER], 7] = 0.3
    into_cell = np.zeros_like(params["linear"]["into_cell"]["rna"])
    into_cell[:8, :8] = np.eye(8)
    head = params["profile_head"]
    head["hidden"][:], head["hidden_bias"][:] = np.eye(*head["hidden"].shape), 2.0  # where gelu is nearly the identity
    head["rows"][:] = 0
    head["rows"][rows, :7] = rng.normal(size=(60, 7))
    head["rows"][rows[DRIVEN], 7] = -1.0
    params["linear"]["into_cell"]["rna"] = into_cell
    constants = {**model.constants, "linear": {**model.constants["linear"], "loadings": loadings}}
    return replace(model, params=params, constants=constants)


def test_what_a_gene_drives_is_found_and_of_other_genes_hardly_anything(known_model, known_cells):
    names = known_cells.var_names.to_numpy(str)
    options = PerturbOptions(num_matched=30, cells_per_gene=30)
    found = perturb(known_model, known_cells, [names[DRIVER], *names[30:50]], options, reading=READING).found
    own = next(one for one in found if one.name == names[DRIVER])
    table = own.genes
    assert set(table["gene"][:6]) == set(names[DRIVEN])
    assert (table["q"][:6] < 0.05).all()
    assert (table["response"][:6] > 0).all()  # what was held down rises where it is gone
    assert (table["q"][6:] < 0.05).sum() <= 1
    assert own.tested.like_it == 0
    assert names[DRIVER] not in set(table["gene"])
    assert sum(one.tested.found > 0 for one in found if one is not own) <= 2  # of 20


# --- the command -----------------------------------------------------------------------------------------------------

FEW = ("--allow-low-coverage", "--matched", "6", "--cells-per-gene", "4", "--batch-size", "8")


@pytest.fixture(scope="module")
def known_file(known_cells, tmp_path_factory):
    path = tmp_path_factory.mktemp("known") / "cells.h5ad"
    known_cells.write_h5ad(path)
    return path


def test_the_order_of_genes_and_cells_changes_no_byte(pbmc_model, known_cells, known_file, tmp_path):
    rng = np.random.default_rng(1)
    shuffled = tmp_path / "cells.h5ad"
    known_cells[rng.permutation(150)][:, rng.permutation(60)].copy().write_h5ad(shuffled)
    one, other, third = known_cells.var_names[:3]
    options = (*FEW, "--by", "kind")
    report = tmp_path / "report.html"
    told = [
        scmbert_ok("perturb", pbmc_model, known_file, "--gene", one, other, *options, "-o", tmp_path / "a.csv"),
        scmbert_ok("perturb", pbmc_model, shuffled, "--gene", other, one, *options, "-o", tmp_path / "b.csv"),
    ]
    assert told[0] == told[1]
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    table = pd.read_csv(tmp_path / "a.csv")
    assert set(zip(table["perturbed"], table["cell_type"], strict=True)) == {(g, k) for g in (one, other) for k in "ab"}
    assert {"response", "null_mean", "null_sd", "p", "q", "spearman", "mean_shift"} <= set(table.columns)
    own = ("perturb", pbmc_model, known_file, "--gene", third, "--raise-to", "3", *FEW, "--json", "--report", report)
    document = json.loads(scmbert_ok(*own))
    assert document["perturbation"] == "count times 3"
    assert document["summary"][0]["perturbed_cells"] == 4
    assert "not evidence" in report.read_text()


def test_cells_without_a_label_are_counted_and_a_gene_of_all_cells_has_no_mean_shift(pbmc_model, known_cells, tmp_path):
    cells = known_cells.copy()
    cells.X = sp.csr_matrix(cells.X.toarray() + (np.arange(60) == 0))
    cells.obs["kind"] = np.where(np.arange(150) < 30, None, "a")
    cells.obs["none"] = np.full(150, np.nan)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    own = ("perturb", pbmc_model, tmp_path / "cells.h5ad", "--gene", cells.var_names[0], *FEW)
    one, other, third = cells.var_names[:3]
    (tmp_path / "edges.csv").write_text(f"source,target\n{one},{other}\n{one},{third}\n{third},GATA1\n")
    document = json.loads(scmbert_ok(*own, "--by", "kind", "--network", tmp_path / "edges.csv", "--json"))
    assert "2 of 2 regulators, 2 of 3 targets, 2 of 3 edges are in the model" in document["network_coverage"]
    (row,) = document["summary"]
    assert (row["cells"], document["cells_without_a_label"]) == (120, 30)
    assert row["with_it"] == 120
    assert row["agrees_with_mean_shift"] is None
    assert row["agrees_with_spearman"] is not None
    assert "no cell has a value in obs['none']" in scmbert(*own, "--by", "none").err


def test_genes_that_cannot_be_perturbed_are_refused_with_what_was_found(pbmc_model, known_cells, known_file, tmp_path):
    def refused(*arguments):
        ran = scmbert("perturb", pbmc_model, known_file, "--allow-low-coverage", *arguments)
        assert ran.code != 0
        return ran.err

    gene = known_cells.var_names[0]
    assert "did you mean CD38" in refused("--gene", "CD388")
    names = load_model(pbmc_model).feature_space.modalities["rna"].names
    lacking = names[~np.isin(names, known_cells.var_names)][0]
    assert f"does not measure {lacking}" in refused("--gene", lacking)
    having = int((known_cells.X[:, [0]] > 0).sum())
    assert f"has a count in {having} cells" in refused("--gene", gene, "--min-cells", "151")
    assert "it has kind" in refused("--gene", gene, "--by", "celltype")
    assert "--raise-to 1" in refused("--gene", gene, "--raise-to", "1")
    assert "--matched 0" in refused("--gene", gene, "--matched", "0")
    assert "--seed -1" in refused("--gene", gene, "--seed", "-1")
    assert "--gene: none is named" in refused("--gene", "")
    assert ".csv or .tsv" in refused("--gene", gene, "-o", tmp_path / "a.xlsx")
