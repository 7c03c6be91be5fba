"""Standard cell metadata (cell type, technical batch, donor ...) and the columns people keep them in."""

from collections.abc import Iterable, Mapping

from data_pipelines.features.column_names import plain_name

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
