"""One small data set, written in every format that `open_dataset` reads."""

import gzip
from collections.abc import Iterable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from data_pipelines.features.gene_tables import load_gene_table

_TABLE = load_gene_table("human")
GENE_IDS = _TABLE.ids[np.flatnonzero(_TABLE.reference & (_TABLE.tss > 0))[:40]].astype(str).tolist()
ANTIBODIES = ["CD3", "CD4", "CD8", "CD19", "CD14"]
PEAKS = [f"chr1:{start}-{start + 500}" for start in range(100_000, 700_000, 50_000)]
IDS = [*GENE_IDS, *ANTIBODIES, *PEAKS]
KINDS = ["Gene Expression"] * 40 + ["Antibody Capture"] * 5 + ["Peaks"] * 12
BARCODES = [f"AACG{i:04d}-1" for i in range(30)]


def random_counts(num_cells: int = 30, num_features: int = len(IDS), seed: int = 0) -> sp.csr_matrix:
    """int64 [cells, features]; every cell has its first two features."""
    rng = np.random.default_rng(seed)
    values = rng.poisson(3.0, (num_cells, num_features)) * (rng.random((num_cells, num_features)) < 0.4)
    values[:, :2] += 1
    return sp.csr_matrix(values)


def as_anndata(matrix: sp.csr_matrix, storage=sp.csr_matrix) -> ad.AnnData:
    var = pd.DataFrame({"feature_types": KINDS}, index=IDS)
    return ad.AnnData(X=storage(matrix.astype(np.float32)), obs=pd.DataFrame(index=BARCODES), var=var)


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def matrix_market(matrix: sp.spmatrix, kind: str = "integer", order: str = "cells") -> str:
    """`matrix` of cells x features as the features x cells of 10x, entries in the order of cells or of features."""
    entries = matrix.tocoo()
    places = np.lexsort((entries.col, entries.row) if order == "cells" else (entries.row, entries.col))
    lines = [f"{entries.col[i] + 1} {entries.row[i] + 1} {entries.data[i]}\n" for i in places]
    sizes = f"{matrix.shape[1]} {matrix.shape[0]} {len(lines)}\n"
    return f'%%MatrixMarket matrix coordinate {kind} general\n%metadata_json: {{"a": 1}}\n{sizes}{"".join(lines)}'


def write_folder(
    folder: Path,
    matrix: sp.csr_matrix | None = None,
    *,
    prefix: str = "",
    ending: str = ".gz",
    order: str = "cells",
    features: str = "features.tsv",
    feature_lines: Iterable[str] | None = None,
) -> Path:
    """A 10x folder; returns it. `feature_lines`: of the file of features, those of Cell Ranger 3 when left out."""
    lines = feature_lines if feature_lines is not None else [f"{i}\t{i}\t{k}" for i, k in zip(IDS, KINDS, strict=True)]
    counts = random_counts() if matrix is None else matrix
    write_text(folder / f"{prefix}matrix.mtx{ending}", matrix_market(counts, order=order))
    write_text(folder / f"{prefix}barcodes.tsv{ending}", "".join(f"{b}\n" for b in BARCODES[: counts.shape[0]]))
    write_text(folder / f"{prefix}{features}{ending}", "".join(f"{line}\n" for line in lines))
    return folder


def write_h5(path: Path, matrix: sp.csr_matrix, peak_ids: list[str] | None = None, **columns: list[str]) -> Path:
    """A 10x .h5 of Cell Ranger 3 or ARC. `columns`: more tables of `features` (genome, interval)."""
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for key in ("data", "indices", "indptr"):
            group[key] = getattr(matrix, key)
        group["shape"] = np.array(matrix.shape[::-1])
        group["barcodes"] = np.array(BARCODES, dtype="S")
        ids = IDS if peak_ids is None else [*IDS[: -len(PEAKS)], *peak_ids]
        for key, values in {"id": ids, "name": ids, "feature_type": KINDS, **columns}.items():
            group[f"features/{key}"] = np.array(values, dtype="S")
    return path


def write_zarr(path: Path, data, zarr_format: int, **chunks) -> Path:
    with ad.settings.override(zarr_write_format=zarr_format):
        data.write_zarr(path, **chunks)
    return path
