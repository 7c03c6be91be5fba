"""Which technical batch each cell is of, and what stands against correcting for it."""

from collections.abc import Sequence

import numpy as np

from data_pipelines.features.column_names import known_text
from data_pipelines.readers.dataset import Dataset
from scmbert_jax.errors import InputError

Array = np.ndarray

_NAMED = 5  # that a message lists


def read_batches(dataset: Dataset, batch_key: str) -> Array:
    """str [n], the technical batch of every cell.

    Raises `InputError` where obs has no such column, or one that cannot be corrected for: some cells have no value, all
    have the same, or nearly every cell has its own.
    """
    _require_column(dataset, batch_key, "--batch-key")
    batches = known_text(dataset.obs[batch_key])
    where = f"{dataset.path}: obs[{batch_key!r}]"
    missing = int((batches == "").sum())
    if missing:
        raise InputError(
            f"{where}: {missing:,} of {len(batches):,} cells have no batch; fill them in, or leave these cells out."
        )
    names, numbers = np.unique(batches, return_counts=True)
    if len(names) < 2:
        raise InputError(
            f"{where}: all cells are of {str(names[0])!r}; there is no difference between batches to take off."
        )
    if len(names) > len(batches) / 2:
        raise InputError(
            f"{where}: {len(names):,} batches of {len(batches):,} cells; a column of batches has few values. Name the "
            "one that says in which experiment, library or donor a cell was measured."
        )
    alone = names[numbers < 2]
    if len(alone):
        raise InputError(f"{where}: one cell alone is of {_listed(alone)}; leave it out, or join such batches.")
    return batches


def read_labels_beside(dataset: Dataset, label_key: str) -> Array:
    """str [n], "" where unknown. Raises `InputError` where obs has no such column, or nothing in it."""
    _require_column(dataset, label_key, "--label-key")
    labels = known_text(dataset.obs[label_key])
    if not (labels != "").any():
        raise InputError(f"{dataset.path}: obs[{label_key!r}]: no cell has a label.")
    return labels


def confounded(labels: Array, batches: Array) -> str | None:
    """A sentence where some labels, str [n], are in one batch only; None where each is in two or more."""
    known = labels != ""
    names = np.unique(labels[known])
    alone = [name for name in names if len(np.unique(batches[labels == name])) == 1]
    if not alone:
        return None
    return (
        f"{len(alone)} of {len(names)} labels are in one batch only ({_listed(alone)}): what sets such cells apart "
        "cannot be told from a difference between batches, and may be taken off with it"
    )


def _require_column(dataset: Dataset, column: str, option: str) -> None:
    if column not in dataset.obs.columns:
        there = ", ".join(map(str, dataset.obs.columns)) or "no columns"
        raise InputError(f"{dataset.path}: obs has no column {column!r} ({option}); it has {there}.")


def _listed(names: Sequence[str] | Array) -> str:
    return ", ".join(map(str, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
