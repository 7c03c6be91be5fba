"""Writes embeddings into a copy of the file they were made of: all else in it stays as it was."""

import os
import shutil
from pathlib import Path

import h5py
import numpy as np

from data_pipelines.readers import EXAMPLES, example_path
from scmbert_jax.errors import InputError
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.embed import CellEmbeddings, provenance

KEY = "X_scmbert"


def write_embedding(path: Path, spec: str, model: PretrainedModel, result: CellEmbeddings) -> None:
    """Writes `obsm["X_scmbert"]` and `uns["scmbert"]`, whole or not at all.

    An .h5ad or .h5mu is copied and added to, without loading its matrices. From any other source (a 10x file, several
    files read together) a new .h5ad holds the cells, their metadata and the embedding, and no counts.

    Raises `InputError` when the file cannot be written, or its ending does not fit its kind.
    """
    check_output(path, spec)
    source = _annotated_source(spec)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        if source is None:
            _write_new(partial, result)
        else:
            shutil.copyfile(source, partial)
        _add(partial, model, result)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # HDF5 raises the second where the first happens while it closes
        raise InputError(f"{path}: cannot be written ({_reason(error)}).") from error
    finally:
        partial.unlink(missing_ok=True)


def check_output(path: Path, spec: str) -> None:
    """Raises `InputError` when the embedding of `spec` cannot be written to `path`; asked before the work, too."""
    source = _annotated_source(spec)
    ending = ".h5ad" if source is None else source.suffix
    if path.suffix != ending:
        raise InputError(f"{path}: the output of {spec} is an {ending} file; name it so.")
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        what = "is a folder" if path.is_dir() else f"{path.parent} is no folder that can be written to"
        raise InputError(f"{path}: cannot be written ({what}); choose another place.")


def _annotated_source(spec: str) -> Path | None:
    if spec.startswith("example:"):
        return example_path(spec.partition(":")[2]) if spec.partition(":")[2] in EXAMPLES else None
    source = Path(spec)
    return source if source.suffix in (".h5ad", ".h5mu") and source.is_file() else None


def _write_new(path: Path, result: CellEmbeddings) -> None:
    import anndata

    obs = result.dataset.obs.copy()
    obs.index = result.dataset.cell_ids.astype(object)
    anndata.AnnData(obs=obs, shape=(len(obs), 0)).write_h5ad(path)


def _reason(error: BaseException) -> str:
    """What the system said of a failed write, without HDF5's words around it."""
    number = getattr(error, "errno", None)
    if number is None and error.__context__ is not None:
        return _reason(error.__context__)
    return os.strerror(number) if number is not None else str(error).partition("\n")[0]


def _add(path: Path, model: PretrainedModel, result: CellEmbeddings) -> None:
    from anndata.io import write_elem

    with h5py.File(path, "r+") as file:
        for group in ("obsm", "uns"):
            if group not in file:
                write_elem(file, group, {})
        write_elem(file["obsm"], KEY, np.ascontiguousarray(result.embeddings))
        write_elem(file["uns"], "scmbert", provenance(model, result))
