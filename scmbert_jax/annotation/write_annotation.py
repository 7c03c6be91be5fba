"""Writes annotations into a copy of the file of the cells: all else in it stays as it was."""

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from scmbert_jax.annotation.predict import (
    Annotations,
    annotation_columns,
    annotation_provenance,
    probability_table,
)
from scmbert_jax.tasks.whole_file import size_in_file, writable_table, written_whole
from scmbert_jax.tasks.write_embedding import annotated_source, check_output, open_groups

PROBABILITIES = "scmbert_probabilities"
PROVENANCE = "scmbert_annotation"


def write_annotation(path: Path, spec: str, found: Annotations, overwrite: bool = False) -> None:
    """Writes the columns of obs, `obsm["scmbert_probabilities"]` and `uns["scmbert_annotation"]`, whole or not at all.

    An .h5ad or .h5mu is copied and added to, without loading its matrices. From any other source a new .h5ad holds the
    cells, their metadata and the annotations, and no counts.

    Raises `InputError`, as `write_embedding`.
    """
    check_output(path, spec, overwrite)
    source = annotated_source(spec)
    columns, table, provenance = annotation_columns(found), probability_table(found), annotation_provenance(found)
    copied = 0 if source is None else source.stat().st_size
    added = pd.DataFrame({name: np.asarray(values) for name, values in columns.items()})
    with written_whole(path, copied + size_in_file(found.dataset.obs, added, table, provenance)) as partial:
        if source is None:
            _write_new(partial, found)
        else:
            shutil.copyfile(source, partial)
        _add(partial, found, columns, table, provenance)


def _write_new(path: Path, found: Annotations) -> None:
    import anndata

    obs = _obs(found)
    anndata.AnnData(obs=obs, shape=(len(obs), 0)).write_h5ad(path)


def _obs(found: Annotations) -> pd.DataFrame:
    obs = writable_table(found.dataset.obs)
    obs.index = found.dataset.cell_ids.astype(object)
    return obs


def _add(
    path: Path, found: Annotations, columns: dict[str, Any], table: pd.DataFrame, provenance: dict[str, Any]
) -> None:
    from anndata.io import write_elem

    with h5py.File(path, "r+") as file:
        open_groups(file)
        obs = file["obs"]
        if not isinstance(obs, h5py.Group) or "column-order" not in obs.attrs:  # as anndata wrote before 0.7
            write_elem(file, "obs", _obs(found))
            obs = file["obs"]
        order = [name for name in obs.attrs["column-order"] if name not in columns]
        for name, values in columns.items():
            if name in obs:
                del obs[name]
            write_elem(obs, name, values)
        obs.attrs["column-order"] = np.array([*order, *columns], dtype=h5py.string_dtype())
        write_elem(file["obsm"], PROBABILITIES, table)
        write_elem(file["uns"], PROVENANCE, provenance)


def add_to(adata: Any, found: Annotations) -> None:
    """The same into an AnnData or MuData in memory, in place; one of the cells of `found`, in their order."""
    for name, values in annotation_columns(found).items():
        adata.obs[name] = values
    table = probability_table(found)
    table.index = adata.obs_names
    adata.obsm[PROBABILITIES] = table
    adata.uns[PROVENANCE] = annotation_provenance(found)
