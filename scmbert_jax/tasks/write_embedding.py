"""Writes embeddings into a copy of the file they were made of: all else in it stays as it was."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_pipelines.readers.dataset import Dataset
from data_pipelines.readers.example_reader import EXAMPLES, example_path
from data_pipelines.readers.reading_options import split_query
from scmbert_jax.errors import InputError
from scmbert_jax.outputs import check_output_file
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.embed import CellEmbeddings, provenance
from scmbert_jax.tasks.whole_file import size_in_file, writable_table, written_whole

KEY = "X_scmbert"


def write_embedding(
    path: Path, spec: str, model: PretrainedModel, result: CellEmbeddings, overwrite: bool = False
) -> None:
    """Writes `obsm["X_scmbert"]` (and the others of `obsm_keys`) and `uns["scmbert"]`, whole or not at all.

    An .h5ad or .h5mu is copied and added to, without loading its matrices. From any other source (10x, zarr, several
    files read together) a new .h5ad holds the cells, their metadata and the embedding, and no counts.

    Raises `InputError` when the file cannot be written, is there already (unless `overwrite`), or its ending does not
    fit its kind.
    """
    write_obsm(path, spec, result.dataset, obsm_keys(result), {"scmbert": provenance(model, result)}, overwrite)


def write_obsm(
    path: Path,
    spec: str,
    dataset: Dataset,
    obsm: Mapping[str, np.ndarray],
    uns: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Writes entries of `obsm` and `uns`, whole or not at all, into a copy of what `dataset` was read from (`spec`).

    Files, and errors, as of `write_embedding`.
    """
    check_output(path, spec, overwrite)
    source = annotated_source(spec)
    written: dict[str, Any] = {"obsm": obsm, "uns": uns}
    if source is None:
        written["obs"] = dataset.obs
    copied = 0 if source is None else source.stat().st_size
    with written_whole(path, copied + size_in_file(written)) as partial:
        if source is None:
            _write_new(partial, dataset)
        else:
            shutil.copyfile(source, partial)
        _add(partial, obsm, uns)


def check_output(path: Path, spec: str, overwrite: bool = False) -> None:
    """Raises `InputError` when the embedding of `spec` cannot be written to `path`; asked before the work, too."""
    source = annotated_source(spec)
    ending = ".h5ad" if source is None else source.suffix
    if path.suffix != ending:
        raise InputError(f"{path}: the output of {spec} is an {ending} file; name it so.")
    check_output_file(path, [spec, source], overwrite)


def annotated_source(spec: str) -> Path | None:
    """The .h5ad or .h5mu that `spec` is, which can be copied and added to; None for any other source."""
    if spec.startswith("example:"):
        return example_path(spec.partition(":")[2]) if spec.partition(":")[2] in EXAMPLES else None
    source = Path(split_query(spec)[0])
    return source if source.suffix in (".h5ad", ".h5mu") and source.is_file() else None


def _write_new(path: Path, dataset: Dataset) -> None:
    import anndata

    obs = writable_table(dataset.obs)
    obs.index = dataset.cell_ids.astype(object)
    anndata.AnnData(obs=obs, shape=(len(obs), 0)).write_h5ad(path)


def obsm_keys(result: CellEmbeddings) -> dict[str, np.ndarray]:
    """Key of `obsm` -> float32 [n, D]: "X_scmbert", and of `embed_jointly` "X_scmbert_joint", "X_scmbert_rna", ..."""
    return {KEY: result.embeddings} | {f"{KEY}_{name}": vectors for name, vectors in result.aligned.items()}


def open_groups(file: h5py.File) -> None:
    """Makes `obsm` and `uns` groups that can be added to, where they are not."""
    from anndata.io import write_elem

    for name in ("obsm", "uns"):
        held = file.get(name)
        if not isinstance(held, h5py.Group):  # anndata 0.6 kept all of obsm in one array of records
            records = held[()] if held is not None and held.dtype.names else None
            file.pop(name, None)
            write_elem(file, name, {} if records is None else {key: records[key] for key in records.dtype.names})


def _add(path: Path, obsm: Mapping[str, np.ndarray], uns: Mapping[str, Any]) -> None:
    from anndata.io import write_elem

    with h5py.File(path, "r+") as file:
        open_groups(file)
        for key, values in obsm.items():
            write_elem(file["obsm"], key, np.ascontiguousarray(values))
        for key, value in uns.items():
            write_elem(file["uns"], key, value)
