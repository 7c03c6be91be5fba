"""Files that contradict themselves, one fault each: a named error or the right counts, and never a traceback.

A longer search of the same kind (random faults, thousands of files) found these.
"""

import contextlib
import itertools
import shutil

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import scmbert
from stored_counts import as_anndata, random_counts, write_h5

from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

GENES = 40


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """One .h5ad for each storage, of 30 cells and 40 genes."""
    folder = tmp_path_factory.mktemp("sound")
    for kind, storage in {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": sp.csr_matrix.toarray}.items():
        adata = as_anndata(random_counts(), storage)[:, :GENES].copy()
        adata.X = storage(adata.X) if kind != "dense" else np.asarray(adata.X)
        adata.obs["cell_type"] = pd.Categorical(["T", "B", "NK"] * 10)
        adata.obsm["X_pca"] = np.ones((30, 5), np.float32)
        adata.uns["title"] = "a title"
        adata.write_h5ad(folder / f"{kind}.h5ad")
    return folder


def replaced(file, name, values, **options):
    attributes = dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, data=values, **options).attrs.update(attributes)


def changed(name, change):
    return lambda file: replaced(file, name, change(file[name][()]))


def at(place, value):
    def change(values):
        values[place] = value
        return values

    return change


def attribute(node, name, value):
    def spoil(file):
        file[node].attrs[name] = value

    return spoil


def gone(name):
    def spoil(file):
        del file[name]

    return spoil


def instead(name, value):
    def spoil(file):
        with contextlib.suppress(KeyError):
            del file[name]
        file[name] = value

    return spoil


def without_attribute(node, name):
    def spoil(file):
        del file[node].attrs[name]

    return spoil


