"""What an annotator's calls come from: of principal components, and of a tiny model in which the transformer speaks."""

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
from scipy.stats import mannwhitneyu

from data_pipelines.readers.example_reader import example_path
from scmbert_jax.annotation.fit import FitOptions, fit
from scmbert_jax.annotation.representation import Reading
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.interpretation.attributions import (
    EXACT,
    GRADIENT_X_INPUT,
    INTEGRATED_GRADIENTS,
    ROLLOUT,
    Attributed,
    Direction,
)
from scmbert_jax.interpretation.deletion import RANDOM
from scmbert_jax.interpretation.drawn_cells import DrawnCells, rank_sum_z
from scmbert_jax.interpretation.explain import ExplainOptions, explain
from scmbert_jax.interpretation.randomisation import spearman
from scmbert_jax.interpretation.rollout import queries_and_keys_of, rollout_of_tokens
from scmbert_jax.interpretation.write_explanation import explanation_document, printed, write_explanation
from scmbert_jax.models.token_sequence import pack_tokens
from scmbert_jax.pretrained import load_model
from scmbert_jax.tasks.embed import feature_table
from scmbert_jax.tasks.model_cells import open_model_cells

PLANTED = 7  # a gene that one half of the cells has much of, and the other half not: nothing else tells them apart
READING = Reading(allow_low_coverage=True, batch_size=32)
FEW = ExplainOptions(cells_per_type=48, deletion_cells=8, steps=64)
pytestmark = pytest.mark.filterwarnings("ignore::scmbert_jax.errors.ScmbertWarning")


@pytest.fixture(scope="module")
def cells():
    """96 cells x 60 genes, of types "with" and "without" the planted gene."""
    whole = mudata.read_h5mu(example_path("pbmc_mosaic")).mod["rna"]
    most = np.sort(np.argsort(-np.asarray((whole.X > 0).mean(axis=0)).ravel(), kind="stable")[:60])
    found = whole[:96, most].copy()
    counts = np.asarray(found.X.todense() if sp.issparse(found.X) else found.X).astype(np.float32)
    has = np.arange(96) % 2 == 0
    counts[:, PLANTED] = np.where(has, 40, 0)
    labels = pd.DataFrame({"celltype": np.where(has, "with", "without")}, index=found.obs_names)
    return anndata.AnnData(sp.csr_matrix(counts), obs=labels, var=found.var)


@pytest.fixture(scope="module")
def gene(cells):
    return str(cells.var_names[PLANTED])


@pytest.fixture(scope="module")
def of_components(cells):
    return fit(None, cells, FitOptions(method="pca", label_key="celltype", components=8))


@pytest.fixture(scope="module")
def of_model(pbmc_model, cells):
    """A probe of a model whose transformer has been shaken, so that it says something."""
    model = load_model(pbmc_model)
    model = replace(model, params=shaken(model.params))
    return fit(model, cells, FitOptions(method="probe", label_key="celltype"), reading=READING)


@pytest.fixture(scope="module")
def explained(of_model, cells):
    return explain(of_model, cells, FEW, reading=READING)


def total(attributed: Attributed):
    return np.asarray(attributed.values.sum(axis=1)).ravel()


# --- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_integrated_gradients_add_up_to_what_the_model_says_beyond_its_baseline(explained, of_model, cells):
    own = explained.attributed[INTEGRATED_GRADIENTS]
    assert own.relative_error() < 1e-3
    assert np.abs(own.found - own.baseline).mean() > 0.1
    # The gradient alone does not, so the sum is no identity of how it is computed.
    assert explained.attributed[GRADIENT_X_INPUT].relative_error() > 5 * own.relative_error()
    assert explained.attributed[ROLLOUT].relative_error() is None
    # What is explained is what the annotator says.
    vectors = of_model.representation.vectors(of_model.representation.open(cells, READING), READING)
    logits = of_model.head.logits(vectors)
    centred = logits - logits.mean(axis=1, keepdims=True)
    direction = Direction.of(of_model.head)
    np.testing.assert_allclose(direction.values(vectors, np.zeros(96, int)), centred[:, 0], rtol=1e-4, atol=1e-4)


