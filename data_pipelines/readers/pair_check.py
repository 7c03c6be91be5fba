"""Are cells that share an id one cell? What files that are to be paired, or are not, must have in common.

With `--unpaired` modalities are taken as cells of their own (`separate_modalities`): no id of one is compared with
another's. The proof that nothing of the pairing is left: which cells come first in the corpus is drawn from the
modality and the row of its matrix, metadata come from the modality's own obs, and what one modality lacks drops
nothing of another. So other barcodes on the same rows give the same blocks, byte for byte.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from data_pipelines.cells.cell_metadata import recognise_obs_fields
from data_pipelines.features.column_names import as_text
from data_pipelines.readers.dataset import CountsMatrix, Dataset
from scmbert_jax.errors import InputError
from scmbert_jax.modalities import MODALITIES

# Fraction of the smaller file's cells that files of the same cells have in common, at least: a mosaic may pair few,
# while bare 10x barcodes of unrelated experiments collide in far fewer.
LEAST_SHARED = 0.1

# One cell has one of each. A cell type is what somebody called it, and may differ between assays.
_IDENTITY_FIELDS = ("donor", "technical_batch")


def require_shared_cells(text: str, datasets: Sequence[Dataset]) -> None:
    """Raises InputError when fewer than a tenth of the cells of the smallest file occur in all of the files."""
    ids = [set(dataset.cell_ids.tolist()) for dataset in datasets]
    smallest = min(len(found) for found in ids)
    shared = len(set.intersection(*ids))
    if shared >= LEAST_SHARED * smallest and shared:
        return
    listed = "; ".join(f"{d.path}: {', '.join(d.cell_ids[:2].tolist())}" for d in datasets)
    bare = len(set.intersection(*({cell.removesuffix("-1") for cell in found} for found in ids)))
    if bare > max(shared, LEAST_SHARED * smallest):
        advice = (
            f'Without the ending "-1" {bare:,} ids would be the same: take it off in every file '
            '(adata.obs_names = adata.obs_names.str.removesuffix("-1"))'
        )
    else:
        advice = "Make the names of the same cells equal, or give files of other cells as separate data sets"
    how_many = "no cell id occurs" if not shared else f"only {shared:,} of {smallest:,} cell ids occur"
    raise InputError(f"{text}: {how_many} in all of the files ({listed}); `+` pairs by obs names. {advice}")


def refuse_unpaired_files(datasets: Sequence[Dataset]) -> None:
    """Raises InputError where two data sets hold the same cells in different modalities: they should be paired.

    As separate data sets those cells would count twice, each with a modality "not measured". A tenth of the smaller
    set is the limit.
    """
    for place, first in enumerate(datasets):
        for second in datasets[place + 1 :]:
            modalities = [{matrix.modality for matrix in dataset.matrices} for dataset in (first, second)]
            if modalities[0] & modalities[1]:
                continue
            shared = set(first.cell_ids.tolist()) & set(second.cell_ids.tolist())
            if len(shared) > LEAST_SHARED * min(len(first.cell_ids), len(second.cell_ids)):
                kinds = [", ".join(sorted(kind)) or "unknown" for kind in modalities]
                raise InputError(
                    f"{first.path} ({kinds[0]}) and {second.path} ({kinds[1]}) share {len(shared):,} cell ids: they "
                    f"look like one data set. Write {first.path}+{second.path} to pair them, make the cell ids "
                    "differ if they are different cells, or take every modality by itself with --unpaired"
                )


def pair_problems(matrices: Sequence[CountsMatrix], obs_fields: Mapping[str, str | None] | None = None) -> list[str]:
    """One message per two matrices and field in which cells of the same id come from different donors or batches.

    Args:
      matrices: of one data set, each with the obs of its own file or modality.
      obs_fields: standard field -> column of obs, overriding what is recognised; None as the column: not compared.
    """
    problems = []
    for place, first in enumerate(matrices):
        for second in matrices[place + 1 :]:
            if first.obs is second.obs:  # two kinds of features of one matrix
                continue
            for field in _IDENTITY_FIELDS:
                problems += _differences(first, second, field, obs_fields)
    return problems


def _differences(
    first: CountsMatrix, second: CountsMatrix, field: str, obs_fields: Mapping[str, str | None] | None
) -> list[str]:
    chosen = {field: obs_fields[field]} if obs_fields and field in obs_fields else None
    column_of = [recognise_obs_fields(matrix.obs.columns, chosen)[0] for matrix in (first, second)]
    if any(field not in columns for columns in column_of):
        return []
    columns = [columns[field] for columns in column_of]
    known = [_by_cell(matrix, column) for matrix, column in zip((first, second), columns, strict=True)]
    both = pd.concat(known, axis=1, join="inner", keys=["first", "second"]).dropna()
    different = both[both["first"] != both["second"]]
    if different.empty:
        return []
    cell, (here, there) = different.index[0], different.iloc[0]
    return [
        f"{second.where}: {len(different):,} of {len(both):,} cells that share an id with {first.where} have another "
        f"{field}: {cell!r} has {there!r} (obs[{columns[1]!r}]) here and {here!r} (obs[{columns[0]!r}]) there. Cells "
        f"of different origin are no pairs: put the {field} in front of the cell ids. If both mean the same, write it "
        f"the same, or leave the field out with --obs-field {field}="
    ]


def _by_cell(matrix: CountsMatrix, column: str) -> pd.Series:
    """object: str or None by cell id; a repeated id, which the check reports, counts once."""
    values = pd.Series(as_text(matrix.obs[column]), index=pd.Index(matrix.cell_ids, dtype=object), dtype=object)
    return values[~values.index.duplicated()]


def separate_modalities(name: str, datasets: Sequence[Dataset]) -> Dataset:
    """One data set in which every cell has one modality; the ids are those of the files and ":rna", ":protein", ...

    Args:
      name: of the result.
      datasets: the files of one data set. What they were joined to is not looked at: not their `cell_ids`, `obs` or
        `notes`.
    """
    matrices: list[CountsMatrix] = []
    tables: list[pd.DataFrame] = []
    keys: list[np.ndarray] = []
    names = {part for dataset in datasets for matrix in dataset.matrices for part in _names_of(matrix)}
    for dataset in datasets:
        for matrix in dataset.matrices:
            suffix = matrix.modality or "unknown"
            ids = np.array([f"{cell}:{suffix}" for cell in matrix.cell_ids.tolist()], dtype=str)
            table = _own_metadata(matrix, dataset.shared_obs, names).set_axis(pd.Index(ids, dtype=object))
            matrices.append(dataclasses.replace(matrix, cell_ids=ids, obs=table))
            if matrix.modality in MODALITIES:  # others are not read, and are no cells
                tables.append(table)
                keys.append(np.array([f"{suffix}:{row}" for row in range(len(ids))], dtype=str))
    obs = pd.concat(tables) if tables else pd.DataFrame()
    shuffle_keys = np.concatenate(keys) if keys else np.zeros(0, dtype=str)
    return Dataset(name, matrices, np.asarray(obs.index, dtype=str), obs, shuffle_keys=shuffle_keys)


def _own_metadata(matrix: CountsMatrix, shared: pd.DataFrame | None, names: set[str]) -> pd.DataFrame:
    """obs of the matrix; what it lacks, from the table that its MuData keeps over all modalities.

    Columns there named "rna:..." are copies of another modality's obs, and would tell a protein cell of its partner.
    """
    own = matrix.obs
    if shared is None:
        return own
    lacking = [column for column in shared.columns if column not in own and str(column).split(":")[0] not in names]
    once = shared.loc[~shared.index.duplicated(), lacking]
    return own.join(once.reindex(own.index).set_axis(own.index)) if own.index.is_unique else own


def _names_of(matrix: CountsMatrix) -> tuple[str, ...]:
    """What its MuData may call it: "mod/adt/X" is "adt"."""
    parts = matrix.field.split("/")
    return (matrix.modality, parts[1]) if parts[0] == "mod" and len(parts) > 2 else (matrix.modality,)
