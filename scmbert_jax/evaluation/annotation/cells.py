"""The labelled cells of one file, or of two with the same features, as the suite takes them."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from data_pipelines.checks.shared_counts import CellSet, Keys, comparable_keys
from data_pipelines.readers.dataset import Dataset
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.annotation.splits import LabelledCells
from scmbert_jax.evaluation.annotation.task import CellValues
from scmbert_jax.evaluation.data.measured_cells import MeasuredCells, read_measured_cells

Array = np.ndarray

_FEWEST_SHARED = 50  # features of two files


@dataclass(frozen=True)
class SuiteCells:
    """Cells with a label that were measured in all chosen modalities, n of them.

    Attributes:
      values: their counts. labelled: their classes and groups, apart, so that no method is handed them.
      cell_ids: str [n]; keys: modality -> uint64 [n], equal for identical cells.
      datasets: the open files. rows: int64 [n] of its own file; file: int64 [n], which one.
      identities: of all cells of each file.
      notes: what was left out, as sentences.
    """

    values: CellValues
    labelled: LabelledCells
    cell_ids: Array
    keys: Keys
    datasets: tuple[Dataset, ...]
    rows: Array
    file: Array
    identities: tuple[CellSet, ...]
    notes: tuple[str, ...]

    @property
    def path(self) -> str:
        return self.labelled.path


def read_suite_cells(
    data: Sequence[str],
    *,
    modalities: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
    organism: str | None = None,
    assembly: str | None = None,
    obs_fields: Mapping[str, str | None] | None = None,
) -> SuiteCells:
    """Reads the files into memory as sparse counts.

    Args:
      data: one file, or two to fit on one and predict the other.
      modalities: to be read; by default all that cells have. Cells that lack one are left out.
      renamed: label -> the one to take in its place; "" leaves its cells out.
      organism, assembly, obs_fields: as in `check_dataset`.

    Raises:
      InputError: a file cannot be used, has no labels, or shares too few features or labels with the other.
      ConfigError: a modality, or a label to rename, that there is not.
    """
    datasets = tuple(open_dataset(path) for path in data)
    read = [
        read_measured_cells(dataset, organism=organism, assembly=assembly, obs_fields=obs_fields)
        for dataset in datasets
    ]
    names = _modalities(read, modalities)
    labels = _labels(read, renamed or {})
    chosen, notes = [], []
    for cells, own in zip(read, labels, strict=True):
        measured = cells.paired(*names)
        chosen.append(np.flatnonzero((own != "") & measured))
        if without := int((own == "").sum()):
            notes.append(f"{cells.name}: {without:,} cells without a label were left out.")
        if lacking := int(((own != "") & ~measured).sum()):
            notes.append(f"{cells.name}: {lacking:,} cells without counts of {' and '.join(names)} were left out.")
        if not chosen[-1].size:
            raise InputError(f"{cells.path}: no cell has a label and counts of {' and '.join(names)}.")
    counts, said = _counts(read, names, chosen)
    classes, codes = np.unique(
        np.concatenate([own[rows] for own, rows in zip(labels, chosen, strict=True)]), return_inverse=True
    )
    if len(read) > 1:
        notes += _labels_of_one_file(read, [own[rows] for own, rows in zip(labels, chosen, strict=True)])
    file = np.repeat(np.arange(len(read)), [rows.size for rows in chosen])
    names_of_files = _names_of_files(read)
    groups = {
        "donor": _joined(_local(names_of_files, [cells.donors for cells in read]), chosen),
        "technical_batch": _joined(_local(names_of_files, [cells.technical_batches for cells in read]), chosen),
        "data_set": names_of_files[file] if len(read) > 1 else np.full(file.size, ""),
    }
    identities = tuple(cells.identity for cells in read if cells.identity is not None)
    keys = comparable_keys(identities)
    return SuiteCells(
        CellValues(counts),
        LabelledCells(" and ".join(cells.path for cells in read), codes, classes, groups),
        _joined([cells.cell_ids for cells in read], chosen),
        {
            name: np.concatenate([of[name][rows] for of, rows in zip(keys, chosen, strict=True)])
            for name in names
            if all(name in of for of in keys)
        },
        datasets,
        np.concatenate(chosen),
        file,
        identities,
        (*notes, *said),
    )


def read_label_names(path: Path) -> dict[str, str]:
    """label -> name from a table (.csv, .tsv) with columns label and name; an empty name leaves the label's cells out.

    Raises `InputError` for no such file or columns, or a label with two names.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: the table of labels cannot be read ({error}).") from error
    if not rows or not {"label", "name"} <= set(rows[0]):
        raise InputError(
            f"{path}: expected columns label and name; found {', '.join(map(str, rows[0] if rows else ()))}."
        )
    found: dict[str, str] = {}
    for row in rows:
        label, name = ((row[column] or "").strip() for column in ("label", "name"))
        if found.setdefault(label, name) != name:
            raise InputError(f"{path}: label {label!r} has two names, {found[label]!r} and {name!r}.")
    return found


