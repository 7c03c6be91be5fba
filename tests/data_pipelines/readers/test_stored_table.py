"""obs and var: in the layouts of every anndata; what cannot be read is named, and left where nobody needs it."""

import time

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import scmbert
from stored_counts import BARCODES, GENE_IDS, as_anndata, random_counts

from data_pipelines.checks.input_check import check_dataset
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.readers.stored_table import MOST_COLUMNS
from scmbert_jax.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

COUNTS = random_counts()[:, :40]


def cells(**obs) -> ad.AnnData:
    adata = as_anndata(random_counts())[:, :40].copy()
    adata.obs = pd.DataFrame(obs, index=BARCODES)
    return adata


def written(tmp_path, adata, change=None):
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    if change is not None:
        with h5py.File(path, "r+") as file:
            change(file)
    return path


def read_all(dataset) -> np.ndarray:
    return np.vstack([part.toarray() for _, part in dataset.matrices[0].chunks()])


# ---- layouts of old


def records(frame, categories):
    """A table as anndata 0.6 wrote it."""
    columns = {"index": frame.index.to_numpy().astype("S64")}
    for name, column in frame.items():
        if isinstance(column.dtype, pd.CategoricalDtype):
            columns[name] = column.cat.codes.to_numpy()
            categories[f"{name}_categories"] = column.cat.categories.to_numpy().astype("S16")
        else:
            columns[name] = column.to_numpy().astype("S64")
    return np.rec.fromarrays(list(columns.values()), names=list(columns)).view(np.ndarray)


def write_06(path, adata, *, dense=False, raw=False):
    counts = adata.X.tocsr()
    with h5py.File(path, "w") as file:
        categories: dict = {}
        file["obs"], file["var"] = records(adata.obs, categories), records(adata.var, categories)
        file["obsm"] = np.rec.fromarrays([np.ones((adata.n_obs, 2))], dtype=[("X_pca", "f8", (2,))]).view(np.ndarray)
        for name, values in categories.items():
            file[f"uns/{name}"] = values

        def matrix(name, values):
            if dense:
                file[name] = values.toarray()
                return
            group = file.create_group(name)
            group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = "csr", values.shape
            for part in ("data", "indices", "indptr"):
                group[part] = getattr(values, part)

        if raw:
            matrix("raw.X", counts)
            file["raw.var"] = records(adata.var, {})
        matrix("X", counts.log1p() if raw else counts)


def write_07(path, adata):
    counts = adata.X.tocsr()
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": counts.shape})
        for part in ("data", "indices", "indptr"):
            group[part] = getattr(counts, part)
        for name, frame in (("obs", adata.obs), ("var", adata.var)):
            table = file.create_group(name)
            table.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0", "_index": "index"})
            table.attrs["column-order"] = np.array(list(frame.columns), dtype=object)
            table["index"] = frame.index.to_numpy().astype(object)
            for column, values in frame.items():
                if isinstance(values.dtype, pd.CategoricalDtype):
                    table[f"__categories/{column}"] = values.cat.categories.to_numpy().astype(object)
                    table[column] = values.cat.codes.to_numpy()
                    table[column].attrs["categories"] = table[f"__categories/{column}"].ref
                else:
                    table[column] = values.to_numpy().astype(object)


@pytest.mark.parametrize(
    "write",
    [
        write_07,
        write_06,
        lambda path, adata: write_06(path, adata, dense=True),
        lambda path, adata: write_06(path, adata, raw=True),
    ],
    ids=["0.7", "0.6 sparse", "0.6 dense", "0.6 raw"],
)
def test_files_of_anndata_0_6_and_0_7_are_read_as_those_of_today(write, tmp_path):
    adata = cells(cell_type=pd.Categorical(["T", "B", "NK"] * 10), donor=["d1", "d2"] * 15)
    write(tmp_path / "old.h5ad", adata)
    dataset = open_dataset(tmp_path / "old.h5ad")
    assert np.array_equal(read_all(dataset), COUNTS.toarray())
    assert dataset.cell_ids.tolist() == BARCODES
    assert dataset.matrices[0].feature_names.tolist() == GENE_IDS
    assert dataset.obs["cell_type"].tolist() == adata.obs["cell_type"].tolist()
    assert dataset.obs["donor"].tolist() == adata.obs["donor"].tolist()
    assert dataset.notes == []


