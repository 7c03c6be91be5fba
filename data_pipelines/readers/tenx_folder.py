"""Folders of 10x Genomics with the counts as text -> `Dataset`.

    matrix.mtx[.gz]  barcodes.tsv[.gz]  features.tsv[.gz]    Cell Ranger 3, ARC: id, name, type[, chrom, start, end]
                                        genes.tsv[.gz]       Cell Ranger 2: id, name
                                        peaks.bed[.gz]       Cell Ranger ATAC: chrom, start, end

All may have one prefix, as in GEO (`GSM123_sample_matrix.mtx.gz`); of several samples in a folder one is named by its
matrix file. A matrix of cells x features instead of features x cells is read as what it is.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from data_pipelines.features.genome_assembly import assembly_of_genome
from data_pipelines.features.modality_names import modality_of_features
from data_pipelines.readers.dataset import CountsMatrix, Dataset, join_matrices
from data_pipelines.readers.matrix_market import MatrixMarketFile, MatrixMarketHeader, read_header
from data_pipelines.readers.name_lines import name_lines
from data_pipelines.readers.reader import Reader, Request
from data_pipelines.readers.tenx_reader import split_by_feature_type
from scmbert_jax.errors import InputError

_MATRIX = re.compile(r"^(?P<prefix>.*?)matrix\.mtx(\.gz)?$")
# Files of features, the first that is there -> the fewest columns it may have.
_COLUMNS = {"features.tsv": 1, "genes.tsv": 1, "peaks.bed": 3}


class _Names(NamedTuple):
    path: Path
    rows: list[list[str]]  # the columns of each line


def is_tenx_folder(place: str) -> bool:
    """Also for one matrix of it, which may be called something else than matrix.mtx."""
    path = Path(place)
    if path.is_dir():
        return os.access(path, os.R_OK) and any(_MATRIX.match(inside.name) for inside in path.iterdir())
    return path.exists() and path.name.endswith((".mtx", ".mtx.gz"))


def read_tenx_folder(request: Request) -> list[Dataset]:
    """The matrix of a folder, or one .mtx or .mtx.gz; the other two files are found beside it.

    Raises InputError when a file is missing or damaged, they do not belong together, or a folder has several matrices.
    """
    matrix = _matrix_in(request.path) if request.path.is_dir() else request.path
    # "GSM123_sample_matrix.mtx.gz" -> "GSM123_sample"; "pbmc/matrix.mtx" -> "pbmc"
    name = request.name or _prefix(matrix).rstrip("_.-") or matrix.resolve().parent.name
    return [join_matrices(name, _matrices_of(matrix))]


def _matrix_in(folder: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if _MATRIX.match(path.name))
    if len(found) > 1:
        listed = ", ".join(path.name for path in found[:4]) + (", ..." if len(found) > 4 else "")
        raise InputError(f"{folder}: {len(found)} matrices ({listed}); name one of them, e.g. {found[0]}")
    return found[0]


def _matrices_of(matrix: Path) -> list[CountsMatrix]:
    header = read_header(matrix)
    # As far from the sizes of the matrix as a heading, comments, or the file of another sample may be.
    most_lines = 2 * max(header.num_rows, header.num_columns) + 10_000
    barcodes = _read_names(_beside(matrix, ("barcodes.tsv",)), most_lines, 1)
    path = _beside(matrix, tuple(_COLUMNS))
    kind = next(kind for kind in _COLUMNS if kind in path.name)
    features = _read_names(path, most_lines, _COLUMNS[kind], 3)
    if 0 in (len(barcodes.rows), len(features.rows), header.num_rows, header.num_columns):
        raise InputError(
            f"{matrix}: empty matrix ({header.num_rows:,} x {header.num_columns:,}, {len(barcodes.rows):,} barcodes, "
            f"{len(features.rows):,} features); there is nothing to read"
        )
    stored = MatrixMarketFile(header, cells_are_columns=_cells_are_columns(header, features, barcodes))
    cell_ids = np.array([row[0] for row in barcodes.rows], dtype=str)
    if kind == "features.tsv" and len(features.rows[0]) >= 3:
        table = _typed_features(features.rows)
        return split_by_feature_type(str(matrix), table, stored, cell_ids)
    return [_untyped_matrix(matrix, features, kind, stored, cell_ids)]


def _typed_features(rows: list[list[str]]) -> pd.DataFrame:
    """The table that `split_by_feature_type` expects."""
    table = pd.DataFrame([row[:3] for row in rows], columns=["id", "name", "feature_type"], dtype=object)
    if len(rows[0]) >= 6:  # Cell Ranger ARC; a gene without a place has empty ones
        table["interval"] = [f"{row[3]}:{row[4]}-{row[5]}" if len(row) > 5 and row[3] else "" for row in rows]
    return table.set_axis(pd.Index(table["id"], dtype=object, name=None))


def _untyped_matrix(
    matrix: Path, features: _Names, kind: str, stored: MatrixMarketFile, cell_ids: np.ndarray
) -> CountsMatrix:
    """Of one modality, which stands nowhere in the file of features."""
    rows = features.rows
    if kind == "peaks.bed":
        ids = symbols = [f"{row[0]}:{row[1]}-{row[2]}" for row in rows]
        modality, evidence = "atac", f"the layout of Cell Ranger ATAC ({features.path.name})"
    else:
        ids, symbols = [row[0] for row in rows], [row[1] if len(row) > 1 else row[0] for row in rows]
        modality, evidence = "rna", f"the layout of Cell Ranger 2 ({features.path.name}), which holds genes only"
    if kind == "features.tsv":
        found = modality_of_features(np.array(ids, dtype=str)) or modality_of_features(np.array(symbols, dtype=str))
        modality, evidence = found or "", f"its feature names, such as {', '.join(ids[:3])}"
    # Cell Ranger 2 writes into a folder that is called like the reference.
    genome = matrix.resolve().parent.name if kind == "genes.tsv" else None
    return CountsMatrix(
        path=str(matrix),
        field="matrix",
        modality=modality,
        modality_evidence=evidence,
        feature_names=np.array(ids, dtype=str),
        feature_table=pd.DataFrame({"id": ids, "name": symbols}, index=pd.Index(ids, dtype=object)),
        cell_ids=cell_ids,
        obs=pd.DataFrame(index=pd.Index(cell_ids, dtype=object)),
        genome=genome if assembly_of_genome(genome) else None,
        stored=stored,
    )


def _cells_are_columns(header: MatrixMarketHeader, features: _Names, barcodes: _Names) -> bool:
    """True as 10x writes it; False for cells x features. Raises InputError where the sizes fit neither way."""
    sizes, written = (header.num_rows, header.num_columns), (len(features.rows), len(barcodes.rows))
    if sizes == written:
        return True
    if sizes == written[::-1]:
        return False
    hints = [
        f" Its first line ({' '.join(names.rows[0])[:40]!r}) may be a heading: delete it from {names.path.name}."
        for names, size in zip((features, barcodes), sizes, strict=True)
        if len(names.rows) == size + 1
    ]
    raise InputError(
        f"{header.path}, line {header.num_lines}: {sizes[0]:,} x {sizes[1]:,}, but {features.path.name} has "
        f"{written[0]:,} features and {barcodes.path.name} {written[1]:,} cells; the files do not belong together, or "
        f"one is incomplete: copy or download them again.{''.join(hints)}"
    )


def _prefix(matrix: Path) -> str:
    match = _MATRIX.match(matrix.name)
    return match["prefix"] if match else matrix.name.removesuffix(".gz").removesuffix(".mtx") + "_"


def _beside(matrix: Path, names: tuple[str, ...]) -> Path:
    """The file that belongs to the matrix: with its prefix, else with none; compressed or not."""
    endings = (".gz", "") if matrix.suffix == ".gz" else ("", ".gz")
    prefixes = dict.fromkeys((_prefix(matrix), ""))
    candidates = [f"{prefix}{name}{ending}" for prefix in prefixes for name in names for ending in endings]
    found = next((name for name in candidates if (matrix.parent / name).is_file()), None)
    if found is None:
        wanted = " or ".join(f"{_prefix(matrix)}{name}[.gz]" for name in names)
        there = ", ".join(sorted(path.name for path in matrix.parent.iterdir() if path != matrix)[:5])
        raise InputError(f"{matrix}: without {wanted} beside it (there is {there or 'nothing'}); copy all three files")
    return matrix.parent / found


def _read_names(path: Path, most_lines: int, num_columns: int, most_columns: int = 0) -> _Names:
    """Raises InputError for a line with fewer columns than `num_columns`, or than the first (up to `most_columns`)."""
    comment = "#" if path.name.removesuffix(".gz").endswith(".bed") else None
    rows: list[list[str]] = []
    for number, line in enumerate(name_lines(path, most_lines), start=1):
        if comment and line.startswith(comment):
            continue
        words = [word.strip().strip('"') for word in line.split("\t")]
        # The places of Cell Ranger ARC may be left out where a feature has none.
        expected = max(num_columns, min(most_columns, len(rows[0]))) if rows else num_columns
        if len(words) < expected or not all(words[:num_columns]):
            found = repr(" ".join(words)[:60]) if any(words) else "empty"
            columns = "1 column" if expected == 1 else f"{expected} columns separated by tabs"
            raise InputError(f"{path}, line {number:,}: {found}; expected {columns}. Write the file again")
        rows.append(words)
    return _Names(path, rows)


READER = Reader(is_tenx_folder, read_tenx_folder, "10x .mtx folder")
