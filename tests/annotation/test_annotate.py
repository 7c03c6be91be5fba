"""Labelled cells -> an annotator -> types of other cells: in memory, as folders and files, and on the command line."""

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import scmbert, scmbert_ok

import scmbert_jax
from data_pipelines.readers.example_reader import example_path
from scmbert_jax.annotation.annotator import load_annotator
from scmbert_jax.annotation.fine_tuning import FineTuningOptions
from scmbert_jax.annotation.fit import FitOptions, fit
from scmbert_jax.annotation.folds import folds_of, learned_without_fold
from scmbert_jax.annotation.label_tree import LabelTree
from scmbert_jax.annotation.predict import STATUSES, annotation_columns, majority_labels, predict, probability_table
from scmbert_jax.annotation.representation import Reading
from scmbert_jax.annotation.write_annotation import write_annotation
from scmbert_jax.errors import CheckpointError, ConfigError, InputError, ScmbertWarning

COLUMNS = [f"scmbert_{name}" for name in ("label", "label_score", "label_set", "novelty", "label_status")]
PCA = FitOptions(method="pca", label_key="celltype", components=15)


@pytest.fixture(scope="module")
def rna():
    """1,200 cells x 500 genes of the example, of three technical batches; obs["celltype"]."""
    found = mudata.read_h5mu(example_path("pbmc_mosaic"))
    cells = found.mod["rna"].copy()
    cells.obs = found.obs.loc[cells.obs_names].copy()
    return cells


@pytest.fixture(scope="module")
def reference(rna):
    """Two thirds of the cells."""
    return rna[(rna.obs["batch"] != "p4_0").to_numpy()].copy()


@pytest.fixture(scope="module")
def query(rna):
    """The other third."""
    return rna[(rna.obs["batch"] == "p4_0").to_numpy()].copy()


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def annotator(reference, said):
    return fit(None, reference, PCA, say=said.append)


@pytest.fixture(scope="module")
def found(annotator, query):
    return predict(annotator, query)


def replaced(adata, labels):
    """The cells with these labels and nothing else in obs."""
    return anndata.AnnData(adata.X, obs=pd.DataFrame({"celltype": labels}, index=adata.obs_names), var=adata.var)


# --- what comes out --------------------------------------------------------------------------------------------------


def test_cells_of_another_batch_get_their_types(found, query):
    truth = query.obs["celltype"].astype(str).to_numpy()
    assert (found.labels == truth).mean() > 0.8
    held = found.sets[np.arange(len(truth)), [found.annotator.types.index(name) for name in truth]]
    assert held.mean() > 0.85
    assert found.coverage == {"rna": 1.0}


def test_nothing_in_a_result_is_missing_or_the_word_false(found):
    assert set(found.status) <= set(STATUSES)
    unsure = (found.sets.sum(1) > 1) & (found.scores < 0.9)
    assert ((found.status == "ambiguous") == unsure)[found.status != "novel"].all()
    assert (found.sets.sum(1) > 0).all()
    columns = pd.DataFrame(annotation_columns(found))
    assert list(columns) == COLUMNS
    assert not columns.isna().any().any()
    assert not columns.isin(["False", "nan", "None"]).any().any()
    for values in (found.scores, found.novelty, found.probabilities):
        assert np.isfinite(values).all()
        assert values.min() >= 0
        assert values.max() <= 1
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)
    first = [text.split(" | ")[0] for text in found.set_texts]
    assert first == found.labels.tolist()


def test_the_fit_says_how_it_does_on_cells_that_it_held_out(annotator, reference):
    held = annotator.info["held_out"]
    assert held["by"] == "by cell"
    assert held["cells"] == reference.n_obs == annotator.info["num_cells"]
    assert held["set_coverage"] > 0.88
    assert held["expected_calibration_error"] < 0.05
    assert held["accuracy"] > 0.8
    assert annotator.measured == ("rna",)
    assert "held-out cells" in repr(annotator)


