"""zarr stores: read by the chunk in both formats; what is missing or damaged is refused, never read as zeros."""

import json
import os
import pickle
import shutil
from pathlib import Path

import mudata as md
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from stored_counts import BARCODES, IDS, as_anndata, random_counts, write_zarr

from data_pipelines.checks.input_check import check_dataset
from data_pipelines.readers import zarr_store
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.readers.stored_matrix import open_stored_matrix
from scmbert_jax.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

STORAGE = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": sp.csr_matrix.toarray}
FORMATS = pytest.mark.parametrize("zarr_format", [2, 3])


def read_all(dataset, rows=4096) -> np.ndarray:
    return np.hstack([sp.vstack([part for _, part in m.chunks(rows)]).toarray() for m in dataset.matrices])


def refused(path, *words):
    with pytest.raises(InputError) as caught:
        read_all(open_dataset(path))
    for word in words:
        assert str(word) in str(caught.value), (word, str(caught.value))


def chunked_store(path, matrix, storage, zarr_format, chunks):
    """An AnnData store whose X has small chunks: sparse of `chunks[0]` values each, dense of `chunks`."""
    write_zarr(path, as_anndata(matrix, STORAGE[storage]), zarr_format)
    store = zarr.open_group(path, mode="r+", use_consolidated=False)
    parts = {"X": chunks} if storage == "dense" else {f"X/{part}": chunks[:1] for part in ("data", "indices", "indptr")}
    for name, sizes in parts.items():
        values, attributes = store[name][:], dict(store[name].attrs)
        del store[name]
        store.create_array(name, data=values, chunks=sizes).attrs.update(attributes)
    return path


def chunk_file(store, array, index):
    place = store / array
    return place / str(index) if (place / str(index)).exists() else place / "c" / str(index)


# ---- what is read


@FORMATS
def test_obs_and_the_counts_field_come_as_from_h5ad(tmp_path, zarr_format):
    counts = random_counts()
    adata = as_anndata(counts)
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X)
    adata.obs["celltype"] = np.where(np.arange(30) % 2, "T", "B")
    adata.obs["celltype"] = adata.obs["celltype"].astype("category")
    adata.uns["genome"] = "GRCh38"
    dataset = open_dataset(write_zarr(tmp_path / "x.zarr", adata, zarr_format))
    assert dataset.matrices[0].field == "layers['counts']"
    assert "looks log-normalised" in dataset.matrices[0].considered["X"]
    assert dataset.matrices[0].genome == "GRCh38"
    assert dataset.obs["celltype"].tolist() == adata.obs["celltype"].tolist()
    assert np.array_equal(read_all(dataset), counts.toarray())


@pytest.mark.slow
@FORMATS
def test_a_mosaic_keeps_its_order_and_its_declarations(tmp_path, zarr_format):
    adata = as_anndata(random_counts())
    mdata = md.MuData({"rna": adata[:20, :40].copy(), "adt": adata[10:, 40:45].copy()})
    mdata.uns["scmbert_pseudo_pairs"] = {"method": "test", "links": 3}
    dataset = open_dataset(write_zarr(tmp_path / "m.zarr", mdata, zarr_format))
    assert [matrix.modality for matrix in dataset.matrices] == ["rna", "protein"]
    assert dataset.cell_ids.tolist() == mdata.obs_names.tolist()
    assert [matrix.shape for matrix in dataset.matrices] == [(20, 40), (20, 5)]
    assert dataset.pseudo_pairs == {"method": "test", "links": 3}


def test_a_folder_without_the_ending_and_with_a_slash_is_read(tmp_path):
    write_zarr(tmp_path / "store.v1", as_anndata(random_counts()), 3)
    assert open_dataset(f"{tmp_path / 'store.v1'}/").name == "store.v1"


# ---- memory


@FORMATS
@pytest.mark.parametrize("storage", list(STORAGE))
def test_a_pass_reads_no_more_at_once_than_a_chunk_and_decodes_none_twice(tmp_path, storage, zarr_format, monkeypatch):
    monkeypatch.setattr("data_pipelines.readers.stored_matrix._SLAB_VALUES", 64)
    counts = random_counts()
    path = chunked_store(tmp_path / "x.zarr", counts, storage, zarr_format, (16, 10))
    matrix = open_stored_matrix(zarr.open_group(path, mode="r", use_consolidated=False)["X"], "X")
    read, get = [], zarr.Array.__getitem__

    def counted(self, selection):
        values = get(self, selection)
        read.append(values.size)
        return values

    monkeypatch.setattr(zarr.Array, "__getitem__", counted)
    found = sp.vstack([part for _, part in matrix.chunks(4)])
    assert np.array_equal(found.toarray(), counts.toarray())
    # Four cells compressed by cell, a slab compressed by feature, a stored chunk of 16 x 10 dense.
    widest = max(counts.indptr[4:] - counts.indptr[:-4])
    assert max(read) <= {"csr": widest, "csc": 64, "dense": 160}[storage]