TEXT = np.array([b"1", b"2"])
# storage, what is done to the file, a part of the message
FAULTS = {
    "float indices": ("csr", changed("X/indices", lambda x: x + 0.7), "X/indices: of type float64; places"),
    "float pointers": ("csc", changed("X/indptr", lambda x: x.astype("f4")), "X/indptr: of type float32"),
    "indices of text": ("csr", instead("X/indices", TEXT), "X/indices: of type"),
    "a negative index": ("csr", changed("X/indices", at(5, -1)), "index -1 in a matrix with 40 places"),
    "an index out of range": ("csr", changed("X/indices", at(5, 40)), "index 40 in a matrix with 40 places"),
    "one out of range by feature": ("csc", changed("X/indices", at(5, 30)), "index 30 in a matrix with 30 places"),
    "pointers that go back": ("csr", changed("X/indptr", at(7, 0)), "contradicts itself"),
    "pointers by feature that go back": ("csc", changed("X/indptr", at(7, 0)), "contradicts itself"),
    "pointers that begin late": ("csr", changed("X/indptr", at(0, 1)), "contradicts itself"),
    "too many pointers": ("csr", changed("X/indptr", lambda x: np.append(x, x[-1])), "32 row pointers for 30 rows"),
    "too few pointers": ("csr", changed("X/indptr", lambda x: x[:-1]), "30 row pointers for 30 rows"),
    "a list of lists of pointers": ("csr", changed("X/indptr", lambda x: x[None]), "X/indptr: of shape (1, 31)"),
    "fewer values than indices": ("csr", changed("X/data", lambda x: x[:-1]), "contradicts itself"),
    "more values than a row has places": (
        "csr",
        changed("X/indptr", lambda x: np.array([0] * 30 + [x[-1]], x.dtype)),
        "values in one row of 40 places",
    ),
    "no data": ("csr", gone("X/data"), "a sparse matrix without data"),
    "a group for data": (
        "csr",
        lambda file: (gone("X/data")(file), file.create_group("X/data")),
        "sparse matrix without data",
    ),
    "a shape of other cells": ("csr", attribute("X", "shape", [29, GENES]), "31 row pointers for 29 rows"),
    "a shape of other genes": ("csr", attribute("X", "shape", [30, 99]), "30 x 99 values for 30 cells x 40 features"),
    "a shape of too many cells": ("csc", attribute("X", "shape", [10**13, GENES]), "10,000,000,000,000 rows of values"),
    "a shape of three": ("csr", attribute("X", "shape", [30, 40, 1]), "expected two numbers"),
    "a negative shape": ("csr", attribute("X", "shape", [-30, 40]), "expected two numbers"),
    "a shape of text": ("csr", attribute("X", "shape", "30 x 40"), "expected two numbers"),
    "no shape": ("csr", without_attribute("X", "shape"), "a sparse matrix without shape"),
    "an encoding nobody knows": ("csr", attribute("X", "encoding-type", b"co\xff"), "stored as 'co"),
    "an encoding that is a number": ("dense", attribute("X", "encoding-type", 3), "stored as '3'"),
    "values of text": ("dense", instead("X", np.array([[b"1"] * GENES] * 30)), "values of dtype |S1"),
    "complex values": ("dense", changed("X", lambda x: x.astype("c8")), "values of dtype complex64"),
    "values of text, sparse": ("csr", changed("X/data", lambda x: x.astype("S4")), "values of dtype |S4"),
    "one dimension": ("dense", changed("X", lambda x: x[0]), "X: of shape (40,)"),
    "three dimensions": ("dense", changed("X", lambda x: x[None]), "X: of shape (1, 30, 40)"),
    "a number for a matrix": ("dense", instead("X", 3.0), "X: of shape ()"),
    "other cells than obs": ("dense", changed("X", lambda x: x[:-1]), "29 rows of values for 30 cells"),
    "other genes than var": ("dense", changed("X", lambda x: x[:, :-1]), "30 x 39 values for 30 cells x 40 features"),
    "no obs": ("csr", gone("obs"), "HDF5 with X, layers"),
    "an array for obs": ("csr", instead("obs", np.ones(3)), "/obs is no table"),
    "a link to nowhere": ("csr", instead("obs", h5py.SoftLink("/none")), "cannot be read"),
    "a link in a circle": ("csr", instead("var", h5py.SoftLink("/var")), "cannot be read"),
    "no name of the index": ("csr", without_attribute("obs", "_index"), "its index '' (attribute _index)"),
    "the index of another name": ("csr", attribute("obs", "_index", "none"), "its index 'none'"),
    "an index that is no text": ("csr", attribute("obs", "_index", np.arange(3)), "attribute _index"),
    "an index of two dimensions": ("csr", instead("obs/_index", np.ones((30, 2))), "obs/_index: of shape (30, 2)"),
    "too few names": ("csr", instead("var/_index", TEXT), "column 'feature_types' (it has 40 values for 2 rows)"),
    "an order of columns that is no text": ("csr", attribute("var", "column-order", [b"\xff"]), "is not UTF-8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault, sound, tmp_path):
    storage, spoil, words = FAULTS[fault]
    path = tmp_path / "cells.h5ad"
    shutil.copy(sound / f"{storage}.h5ad", path)
    with h5py.File(path, "r+") as file:
        spoil(file)
    ran = scmbert("doctor", path, "--min-genes", "1")
    assert ran.code == InputError.exit_code
    said = " ".join((ran.out + ran.err).split())
    assert str(path) in said
    assert words in said


HARMLESS = {
    "unsorted": ("csr", lambda file: _reversed_rows(file)),
    "big-endian numbers": ("csr", changed("X/data", lambda x: x.astype(">f4"))),
    "big-endian places": ("csr", changed("X/indices", lambda x: x.astype(">i4"))),
    "unsigned places of 64 bits": ("csr", changed("X/indices", lambda x: x.astype("u8"))),
    "places of one byte": ("csc", changed("X/indices", lambda x: x.astype("i1"))),
    "float16": ("csc", changed("X/data", lambda x: x.astype("f2"))),
    "attributes of bytes": ("csr", attribute("X", "encoding-type", np.bytes_(b"csr_matrix"))),
    "obsm that is no group": ("csr", instead("obsm", np.ones((30, 2)))),
    "uns that is no group": ("csr", instead("uns", 3)),
    "a title that is no text": ("csr", instead("uns/title", h5py.Empty("f4"))),
    "a genome that is not UTF-8": ("csr", instead("uns/genome", b"\xff")),
    "layers that are no group": ("csr", instead("layers", np.ones(3))),
    "raw without a matrix": ("csr", lambda file: file.require_group("raw").create_group("varm")),
    "a column whose codes lie": ("csr", changed("obs/cell_type/codes", at(3, 9))),
}


def _reversed_rows(file):
    pointers = file["X/indptr"][:]
    for part in ("data", "indices"):
        values = file["X"][part][:]
        for first, last in itertools.pairwise(pointers):
            values[first:last] = values[first:last][::-1]
        file["X"][part][:] = values


@pytest.mark.parametrize("fault", HARMLESS)
def test_what_does_not_touch_the_counts_leaves_them_as_they_are(fault, sound, tmp_path):
    storage, spoil = HARMLESS[fault]
    path = tmp_path / "cells.h5ad"
    shutil.copy(sound / f"{storage}.h5ad", path)
    with h5py.File(path, "r+") as file:
        spoil(file)
    (matrix,) = open_dataset(path).matrices
    found = np.vstack([part.toarray() for _, part in matrix.chunks(7)])
    assert np.array_equal(found, random_counts()[:, :GENES].toarray())
    assert scmbert("doctor", path, "--min-genes", "1").code == 0


def test_a_place_that_stands_twice_means_the_sum_as_in_scipy_also_where_it_is_stored_in_bytes(tmp_path):
    adata = as_anndata(random_counts())[:1, :GENES].copy()
    adata.X = sp.csr_matrix((np.array([200, 100], np.uint8), [3, 3], [0, 2]), (1, GENES))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad") as file:
        assert file["X/indices"][:].tolist() == [3, 3]
    (_, part), *_ = open_dataset(tmp_path / "cells.h5ad").matrices[0].chunks()
    assert (part.indices.tolist(), part.data.tolist()) == ([3], [300])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("matrix/shape", np.arange(3), "expected two numbers"),
        ("matrix/shape", np.array([1.0, 2.0]), "expected two numbers"),
        ("matrix/barcodes", np.array([b"a\xff"] * 30), "matrix/barcodes: entry 0 ("),
        ("matrix/barcodes", np.array([b"a" * 5000] * 30), "5,000 characters"),
        ("matrix/barcodes", np.array([b"a"] * 29), "values for 29 cells"),
        ("matrix/features/name", np.array([b"a"] * 3), "features of unequal length"),
        ("matrix/indices", np.linspace(0, 1, 20), "matrix/indices: of type float64"),
    ],
)
def test_a_fault_of_a_10x_file_is_named(name, value, words, tmp_path):
    path = write_h5(tmp_path / "cells.h5", random_counts())
    with h5py.File(path, "r+") as file:
        instead(name, value)(file)
    ran = scmbert("doctor", path, "--min-genes", "1")
    assert ran.code == InputError.exit_code
    assert words in ran.err


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("mod", np.ones(3), "mod is no group"),
        ("axis", 1, "joins features (axis 1)"),
        ("axis", "x", "joins features (axis x)"),
        ("mod-order", 7, None),
    ],
)
def test_a_fault_of_a_mudata_is_named(name, value, words, tmp_path):
    md = pytest.importorskip("mudata")
    path = tmp_path / "cells.h5mu"
    md.MuData({"rna": as_anndata(random_counts())[:, :GENES].copy()}).write(path)
    with h5py.File(path, "r+") as file:
        if name == "mod":
            instead(name, value)(file)
        else:
            (file if name == "axis" else file["mod"]).attrs[name] = value
    ran = scmbert("doctor", path, "--min-genes", "1")
    assert ran.code == (0 if words is None else InputError.exit_code), ran.err
    assert (words or "") in ran.err


def test_the_advice_about_places_that_are_no_whole_numbers_leads_on(sound, tmp_path):
    path = tmp_path / "cells.h5ad"
    shutil.copy(sound / "csr.h5ad", path)
    with h5py.File(path, "r+") as file:
        replaced(file, "X/indices", file["X/indices"][:].astype("f8"))
    assert scmbert("doctor", path, "--min-genes", "1").code == InputError.exit_code
    with h5py.File(path, "r+") as file:  # "Store them as int32 or int64", as the message says
        replaced(file, "X/indices", file["X/indices"][:].astype("i4"))
    ad.read_h5ad(path).write_h5ad(tmp_path / "new.h5ad")
    assert scmbert("doctor", tmp_path / "new.h5ad", "--min-genes", "1").code == 0