def test_an_annotator_is_the_same_after_a_folder(annotator, found, query, tmp_path):
    annotator.save(tmp_path / "a")
    again = predict(load_annotator(tmp_path / "a"), query)
    for name in ("labels", "scores", "sets", "novelty", "status", "probabilities"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name), err_msg=name)
    assert again.annotator.name == annotator.name
    assert again.annotator.info["held_out"] == annotator.info["held_out"]
    card = (tmp_path / "a" / "ANNOTATOR_CARD.md").read_text()
    assert "CD4 T" in card
    with pytest.raises(CheckpointError, match="is there already"):
        annotator.save(tmp_path / "a")
    annotator.save(tmp_path / "a", overwrite=True)
    (tmp_path / "a" / "annotator.npz").write_bytes((tmp_path / "a" / "annotator.npz").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"annotator\.npz: is not what was written.*scmbert annotate fit"):
        load_annotator(tmp_path / "a")
    with pytest.raises(CheckpointError, match="not an annotator"):
        load_annotator(tmp_path)


def test_an_anndata_is_annotated_in_place_or_as_a_copy(annotator, found, query):
    cells = query.copy()
    copied = scmbert_jax.annotate(cells, annotator, copy=True)
    assert not set(COLUMNS) & set(cells.obs)
    assert scmbert_jax.annotate(cells, annotator) is None
    for one in (cells, copied):
        assert one.obs["scmbert_label"].astype(str).tolist() == found.labels.tolist()
        table = one.obsm["scmbert_probabilities"]
        assert list(table) == list(annotator.types)
        assert list(table.index) == list(one.obs_names)
        told = one.uns["scmbert_annotation"]
        assert told["annotator"] == annotator.name
        assert told["coverage_target"] == 0.9
        assert told["feature_coverage"] == {"rna": 1.0}
        assert told["temperature"] == annotator.temperature
    both = mudata.MuData({"rna": query.copy()})
    scmbert_jax.annotate(both, annotator)
    assert both.obs["scmbert_label"].astype(str).tolist() == found.labels.tolist()


def test_a_reference_is_fitted_to_in_the_same_call(reference, query, found):
    cells = query.copy()
    scmbert_jax.annotate(cells, reference=reference, options=PCA)
    assert cells.obs["scmbert_label"].astype(str).tolist() == found.labels.tolist()
    with pytest.raises(ConfigError, match="reference="):
        scmbert_jax.annotate(cells, label_key="celltype")
    with pytest.raises(ConfigError, match="no annotator"):
        scmbert_jax.annotate(cells, "a_folder_that_is_not_there")
    with pytest.raises(InputError, match="scmbert annotate predict"):
        scmbert_jax.annotate("cells.h5ad", "annotator")


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(reference, query, tmp_path_factory):
    folder = tmp_path_factory.mktemp("annotate")
    reference.write_h5ad(folder / "reference.h5ad")
    query.write_h5ad(folder / "query.h5ad")
    return folder