def _modalities(read: Sequence[MeasuredCells], wanted: Sequence[str]) -> list[str]:
    shared = [name for name in read[0].counts if all(name in cells.counts for cells in read)]
    if unknown := [name for name in wanted if name not in shared]:
        raise ConfigError(f"--modalities {', '.join(unknown)}: the data has {', '.join(shared) or 'none in common'}.")
    if not shared:
        raise InputError(f"{' and '.join(cells.path for cells in read)}: have no modality in common.")
    return list(wanted) or shared


def _labels(read: Sequence[MeasuredCells], renamed: Mapping[str, str]) -> list[Array]:
    for cells in read:
        if not (cells.cell_types != "").any():
            raise InputError(
                f"{cells.path}: no cell has a type. Say which column holds them: --obs-field cell_type=COLUMN"
            )
    there = {label for cells in read for label in cells.cell_types.tolist()}
    if unknown := sorted(set(renamed) - there):
        raise ConfigError(f"--label-names: no cell has the label {', '.join(map(repr, unknown[:5]))}.")
    return [np.array([renamed.get(label, label) for label in cells.cell_types.tolist()]) for cells in read]


def _counts(
    read: Sequence[MeasuredCells], names: Sequence[str], chosen: Sequence[Array]
) -> tuple[dict[str, sp.csr_matrix], list[str]]:
    """Counts of the chosen cells; of two files, of the features that both name (columns of one feature summed)."""
    if len(read) == 1:
        return {name: read[0].counts[name][chosen[0]] for name in names}, []
    found, said = {}, []
    for name in names:
        first, second = (cells.features[name].ids for cells in read)
        shared = np.setdiff1d(np.intersect1d(first, second), [""])
        if shared.size < _FEWEST_SHARED:
            raise InputError(
                f"{' and '.join(cells.path for cells in read)}: share {shared.size} {name} features; "
                f"{_FEWEST_SHARED} are needed to predict one from the other."
            )
        found[name] = sp.vstack(
            [
                cells.counts[name][rows] @ _onto(cells.features[name].ids, shared)
                for cells, rows in zip(read, chosen, strict=True)
            ],
            format="csr",
            dtype=np.int32,
        )
        said.append(f"The files share {shared.size:,} {name} features; every method reads these.")
    return found, said


def _onto(ids: Array, shared: Array) -> sp.csr_matrix:
    """int32 [columns, shared]: 1 where a column is of the feature."""
    place = np.minimum(np.searchsorted(shared, ids), shared.size - 1)
    there = np.flatnonzero(shared[place] == ids)
    return sp.csr_matrix((np.ones(there.size, np.int32), (there, place[there])), (ids.size, shared.size))


def _labels_of_one_file(read: Sequence[MeasuredCells], labels: Sequence[Array]) -> list[str]:
    first, second = (set(own.tolist()) for own in labels)
    if not first & second:
        there = " and ".join(", ".join(sorted(names)[:4]) for names in (first, second))
        raise InputError(
            f"{' and '.join(cells.path for cells in read)}: have no label in common ({there} ...). Give a table of "
            "names: --label-names TABLE"
        )
    return [
        f"{cells.name} alone has the labels {', '.join(sorted(alone))}; the other file teaches nothing of them."
        for cells, alone in zip(read, (first - second, second - first), strict=True)
        if alone
    ]


def _names_of_files(read: Sequence[MeasuredCells]) -> Array:
    names = [cells.name for cells in read]
    return np.array(names if len(set(names)) == len(names) else [cells.path for cells in read])


def _local(files: Array, columns: Sequence[Array]) -> list[Array]:
    """Donor "1" of one file is not donor "1" of another."""
    if len(columns) == 1:
        return list(columns)
    return [
        np.where(column == "", "", np.char.add(f"{name}/", column)) for name, column in zip(files, columns, strict=True)
    ]


def _joined(columns: Sequence[Array], chosen: Sequence[Array]) -> Array:
    return np.concatenate([column[rows] for column, rows in zip(columns, chosen, strict=True)])
