"""The same counts in every format: the same chunks, the same corpus, byte for byte."""

import mudata as md
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import scmbert
from stored_counts import (
    ANTIBODIES,
    BARCODES,
    GENE_IDS,
    IDS,
    PEAKS,
    as_anndata,
    random_counts,
    write_folder,
    write_h5,
    write_zarr,
)

from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.checks.input_check import check_dataset
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

INTERVALS = ["chr1:1-2"] * (len(IDS) - len(PEAKS)) + PEAKS


def _h5ad(path, data):
    data.write_h5ad(path)
    return path


def _mudata(matrix):
    adata = as_anndata(matrix)
    parts = {"rna": slice(0, 40), "adt": slice(40, 45), "atac": slice(45, None)}
    return md.MuData({name: adata[:, columns].copy() for name, columns in parts.items()})


def _h5mu(path, data):
    data.write_h5mu(path)
    return path


WRITE = {
    "h5ad": lambda at, m: _h5ad(at / "cells.h5ad", as_anndata(m)),
    "h5mu": lambda at, m: _h5mu(at / "cells.h5mu", _mudata(m)),
    "10x h5": lambda at, m: write_h5(at / "cells.h5", m),
    "multiome h5, peaks by interval": lambda at, m: write_h5(
        at / "cells.h5", m, [f"peak_{i}" for i in range(len(PEAKS))], interval=INTERVALS
    ),
    "mtx.gz folder": lambda at, m: write_folder(at / "cells", m),
    "mtx folder": lambda at, m: write_folder(at / "cells", m, ending=""),
    "mtx in the order of features": lambda at, m: write_folder(at / "cells", m, order="features"),
    "mtx with a prefix": lambda at, m: write_folder(at / "more", m, prefix="cells_"),
    "zarr 2 csr": lambda at, m: write_zarr(at / "cells.zarr", as_anndata(m), 2),
    "zarr 2 csc": lambda at, m: write_zarr(at / "cells.zarr", as_anndata(m, sp.csc_matrix), 2),
    "zarr 2 dense": lambda at, m: write_zarr(at / "cells.zarr", as_anndata(m, sp.csr_matrix.toarray), 2, chunks=(7, 9)),
    "zarr 2 MuData": lambda at, m: write_zarr(at / "cells.zarr", _mudata(m), 2),
    "zarr 3 csr": lambda at, m: write_zarr(at / "cells.zarr", as_anndata(m), 3),
    "zarr 3 csc": lambda at, m: write_zarr(at / "cells.zarr", as_anndata(m, sp.csc_matrix), 3),
    "zarr 3 dense": lambda at, m: write_zarr(at / "cells.zarr", as_anndata(m, sp.csr_matrix.toarray), 3, chunks=(7, 9)),
    "zarr 3 MuData": lambda at, m: write_zarr(at / "cells.zarr", _mudata(m), 3),
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """(corpus, counts) from the .h5ad."""
    folder = tmp_path_factory.mktemp("reference")
    return _build(folder, WRITE["h5ad"](folder, random_counts())), random_counts()


def _build(folder, path):
    return build_corpus(folder / "corpus", [path], assembly="hg38", min_genes=1, block_size=8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in WRITE if kind != "h5ad"])
def test_the_same_counts_give_the_same_chunks_and_the_same_corpus(kind, reference, tmp_path):
    corpus, counts = reference
    path = WRITE[kind](tmp_path, counts)
    dataset = open_dataset(path)
    assert dataset.name == "cells"
    assert [matrix.modality for matrix in dataset.matrices] == ["rna", "protein", "atac"]
    assert dataset.cell_ids.tolist() == BARCODES
    names = [matrix.feature_names.tolist() for matrix in dataset.matrices]
    assert names == [GENE_IDS, ANTIBODIES, PEAKS]
    for _ in range(2):  # a second pass reads the same
        parts = [list(matrix.chunks(7)) for matrix in dataset.matrices]
        for chunks in parts:
            assert [(first, part.shape[0]) for first, part in chunks] == [(0, 7), (7, 7), (14, 7), (21, 7), (28, 2)]
            assert all(part.has_sorted_indices and part.data.all() for _, part in chunks)
        read = sp.hstack([sp.vstack([part for _, part in chunks]) for chunks in parts])
        assert np.array_equal(read.toarray(), counts.toarray())
    built = _build(tmp_path, path)
    assert built.manifest["content_sha256"] == corpus.manifest["content_sha256"]
    assert built.manifest["fingerprint"] == corpus.manifest["fingerprint"]
    (entry,) = built.manifest["datasets"][0]["files"]  # what it was built from, without where it lay
    assert len(entry["sha256"]) == 64
    assert entry["bytes"] > 0
    assert str(tmp_path) not in str(entry)


@pytest.mark.parametrize("kind", ["mtx.gz folder", "zarr 3 csr"])
def test_the_same_folder_twice_is_noticed(kind, tmp_path):
    first = WRITE[kind](tmp_path / "a", random_counts())
    second = WRITE[kind](tmp_path / "b", random_counts())
    with pytest.raises(InputError, match="are the same file"):
        build_corpus(tmp_path / "corpus", [first, second], assembly="hg38", min_genes=1)


@pytest.mark.parametrize("kind", ["multiome h5, peaks by interval", "mtx.gz folder", "zarr 2 MuData"])
def test_the_doctor_reads_it_from_the_command_line(kind, tmp_path):
    ran = scmbert("doctor", WRITE[kind](tmp_path, random_counts()), "--assembly", "hg38", "--min-genes", "1")
    assert ran.code == 0, ran.out
    assert all(modality in ran.out for modality in ("rna", "protein", "atac"))


def test_a_multiome_h5_tells_its_assembly(tmp_path):
    path = write_h5(tmp_path / "x.h5", random_counts(), genome=["GRCh38"] * len(IDS), interval=INTERVALS)
    report = check_dataset(open_dataset(path), min_genes=1)
    assert report.usable, report.problems
    assert report.assembly == "hg38"
    assert report.features["atac"].ids.tolist()[0] == PEAKS[0]


def test_files_of_several_formats_are_paired(tmp_path):
    counts = random_counts()
    adata = as_anndata(counts)
    zarr = write_zarr(tmp_path / "rna.zarr", adata[:, :40].copy(), 3)
    lines = [f"{name}\t{name}\tAntibody Capture" for name in ANTIBODIES]
    folder = write_folder(tmp_path / "adt", counts[:, 40:45], feature_lines=lines)
    dataset = open_dataset(f"{zarr}+{folder}")
    assert dataset.name == "rna+adt"
    assert [matrix.modality for matrix in dataset.matrices] == ["rna", "protein"]


def test_the_help_and_the_errors_name_the_formats(tmp_path):
    assert ".zarr" in scmbert("doctor", "--help").out
    assert "10x .mtx folder" in scmbert("doctor", tmp_path / "none").err
    assert "10x .mtx folder" in scmbert("corpus", "build", tmp_path / "corpus").err
