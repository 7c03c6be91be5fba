"""Counts before they are checked: one matrix per modality, and the dataset that joins matrices by cell id."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from data_pipelines.readers.reading_options import ReadingOptions
from data_pipelines.readers.stored_matrix import RowsOf, StoredMatrix
from scmbert_jax.errors import InputError


@dataclasses.dataclass
class CountsMatrix:
    """One modality of one file or object; the values stay where they are until `chunks` is called.

    Attributes:
      path: the file, or "AnnData in memory".
      field: where in it the values stand: "X", "raw.X", "layers['counts']", "mod/rna/X", "matrix" (10x).
      modality: "rna", "protein", "atac", or "" where it could not be recognised (`check_dataset` reports it).
      modality_evidence: what the modality was recognised by, or why it was not.
      feature_names: str [features], the index of `feature_table`.
      feature_table: what the file says of its features (AnnData's var).
      cell_ids: str [cells].
      obs: cell metadata, indexed by cell id; may have no columns.
      genome: what the file says of its reference ("GRCh38", "mm10"), or None.
      stored: the values.
      considered: other fields that might have held the counts -> what was seen there.
      offered: layers that look like counts where this field does not; each is read when it is named.
      statements: what its file says of itself: title, citation, licence ... (`source_statements`).
      reading: what was decided about this file.
      derivation: how the values were made, where they are not what stands in the file ("fragments", "length
        normalisation"), or which part of a store they are ("soma"); for reports and manifests.
    """

    path: str
    field: str
    modality: str
    modality_evidence: str
    feature_names: np.ndarray
    feature_table: pd.DataFrame
    cell_ids: np.ndarray
    obs: pd.DataFrame
    genome: str | None
    stored: StoredMatrix
    considered: dict[str, str] = dataclasses.field(default_factory=dict)
    offered: tuple[str, ...] = ()
    statements: dict[str, str] = dataclasses.field(default_factory=dict)
    reading: ReadingOptions = dataclasses.field(default_factory=ReadingOptions)
    derivation: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.stored.shape
        if shape != (len(self.cell_ids), len(self.feature_names)):
            raise InputError(
                f"{self.where}: {shape[0]:,} x {shape[1]:,} values for {len(self.cell_ids):,} cells x "
                f"{len(self.feature_names):,} features; the file contradicts itself, write it again"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(cells, features)."""
        return self.stored.shape

    @property
    def where(self) -> str:
        return f"{self.path}, {self.field}"

    def chunks(self, rows: int = 4096) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yields (first row, int64 or float64 [<= rows, features]): sorted indices, no stored zeros.

        Memory is bounded by the chunk (see `stored_matrix`). Raises InputError where the file turns out damaged.
        """
        yield from self.stored.chunks(rows)

    def take(self, rows: np.ndarray) -> "CountsMatrix":
        """Some of its cells; `rows`: int64, ascending. The values stay where they are."""
        stored = RowsOf(self.stored, rows)
        return dataclasses.replace(self, cell_ids=self.cell_ids[rows], obs=self.obs.iloc[rows], stored=stored)


@dataclasses.dataclass
class Dataset:
    """Matrices of different modalities over one set of cells.

    Attributes:
      name: short name for reports and for the corpus' obs table.
      matrices: one per modality; a cell may miss from any of them (mosaic).
      cell_ids: str [cells], the union in first-seen order (a MuData's own order).
      obs: metadata indexed like `cell_ids`; a MuData's global columns come before those of its modalities.
      notes: what joining had to decide; `check_dataset` turns them into warnings.
      shared_obs: the table of a MuData over all its modalities, before theirs were joined to it; else None.
      shuffle_keys: str [cells], what the place of each cell in a corpus is drawn from; None: its id.
      pseudo_pairs: how the cells of different modalities were put together, where a program did that and no assay
        (`uns["scmbert_pseudo_pairs"]`); None: cells that share an id are one cell.
    """

    name: str
    matrices: list[CountsMatrix]
    cell_ids: np.ndarray
    obs: pd.DataFrame
    notes: list[str] = dataclasses.field(default_factory=list)
    shared_obs: pd.DataFrame | None = None
    shuffle_keys: np.ndarray | None = None
    pseudo_pairs: dict[str, Any] | None = None

    @property
    def path(self) -> str:
        return "+".join(dict.fromkeys(matrix.path for matrix in self.matrices))

    def rows_of(self, matrix: CountsMatrix) -> np.ndarray:
        """int64 [cells of the matrix]: the place of each of its cells in `cell_ids` (first one, if ids repeat)."""
        index = pd.Index(self.cell_ids)
        if not index.is_unique:
            place = {cell: row for row, cell in reversed(list(enumerate(self.cell_ids.tolist())))}
            return np.array([place[cell] for cell in matrix.cell_ids.tolist()], dtype=np.int64)
        return index.get_indexer(pd.Index(matrix.cell_ids)).astype(np.int64)


def join_matrices(
    name: str,
    matrices: list[CountsMatrix],
    cell_ids: np.ndarray | None = None,
    obs: pd.DataFrame | None = None,
) -> Dataset:
    """Joins matrices by cell id. `cell_ids` and `obs` of a MuData come first; else the union in first-seen order."""
    notes: list[str] = []
    seen: dict[str, None] = dict.fromkeys(cell_ids.tolist()) if cell_ids is not None else {}
    for matrix in matrices:
        seen.update(dict.fromkeys(matrix.cell_ids.tolist()))
    # A repeated id stays repeated in a lone matrix, so that its rows and its obs still agree (the check refuses it).
    if cell_ids is None and len(matrices) == 1:
        return Dataset(name, matrices, matrices[0].cell_ids, matrices[0].obs, notes)
    union = np.array(list(seen), dtype=str)
    joined = obs.copy() if obs is not None else pd.DataFrame(index=pd.Index(union))
    joined = joined[~joined.index.duplicated()].reindex(union)
    for matrix in matrices:
        for column in matrix.obs.columns:
            values = matrix.obs[column].astype(object)
            values = values[~values.index.duplicated()]
            if column not in joined.columns:
                joined[column] = values.reindex(union)
                continue
            present = joined[column].astype(object)
            offered = values.reindex(union)
            both = present.notna() & offered.notna()
            different = int((present[both].astype(str) != offered[both].astype(str)).sum())
            if different:
                notes.append(
                    f"obs[{column!r}] of {matrix.where} differs from what was read before in {different:,} cells; "
                    "the first reading is kept"
                )
            joined[column] = present.where(present.notna(), offered)
    return Dataset(name, matrices, union, joined, notes, shared_obs=obs)
