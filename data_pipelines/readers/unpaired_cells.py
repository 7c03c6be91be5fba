"""Data sets whose modalities are taken as cells of their own: no id of one modality is compared with another's.

The proof that nothing of the pairing is left: which cells come first in the corpus is drawn from the modality and the
row of its matrix, metadata come from the modality's own obs, and what one modality lacks drops nothing of another. So
other barcodes on the same rows give the same blocks, byte for byte.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from data_pipelines.readers.dataset import CountsMatrix, Dataset
from scmbert_jax.modalities import MODALITIES


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
