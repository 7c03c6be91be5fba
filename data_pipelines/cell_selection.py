"""Which cells of the data sets a corpus is built from: only those of some technical batches, say, or all but those."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.cell_metadata import LOCAL_FIELDS, as_text
from data_pipelines.counts_matrix import Dataset
from data_pipelines.obs_fields import OBS_FIELDS, recognise_obs_fields
from scmbert_jax.errors import InputError

_SHOWN = 20  # values listed in a message

Values = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class CellSelection:
    """Field -> values. A cell stays when it has one of the values of every field of `only`, and none of `exclude`.

    A field is a standard one (technical_batch, cell_type, donor, ..., dataset) or a column of obs. A technical batch or
    donor may be named as its file does ("p1": in every data set) or with the data set ("pbmc/p1"). A cell of which a
    field is not known is in none of its values.
    """

    only: Values = dataclasses.field(default_factory=dict)
    exclude: Values = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.only or self.exclude)

    def to_dict(self) -> dict[str, dict[str, list[str]]]:
        return {
            "only": {field: list(values) for field, values in self.only.items()},
            "exclude": {field: list(values) for field, values in self.exclude.items()},
        }


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
    columns = [_columns(dataset, name, selection, obs_fields) for dataset, name in zip(datasets, names, strict=True)]
    for option, wanted in (("only", selection.only), ("exclude", selection.exclude)):
        for field, values in wanted.items():
            _require_known(option, field, values, datasets, columns)
    selected = []
    for dataset, known in zip(datasets, columns, strict=True):
        keep = np.ones(len(dataset.cell_ids), bool)
        for field, values in selection.only.items():
            keep &= _has_one_of(known.get(field), values, len(keep))
        for field, values in selection.exclude.items():
            keep &= ~_has_one_of(known.get(field), values, len(keep))
        if not keep.any():
            raise InputError(
                f"{dataset.path}: none of its {len(keep):,} cells is selected ({_as_options(selection)}); leave the "
                "file out, or select other cells"
            )
        selected.append(_take(dataset, keep))
    return selected


def _columns(
    dataset: Dataset, name: str, selection: CellSelection, obs_fields: Mapping[str, str | None] | None
) -> dict[str, list[np.ndarray]]:
    """field -> object [cells] arrays of str or None: the spellings a value of this field may have."""
    recognised, _, _ = recognise_obs_fields(dataset.obs.columns, obs_fields)
    columns = {}
    for field in {*selection.only, *selection.exclude}:
        if field == "dataset":
            columns[field] = [np.full(len(dataset.cell_ids), name, dtype=object)]
            continue
        column = recognised.get(field, field if field not in OBS_FIELDS else None)
        if column is None or column not in dataset.obs.columns:
            continue
        values = as_text(dataset.obs[column])
        columns[field] = [values]
        if field in LOCAL_FIELDS:
            columns[field].append(np.array([v if v is None else f"{name}/{v}" for v in values.tolist()], dtype=object))
    return columns


def _has_one_of(spellings: list[np.ndarray] | None, values: Sequence[str], num_cells: int) -> np.ndarray:
    """bool [cells]."""
    found = np.zeros(num_cells, bool)
    for array in spellings or ():
        found |= np.isin(array.astype(str), list(values)) & (array != None)  # noqa: E711 - elementwise
    return found


def _require_known(
    option: str,
    field: str,
    values: Sequence[str],
    datasets: Sequence[Dataset],
    columns: Sequence[dict[str, list[np.ndarray]]],
) -> None:
    where = ", ".join(dataset.path for dataset in datasets)
    if not values:
        raise InputError(f"{option} {field}: no value is given; write {field}=VALUE or {field}=VALUE,VALUE")
    known = [spellings[field] for spellings in columns if field in spellings]
    if not known:
        fields = sorted({str(column) for dataset in datasets for column in dataset.obs.columns})
        raise InputError(
            f"{option} {field}={','.join(values)}: no cell of {where} has the field {field!r}; obs has "
            f"{', '.join(fields[:_SHOWN]) or 'no columns'}. Name another field, or say which column it is with "
            f"--obs-field {field}=COLUMN"
        )
    there = {value for spellings in known for array in spellings for value in array.tolist() if value is not None}
    missing = [value for value in values if value not in there]
    if missing:
        plain = sorted({value for spellings in known for value in spellings[0].tolist() if value is not None})
        more = f" and {len(plain) - _SHOWN:,} more" if len(plain) > _SHOWN else ""
        raise InputError(
            f"{option} {field}={','.join(values)}: no cell of {where} has the {field} {missing[0]!r}; there is "
            f"{', '.join(plain[:_SHOWN])}{more}"
        )


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


def _as_options(selection: CellSelection) -> str:
    return " ".join(
        f"{option} {field}={','.join(values)}"
        for option, wanted in selection.to_dict().items()
        for field, values in wanted.items()
    )
