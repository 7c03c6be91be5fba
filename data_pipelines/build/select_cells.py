"""The selected cells of files, when a corpus is built of them."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from data_pipelines.cells.cell_metadata import OBS_FIELDS, recognise_obs_fields
from data_pipelines.cells.cell_selection import CellSelection, kept_rows
from data_pipelines.readers.dataset import Dataset
from scmbert_jax.errors import InputError


def select_cells(
    datasets: Sequence[Dataset],
    names: Sequence[str],
    selection: CellSelection,
    obs_fields: Mapping[str, str | None] | None = None,
) -> list[Dataset]:
    """The data sets with the selected cells only; a modality that none of them has is left out, with a note.

    Args:
      datasets: as opened, before the check.
      names: of the data sets in the corpus.
      obs_fields: standard field -> column of obs, overriding what is recognised.

    Raises:
      InputError: a field or a value that no cell of any data set has, or a data set of which nothing is left.
    """
    tables = [_table_of(dataset, name, selection, obs_fields) for dataset, name in zip(datasets, names, strict=True)]
    columns = sorted({str(column) for dataset in datasets for column in dataset.obs.columns})
    kept = kept_rows(tables, selection, ", ".join(dataset.path for dataset in datasets), columns, in_files=True)
    for dataset, keep in zip(datasets, kept, strict=True):
        if not keep.any():
            raise InputError(
                f"{dataset.path}: none of its {len(keep):,} cells is selected ({selection}); leave the file out, or "
                "select other cells"
            )
    return [_take(dataset, keep) for dataset, keep in zip(datasets, kept, strict=True)]


def _table_of(
    dataset: Dataset, name: str, selection: CellSelection, obs_fields: Mapping[str, str | None] | None
) -> pd.DataFrame:
    """The fields that are asked for and that this data set has, called and placed as in the obs table of a corpus."""
    recognised, _, _ = recognise_obs_fields(dataset.obs.columns, obs_fields)
    table = {"dataset": pd.Categorical.from_codes(np.zeros(len(dataset.cell_ids), np.int8), [name])}
    for field in selection.fields:
        column = recognised.get(field, field if field not in OBS_FIELDS else None)
        if field != "dataset" and column in dataset.obs.columns:
            table[field] = dataset.obs[column].array
    return pd.DataFrame(table)


def _take(dataset: Dataset, keep: np.ndarray) -> Dataset:
    matrices, notes = [], list(dataset.notes)
    for matrix in dataset.matrices:
        place = dataset.rows_of(matrix) if matrix.modality else np.zeros(0, np.int64)
        rows = np.flatnonzero((place >= 0) & keep[place])
        if len(rows) or not matrix.modality:  # of unknown modality: the check says what to do
            matrices.append(matrix.take(rows) if matrix.modality else matrix)
        else:
            notes.append(f"{matrix.where}: none of the selected cells has {matrix.modality}; it is left out")
    return dataclasses.replace(
        dataset,
        matrices=matrices,
        cell_ids=dataset.cell_ids[keep],
        obs=dataset.obs[keep],
        notes=notes,
        shuffle_keys=None if dataset.shuffle_keys is None else dataset.shuffle_keys[keep],
    )
