"""A cell has one embedding, whatever format its counts lie in."""

import gzip
import io

import anndata
import mudata
import numpy as np
import pytest
import scipy.io
from conftest import scmbert_ok

from data_pipelines.readers.example_reader import example_path


@pytest.fixture(scope="module")
def rna():
    whole = mudata.read_h5mu(example_path("pbmc_mosaic")).mod["rna"][:60]
    return anndata.AnnData(whole.X.astype(np.float32), obs=whole.obs[[]], var=whole.var[[]])


def write_zarr(folder, rna):
    rna.write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


def write_tenx(folder, rna):
    text = io.BytesIO()
    scipy.io.mmwrite(text, rna.X.T.astype(int))
    (folder / "matrix.mtx.gz").write_bytes(gzip.compress(text.getvalue()))
    (folder / "barcodes.tsv").write_text("".join(f"{cell}\n" for cell in rna.obs_names))
    (folder / "features.tsv").write_text("".join(f"{gene}\t{gene}\tGene Expression\n" for gene in rna.var_names))
    return folder


@pytest.mark.parametrize("write", [write_zarr, write_tenx])
def test_a_folder_is_embedded_as_the_file_is(write, rna, pbmc_model, tmp_path):
    rna.write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "folder").mkdir()
    folder = write(tmp_path / "folder", rna)
    for source, out in ((tmp_path / "cells.h5ad", "file.h5ad"), (folder, "folder.h5ad")):
        scmbert_ok("embed", pbmc_model, source, "-o", tmp_path / out)
    of_file, of_folder = (anndata.read_h5ad(tmp_path / name) for name in ("file.h5ad", "folder.h5ad"))
    assert of_folder.obs_names.tolist() == of_file.obs_names.tolist()
    np.testing.assert_array_equal(of_folder.obsm["X_scmbert"], of_file.obsm["X_scmbert"])
    assert np.isfinite(of_folder.obsm["X_scmbert"]).all()
    assert of_folder.shape == (60, 0)  # cells and embedding, no counts