# ---- columns


def test_columns_with_a_slash_are_read_and_what_stands_in_their_way_is_left_out(tmp_path):
    def clash(file):  # named here: some versions of anndata read such names and do not write them
        for plain, slashed in (("ratio", "CD4/CD8 ratio"), ("y", "x/y")):
            file.require_group(f"obs/{slashed}".rpartition("/")[0])
            file.move(f"obs/{plain}", f"obs/{slashed}")
        file["obs/x/z"] = np.ones(30)  # beside x/y, so that x is a group without values
        file["obs"].attrs["column-order"] = ["CD4/CD8 ratio", "x/y", "x"]

    path = written(tmp_path, cells(ratio=np.arange(30) / 7, y=1), clash)
    dataset = open_dataset(path)
    assert dataset.obs["CD4/CD8 ratio"].tolist() == (np.arange(30) / 7).tolist()
    assert list(dataset.obs) == ["CD4/CD8 ratio", "x/y"]
    assert "column 'x' is left out" in dataset.notes[0]


def not_utf8(file):
    file["obs/note"].attrs.clear()
    del file["obs/note"]
    file["obs"].create_dataset("note", data=np.array([b"caf\xe9"] * 30, dtype=object), dtype=h5py.string_dtype())
    file["obs/note"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})


def categories_not_utf8(file):
    del file["obs/kind/categories"]
    file["obs/kind"].create_dataset("categories", data=np.array([b"\xff", b"b"], object), dtype=h5py.string_dtype())
    file["obs/kind/categories"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})


def too_long(file):
    del file["obs/note"]
    file["obs/note"] = np.ones(31)


def not_there(file):
    del file["obs/note"]


def wide_text(file):
    del file["obs/note"]
    file["obs/note"] = np.array([b"a" * 100_000] * 30)


@pytest.mark.parametrize(
    ("spoil", "column", "reason"),
    [
        (not_utf8, "note", "it is not UTF-8"),
        (categories_not_utf8, "kind", "it is not UTF-8"),
        (too_long, "note", "it has 31 values for 30 rows"),
        (not_there, "note", "named in column-order and not there"),
        (wide_text, "note", "every value of it takes 100,000 bytes"),
    ],
)
def test_a_column_that_cannot_be_read_is_left_out_with_a_word(spoil, column, reason, tmp_path):
    adata = cells(note=["text"] * 30, kind=pd.Categorical(["a", "b"] * 15))
    ran = scmbert("doctor", written(tmp_path, adata, spoil), "--min-genes", "1")
    assert ran.code == 0, ran.err
    assert f"column '{column}' is left out: " in ran.out
    assert reason in ran.out


def test_without_the_types_of_features_the_file_is_refused(tmp_path):
    def spoil(file):
        del file["var/feature_types"]

    with pytest.raises(InputError, match=r"/var cannot be read: column 'feature_types'.*not there"):
        open_dataset(written(tmp_path, cells(), spoil))


@pytest.mark.slow
def test_thirty_thousand_columns_take_seconds_and_those_that_mean_something_are_read(tmp_path):
    path = written(tmp_path, cells())
    names = [f"score_{i}" for i in range(29_999)]
    with h5py.File(path, "r+", libver="latest") as file:  # others cannot hold so many names
        index, attributes = ad.io.read_elem(file["obs/_index"]), dict(file["obs"].attrs)
        del file["obs"]
        file.create_group("obs").attrs.update(attributes)
        ad.io.write_elem(file["obs"], "_index", index)
        for name in names:
            file["obs"][name] = np.zeros(30)
        ad.io.write_elem(file["obs"], "Cell Type", pd.Categorical(["T", "B", "NK"] * 10))
        file["obs"].attrs["column-order"] = np.array([*names, "Cell Type"], object)
    before = time.perf_counter()
    dataset = open_dataset(path)
    assert time.perf_counter() - before < 30  # of 30,000 columns; it was 90 s and more
    assert dataset.obs.shape[1] == MOST_COLUMNS + 1
    assert dataset.obs["Cell Type"].tolist()[:3] == ["T", "B", "NK"]
    assert "30,000 columns, of which the first 1,000 are read" in dataset.notes[0]
    assert check_dataset(dataset, min_genes=1).obs_fields == {"cell_type": "Cell Type"}