def test_the_exact_attribution_of_components_adds_up(of_components, cells):
    found = explain(of_components, cells, FEW)
    own = found.attributed[EXACT]
    assert found.methods == (EXACT,)
    assert own.relative_error() < 1e-6
    np.testing.assert_allclose(total(own), own.found - own.baseline, atol=1e-5)
    assert "untrained model" in explanation_document(found)["not_done"]


@pytest.mark.parametrize("which", ["of components", pytest.param("of a model", marks=pytest.mark.slow)])
def test_a_planted_gene_is_found_and_its_deletion_is_felt(which, request, of_components, cells, gene):
    found = request.getfixturevalue("explained") if which == "of a model" else explain(of_components, cells, FEW)
    first = found.methods[0]
    of_type = found.markers()[lambda table: table["type"] == "with"]
    assert of_type["name"].iloc[0] == gene
    assert of_type["wilcoxon_rank"].iloc[0] == 1
    place = np.flatnonzero(found.features["name"] == gene)
    assert found.means[first][found.types.index("with")].argmax() == place
    assert found.curves.area_below(first, RANDOM).low > 0
    own = found.curves.probabilities
    np.testing.assert_array_equal(own[first][:, 0], own[RANDOM][:, 0])


@pytest.mark.slow
def test_a_feature_without_a_count_has_no_attribution(explained):
    for own in explained.attributed.values():
        assert own.values.nnz > 0
    for place, figures in enumerate(explained.figures):
        silent = figures.detection == 0
        assert 0 < figures.detection.max() <= 1
        for means in explained.means.values():
            assert (means[place][silent] == 0).all()


@pytest.mark.slow
def test_an_untrained_model_and_permuted_labels_give_other_attributions(explained):
    own = explained.sanity[INTEGRATED_GRADIENTS]
    # All cells are drawn, so the head of true labels is the annotator's.
    assert own["head refitted to true labels"].signed.mean > 0.9
    for control in ("untrained model", "head refitted to permuted labels"):
        assert own[control].signed.high < 0.6
    assert set(explained.sanity[ROLLOUT]) == {"untrained model", "expression"}


@pytest.mark.slow
def test_rollout_is_the_first_row_of_the_product_of_all_attention_matrices(of_model, cells):
    model = of_model.representation.model
    opened = open_model_cells(replace(model, allow_low_coverage=True), cells[:6].copy())
    _, batch, _ = next(opened.batches(None, 6, 0))
    table = feature_table(model.definition, model.params, model.constants)
    found = rollout_of_tokens(model.definition, model.params, model.constants, table, batch)

    @jax.jit
    def queries_and_keys():
        merged, tokens = model.definition.merge(model.params, model.constants), pack_tokens(batch)
        nothing_hidden = jnp.zeros(tokens.valid.shape, bool)
        x = merged.embedding(merged.rows(table, tokens), tokens, nothing_hidden, batch.covariates)
        return queries_and_keys_of(merged.encoder, x, tokens), tokens.lengths

    layers, lengths = jax.tree.map(np.asarray, queries_and_keys())
    assert len(layers) > 1
    for row, length in enumerate(lengths):
        product = np.eye(1 + length)
        for q, k in layers:
            q, k = q[row, : 1 + length], k[row, : 1 + length]
            logits = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
            attention = np.exp(logits - logits.max(axis=2, keepdims=True))
            attention /= attention.sum(axis=2, keepdims=True)
            product = (0.5 * np.eye(1 + length) + 0.5 * attention.mean(axis=0)) @ product
        np.testing.assert_allclose(found[row, :length], product[0, 1:], rtol=1e-4, atol=1e-7)
        assert not np.asarray(found[row, length:]).any()


def test_the_rank_sum_is_that_of_scipy_with_its_ties():
    rng = np.random.default_rng(0)
    values = sp.csr_matrix(rng.poisson(0.7, (50, 12)).astype(float))
    mine = rng.random(50) < 0.4
    found = rank_sum_z(values, mine)
    dense = values.toarray()
    for column in range(12):
        known = mannwhitneyu(dense[mine, column], dense[~mine, column], method="asymptotic", use_continuity=False)
        above = known.statistic - mine.sum() * (~mine).sum() / 2
        assert np.sign(found[column]) == np.sign(above)
        from scipy.stats import norm

        np.testing.assert_allclose(2 * norm.sf(abs(found[column])), known.pvalue, rtol=1e-9)
    assert rank_sum_z(sp.csr_matrix((50, 3)), mine).tolist() == [0, 0, 0]