def test_every_stored_chunk_of_a_dense_matrix_is_decoded_once(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipelines.readers.stored_matrix._SLAB_VALUES", 64)
    path = chunked_store(tmp_path / "x.zarr", random_counts(), "dense", 3, (8, 10))
    matrix = open_stored_matrix(zarr.open_group(path, mode="r", use_consolidated=False)["X"], "X")
    read, get = [], zarr.Array.__getitem__
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda self, key: read.append(key) or get(self, key))
    list(matrix.chunks(16))
    touched = [(key[0].start // 8, key[1].start // 10) for key in read]
    assert sorted(touched) == [(row, column) for row in range(4) for column in range(6)]


# ---- what cannot be read


@FORMATS
@pytest.mark.parametrize("storage", ["csr", "csc"])
@pytest.mark.parametrize("part", ["data", "indices", "indptr"])
def test_a_missing_array_is_named(tmp_path, storage, part, zarr_format):
    path = write_zarr(tmp_path / "x.zarr", as_anndata(random_counts(), STORAGE[storage]), zarr_format)
    shutil.rmtree(path / "X" / part)
    refused(path, path, "X: a sparse matrix without", part, "incomplete")


@FORMATS
def test_a_missing_table_or_matrix_is_named(tmp_path, zarr_format):
    whole = write_zarr(tmp_path / "whole.zarr", as_anndata(random_counts()), zarr_format)
    for part, words in {"obs": ["obs is missing"], "var": ["var is missing"], "X": ["no X, raw.X or layers"]}.items():
        path = tmp_path / f"without_{part}.zarr"
        shutil.copytree(whole, path)
        shutil.rmtree(path / part)
        refused(path, path, *words)
    shutil.rmtree(whole / "var" / "feature_types")
    refused(whole, whole, "var cannot be read")


@FORMATS
@pytest.mark.parametrize("storage", ["csr", "csc"])
@pytest.mark.parametrize(
    ("part", "index", "words"),
    [
        ("data", 2, "X/data: 1 of its"),
        ("indices", 2, "indices or indptr are missing"),
        ("indptr", 0, "indices or indptr are missing"),
        ("indptr", 1, "contradicts itself"),
    ],
)
def test_a_lost_chunk_of_a_sparse_matrix_is_no_zeros(tmp_path, storage, part, index, words, zarr_format):
    path = chunked_store(tmp_path / "x.zarr", random_counts(), storage, zarr_format, (16,))
    assert read_all(open_dataset(path)).sum() == random_counts().sum()
    chunk_file(path, f"X/{part}", index).unlink()
    refused(path, path, words, "damaged" if "contradicts" in words else "incomplete: copy")


@FORMATS
def test_chunks_of_zeros_that_nobody_wrote_are_zeros(tmp_path, zarr_format):
    counts = random_counts().toarray()
    counts[:16, :10] = 0
    path = chunked_store(tmp_path / "x.zarr", sp.csr_matrix(counts), "dense", zarr_format, (16, 10))
    assert not chunk_file(path, "X", "0.0").exists()
    assert not (path / "X" / "c" / "0" / "0").exists()
    assert np.array_equal(read_all(open_dataset(path)), counts)
    late = sp.csr_matrix(np.vstack([np.zeros((16, len(IDS))), random_counts().toarray()[:14]]).astype(np.int64))
    path = chunked_store(tmp_path / "late.zarr", late, "csr", zarr_format, (16,))
    assert not chunk_file(path, "X/indptr", 0).exists()  # the first cells are empty: their pointers are zeros
    assert np.array_equal(read_all(open_dataset(path)), late.toarray())


@FORMATS
@pytest.mark.parametrize("storage", list(STORAGE))
def test_a_damaged_chunk_is_named(tmp_path, storage, zarr_format):
    path = write_zarr(tmp_path / "x.zarr", as_anndata(random_counts(), STORAGE[storage]), zarr_format)
    chunk = (
        chunk_file(path, "X", "0.0" if zarr_format == 2 else "0/0")
        if storage == "dense"
        else chunk_file(path, "X/data", 0)
    )
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    refused(path, path, "X: cannot be read", "damaged")


@FORMATS
@pytest.mark.parametrize("storage", list(STORAGE))
def test_an_unknown_encoding_is_named(tmp_path, storage, zarr_format):
    path = write_zarr(tmp_path / "x.zarr", as_anndata(random_counts(), STORAGE[storage]), zarr_format)
    store = zarr.open_group(path, mode="r+", use_consolidated=False)
    store["X"].attrs["encoding-type"] = "blocked_matrix"
    refused(path, path, "X: stored as 'blocked_matrix'", "expected csr_matrix, csc_matrix or a dense array")


def test_consolidated_metadata_does_not_stand_for_arrays_that_are_gone(tmp_path):
    path = write_zarr(tmp_path / "x.zarr", as_anndata(random_counts()), 3)
    zarr.consolidate_metadata(str(path))
    shutil.rmtree(path / "X" / "indices")
    assert "indices" in zarr.open_group(path, mode="r")["X"]
    refused(path, "without indices")


@FORMATS
def test_zarr_of_another_kind_is_refused(tmp_path, zarr_format):
    store = zarr.open_group(tmp_path / "x.zarr", mode="w", zarr_format=zarr_format)
    store.create_array("image", shape=(3,), dtype="i4")
    refused(tmp_path / "x.zarr", tmp_path / "x.zarr", "zarr with image in it", "expected an AnnData")
    shutil.copytree(
        write_zarr(tmp_path / "a.zarr", as_anndata(random_counts()), zarr_format), tmp_path / "x.zarr/tables/table"
    )
    zarr.open_group(tmp_path / "x.zarr", mode="a").require_group("tables")
    refused(tmp_path / "x.zarr", f"its table of cells is {tmp_path / 'x.zarr/tables/table'}")
    assert open_dataset(tmp_path / "x.zarr/tables/table").cell_ids.tolist() == BARCODES


def test_an_array_or_a_copy_without_metadata_is_refused(tmp_path):
    zarr.create_array(tmp_path / "array.zarr", shape=(3,), dtype="i4")
    refused(tmp_path / "array.zarr", tmp_path / "array.zarr", "no zarr group can be opened", "holds obs, var and X")
    path = write_zarr(tmp_path / "x.zarr", as_anndata(random_counts()), 3)
    (path / "zarr.json").unlink()
    refused(path, path, "without zarr.json or .zgroup", "incomplete")
    (path / "zarr.json").write_text("{")
    refused(path, path)
    (path / "zarr.json").write_text(json.dumps({"zarr_format": 9, "node_type": "group"}))
    refused(path, path)


@pytest.mark.parametrize(("value", "words"), [(-4.0, "negative"), (2.5, "non-integers")])
def test_values_that_are_no_counts_are_found_by_the_check(tmp_path, value, words):
    counts = random_counts().astype(np.float32).tolil()
    counts[29, 56] = value
    path = write_zarr(tmp_path / "x.zarr", as_anndata(counts.tocsr()), 3)
    (problem,) = check_dataset(open_dataset(path), assembly="hg38", min_genes=1).problems
    assert words in problem
    assert f"{path}, X" in problem
    assert repr(BARCODES[29]) in problem


# ---- stores of strangers


class Planted:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickle_for_names(path, planted):
    """The names of the cells are packed with numcodecs' codec that loads pickles."""
    store = zarr.open_group(path, mode="r+", use_consolidated=False)
    index = store["obs"].attrs["_index"]
    attributes = dict(store[f"obs/{index}"].attrs)
    del store[f"obs/{index}"]
    array = store.create_array(f"obs/{index}", shape=(30,), chunks=(30,), dtype="i4", compressors=None)
    array.attrs.update(attributes)
    folder = path / "obs" / index
    metadata = json.loads((folder / ".zarray").read_text())
    metadata |= {"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}], "compressor": None, "fill_value": None}
    (folder / ".zarray").write_text(json.dumps(metadata))
    (folder / "0").write_bytes(pickle.dumps(Planted(planted)))


def test_a_codec_that_loads_pickles_is_not_run(tmp_path):
    path, planted = write_zarr(tmp_path / "x.zarr", as_anndata(random_counts()), 2), tmp_path / "planted"
    pickle_for_names(path, planted)
    refused(path, f"{path}: obs/", ".zarray names the codec 'pickle', which is not among those that are read")
    assert not planted.exists()


@pytest.mark.parametrize(
    "codecs",
    [
        [{"name": "numcodecs.pickle", "configuration": {}}],
        [{"name": "somebody.codec"}],
        ["bytes", {"name": 3}],
        [{"name": "sharding_indexed", "configuration": {"codecs": [{"name": "numcodecs.pickle"}]}}],
        {"name": "pickle"},
    ],
)
def test_a_codec_that_is_not_known_is_refused_also_within_shards(codecs, tmp_path):
    path = write_zarr(tmp_path / "x.zarr", as_anndata(random_counts()), 3)
    place = path / "X" / "data" / "zarr.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "codecs": codecs}))
    refused(path, f"{path}: X/data/zarr.json names the codec", "codecs are code")


def test_the_advice_about_codecs_leads_on(tmp_path, monkeypatch):
    """As if the codec of zarr 2 were not on the list, and that of zarr 3 were."""
    ad = pytest.importorskip("anndata")
    known = [codec for codec in zarr_store._CODECS if codec != "blosc"]
    path = write_zarr(tmp_path / "x.zarr", as_anndata(random_counts()), 2)
    monkeypatch.setattr(zarr_store, "_CODECS", known)
    refused(path, "names the codec 'blosc'", "anndata.read_zarr(STORE).write_zarr(NEW)")
    write_zarr(tmp_path / "new.zarr", ad.read_zarr(path), 3)
    assert np.array_equal(read_all(open_dataset(tmp_path / "new.zarr")), random_counts().toarray())


def test_a_link_out_of_the_store_is_not_followed_and_the_advice_leads_on(tmp_path):
    path = write_zarr(tmp_path / "x.zarr", as_anndata(random_counts()), 3)
    chunk, secret = chunk_file(path, "X/data", 0), tmp_path / "secret"
    chunk.rename(secret)
    chunk.symlink_to(secret)
    refused(path, f"X/data/c/0 is a link to {secret}, outside of the store", f"cp -rL {path} COPY")
    shutil.copytree(path, tmp_path / "copy.zarr", symlinks=False)
    assert np.array_equal(read_all(open_dataset(tmp_path / "copy.zarr")), random_counts().toarray())
    (tmp_path / "whole.zarr").symlink_to(tmp_path / "copy.zarr")  # where the store itself lies is the user's choice
    assert open_dataset(tmp_path / "whole.zarr").cell_ids.tolist() == BARCODES
    (tmp_path / "copy.zarr" / "obs" / "more").symlink_to("/etc")
    refused(tmp_path / "copy.zarr", "obs/more is a link to /etc")


def test_a_pipe_in_a_store_is_refused_before_it_is_waited_for(tmp_path):
    path = write_zarr(tmp_path / "x.zarr", as_anndata(random_counts()), 3)
    chunk_file(path, "X/data", 0).unlink()
    os.mkfifo(path / "X" / "data" / "c" / "0")
    refused(path, "X/data/c/0 is no regular file")


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "..", "a/../../b"])
def test_names_that_lead_out_of_the_store_are_no_names(name, tmp_path):
    path = write_zarr(tmp_path / "x.zarr", as_anndata(random_counts()), 3)
    secret = zarr.open_group(tmp_path / "secret", mode="w")
    secret.create_array("b", data=np.arange(30))
    store = zarr.open_group(path, mode="r+", use_consolidated=False)
    store["obs"].attrs["column-order"] = [name]
    dataset = open_dataset(path)
    assert list(dataset.obs) == []
    assert f"column {name!r} is left out" in dataset.notes[0]
    store["obs"].attrs["_index"] = name
    refused(path, f"its index {name!r}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", "a JSON list; expected an object"),
        (b"3", "a JSON int; expected an object"),
        (b"\xff\xfe\x00", "no JSON"),
        (b'{"zarr_format": 3', "no JSON"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_metadata_of_another_kind_is_named(content, words, tmp_path):
    path = write_zarr(tmp_path / "x.zarr", as_anndata(random_counts()), 3)
    (path / "X" / "zarr.json").write_bytes(content)
    refused(path, path / "X" / "zarr.json", words)
