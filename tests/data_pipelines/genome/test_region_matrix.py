"""Rows and columns of a matrix of regions are found by their keys; a join by place in another order is refused."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from data_pipelines.genome.region_matrix import RegionMatrix, read_region_matrix, write_region_matrix
from scmbert_jax.errors import InputError

REGIONS = np.array(["chr1:10-20", "chr1:30-40", "chr2:5-9", "chrX:1-2"])
COLUMNS = np.array(["Sox2", "Pax6", "CTCF"])
VALUES = np.array([[1, 0, 0.5], [0, 2, 0], [0, 0, 0], [3, 0, 4]], np.float32)


@pytest.fixture
def matrix():
    return RegionMatrix(REGIONS, COLUMNS, sp.csr_array(VALUES), "mine")


def files(tmp_path, matrix):
    frame = pd.DataFrame(VALUES, columns=COLUMNS)
    frame.insert(0, "peak_id", [name.replace(":", "_").replace("-", "_") for name in REGIONS])
    frame.insert(1, "gene_short_name", ["a", "b", "c", "d"])
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv", index=False)
    names = pd.DataFrame(index=COLUMNS), pd.DataFrame(index=REGIONS)
    anndata.AnnData(sp.csr_matrix(VALUES.T), *names).write_h5ad(tmp_path / "a.h5ad")
    anndata.AnnData(VALUES, *names[::-1]).write_h5ad(tmp_path / "turned.h5ad")
    write_region_matrix(matrix, tmp_path / "a.npz")
    return [tmp_path / name for name in ("a.parquet", "a.csv", "a.h5ad", "turned.h5ad", "a.npz")]


def test_a_matrix_is_the_same_from_every_kind_of_file(tmp_path, matrix):
    for path in files(tmp_path, matrix):
        found = read_region_matrix(path)
        assert found.regions.tolist() == REGIONS.tolist(), path
        assert found.columns.tolist() == COLUMNS.tolist(), path
        np.testing.assert_array_equal(found.values.toarray(), VALUES)


def test_rows_and_columns_come_by_their_key_in_the_order_asked_for(matrix):
    values, there = matrix.joined(["chrX:1-2", "chr1:30-40", "chr9:1-2", "chrX:1-2"], ["CTCF", "Sox2"], 0.25)
    assert values.toarray().tolist() == [[4, 3], [0, 0], [0, 0], [4, 3]]
    assert there.tolist() == [True, True, False, True]  # a zero that was measured, and one that was not
    with pytest.raises(InputError, match=r"1 that the matrix has not, e.g. chr9:1-2.*called as in 'chr1:10-20'"):
        matrix.joined(["chr9:1-2", "chrX:1-2"])
    with pytest.raises(InputError, match="no column Sox3"):
        matrix.joined(REGIONS, ["Sox3"])


def test_rows_in_another_order_are_refused(matrix):
    matrix.check_order(REGIONS)
    with pytest.raises(
        InputError, match="row 1 is chr1:30-40, in peaks it is chr2:5-9: the same regions in another or"
    ):
        matrix.check_order(REGIONS[[0, 2, 1, 3]], "peaks")
    with pytest.raises(InputError, match="row 3 is chrX:1-2, in peaks it is nothing: other regions"):
        matrix.check_order(REGIONS[:3], "peaks")


def test_a_region_twice_is_one_or_refused_and_what_is_no_matrix_of_regions_is_refused(tmp_path):
    frame = pd.DataFrame({"id": ["chr1:1-2", "chr1:1-2", "chr1:5-6"], "A": [1.0, 1.0, 2.0]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    found = read_region_matrix(tmp_path / "a.csv")
    assert (len(found), found.problems) == (2, {"rows that repeat a region": 1})
    for change, words in (
        ({"A": [1.0, 3.0, 2.0]}, "twice with different values"),
        ({"id": ["Sox2", "Pax6", "CTCF"]}, "no column of regions"),
        ({"A": [1.0, 1.0, np.inf]}, "not finite"),
    ):
        frame.assign(**change).to_csv(tmp_path / "a.csv", index=False)
        with pytest.raises(InputError, match=words):
            read_region_matrix(tmp_path / "a.csv")
    (tmp_path / "a.npz").write_bytes(b"no archive")
    for name in ("a.npz", "a.bed", "none.parquet"):
        with pytest.raises(InputError, match=r"expected a .parquet or .csv"):
            read_region_matrix(tmp_path / name)


@pytest.mark.slow
def test_the_promoters_of_the_shared_data_are_read(shared_data):
    found = read_region_matrix(shared_data / "tf_by_region_mm10" / "promoters.parquet")
    assert found.values.shape == (29_308, 1_079)
    assert found.regions[0] == "chr10:100014821-100015921"
    assert found.values.data.min() == found.values.data.max() == 1


def test_where_a_row_is_is_no_column_and_a_name_that_is_no_region_is_shown(tmp_path):
    frame = pd.DataFrame(
        {"id": ["chr1:1-5", "chr1:9-20", "chr2:1-4"], "start": [1, 9, 1], "end": [5, 20, 4], "Sox2": 1.0}
    )
    frame.to_csv(tmp_path / "a.csv")  # with pandas' row numbers
    assert read_region_matrix(tmp_path / "a.csv").columns.tolist() == ["Sox2"]
    frame.loc[1, "id"] = "peak 2"
    frame.to_csv(tmp_path / "a.csv")
    with pytest.raises(InputError, match=r"row 1 is 'peak 2', no region such as .* \(1 of 3 are none\)"):
        read_region_matrix(tmp_path / "a.csv")
