"""Cells of several batches -> one embedding: in memory, as a file, on the command line; and what is refused."""

import mudata
import numpy as np
import pytest
from conftest import scmbert, scmbert_ok

import scmbert_jax
from data_pipelines.readers.example_reader import example_path
from scmbert_jax.errors import InputError, ScmbertWarning
from scmbert_jax.integration.integrate import KEY, PROVENANCE, IntegrateOptions, integrate_dataset
from scmbert_jax.integration.neighbours import mixed_at_random, neighbours_of


@pytest.fixture(scope="module")
def rna():
    """1,200 cells x 500 genes of the example, of three technical batches; obs["celltype"], obs["batch"]."""
    found = mudata.read_h5mu(example_path("pbmc_mosaic"))
    cells = found.mod["rna"].copy()
    cells.obs = found.obs.loc[cells.obs_names].copy()
    return cells


@pytest.fixture(scope="module")
def found(rna):
    return integrate_dataset(rna, IntegrateOptions("batch", "celltype"))


def test_batches_are_mixed_and_types_stay_together(found):
    assert found.embedding.shape == (1200, 30)
    assert found.embedding.dtype == np.float32
    excess = [neighbours.own_batch - found.expected_own_batch for neighbours in (found.before, found.after)]
    assert excess[0] > 0.1
    assert excess[1] < 0.5 * excess[0]
    assert found.after.own_label > found.before.own_label - 0.03


def test_an_anndata_gets_the_embedding_and_keeps_its_counts(rna, found):
    cells = rna.copy()
    assert scmbert_jax.integrate(cells, "batch", label_key="celltype") is None
    np.testing.assert_array_equal(cells.obsm[KEY], found.embedding)
    assert (cells.X != rna.X).nnz == 0
    assert cells.uns[PROVENANCE]["batch_key"] == "batch"


def test_a_file_is_copied_and_added_to(rna, found, tmp_path):
    import anndata

    rna.write_h5ad(tmp_path / "cells.h5ad")
    scmbert_ok("integrate", tmp_path / "cells.h5ad", "--batch-key", "batch", "-o", tmp_path / "out.h5ad")
    written = anndata.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(written.obsm[KEY], found.embedding)
    assert (written.X != rna.X).nnz == 0
    assert list(written.obs) == list(rna.obs)
    assert written.uns[PROVENANCE]["batches"].tolist() == ["p1_0", "p3_0", "p4_0"]
    told = scmbert("integrate", tmp_path / "cells.h5ad", "--batch-key", "batch", "-o", tmp_path / "cells.h5ad")
    assert told.code != 0
    assert "is what is read" in told.err


def test_cells_without_counts_get_nan_and_move_no_other(rna, found):
    cells = rna.copy()
    empty = np.zeros(len(rna.obs), bool)
    empty[::100] = True
    cells.X = cells.X.multiply(~empty[:, None]).tocsr()
    embedding = integrate_dataset(cells, IntegrateOptions("batch")).embedding
    assert np.isnan(embedding[empty]).all()
    assert np.isfinite(embedding[~empty]).all()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("library", "no column 'library'"),
        ("same", "all cells are of 'x'"),
        ("each", "1,200 batches of 1,200 cells"),
        ("gaps", "3 of 1,200 cells have no batch"),
        ("lonely", "one cell alone is of alone"),
    ],
)
def test_columns_that_cannot_be_corrected_for_are_refused_before_the_work(rna, column, message):
    cells = rna.copy()
    cells.obs["same"], cells.obs["each"] = "x", cells.obs_names
    cells.obs["gaps"] = cells.obs["batch"].astype(object)
    cells.obs["lonely"] = cells.obs["batch"].astype(str)
    cells.obs.loc[cells.obs_names[:3], "gaps"] = np.nan
    cells.obs.loc[cells.obs_names[0], "lonely"] = "alone"
    with pytest.raises(InputError, match=message):
        scmbert_jax.integrate(cells, column)


def test_labels_of_one_batch_only_are_warned_of(rna):
    cells = rna.copy()
    cells.obs["kind"] = cells.obs["batch"].astype(str) + "_kind"
    with pytest.warns(ScmbertWarning, match="3 of 3 labels are in one batch only"):
        scmbert_jax.integrate(cells, "batch", label_key="kind")


def test_neighbours_of_own_batch_are_counted_without_the_cell_itself():
    rng = np.random.default_rng(0)
    batches = np.repeat(["a", "b"], 100)
    apart = rng.normal(size=(200, 2)) + 50.0 * (batches == "b")[:, None]
    assert neighbours_of(apart, batches).own_batch == 1.0
    copies = np.zeros((200, 2))
    assert neighbours_of(rng.normal(size=(200, 2)), batches).own_batch == pytest.approx(0.5, abs=0.05)
    assert np.isfinite(neighbours_of(copies, batches).own_batch)
    assert neighbours_of(np.array([[0.0], [1.0]]), np.array(["a", "b"])).own_batch == 0.0
    assert mixed_at_random(batches) == 0.5
