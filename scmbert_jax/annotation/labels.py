"""The types that people gave their cells: from a column of obs, or from a table beside the file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from data_pipelines.cells.cell_metadata import recognise_obs_fields
from data_pipelines.features.column_names import known_text
from data_pipelines.readers.dataset import Dataset
from scmbert_jax.errors import InputError

Array = np.ndarray

# Words by which people say that a cell has no type; to learn them as types would be to call cells so.
NO_TYPE = frozenset(
    {"unknown", "unassigned", "unlabelled", "unlabeled", "not assigned", "not available", "unclassified"}
)


def read_labels(
    dataset: Dataset, label_key: str | None = None, file: Path | None = None, say: Callable[[str], None] | None = None
) -> Array:
    """str [n], "" for a cell without a label: missing, or one of `NO_TYPE`.

    Args:
      label_key: column of obs; None: what is recognised as cell types.
      file: a table instead (`labels_of_file`).
      say: told of labels that were left out.

    Raises `InputError` where there is no such column, or no label in it.
    """
    if file is not None:
        labels, where = labels_of_file(file, dataset), str(file)
    else:
        column = _column(dataset, "cell_type", label_key, "--label-key")
        labels, where = known_text(dataset.obs[column]), f"{dataset.path}: obs[{column!r}]"
    without = np.isin(np.char.lower(labels), list(NO_TYPE))
    if without.any() and say is not None:
        words = ", ".join(sorted(set(labels[without].tolist())))
        say(f"{where}: {int(without.sum()):,} cells labelled {words} count as not labelled")
    labels = np.where(without, "", labels)
    if not (labels != "").any():
        raise InputError(f"{where}: no cell has a label; name another column (--label-key) or table (--labels).")
    return labels


def read_donors(dataset: Dataset, donor_key: str | None = None) -> Array:
    """str [n], "" where unknown. `donor_key`: column of obs; None: what is recognised as donors, if anything is.

    Raises `InputError` where there is no such column."""
    columns, _, _ = recognise_obs_fields(dataset.obs.columns)
    if donor_key is None and "donor" not in columns:
        return np.full(len(dataset.cell_ids), "")
    return known_text(dataset.obs[_column(dataset, "donor", donor_key, "--donor-key")])


def labels_of_file(file: Path, dataset: Dataset) -> Array:
    """str [n] of a .csv or .tsv: the cell id, then its label; other columns are not read, nor a first line of names.

    Raises `InputError`: not such a table, labels of other cells, or two labels of one cell.
    """
    try:
        table = pd.read_csv(
            file,
            sep="\t" if file.suffix == ".tsv" else ",",
            header=None,
            dtype=str,
            keep_default_na=False,
            usecols=[0, 1],
        )
    except (OSError, ValueError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{file}: expected lines of cell id,label ({reason}).") from error
    ids = pd.Index(dataset.cell_ids.astype(str))
    if len(table) and table.iloc[0, 0] not in ids:
        table = table.iloc[1:]
    table.columns = ["cell", "label"]
    table = table.drop_duplicates()
    twice = table["cell"][table["cell"].duplicated()]
    if len(twice):
        raise InputError(f"{file}: {len(twice):,} cells have two labels, such as {twice.iloc[0]}; leave one out.")
    known = table["cell"].isin(ids)
    if not known.any():
        example = table["cell"].iloc[0] if len(table) else "nothing"
        raise InputError(
            f"{file}: none of its {len(table):,} cells is in {dataset.path} (it has {example}; the file has {ids[0]}). "
            "The first column must hold the cell ids of that file."
        )
    found = table[known].set_index("cell")["label"].reindex(ids).fillna("")
    return known_text(found)


def check_obs_column(dataset: Dataset, column: str, option: str) -> None:
    """Raises `InputError` where obs has no such column; names the option that asked for it."""
    if column not in dataset.obs.columns:
        there = ", ".join(map(str, dataset.obs.columns)) or "no columns"
        raise InputError(f"{dataset.path}: obs has no column {column!r} ({option}); it has {there}.")


def _column(dataset: Dataset, field: str, key: str | None, option: str) -> str:
    if key is not None:
        check_obs_column(dataset, key, option)
        return key
    columns, _, _ = recognise_obs_fields(dataset.obs.columns)
    if field not in columns:
        there = ", ".join(map(str, dataset.obs.columns)) or "no columns"
        raise InputError(f"{dataset.path}: no column of obs is known to hold cell types ({there}); name it: {option}.")
    return columns[field]
