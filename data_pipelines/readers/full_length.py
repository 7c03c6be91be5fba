"""Assays that read whole transcripts: a long gene gives more reads than a short one from as many molecules.

Counts of such cells are no molecules. They are refused, or, by choice, normalised by length: with the count x_g and the
length L_g of each gene of a cell,

    y_g = x_g / L_g          z_g = y_g * sum(x) / sum(y)          count_g = max(1, round(z_g)) where x_g > 0

that is TPM (Wagner, Kin & Lynch 2012) at the cell's own total instead of a million, as integers again. A gene with
reads keeps at least one count: what was seen is no zero. Cells of other assays in the same file stay as they are.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from data_pipelines.cells.cell_metadata import recognise_obs_fields
from data_pipelines.features.column_names import as_text, columns_called, plain_name
from data_pipelines.features.gene_names import ERCC, unversioned
from data_pipelines.features.modality_names import name_sources
from data_pipelines.readers.counts_field import describe_values
from data_pipelines.readers.dataset import CountsMatrix, Dataset
from data_pipelines.readers.stored_matrix import StoredMatrix
from scmbert_jax.errors import InputError

# Label -> EFO id: those whose X layer "normalized" CELLxGENE Census divides by length, without the three that read one
# end of a transcript and count molecules (SCRB-seq, mcSCRB-seq, Smart-3Seq); Smart-seq3 has molecules for a part only.
FULL_LENGTH_ASSAYS = {
    "FL-cDNA": "EFO:0003755",
    "full length single cell RNA sequencing": "EFO:0008441",
    "full length single nucleus RNA sequencing": "EFO:0009810",
    "FRISCR": "EFO:0008747",
    "Hi-SCL": "EFO:0008763",
    "MATQ-seq": "EFO:0008797",
    "Quartz-seq": "EFO:0008877",
    "Smart-seq": "EFO:0008930",
    "Smart-seq2": "EFO:0008931",
    "SUPeR-seq": "EFO:0008956",
    "G&T-seq": "EFO:0009999",
    "scM&T-seq": "EFO:0010006",
    "Fluidigm C1-based library preparation": "EFO:0010058",
    "Fluidigm C1-based SMARTer library preparation": "EFO:0010058",
    "Smart-like": "EFO:0010184",
    "TruSeq": "EFO:0022396",
    "Smart-seq3": "EFO:0022488",
    "STORM-seq": "EFO:0022839",
    "SCOPE-chip": "EFO:0030031",
    "mCT-seq": "EFO:0030060",
    "Smart-seq v4": "EFO:0700016",
}
_LENGTH_COLUMNS = ("feature_length", "gene_length", "exonic_length")


_KNOWN = {plain_name(name) for pair in FULL_LENGTH_ASSAYS.items() for name in pair}


def is_full_length(assay: str) -> bool:
    """By label or EFO id, whatever its spelling: "Smart-seq2", "smartseq2", "EFO:0008931"."""
    return plain_name(assay) in _KNOWN


def full_length_cells(obs: pd.DataFrame, obs_fields: Mapping[str, str | None] | None = None) -> np.ndarray:
    """object [cells]: the assay where it reads whole transcripts, else None."""
    column = recognise_obs_fields(obs.columns, obs_fields)[0].get("assay")
    if column is None:
        return np.full(len(obs), None, dtype=object)
    assays = as_text(obs[column])
    full = {assay for assay in set(assays.tolist()) if assay is not None and is_full_length(assay)}
    return np.array([assay if assay in full else None for assay in assays.tolist()], dtype=object)


def count_assays(assays: np.ndarray) -> dict[str, int]:
    """Assay -> cells, for those of `full_length_cells`."""
    names, counts = np.unique(assays[assays != None].astype(str), return_counts=True)  # noqa: E711 - elementwise
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def full_length_problem(
    dataset: Dataset, matrix: CountsMatrix, obs_fields: Mapping[str, str | None] | None
) -> str | None:
    """Why a matrix of RNA is refused, or None: it has no cells of such assays, or they are normalised."""
    if "length normalisation" in matrix.derivation:
        return None
    assays = count_assays(full_length_cells(dataset.obs, obs_fields)[dataset.rows_of(matrix)])
    if not assays:
        return None
    listed = ", ".join(f"{count:,} cells of {assay}" for assay, count in assays.items())
    return (
        f"{matrix.where}: {listed}: such an assay reads whole transcripts, so its counts grow with the length of the "
        "gene and are no molecules. Choose --full-length length-normalise (needs gene lengths: var['feature_length'], "
        "or --gene-lengths FILE; for one file FILE?full_length=length-normalise), leave the cells out (corpus build "
        "--exclude assay=...), or, if the counts are of molecules after all, take the assay out with --obs-field assay="
    )


def length_normalised(dataset: Dataset, obs_fields: Mapping[str, str | None] | None = None) -> Dataset:
    """The data set with the RNA of its full-length cells normalised, where its reading options ask for that.

    Raises InputError where gene lengths are needed and not there, or not for every gene.
    """
    matrices = []
    for matrix in dataset.matrices:
        assays = full_length_cells(dataset.obs, obs_fields)[dataset.rows_of(matrix)]
        counted = count_assays(assays)
        if matrix.modality == "rna" and matrix.reading.full_length == "length-normalise" and counted:
            lengths, source = _gene_lengths(matrix)
            done = {"assays": counted, "cells": sum(counted.values()), "lengths_from": source}
            stored = LengthNormalised(matrix.stored, lengths, assays != None, matrix.where)  # noqa: E711 - elementwise
            derivation = {**matrix.derivation, "length normalisation": done}
            matrix = dataclasses.replace(matrix, stored=stored, derivation=derivation)
        matrices.append(matrix)
    return dataclasses.replace(dataset, matrices=matrices)


class LengthNormalised:
    """A stored matrix with some rows normalised by the length of their genes.

    Args:
      lengths: float64 [features], base pairs; NaN for what is no gene (spike-ins), whose counts stay as they are.
      rows: bool [cells].
    """

    def __init__(self, matrix: StoredMatrix, lengths: np.ndarray, rows: np.ndarray, where: str):
        self.shape, self.any_row = matrix.shape, getattr(matrix, "any_row", False)
        self.dtype = matrix.dtype
        self._matrix, self._lengths, self._rows, self._where = matrix, lengths, rows, where

    def chunks(self, rows: int, *between: int) -> Iterator[tuple[int, sp.csr_matrix]]:
        """`between`: (first, last) cell, where the matrix can be read from any."""
        for first, part in self._matrix.chunks(rows, *between):
            yield first, self._normalised(part, self._rows[first : first + part.shape[0]])

    def _normalised(self, part: sp.csr_matrix, chosen: np.ndarray) -> sp.csr_matrix:
        row = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        length = self._lengths[part.indices]
        treated = chosen[row] & np.isfinite(length)
        if not treated.any():
            return part
        problem = describe_values(part.data)
        if problem:  # afterwards they would look like counts
            raise InputError(
                f"{self._where}: {problem}; raw counts of reads are needed before they are normalised by length"
            )
        x = np.where(treated, part.data, 0).astype(np.float64)
        y = np.divide(x, length, out=np.zeros_like(x), where=treated)
        total, rate = (np.bincount(row, weights=values, minlength=part.shape[0]) for values in (x, y))
        z = y * (total / np.where(rate > 0, rate, 1.0))[row]
        data = np.where(treated, np.maximum(np.rint(z), 1), part.data)
        return sp.csr_matrix((data, part.indices, part.indptr), part.shape)


def _gene_lengths(matrix: CountsMatrix) -> tuple[np.ndarray, str]:
    """(float64 [features], where from)."""
    names = matrix.feature_names
    if matrix.reading.gene_lengths is not None:
        path = Path(matrix.reading.gene_lengths)
        lengths, source = _lengths_of_file(path, matrix), path.name
    else:
        found = next(columns_called(matrix.feature_table, [plain_name(name) for name in _LENGTH_COLUMNS]), None)
        if found is None:
            raise InputError(
                f"{matrix.where}: no lengths of genes: var has no {' or '.join(_LENGTH_COLUMNS)}, and the tables of "
                "this package hold positions only, whose introns are not read. State --gene-lengths FILE (columns "
                "gene and length, the base pairs of its exons), made from the annotation the reads were counted on"
            )
        lengths = pd.to_numeric(found[1], errors="coerce").to_numpy(np.float64)
        source = f"var[{found[0]!r}]"
    spike_in = np.array([bool(ERCC.match(name)) for name in names.tolist()], dtype=bool)
    lacking = ~(lengths > 0) & ~spike_in
    if lacking.any():
        raise InputError(
            f"{matrix.where}: {np.count_nonzero(lacking):,} of {len(names):,} genes have no length in {source}, e.g. "
            f"{', '.join(names[lacking][:3].tolist())}; every gene needs one, or its counts would weigh by its "
            "length. Add them, or leave these genes out of the file"
        )
    return np.where(spike_in, np.nan, lengths), source


def _lengths_of_file(path: Path, matrix: CountsMatrix) -> np.ndarray:
    """float64 [features], NaN where the table lacks the gene; names as the column of var has them that fits best."""
    separator = "," if path.name.removesuffix(".gz").endswith(".csv") else "\t"
    try:
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except (OSError, EOFError, ValueError, pd.errors.ParserError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected a table with the columns gene and length"
        ) from error
    missing = [column for column in ("gene", "length") if column not in table.columns]
    if missing:
        found = ", ".join(map(str, table.columns[:6]))
        raise InputError(f"{path}, line 1: no column {' and '.join(missing)}; there is {found}. Tabs (.csv: commas)")
    length = pd.to_numeric(table["length"], errors="coerce").to_numpy(np.float64)
    if (bad := ~(length > 0)).any():
        place = int(np.argmax(bad))
        raise InputError(f"{path}, line {place + 2:,}: length {table['length'].iloc[place]!r}; expected base pairs > 0")
    of_gene: dict[str, float] = {}
    for place, (gene, value) in enumerate(zip(table["gene"].map(unversioned), length.tolist(), strict=True)):
        if of_gene.setdefault(gene, value) != value:
            raise InputError(f"{path}, line {place + 2:,}: {gene} has another length already; give one for each gene")
    sources = name_sources(matrix.feature_table, matrix.feature_names)
    found_in = [
        np.array([of_gene.get(unversioned(name), np.nan) for name in names.tolist()]) for names in sources.values()
    ]
    return max(found_in, key=lambda lengths: int(np.count_nonzero(np.isfinite(lengths))))