# ---- names


def index_with(value, table="obs"):
    def spoil(file):
        name = file[table].attrs["_index"]
        names = ad.io.read_elem(file[table][name]).astype(object)
        names[3] = value
        del file[table][name]
        file[table].create_dataset(name, data=names, dtype=h5py.string_dtype())

    return spoil


def beside_a_mask(spoil, missing=(), length=None):
    """After `spoil`: the names of the cells as pandas 3 has them stored, with these entries missing."""

    def change(file):
        spoil(file)
        names = file["obs/_index"][:] if isinstance(file["obs/_index"], h5py.Dataset) else file["obs/_index/values"][:]
        del file["obs/_index"]
        group = file.create_group("obs/_index")
        group.attrs.update({"encoding-type": "nullable-string-array", "encoding-version": "0.1.0"})
        group.create_dataset("values", data=names, dtype=h5py.string_dtype())
        group["mask"] = np.isin(np.arange(len(names) if length is None else length), missing)

    return change


def test_names_beside_a_mask_are_read(tmp_path):
    dataset = open_dataset(written(tmp_path, cells(), beside_a_mask(lambda file: None)))
    assert dataset.cell_ids.tolist() == list(BARCODES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (beside_a_mask(lambda file: None, missing=[3]), "obs/_index: entry 3 is missing"),
        (beside_a_mask(lambda file: None, length=7), r"30 names with a mask of shape \(7,\)"),
        (beside_a_mask(index_with(b"AACG\xff-1")), "entry 3 .* is not UTF-8"),
        (beside_a_mask(index_with(b"A" * 300_000)), "is a name of 300,000 characters; at most 1,000"),
    ],
)
def test_names_beside_a_mask_are_refused_as_others_are(change, words, tmp_path):
    with pytest.raises(InputError, match=words):
        open_dataset(written(tmp_path, cells(), change))


@pytest.mark.parametrize("table", ["obs", "var"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"AACG\xff-1", "entry 3 .* is not UTF-8; write the names again"),
        (b"A" * 300_000, r"entry 3 \('AAAAAAAAAAAAAAAAAAAA' ...\) is a name of 300,000 characters; at most 1,000"),
    ],
)
def test_a_name_that_is_no_text_or_very_long_is_refused_by_its_place(table, value, words, tmp_path):
    with pytest.raises(InputError, match=words):
        open_dataset(written(tmp_path, cells(), index_with(value, table)))


def test_names_of_a_fixed_width_that_no_name_has_are_not_even_read(tmp_path):
    def spoil(file):
        name = file["obs"].attrs["_index"]
        del file["obs"][name]
        file["obs"].create_dataset(name, (30,), "S300000", chunks=(1,), compression="gzip")

    with pytest.raises(InputError, match="300,000 characters"):
        open_dataset(written(tmp_path, cells(), spoil))


def test_a_small_file_that_claims_billions_of_names_is_refused(tmp_path):
    def spoil(file):
        name = file["obs"].attrs["_index"]
        del file["obs"][name]
        file["obs"].create_dataset(name, (10**9,), "S16", chunks=(10**6,), compression="gzip")

    with pytest.raises(InputError, match="1,000,000,000 names of 16,000,000,000 bytes, stored in 0"):
        open_dataset(written(tmp_path, cells(), spoil))


def test_the_same_holds_for_an_object_in_memory():
    adata = cells()
    adata.obs_names = ["A" * 5000, *BARCODES[1:]]
    with pytest.raises(InputError, match=r"AnnData in memory: obs index.*5,000 characters"):
        open_dataset(adata)
