"""What `scmbert translate` writes: the modality that was read, as it was, and the predicted one beside it."""

from pathlib import Path

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import scmbert, scmbert_ok
from multimodal_model import multimodal_model  # noqa: F401

import scmbert_jax
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.tasks.whole_file import writable_table

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

FEATURES = ("--features", "CD20,CD19", "cd14")


@pytest.fixture(scope="module")
def whole(pbmc_few):
    return mudata.read_h5mu(pbmc_few)


@pytest.fixture(scope="module")
def few(whole):
    """20 cells of RNA, as a file might bring them."""
    adata = whole.mod["rna"][:20].copy()
    adata.layers["doubled"] = adata.X * 2
    adata.obsm["X_pca"] = np.ones((20, 3), np.float32)
    adata.uns["title"] = "mine"
    return adata


@pytest.mark.slow
def test_a_file_is_translated_beside_what_was_read(multimodal_model, pbmc_few, whole, tmp_path):  # noqa: F811
    for output in ("out.h5mu", "again.h5mu"):
        ran = scmbert("translate", multimodal_model, pbmc_few, "--to", "protein", "-o", tmp_path / output)
        assert ran.code == 0, ran.err
    assert (tmp_path / "out.h5mu").read_bytes() == (tmp_path / "again.h5mu").read_bytes()
    assert "mod['protein'] of 180 cells x 224 features, predicted from rna (clr)" in ran.out
    assert "60 cells have no rna counts of the model's features: nothing is predicted" in ran.err
    assert f"protein: what {pbmc_few} has of it is not read, and not in the output" in ran.err
    assert "rna: 3 features of the file are not read: AC084033.3, AL031777.3, AL445686.2" in ran.err

    written = mudata.read_h5mu(tmp_path / "out.h5mu")
    assert list(written.mod) == ["rna", "protein"]
    measured, predicted = written.mod["rna"], written.mod["protein"]
    assert (measured.X != whole.mod["rna"].X).nnz == 0
    assert measured.obs_names.tolist() == whole.mod["rna"].obs_names.tolist() == predicted.obs_names.tolist()
    assert measured.var_names.tolist() == whole.mod["rna"].var_names.tolist()
    assert np.isfinite(predicted.X).all()
    assert (predicted.layers["std"] > 0).all()
    expected = scmbert_jax.load(multimodal_model).translate(pbmc_few, to="protein")
    np.testing.assert_array_equal(predicted.X, expected[predicted.obs_names].X)
    np.testing.assert_array_equal(predicted.layers["std"], expected[predicted.obs_names].layers["std"])
    for said in (written.uns["scmbert"], predicted.uns["scmbert"]):
        assert (said["translated_from"], said["translated_to"], said["scale"]) == ("rna", "protein", "clr")
        assert said["cells_without_prediction"] == 60
    types = whole.mod["rna"].obs["celltype"].astype(str)
    assert written.obs["celltype"].astype(str).tolist() == types[written.obs_names].tolist()


@pytest.mark.slow
def test_predictions_are_never_taken_for_counts(multimodal_model, few, tmp_path):  # noqa: F811
    few.write_h5ad(tmp_path / "cells.h5ad")
    scmbert_ok("translate", multimodal_model, tmp_path / "cells.h5ad", "--to", "protein", "-o", tmp_path / "out.h5mu")
    ran = scmbert("embed", multimodal_model, tmp_path / "out.h5mu", "-o", tmp_path / "embedded.h5mu")
    assert ran.code == 2
    assert "mod/protein/X" in ran.err
    assert "raw counts are needed" in ran.err


def test_everything_that_a_file_has_of_the_source_is_kept(multimodal_model, few, tmp_path):  # noqa: F811
    file, out = tmp_path / "cells.h5ad", tmp_path / "out.h5mu"
    few.write_h5ad(file)
    ran = scmbert("translate", multimodal_model, file, "--to", "protein", *FEATURES, "-o", out)
    assert ran.code == 0, ran.err
    written = mudata.read_h5mu(out)
    assert list(written.mod) == ["rna", "protein"]
    measured = written.mod["rna"]
    assert set(measured.layers) - {None} == {"doubled"}  # since anndata 0.13 None is X
    np.testing.assert_array_equal(measured.obsm["X_pca"], few.obsm["X_pca"])
    assert measured.uns["title"] == "mine"
    assert written.mod["protein"].var["feature_id"].tolist() == ["cd20", "cd19", "cd14"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "out.h5mu"]


@pytest.mark.slow
def test_a_modality_keeps_the_name_it_has_in_the_file(multimodal_model, whole, tmp_path):  # noqa: F811
    file, out = tmp_path / "cells.h5mu", tmp_path / "out.h5mu"
    whole[120:140].copy().write(file)
    options = ("--to", "rna", "--from", "protein", "--features", "MS4A1", "--draws", "2")
    ran = scmbert("translate", multimodal_model, file, *options, "-o", out)
    assert ran.code == 0, ran.err
    written = mudata.read_h5mu(out)
    assert list(written.mod) == ["adt", "rna"]
    assert written.mod["rna"].shape == (20, 1)
    assert written.uns["scmbert"]["draws"] == 2


