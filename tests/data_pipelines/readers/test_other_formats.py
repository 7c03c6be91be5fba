"""Files that are packed, or of other programs: it is said what they are, and the command that is named helps."""

import gzip
import re
import shlex
import subprocess
import tarfile
import zipfile

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import InputError


@pytest.fixture
def cells(tmp_path) -> ad.AnnData:
    counts = np.random.default_rng(0).poisson(1.0, (20, 5)).astype(np.float32)
    genes = ["CD3E", "MS4A1", "LYZ", "NKG7", "PPBP"]
    data = ad.AnnData(counts, pd.DataFrame(index=[f"c{i}" for i in range(20)]), pd.DataFrame(index=genes))
    data.write_h5ad(tmp_path / "original.h5ad")
    return data


def refused(path) -> str:
    with pytest.raises(InputError) as caught:
        open_dataset(path)
    return str(caught.value)


def counts_in(path) -> np.ndarray:
    (matrix,) = open_dataset(path).matrices
    return np.vstack([part.toarray() for _, part in matrix.chunks(100)])


def follow(message: str) -> None:
    """Runs the command that a message names."""
    subprocess.run(re.search(r"unpack it: ([^,]+)", message)[1], shell=True, check=True, capture_output=True)


@pytest.mark.parametrize(("name", "unpacked"), [("a b.h5ad.gz", "a b.h5ad"), ("cells.h5ad", "cells.h5ad")])
def test_a_compressed_file_is_unpacked_by_the_command_that_is_named(tmp_path, cells, name, unpacked):
    (tmp_path / name).write_bytes(gzip.compress((tmp_path / "original.h5ad").read_bytes()))
    message = refused(tmp_path / name)
    assert "a compressed HDF5 file" in message
    follow(message)
    np.testing.assert_array_equal(counts_in(tmp_path / unpacked), cells.X)


@pytest.mark.filterwarnings("ignore")
def test_a_zipped_zarr_store_is_unpacked_by_the_command_that_is_named(tmp_path, cells):
    cells.write_zarr(tmp_path / "store")
    with zipfile.ZipFile(tmp_path / "cells.zarr.zip", "w") as archive:
        for path in sorted((tmp_path / "store").rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(tmp_path / "store"))
    message = refused(tmp_path / "cells.zarr.zip")
    assert "a zipped zarr store" in message
    follow(message)
    np.testing.assert_array_equal(counts_in(tmp_path / "cells.zarr"), cells.X)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_archive_is_unpacked_by_the_command_that_is_named(tmp_path, cells, mode, monkeypatch):
    with tarfile.open(tmp_path / "sample.tar.gz", mode) as archive:
        archive.add(tmp_path / "original.h5ad", "inside.h5ad")
    message = refused(tmp_path / "sample.tar.gz")
    assert "a tar archive" in message
    monkeypatch.chdir(tmp_path)
    follow(message)
    np.testing.assert_array_equal(counts_in(tmp_path / "inside.h5ad"), cells.X)


@pytest.mark.parametrize(("name", "separator"), [("table.csv", ","), ("table.csv.gz", ","), ("my table.txt", "\t")])
@pytest.mark.filterwarnings("ignore")
def test_a_table_is_rewritten_by_the_program_that_is_named(tmp_path, cells, name, separator):
    text = pd.DataFrame(cells.X.astype(int), cells.obs_names, cells.var_names).to_csv(sep=separator).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    message = refused(tmp_path / name)
    assert "a table of text" in message
    python, option, program = shlex.split(re.search(r"are cells: (.+); where they", message)[1])
    assert (python, option) == ("python", "-c")
    exec(program, {})
    np.testing.assert_array_equal(counts_in(tmp_path / (name.split(".")[0] + "_rewritten.h5ad")), cells.X)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"X\n\0\0\0\3", mtime=0), r'an R object; .* readRDS\("'),
        (b"RDX3\nX\n", "an R object"),
        (b"BZh91AY", "bunzip2 -k"),
        (b"\xfd7zXZ\x00\x00", "unxz -k"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html>", "a web page"),
        (b"PK\x03\x04damaged", "a zip archive, and damaged"),
        (gzip.compress(bytes(4000), mtime=0)[:20], "compressed, and damaged|unpack it"),
    ],
)
def test_what_needs_another_program_is_said_by_name(tmp_path, content, said):
    (tmp_path / "cells.rds").write_bytes(content)
    assert re.search(said, refused(tmp_path / "cells.rds"))


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (("matrix", "row_attrs", "col_attrs", "layers"), r"a Loom file; .*io\.read_loom\("),
        (("assays", "cell.names", "reductions"), "an h5Seurat file; .* SeuratDisk::Convert"),
        (("barcode_idx", "feature_idx", "umi"), "name its filtered_feature_bc_matrix.h5"),
    ],
)
def test_hdf5_of_other_programs_is_said_by_name(tmp_path, members, said):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name in members:
            file.create_group(name)
    assert re.search(said, refused(tmp_path / "x.h5"))
