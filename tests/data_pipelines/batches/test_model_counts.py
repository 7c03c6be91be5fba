"""A file's counts in a model's features: whatever the order of rows, the chunks and the mosaic, each count arrives."""

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from data_pipelines.batches.model_counts import model_counts, overlap_with_model
from data_pipelines.checks.input_check import check_dataset
from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.features.gene_tables import load_gene_table
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.synthetic.cells import synthetic_cells
from scmbert_jax.errors import InputError

CELLS, GENES, PROTEINS = 90, 40, 8


@pytest.fixture(scope="module")
def cells():
    """A mosaic: some cells have RNA only, some protein only, most have both; every measured cell has counts."""
    return synthetic_cells(CELLS, GENES, PROTEINS, 0, num_batches=4, seed=1)


@pytest.fixture(scope="module")
def mdata(cells):
    return cells.to_mudata()


@pytest.fixture(scope="module")
def space(mdata):
    """The feature space of a model that was trained on these features."""
    return FeatureSpace(check(mdata)[1].features)


def check(source, **options):
    dataset = open_dataset(source)
    report = check_dataset(dataset, **{"min_genes": 0, "organism": "human", **options})
    assert report.usable, report.problems
    return dataset, report


def read(source, space, rows=2048, modalities=("rna", "protein")):
    """(cell ids, modality -> dense counts [cells, model features], modality -> measured [cells])."""
    dataset, report = check(source)
    overlaps = overlap_with_model(report, space, list(modalities))
    chunks = list(model_counts(dataset, report, overlaps, rows))
    assert [chunk.first for chunk in chunks] == list(range(0, len(dataset.cell_ids), rows))
    counts = {name: np.vstack([chunk.counts[name].toarray() for chunk in chunks]) for name in overlaps}
    measured = {name: np.concatenate([chunk.measured[name] for chunk in chunks]) for name in overlaps}
    return dataset.cell_ids, counts, measured


def expected(cells, space, cell_ids):
    """The truth, taken from the synthetic cells without any of the code under test."""
    rows = pd.Index(cells.cell_ids).get_indexer(cell_ids)
    counts, measured = {}, {}
    for name, matrix in cells.counts.items():
        mapped = check(ad.AnnData(matrix, var=pd.DataFrame(index=cells.feature_ids[name])))[1].modalities[name].mapping
        columns = space.modalities[name].index_of(np.asarray(mapped.ids))
        counts[name] = np.zeros((len(rows), len(space.modalities[name])), np.int64)
        counts[name][:, columns] = matrix.toarray()[rows]
        measured[name] = cells.measured[name][rows]
    return counts, measured


def assert_same(found, wanted):
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


@pytest.mark.parametrize("rows", [1, 7, 89, 90, 2048])
def test_every_count_arrives_whatever_the_chunk(cells, mdata, space, rows):
    cell_ids, counts, measured = read(mdata, space, rows)
    wanted_counts, wanted_measured = expected(cells, space, cell_ids)
    assert_same(counts, wanted_counts)
    assert_same(measured, wanted_measured)
    assert not measured["rna"].all()
    assert not measured["protein"].all()


@pytest.mark.parametrize("rows", [5, 2048])
def test_a_modality_whose_rows_stand_in_another_order_is_aligned_by_cell_id(cells, mdata, space, rows):
    order = np.random.default_rng(0).permutation(mdata.mod["protein"].n_obs)
    turned = md.MuData({"rna": mdata.mod["rna"].copy(), "protein": mdata.mod["protein"][order].copy()})
    cell_ids, counts, measured = read(turned, space, rows)
    wanted_counts, wanted_measured = expected(cells, space, cell_ids)
    assert_same(counts, wanted_counts)
    assert_same(measured, wanted_measured)


@pytest.mark.parametrize("rows", [4, 2048])
def test_two_files_in_different_orders_are_aligned(cells, mdata, space, tmp_path, rows):
    both = np.flatnonzero(cells.measured["rna"] & cells.measured["protein"])
    names = cells.cell_ids[both]
    mdata.mod["rna"][names].copy().write_h5ad(tmp_path / "rna.h5ad")
    mdata.mod["protein"][names[::-1]].copy().write_h5ad(tmp_path / "protein.h5ad")
    cell_ids, counts, measured = read(f"{tmp_path}/rna.h5ad+{tmp_path}/protein.h5ad", space, rows)
    np.testing.assert_array_equal(cell_ids, names)
    assert_same(counts, expected(cells, space, cell_ids)[0])
    assert measured["protein"].all()