def test_of_a_file_with_both_in_one_matrix_the_source_is_written(multimodal_model, whole, tmp_path):  # noqa: F811
    rna, protein = (whole.mod[name][whole.mod["rna"].obs_names[60:80]].copy() for name in ("rna", "adt"))
    rna.var["feature_types"], protein.var["feature_types"] = "Gene Expression", "Antibody Capture"
    both = anndata.concat([rna, protein], axis=1, merge="first")
    both.write_h5ad(tmp_path / "cells.h5ad")
    scmbert_ok(
        "translate", multimodal_model, tmp_path / "cells.h5ad", "--to", "protein", *FEATURES, "-o", tmp_path / "o.h5mu"
    )
    written = mudata.read_h5mu(tmp_path / "o.h5mu")
    assert written.mod["rna"].var_names.tolist() == rna.var_names.tolist()
    assert written.mod["protein"].shape == (20, 3)


@pytest.mark.slow
def test_two_files_of_the_same_cells_give_the_one_that_was_read(multimodal_model, whole, tmp_path):  # noqa: F811
    names = whole.mod["rna"].obs_names[60:80]
    for name in ("rna", "adt"):
        adata = whole.mod[name][names].copy()
        adata.obs["depth"] = np.asarray(adata.X.sum(axis=1)).ravel()
        adata.obs[f"kept_{name}"] = True
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    spec, out = f"{tmp_path / 'rna.h5ad'}+{tmp_path / 'adt.h5ad'}", tmp_path / "out.h5mu"
    ran = scmbert("translate", multimodal_model, spec, "--to", "protein", *FEATURES, "-o", out)
    assert ran.code == 0, ran.err
    written = mudata.read_h5mu(out)
    assert written.mod["rna"].shape == (20, 500)
    assert written.mod["rna"].obs["kept_rna"].all()
    # The same table in a new file of embeddings: numbers and truth values of joined files can be written.
    ran = scmbert("embed", multimodal_model, spec, "-o", tmp_path / "embedded.h5ad")
    assert ran.code == 0, ran.err
    assert anndata.read_h5ad(tmp_path / "embedded.h5ad").obs["depth"].dtype.kind in "if"


def test_cell_ranger_counts_are_written_as_they_were_read(multimodal_model, few, tmp_path):  # noqa: F811
    file = tmp_path / "filtered.h5"
    write_tenx(file, few)
    scmbert_ok("translate", multimodal_model, file, "--to", "protein", *FEATURES, "-o", tmp_path / "out.h5mu")
    measured = mudata.read_h5mu(tmp_path / "out.h5mu").mod["rna"]
    np.testing.assert_array_equal(measured.X.toarray(), few.X.toarray())
    assert measured.var_names.tolist() == few.var_names.tolist()
    assert set(measured.var["genome"]) == {"GRCh38"}


def write_tenx(path: Path, adata: anndata.AnnData):
    counts = sp.csr_matrix(adata.X)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(adata.obs_names, "S")
        group["data"], group["indices"], group["indptr"] = counts.data.astype(np.int32), counts.indices, counts.indptr
        group["shape"] = np.array(counts.shape[::-1])
        for name in ("id", "name"):
            group[f"features/{name}"] = np.array(adata.var_names, "S")
        group["features/feature_type"] = np.array(["Gene Expression"] * adata.n_vars, "S")
        group["features/genome"] = np.array(["GRCh38"] * adata.n_vars, "S")


def test_a_gene_and_an_antibody_of_one_name_stand_beside_each_other(multimodal_model, few, tmp_path):  # noqa: F811
    renamed = few.copy()
    renamed.var_names = ["cd19", *renamed.var_names[1:]]
    renamed.write_h5ad(tmp_path / "cells.h5ad")
    ran = scmbert(
        "translate", multimodal_model, tmp_path / "cells.h5ad", "--to", "protein", *FEATURES, "-o", tmp_path / "o.h5mu"
    )
    assert ran.code == 0, ran.err
    assert "Warning" not in ran.err
    written = mudata.read_h5mu(tmp_path / "o.h5mu")
    assert "cd19" in written.mod["rna"].var_names
    assert "cd19" in written.mod["protein"].var_names


def test_a_joined_table_can_be_written_whatever_stood_in_its_columns(tmp_path):
    mixed = pd.DataFrame(
        {
            "number": np.array([1.5, np.nan, 2], object),
            "whole": np.array([1, 2, 3], object),
            "truth": np.array([True, None, False], object),
            "text": np.array(["a", np.nan, "b"], object),
            "both": np.array(["a", 3, None], object),
        },
        index=["x", "y", "z"],
    )
    anndata.AnnData(obs=writable_table(mixed), shape=(3, 0)).write_h5ad(tmp_path / "table.h5ad")
    read = anndata.read_h5ad(tmp_path / "table.h5ad").obs
    assert read["number"].dropna().tolist() == [1.5, 2]
    assert read["whole"].tolist() == [1, 2, 3]
    assert read["truth"].isna().tolist() == [False, True, False]
    assert read["text"].dropna().tolist() == ["a", "b"]
    assert read["both"].dropna().tolist() == ["a", "3"]
    assert mixed["number"].dtype == object  # the table that was given is left alone


def test_what_is_read_again_from_the_output_is_the_source(multimodal_model, few, tmp_path):  # noqa: F811
    few.write_h5ad(tmp_path / "cells.h5ad")
    scmbert_ok("translate", multimodal_model, tmp_path / "cells.h5ad", "--to", "protein", "-o", tmp_path / "out.h5mu")
    found = {matrix.modality: matrix.shape for matrix in open_dataset(str(tmp_path / "out.h5mu")).matrices}
    assert found == {"rna": (20, 500), "protein": (20, 224)}
