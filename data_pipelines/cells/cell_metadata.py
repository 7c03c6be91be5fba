"""What is known of the cells: one table for all data sets, and codes for the fields that a model may be told.

Vocabularies of fields that mean the same everywhere (cell type, assay, tissue, disease) are shared by all data sets. A
technical batch or a donor is only known within its data set: batch "1" of one is not batch "1" of another, so their
categories carry the name of the data set ("pbmc/1").
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from data_pipelines.features.column_names import as_text, plain_name
from scmbert_jax.modalities import MODALITIES

CODED_FIELDS = ("cell_type", "technical_batch", "donor", "assay", "tissue", "disease")
LOCAL_FIELDS = ("technical_batch", "donor")
# uint64: what tells whether the counts of a cell are those of another (`duplicate_cells`); 0 where not measured.
KEY_COLUMNS = {name: f"cell_key_{name}" for name in MODALITIES}
_OWN_COLUMNS = ("cell_id", "dataset", *CODED_FIELDS)
# Standard name -> spellings, compared without case and punctuation; the first that is there is taken.
OBS_FIELDS: dict[str, tuple[str, ...]] = {
    "cell_type": ("cell_type", "celltype", "celltypes", "cell_types", "cell_ontology_class"),
    "technical_batch": ("technical_batch", "batch", "batch_id", "library", "library_id", "sample", "sample_id"),
    "donor": ("donor", "donor_id", "individual", "patient", "patient_id", "subject", "subject_id"),
    "assay": ("assay", "technology", "platform", "protocol"),
    "tissue": ("tissue", "organ"),
    "disease": ("disease", "diagnosis"),
    "dataset": ("dataset", "dataset_id", "study", "study_id"),
}


def recognise_obs_fields(
    columns: Iterable[str], chosen: Mapping[str, str | None] | None = None
) -> tuple[dict[str, str], list[str], list[str]]:
    """(standard name -> column, problems, notes).

    Args:
      columns: the columns of obs.
      chosen: standard name -> column, overriding recognition; None as the column: leave this field out.
    """
    columns = [str(column) for column in columns]
    called: dict[str, list[str]] = {}
    for there in dict.fromkeys(columns):
        called.setdefault(plain_name(there), []).append(there)
    fields: dict[str, str] = {}
    problems, notes = [], []
    for name in set(chosen or {}) - set(OBS_FIELDS):
        problems.append(f"obs field {name!r}: not a standard field; there is {', '.join(OBS_FIELDS)}")
    for name, spellings in OBS_FIELDS.items():
        if chosen and name in chosen:
            column = chosen[name]
            if column is None:
                continue
            if column not in columns:
                problems.append(f"obs has no column {column!r} for {name}; it has {', '.join(columns) or 'no columns'}")
            else:
                fields[name] = column
            continue
        found = [column for plain in dict.fromkeys(map(plain_name, spellings)) for column in called.get(plain, [])]
        if found:
            fields[name] = found[0]
        if len(found) > 1:
            notes.append(f"{name}: obs[{found[0]!r}] is taken; obs has {', '.join(map(repr, found[1:]))} as well")
    return fields, problems, notes


def dataset_metadata(
    name: str, cell_ids: np.ndarray, obs: pd.DataFrame, obs_fields: dict[str, str], rows: np.ndarray
) -> pd.DataFrame:
    """The table of one data set, for the cells `rows`: cell_id, dataset, standard fields, then its own columns.

    Args:
      name: of the data set.
      cell_ids: str [n].
      obs: n rows of metadata as the source has them.
      obs_fields: standard field -> column of `obs` that holds it.
      rows: int64, which cells.
    """
    table = pd.DataFrame({"cell_id": cell_ids[rows].astype(str), "dataset": name})
    for field in CODED_FIELDS:
        if field in obs_fields:
            table[field] = as_text(obs[obs_fields[field]].iloc[rows])
    for column in obs.columns:
        values = obs[column].iloc[rows]
        # a column of the source that has the name of one of ours, and is not what ours was read from, stays beside it
        kept_as = str(column)
        if kept_as in (*_OWN_COLUMNS, *KEY_COLUMNS.values()):
            if kept_as in CODED_FIELDS and obs_fields.get(kept_as) == column:
                continue
            kept_as = f"source_{kept_as}"
        numeric = pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values)
        table[kept_as] = values.to_numpy() if numeric else as_text(values)
    return table


def join_metadata(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """One below the other; a column that is of numbers, truth values and text in different tables becomes text, absent
    is null."""
    columns = list(dict.fromkeys([name for name in _OWN_COLUMNS if any(name in table for table in tables)]))
    columns += [name for table in tables for name in table.columns if name not in columns]
    columns = list(dict.fromkeys(columns))
    for name in columns:
        kinds = {_kind(table[name]) for table in tables if name in table}
        if len(kinds) > 1:
            for table in tables:
                if name in table:
                    table[name] = as_text(table[name])
    return pd.concat(tables, ignore_index=True)[columns] if len(tables) > 1 else tables[0][columns]


def _kind(values: pd.Series) -> str:
    if pd.api.types.is_bool_dtype(values):
        return "truth"
    return "number" if pd.api.types.is_numeric_dtype(values) else "text"


def code_fields(table: pd.DataFrame, dataset_names: list[str]) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """Vocabularies: field -> categories, sorted (data sets: as given); codes: field -> int32 [n], -1 where unknown."""
    vocabularies = {"dataset": list(dataset_names)}
    codes = {"dataset": table["dataset"].map({name: i for i, name in enumerate(dataset_names)}).to_numpy(np.int32)}
    for field in CODED_FIELDS:
        if field not in table:
            continue
        values = table[field]
        if field in LOCAL_FIELDS:
            values = local_categories(table, field)
        known = sorted(values.dropna().unique().tolist())
        if not known:
            continue
        vocabularies[field] = known
        code_of = {value: code for code, value in enumerate(known)}
        codes[field] = values.map(code_of).fillna(-1).to_numpy(np.int32)
    return vocabularies, codes


def local_categories(table: pd.DataFrame, field: str) -> pd.Series:
    """object [n]: "data set/value" of a field that is only known within its data set; None where it is not known."""
    return (table["dataset"] + "/" + table[field]).where(table[field].notna(), None)