def test_columns_that_mean_one_feature_are_summed(cells, mdata, space):
    """A gene's id and one of its former names stand for one gene: its counts are those of both columns."""
    table = load_gene_table("human")
    ids = space.modalities["rna"].ids.tolist()
    place, alias = next(
        (place, alias)
        for place, gene in enumerate(ids)
        for alias in table.aliases[table.row_of_id[gene]]
        if table.rows_of_symbol[alias] == (table.row_of_id[gene],)
    )
    names = [*ids, alias]
    values = np.random.default_rng(0).poisson(2.0, (20, len(names))).astype(np.float32)
    adata = ad.AnnData(sp.csr_matrix(values), var=pd.DataFrame(index=names))
    _, counts, _ = read(adata, space, 6)
    wanted = values[:, : len(ids)].copy()
    wanted[:, place] += values[:, -1]
    np.testing.assert_array_equal(counts["rna"], wanted)


def test_features_of_the_file_and_of_the_model_need_not_be_the_same(cells, mdata, space):
    rna = mdata.mod["rna"]
    part = rna[:, 10:].copy()
    stranger = ad.AnnData(
        sp.csr_matrix(np.ones((rna.n_obs, 1), np.float32)), obs=rna.obs, var=pd.DataFrame(index=["ENSG00000131095"])
    )
    dataset, report = check(ad.concat([part, stranger], axis=1, merge="first"))
    overlap = overlap_with_model(report, space, ["rna"])["rna"]
    assert overlap.measured.sum() == GENES - 10
    assert (overlap.num_unknown, overlap.unknown) == (1, ("GFAP",))
    assert "measures 30 of the model's 40 features; 1 features of the file are unknown" in overlap.summary()
    (chunk,) = model_counts(dataset, report, {"rna": overlap})
    assert chunk.counts["rna"].shape == (rna.n_obs, GENES)
    assert chunk.counts["rna"][:, ~overlap.measured].nnz == 0
    assert chunk.counts["rna"].sum() == part.X.sum()


def test_a_row_without_counts_was_not_measured(mdata, space):
    rna = mdata.mod["rna"].copy()
    rna.X = sp.csr_matrix(rna.X.multiply(np.arange(rna.n_obs)[:, None] != 4))
    _, counts, measured = read(rna, space, 3)
    assert np.flatnonzero(~measured["rna"]).tolist() == [4]
    assert counts["rna"][4].sum() == 0


def test_another_organism_is_refused(space):
    mouse = load_gene_table("mouse")
    ids = mouse.ids[np.flatnonzero(mouse.reference)[:50]].tolist()
    adata = ad.AnnData(sp.csr_matrix(np.ones((5, 50), np.float32)), var=pd.DataFrame(index=ids))
    with pytest.raises(InputError, match=r"rna .*gene:mouse, .*gene:human.*lift"):
        overlap_with_model(check(adata, organism=None)[1], space, ["rna"])


def test_a_file_without_a_modality_of_the_model_is_refused(mdata, space):
    with pytest.raises(InputError, match=r"has protein; the model reads rna"):
        overlap_with_model(check(mdata.mod["protein"])[1], space, ["rna"])


def test_a_file_that_shares_no_feature_is_refused_with_examples_of_both(space):
    table = load_gene_table("human")
    others = [gene for gene in table.ids[table.reference].tolist() if gene not in set(space.modalities["rna"].ids)][:30]
    adata = ad.AnnData(sp.csr_matrix(np.ones((5, 30), np.float32)), var=pd.DataFrame(index=others))
    with pytest.raises(InputError, match=r"none of its 30 rna features is among the model's 40 \(the file has .*; the"):
        overlap_with_model(check(adata)[1], space, ["rna"])


def test_regions_of_another_cut_are_refused():
    def peaks(shift):
        names = [f"chr1:{1000 * i + shift}-{1000 * i + 500 + shift}" for i in range(1, 31)]
        adata = ad.AnnData(sp.csr_matrix(np.ones((5, 30), np.float32)), var=pd.DataFrame(index=names))
        return check(adata, assembly="hg38")[1]

    model = FeatureSpace(peaks(0).features)
    assert overlap_with_model(peaks(0), model, ["atac"])["atac"].measured.all()
    with pytest.raises(InputError, match="Regions must be the very intervals the model was trained on"):
        overlap_with_model(peaks(7), model, ["atac"])