def test_deleted_features_are_gone_as_if_the_file_had_not_had_them():
    counts = sp.csr_matrix(np.array([[1, 0, 3], [2, 5, 0]], np.int32))
    drawn = DrawnCells({"rna": counts}, {"rna": np.ones(2, bool)}, {"rna": (2, 5)}, 6)
    deleted = sp.csr_matrix(np.array([[0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 1]], bool))
    np.testing.assert_array_equal(drawn.without(deleted).counts["rna"].toarray(), [[0, 0, 3], [2, 0, 0]])
    assert drawn.without(deleted).counts["rna"].nnz == 2


def test_spearman_knows_ties_and_what_does_not_vary():
    x = np.array([1.0, 2, 2, 5])
    assert spearman(x, -x) == pytest.approx(-1)
    assert spearman(x, np.zeros(4)) == 0


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_folder_of_a_model_says_what_rollout_is_not(explained, tmp_path):
    write_explanation(tmp_path / "out", explained)
    report = (tmp_path / "out" / "report.html").read_text()
    assert "not evidence of regulation" in report
    assert "<svg" in report
    document = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert document["methods"] == [INTEGRATED_GRADIENTS, GRADIENT_X_INPUT, ROLLOUT]
    assert document["completeness"][0]["relative_error"] < 1e-3
    table = pd.read_parquet(tmp_path / "out" / "attributions.parquet")
    assert {*explained.methods, "wilcoxon", "mean", "variance", "detection", "rank"} <= set(table)
    assert not table.isna().any().any()
    assert "not evidence of regulation" in printed(explained)


def test_the_command_explains_an_annotator_of_components(of_components, cells, gene, tmp_path):
    of_components.save(tmp_path / "a")
    cells.write_h5ad(tmp_path / "c.h5ad")
    command = ("explain", tmp_path / "a", tmp_path / "c.h5ad", "-o", tmp_path / "out", "--cells-per-type", "12")
    said = scmbert_ok(*command, "--types", "with", "--deletion-cells", "4")
    assert "relative error" in said
    assert "| with" in said
    assert pd.read_csv(tmp_path / "out" / "markers.csv")["name"][0] == gene
    assert {"method", "control", "spearman"} <= set(pd.read_csv(tmp_path / "out" / "sanity.csv"))
    again = scmbert(*command)
    assert again.code != 0
    assert "is there already" in again.err
    assert scmbert(*command, "--method", "attention_rollout", "--overwrite").code != 0


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"types": ("withe",)}, ConfigError, r"--types withe: the annotator knows no such type.*Did you mean 'with'"),
        ({"types": ("with", "with")}, ConfigError, "named twice"),
        ({"methods": (ROLLOUT,)}, ConfigError, "each feature's part is exact"),
        ({"types": ("without",), "label_key": "half"}, InputError, r"no cell is without by obs\['half'\]; .* with"),
        ({"label_key": "nowhere"}, InputError, "nowhere"),
        ({"label_key": "other"}, InputError, "no cell that can be explained by obs"),
    ],
)
def test_what_cannot_be_explained_is_refused_with_the_reason(of_components, cells, options, error, said):
    some = cells.copy()
    some.obs["half"] = np.where(cells.obs["celltype"] == "with", "with", "unknown")
    some.obs["other"] = "neuron"
    with pytest.raises(error, match=said):
        explain(of_components, some, replace(FEW, **options))


def test_cells_without_the_genes_are_refused(of_components, cells):
    others = cells[:, :3].copy()
    others.var_names = ["TTN", "NEB", "OBSCN"]
    others.var = others.var[[]]
    others.X = sp.csr_matrix(np.ones((96, 3), np.float32))
    with pytest.raises(InputError, match="none of its 3 rna features is among the model's"):
        explain(of_components, others, FEW)


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("cells_per_type", 0), ("deletion_cells", -1), ("methods", ()), ("methods", ("x",))],
)
def test_an_option_that_cannot_be_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field.removesuffix("s")):
        ExplainOptions(**{field: value})