@pytest.mark.slow
def test_fit_and_predict_write_what_the_functions_give(files, found, query, tmp_path):
    """A column of obs that is there from before is replaced, all else stays."""
    before = query.copy()
    before.obs["scmbert_label"] = "old"
    before.obs["cluster"] = ["one", "two"] * (len(before) // 2)
    before.write_h5ad(tmp_path / "query.h5ad")
    options = ("--label-key", "celltype", "--components", "15")
    told = scmbert_ok("annotate", "fit", files / "reference.h5ad", "-o", tmp_path / "a", *options)
    assert "8 types by pca, of 800 cells" in told
    out = tmp_path / "out.h5ad"
    clusters = ("--majority-voting", "cluster")
    ran = scmbert("annotate", "predict", tmp_path / "a", tmp_path / "query.h5ad", "-o", out, *clusters)
    assert ran.code == 0, ran.err
    assert "rna: the file measures" in ran.err
    written = anndata.read_h5ad(out)
    assert written.obs["scmbert_label"].astype(str).tolist() == found.labels.tolist()
    assert list(written.obs) == [*query.obs, "cluster", *COLUMNS, "scmbert_majority_voting"]
    np.testing.assert_array_equal(written.obsm["scmbert_probabilities"].to_numpy(), found.probabilities)
    assert (written.X != query.X).nnz == 0
    assert set(written.obs["scmbert_majority_voting"]) <= set(found.labels)
    assert {**written.uns["scmbert_annotation"]["cells"]} == found.counts()


def test_a_file_of_an_old_anndata_is_annotated_too(annotator, query, tmp_path):
    """Before version 0.7, obs was one array of records."""
    query[:60].write_h5ad(tmp_path / "old.h5ad")
    with h5py.File(tmp_path / "old.h5ad", "r+") as file:
        del file["obs"]
        records = np.zeros(60, [("index", "S40"), ("batch", "S20")])
        records["index"], records["batch"] = query.obs_names[:60].to_numpy("S40"), b"p4"
        file["obs"] = records
    found = predict(annotator, tmp_path / "old.h5ad")
    write_annotation(tmp_path / "out.h5ad", str(tmp_path / "old.h5ad"), found)
    written = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert written.obs_names.tolist() == query.obs_names[:60].tolist()
    assert list(written.obs) == ["batch", *COLUMNS]
    assert written.obs["scmbert_label"].astype(str).tolist() == found.labels.tolist()


@pytest.mark.slow
def test_reference_and_query_in_one_call(files, found, tmp_path):
    options = ("--label-key", "celltype", "--components", "15", "--annotator", tmp_path / "kept")
    cells = ("--reference", files / "reference.h5ad", "--query", files / "query.h5ad")
    told = scmbert_ok("annotate", *cells, "-o", tmp_path / "out.h5ad", *options)
    assert "obs['scmbert_label'] of" in told
    written = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert written.obs["scmbert_label"].astype(str).tolist() == found.labels.tolist()
    assert load_annotator(tmp_path / "kept").name == found.annotator.name


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--coverage", "90"), ConfigError, "coverage 90.0: expected a fraction between 0 and 1"),
        (("--novelty-quantile", "1"), ConfigError, "novelty_quantile 1.0"),
        (("--method", "svm"), ConfigError, "method 'svm': expected pca, probe"),
        (("--method", "last:0"), ConfigError, "last:0"),
        (("--method", "probe"), ConfigError, "probe: needs a model"),
        (("--balance", "2"), ConfigError, "balance 2.0"),
        (("--min-cells", "0"), ConfigError, "min_cells 0"),
        (("--label-key", "types"), InputError, "obs has no column 'types' (--label-key)"),
        (("--labels", "CIRCLE"), InputError, "none of its"),
        (("--hierarchy", "CIRCLE"), InputError, "a type cannot stand above itself"),
        (("--work-dir", "w"), ConfigError, "of fine-tuning"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(files, tmp_path, options, code, said):
    (tmp_path / "circle.csv").write_text("child,parent\nB,NK\nNK,B\n")
    options = [str(tmp_path / "circle.csv") if word == "CIRCLE" else word for word in options]
    ran = scmbert("annotate", "fit", files / "reference.h5ad", "-o", tmp_path / "a", *options)
    assert ran.code == code.exit_code, ran.err
    assert said in ran.err
    assert not (tmp_path / "a").exists()


# --- labels ----------------------------------------------------------------------------------------------------------


def few_cells(rna, number=240):
    """Every fifth cell: fits in a second."""
    return rna[:: len(rna) // number].copy()


def test_labels_that_are_numbers_markup_missing_unused_or_words_for_none(rna, tmp_path):
    cells = few_cells(rna)
    types = cells.obs["celltype"].astype(str).to_numpy()
    names = {"B": 1.0, "NK": "<b>NK</b>", "Mono": "Mono/DC", "CD4 T": "CD4 | T", "CD8 T": np.nan}
    labels = [names.get(name, "Unknown") for name in types]
    cells = replaced(cells, pd.Categorical(labels, categories=[*dict.fromkeys(x for x in labels if x == x), "unused"]))
    said = []
    options = FitOptions(method="pca", label_key="celltype", components=10)
    annotator = fit(None, cells, options, say=said.append)
    assert annotator.types == ("1", "<b>NK</b>", "CD4 | T", "Mono/DC")
    assert annotator.info["num_cells"] == sum(name in ("B", "NK", "Mono", "CD4 T") for name in types)
    assert any("labelled Unknown count as not labelled" in line for line in said)
    found = predict(annotator, cells)
    assert list(probability_table(found)) == ["1", "<b>NK<|b>", "CD4 | T", "Mono|DC"]
    scmbert_jax.annotate(cells, annotator)
    del cells.obs["celltype"]  # numbers and text in one column: no file of anndata takes it
    cells.write_h5ad(tmp_path / "written.h5ad")
    written = anndata.read_h5ad(tmp_path / "written.h5ad")
    assert not written.obs[COLUMNS].isna().any().any()
    assert written.uns["scmbert_annotation"]["types"].tolist() == list(annotator.types)
    annotator.save(tmp_path / "a")
    assert "<b>" not in (tmp_path / "a" / "ANNOTATOR_CARD.md").read_text()


def test_the_values_of_rna_are_those_that_name_held_out_cells_better(rna, tmp_path):
    """Types that differ in one strong gene, by half: square roots show it, logs drown it in single counts."""
    rng = np.random.default_rng(0)
    types, rates = np.repeat([0, 1], 100), np.full((2, 150), 1.0)
    rates[:, 0] = 150, 225
    cells = rna[:200, :150].copy()
    cells.X = sp.csr_matrix(rng.poisson(rates[types]).astype(np.float32))
    annotator = fit(None, replaced(cells, np.array(["a", "b"], object)[types]), PCA)
    assert annotator.representation.pca.parts["rna"].values == "roots"
    assert annotator.info["held_out"]["accuracy"] > 0.8
    annotator.save(tmp_path / "a")
    kept = predict(load_annotator(tmp_path / "a"), cells)
    np.testing.assert_array_equal(kept.probabilities, predict(annotator, cells).probabilities)


@pytest.mark.slow
def test_a_cell_of_each_type_is_not_enough(rna):
    cells = few_cells(rna)
    ids = [f"type {number}" for number in range(len(cells))]
    with pytest.raises(InputError, match=r"0 types have 5 labelled cells or more with counts; fewer have type 0 \(1\)"):
        fit(None, replaced(cells, ids), PCA)
    with pytest.raises(InputError, match="no cell has a label"):
        fit(None, replaced(cells, [None] * len(cells)), PCA)
    with pytest.raises(InputError, match="1 types have"):
        fit(None, replaced(cells, ["B"] * len(cells)), PCA)


def test_types_of_few_cells_are_left_out_or_said_to_have_no_threshold_of_their_own(rna):
    cells = few_cells(rna)
    labels = np.where(np.arange(len(cells)) % 2, "one", "two").astype(object)
    labels[:3], labels[3:9] = "three", "six"
    said = []
    annotator = fit(None, replaced(cells, labels), PCA, say=said.append)
    assert annotator.types == ("one", "six", "two")
    assert any("left out: three (3)" in line for line in said)
    assert any("need 9 held-out cells of a type" in line and "six (6)" in line for line in said)
    assert annotator.sets.pooled.tolist() == [False, True, False]
    assert annotator.labelled.barcodes.shape == (len(cells) - 3,)


@pytest.mark.slow
def test_labels_from_a_table_and_from_one_of_other_cells(rna, tmp_path):
    cells = few_cells(rna)
    types = cells.obs["celltype"].astype(str)
    own = FitOptions(method="pca", label_key="celltype", components=10)
    plain = fit(None, cells, own)
    bare = replaced(cells, ["x"] * len(cells))
    for name, header in (("with", True), ("without", False)):
        path = tmp_path / f"{name}.csv"
        types.to_csv(path, header=header)
        of_file = FitOptions(method="pca", labels=path, components=10)
        assert fit(None, bare, of_file).name == plain.name
    (tmp_path / "others.csv").write_text("cell,label\nA,b\nB,c\n")
    (tmp_path / "twice.csv").write_text(f"{cells.obs_names[0]},b\n{cells.obs_names[0]},c\n")
    (tmp_path / "one_column.csv").write_text("A\nB\n")
    for name, words in (("others", "none of its 2 cells"), ("twice", "two labels"), ("one_column", "cell id,label")):
        with pytest.raises(InputError, match=words):
            fit(None, bare, FitOptions(method="pca", labels=tmp_path / f"{name}.csv"))


@pytest.mark.slow
def test_coarse_labels_teach_the_leaves_below_them(rna, tmp_path):
    (tmp_path / "types.csv").write_text("child,parent\nCD4 T,T cell\nCD8 T,T cell\n")
    cells = few_cells(rna, 600)
    labels = cells.obs["celltype"].astype(str).to_numpy(object)
    is_t = np.isin(labels, ["CD4 T", "CD8 T"])
    labels[is_t & (np.arange(len(cells)) % 2 == 0)] = "T cell"
    options = FitOptions(method="pca", label_key="celltype", hierarchy=tmp_path / "types.csv", components=10)
    annotator = fit(None, replaced(cells, labels), options)
    assert "T cell" not in annotator.types
    assert annotator.info["num_cells"] == len(cells)
    assert annotator.info["cells_per_type"]["CD4 T"] == (labels == "CD4 T").sum()
    found = predict(annotator, cells)
    assert annotator.tree.is_right(found.labels, labels.astype(str)).mean() > 0.8
    annotator.save(tmp_path / "a")
    again = load_annotator(tmp_path / "a").tree
    assert again.is_right(np.array(["CD4 T", "B"]), np.array(["T cell", "T cell"])).tolist() == [True, False]


def test_coarse_labels_of_which_few_are_finer_are_told_and_a_leaf_that_is_left_out_leaves_its_parent(rna, tmp_path):
    (tmp_path / "types.csv").write_text("child,parent\nfine,coarse\nrare,other\n")
    cells = few_cells(rna)
    labels = np.array(["coarse"] * 150 + ["fine"] * 10 + ["other"] * 78 + ["rare"] * 2)
    options = FitOptions(method="pca", label_key="celltype", hierarchy=tmp_path / "types.csv", components=10)
    said = []
    annotator = fit(None, replaced(cells, labels), options, say=said.append)
    assert annotator.types == ("fine", "other")
    assert annotator.info["cells_per_type"] == {"fine": 10, "other": 78}
    assert annotator.info["num_cells"] == 238
    assert any("150 cells labelled coarse are taken to be fine, of which only 10 are labelled" in line for line in said)
    assert any("left out: rare (2)" in line for line in said)


# --- what is held out ------------------------------------------------------------------------------------------------


def test_a_type_of_one_donor_calibrates_nothing_and_is_named():
    tree = LabelTree.of(np.array(["B", "T", "NK"]), None)
    names = np.array(["B", "T", "B", "T", "NK", "NK"])
    said = list[str]()
    judged = learned_without_fold(tree.membership(names), np.array([0, 0, 1, 1, 1, 1]), tree, said.append)
    np.testing.assert_array_equal(judged, names != "NK")
    assert said == ["cells of types that no other donors have are learned from, but calibrate nothing: NK (2)"]
    alone = learned_without_fold(tree.membership(names), np.array([0, 1, 0, 1, 2, 2]), tree, said.append)
    assert alone.all(), "where no type has two donors, nothing better is known"


def test_donors_and_copies_of_a_cell_are_held_out_whole():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 400)
    membership = np.arange(3) == codes[:, None]
    donors = rng.choice(["a", "b", "c", "d", "e", "f", "g"], 400)
    folds, by = folds_of(membership, donors, np.arange(400), 0)
    assert by == "donor"
    assert set(folds) == set(range(5))
    assert all(len(set(folds[donors == donor])) == 1 for donor in set(donors))
    copies = np.arange(400) // 2
    folds, by = folds_of(membership, np.full(400, ""), copies, 0)
    assert by == "cell"
    assert (folds[::2] == folds[1::2]).all()
    folds, _ = folds_of(membership, np.full(400, "one donor"), np.arange(400), 0)
    for code in range(3):
        number = np.bincount(folds[codes == code], minlength=5)
        assert number.max() - number.min() <= 1
    assert np.bincount(folds).max() - np.bincount(folds).min() <= 1


def test_cells_that_it_was_fitted_to_are_counted(annotator, reference, query):
    said = []
    both = anndata.concat([reference[:100], query[:50]])
    found = predict(annotator, both, say=said.append)
    assert found.fitted_to == 100
    assert any("100 of the 150 cells are among those" in line for line in said)
    assert predict(annotator, query[:50].copy()).fitted_to == 0


# --- cells of which little or nothing can be said --------------------------------------------------------------------


def test_with_half_of_the_genes_it_annotates_and_states_its_coverage(annotator, query, found):
    half = query[:, np.random.default_rng(0).permutation(query.n_vars)[: query.n_vars // 2]].copy()
    with pytest.warns(ScmbertWarning, match=r"rna: the file measures .* of the model's"):
        of_half = predict(annotator, half)
    assert 0.3 < of_half.coverage["rna"] < 0.7
    truth = query.obs["celltype"].astype(str).to_numpy()
    supported = of_half.status != "unsupported"
    assert supported.mean() > 0.95
    assert (of_half.labels == truth)[supported].mean() > 0.7


def test_of_cells_without_counts_and_of_files_with_few_genes_nothing_is_said(annotator, query):
    counts = query.X.tolil(copy=True)
    counts[:5] = 0
    counts[5, :] = 0
    counts[5, 7] = 3
    empty = anndata.AnnData(sp.csr_matrix(counts), obs=query.obs, var=query.var)
    said = []
    found = predict(annotator, empty, say=said.append)
    assert (found.status[:6] == "unsupported").all()
    assert (found.status[6:] != "unsupported").all()
    assert set(found.labels[:6]) == {""}
    assert found.scores[:6].tolist() == [0] * 6
    assert found.novelty[:6].tolist() == [1] * 6
    assert not found.sets[:6].any()
    assert (found.probabilities[:6] == 0).all()
    assert any("cells are unsupported: no counts of its features" in line for line in said)
    assert not pd.DataFrame(annotation_columns(found)).isna().any().any()
    few = query[:, :60].copy()
    with pytest.warns(ScmbertWarning):
        found = predict(annotator, few)
    assert found.coverage["rna"] < 0.3
    assert set(found.status) == {"unsupported"}
    with pytest.warns(ScmbertWarning):
        found = predict(annotator, few, reading=Reading(allow_low_coverage=True))
    assert (found.status != "unsupported").any()


def test_cells_of_another_organism_and_of_other_genes_are_refused(annotator, query):
    mouse = query[:50].copy()
    mouse.var = pd.DataFrame(index=[name.capitalize() for name in query.var_names])
    with pytest.raises(InputError, match=r"gene:mouse, the model knows gene:human"):
        predict(annotator, mouse)
    other = query[:50, np.argsort(np.asarray(query.X.sum(0)).ravel())[-3:]].copy()
    other.var = pd.DataFrame(index=["GFAP", "OLIG2", "NEUROD1"])
    with pytest.raises(InputError, match="none of its 3 rna features is among the model's"):
        predict(annotator, other)
    normalised = query[:50].copy()
    normalised.X = normalised.X.astype(np.float32).log1p()
    with pytest.raises(InputError, match="counts"):
        predict(annotator, normalised)


@pytest.mark.slow
def test_cells_of_modalities_that_the_labelled_ones_had_not_are_unsupported():
    """RNA and protein of the same cells were learned from, so RNA alone is not."""
    both = mudata.read_h5mu(example_path("pbmc_mosaic"))
    paired = both[(both.obs["batch"] == "p3_0").to_numpy()].copy()
    annotator = fit(None, paired, PCA)
    assert annotator.measured == ("rna+protein",)
    said = []
    alone = both.mod["rna"][:40].copy()
    found = predict(annotator, alone, say=said.append)
    assert set(found.status) == {"unsupported"}
    assert found.coverage["protein"] == 0
    assert any("not measured in rna+protein, as the labelled cells were" in line for line in said)
    assert any(line.startswith("protein: not in the file") for line in said)
    found = predict(annotator, paired[:40].copy())
    assert "unsupported" not in found.status


# --- clusters --------------------------------------------------------------------------------------------------------


def test_a_cluster_gets_the_label_that_most_of_its_sure_cells_have():
    labels = np.array(["a", "a", "b", "b", "b", "", "c", "c"])
    status = np.array(["assigned", "ambiguous", "assigned", "novel", "novel", "unsupported", "novel", "novel"])
    clusters = np.array(["1", "1", "1", "1", "1", "1", "2", ""])
    probabilities = np.full((8, 3), 1 / 3)
    found = majority_labels(labels, probabilities, status, clusters)
    assert found.tolist() == ["a", "a", "a", "a", "a", "a", "c", "c"]
    probabilities[2] = [0, 1, 0]
    tie = majority_labels(labels[1:3], probabilities[1:3], status[1:3], clusters[1:3])
    assert tie.tolist() == ["b", "b"]


def test_a_clustering_that_is_not_there_is_refused(annotator, query):
    with pytest.raises(InputError, match=r"no column 'leiden' \(--majority-voting\)"):
        predict(annotator, query, majority_voting="leiden")


# --- with a model ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_linear_probe_of_a_model_keeps_the_model_in_its_folder(pbmc_model, rna, tmp_path):
    """The pairs of p3 and p4, in RNA and protein together."""
    both = mudata.read_h5mu(example_path("pbmc_mosaic"))
    paired = both[both.obs["batch"].isin(["p3_0", "p4_0"]).to_numpy()].copy()
    paired.write_h5mu(tmp_path / "paired.h5mu")
    scmbert_ok(
        *("annotate", "fit", tmp_path / "paired.h5mu", "--model", pbmc_model, "-o", tmp_path / "a"),
        *("--label-key", "celltype", "--donor-key", "batch"),
    )
    annotator = load_annotator(tmp_path / "a")
    assert annotator.info["held_out"]["by"] == "by donor"
    assert annotator.info["num_donors"] == 2
    scmbert_ok("annotate", "predict", tmp_path / "a", tmp_path / "paired.h5mu", "-o", tmp_path / "out.h5mu")
    written = mudata.read_h5mu(tmp_path / "out.h5mu")
    assert (written.obs["scmbert_label"].astype(str) == written.obs["celltype"].astype(str)).mean() > 0.7
    direct = scmbert_jax.annotate(paired, annotator, copy=True)
    assert direct.obs["scmbert_label"].astype(str).tolist() == written.obs["scmbert_label"].astype(str).tolist()
    model = scmbert_jax.load(tmp_path / "a" / "model")
    np.testing.assert_array_equal(model.embed(paired[:20]), scmbert_jax.load(pbmc_model).embed(paired[:20]))
    told = written.uns["scmbert_annotation"]
    assert told["cells_it_was_fitted_to"] == paired.n_obs
    assert set(told["feature_coverage"]) == {"rna", "protein"}


@pytest.mark.slow
def test_a_fine_tuned_model_is_the_one_in_the_folder_and_predicts_the_same_from_there(pbmc_model, rna, tmp_path):
    cells = few_cells(rna)
    tuning = FineTuningOptions(num_steps=2, validate_every=1, batch_size=16, head_start="zero", head_learning_rate=0.1)
    options = FitOptions(method="last:1", label_key="celltype", fine_tuning=tuning)
    model = scmbert_jax.load(pbmc_model)
    annotator = fit(model.pretrained, cells, options, work_folder=tmp_path / "work")
    assert annotator.info["options"]["fine_tuning"]["num_steps"] == 2
    assert [row["step"] for row in annotator.info["history"]] == [0, 1, 2]
    assert annotator.info["held_out"]["cells"] == pytest.approx(len(cells) / 5, abs=2)
    assert fit(model.pretrained, cells, options, work_folder=tmp_path / "work").name == annotator.name
    annotator.save(tmp_path / "a")
    again = load_annotator(tmp_path / "a")
    np.testing.assert_allclose(
        predict(again, cells).probabilities, predict(annotator, cells).probabilities, rtol=1e-4, atol=1e-6
    )
    inside = scmbert_jax.load(tmp_path / "a" / "model")
    assert "fine-tuned for cell types by last:1" in repr(inside)
    if annotator.info["history"][-1]["validation_loss"] < annotator.info["history"][0]["validation_loss"]:
        assert np.abs(inside.embed(cells) - model.embed(cells)).max() > 1e-5
