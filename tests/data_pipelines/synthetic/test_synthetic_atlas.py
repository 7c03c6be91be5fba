"""The cells that the build is measured with: the same whoever reads them, and like real ones where it matters."""

import pickle

import numpy as np
import scipy.sparse

from data_pipelines.checks.input_check import check_dataset
from data_pipelines.corpus import cell_block
from data_pipelines.corpus.cell_block import CellBlock, ModalityColumns
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.synthetic.atlas import SyntheticAtlas, synthetic_atlas


def all_cells(matrix, rows: int, *between: int) -> np.ndarray:
    return scipy.sparse.vstack([part for _, part in matrix.chunks(rows, *between)]).toarray()


def test_a_cell_is_the_same_in_any_chunk_data_set_and_process():
    whole = SyntheticAtlas(0, 600, 500, seed=3)
    counts = all_cells(whole, 600)
    np.testing.assert_array_equal(all_cells(whole, 7, 250, 300), counts[250:300])
    np.testing.assert_array_equal(all_cells(SyntheticAtlas(250, 50, 500, seed=3), 64), counts[250:300])
    np.testing.assert_array_equal(all_cells(pickle.loads(pickle.dumps(whole)), 600), counts)
    assert (all_cells(SyntheticAtlas(0, 600, 500, seed=4), 600) != counts).any()


def test_counts_are_negative_binomial_with_the_means_of_the_tables():
    atlas = SyntheticAtlas(0, 6000, 200)
    counts, kinds = all_cells(atlas, 1000), atlas._kinds(atlas._cells(0, 6000))
    means = atlas._tables[0][kinds]
    variances = means + means**2 / 2.0
    # Sums over the cells of 200 genes: 4.5 standard errors hold for all of them at once with 99.9%.
    assert np.all(np.abs((counts - means).sum(axis=0)) < 4.5 * np.sqrt(variances.sum(axis=0)))
    none = (counts == 0).sum(), ((2 / (2 + means)) ** 2).sum()
    assert abs(none[0] - none[1]) < 5 * np.sqrt(none[1])


def test_a_cell_has_as_many_genes_and_takes_as_many_bytes_as_one_of_census():
    (dataset,) = synthetic_atlas(256, 1000)
    _, counts = next(dataset.matrices[0].chunks(256))
    assert counts.shape == (256, 36_601)
    lengths = np.diff(counts.indptr)
    assert 1550 < lengths.mean() < 1750
    assert lengths.max() < 4000
    columns = ModalityColumns(
        lengths.astype(np.int32),
        counts.indices.astype(np.int32),
        counts.data.astype(np.uint32),
        np.asarray(counts.sum(axis=1)).ravel().astype(np.uint64),
        np.ones(256, bool),
    )
    record = cell_block.encode(CellBlock({"rna": columns}, {}, np.arange(256)))
    assert 0.95 < len(record) / counts.nnz < 1.1  # 1.04 of 892 cells of 10x


def test_its_data_sets_pass_the_check():
    datasets = synthetic_atlas(700, 300)
    assert [len(dataset.cell_ids) for dataset in datasets] == [300, 300, 100]
    report = check_dataset(open_dataset(datasets[2]))
    assert report.usable
    assert report.num_cells_kept == 100
    assert set(report.obs_fields) == {"cell_type", "technical_batch"}
