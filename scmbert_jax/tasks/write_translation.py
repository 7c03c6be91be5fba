"""A translation as AnnData for Python, and as a MuData file: what was measured beside what was predicted from it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from data_pipelines.files.hdf5_file import open_hdf5
from data_pipelines.readers.dataset import CountsMatrix, Dataset
from data_pipelines.readers.whole_counts import whole
from scmbert_jax.errors import InputError
from scmbert_jax.modalities import TABLE
from scmbert_jax.outputs import check_output_file
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.embed import model_provenance
from scmbert_jax.tasks.translate import Translation
from scmbert_jax.tasks.whole_file import size_in_file, writable_table, written_whole

_SCALES = {
    "log1p": "log1p(counts of a cell scaled to target_sum)",
    "clr": "centred log ratio, log1p(count / g), g = exp(mean over the cell's measured features of log1p(count))",
    "probability": "probability of a count above 0",
}


def translation_anndata(model: PretrainedModel, result: Translation) -> Any:
    """An AnnData whose rows are the cells of `result.dataset`.

    X float32 [n, F] holds expected values and layers["std"] their standard deviations, nan where the source was not
    measured; var the features (index: their names, or ids where two share a name); uns["scmbert"] how it was made.
    """
    import anndata

    names = pd.Series(result.feature_names.astype(object))
    index = np.where(names.duplicated(keep=False), result.feature_ids, result.feature_names).astype(object)
    var = pd.DataFrame(
        {
            "feature_id": result.feature_ids.astype(object),
            "feature_name": names.to_numpy(),
            "feature_types": TABLE[result.target].feature_type,
        },
        index=pd.Index(index),
    )
    obs = writable_table(result.dataset.obs)
    obs.index = pd.Index(result.dataset.cell_ids.astype(object))
    adata = anndata.AnnData(X=result.values, obs=obs, var=var, layers={"std": result.std})
    adata.uns["scmbert"] = translation_provenance(model, result)
    return adata


def translation_provenance(model: PretrainedModel, result: Translation) -> dict[str, Any]:
    """What stands in `uns["scmbert"]`: which model, what it was told, what is predicted from what, in which unit."""
    return {
        **model_provenance(model, result.report, {result.source: result.overlap}),
        "translated_from": result.source,
        "translated_to": result.target,
        "scale": result.scale,
        "scale_in_words": _SCALES[result.scale],
        "target_sum": result.target_sum,
        "draws": result.num_draws,
        "seed": result.seed,
        "cells_without_prediction": int((~result.predicted).sum()),
    }


def write_translation(
    path: Path, spec: str, model: PretrainedModel, result: Translation, overwrite: bool = False
) -> Any:
    """Writes an .h5mu, whole or not at all, and returns it as MuData.

    It holds the source modality as it stands in the file of `spec`, under the name it has there, and the predictions of
    `translation_anndata` as modality `result.target`, of the cells that have one. Other modalities are left out: what
    is called `result.target` is predicted throughout.

    Raises `InputError` when the file cannot be written, has another ending, is the one that was read, or is there
    already (unless `overwrite`).
    """
    import mudata

    check_translation_output(path, spec, overwrite)
    predicted = translation_anndata(model, result)[result.predicted].copy()
    name, measured = _source_modality(result.dataset, result.source)
    name = result.source if name == result.target else name
    with _without_announcements():
        mdata = mudata.MuData({name: measured, result.target: predicted})
        mdata.obs = writable_table(result.dataset.obs).reindex(mdata.obs_names)
        mdata.uns["scmbert"] = predicted.uns["scmbert"]
        with written_whole(path, size_in_file(measured, predicted, mdata.obs)) as partial:
            mdata.write(partial)
    return mdata


def check_translation_output(path: Path, spec: str, overwrite: bool = False) -> None:
    """Raises `InputError` when a translation of `spec` cannot be written to `path`; asked before the work, too."""
    if path.suffix != ".h5mu":
        raise InputError(f"{path}: a translation is two modalities, written as .h5mu; name it so.")
    check_output_file(path, [spec], overwrite)


def _source_modality(dataset: Dataset, source: str) -> tuple[str, Any]:
    """(its name, the AnnData of modality `source`): all that the file has of it."""
    import anndata
    import mudata

    matrix = next(matrix for matrix in dataset.matrices if matrix.modality == source)
    kind = "other"
    if h5py.is_hdf5(matrix.path):
        with open_hdf5(matrix.path) as file:
            kind = "h5mu" if "mod" in file else "h5ad" if "obs" in file and "var" in file else "10x"
    if kind not in ("h5mu", "h5ad"):
        return source, _from_counts(matrix)
    name = source
    if kind == "h5mu":
        name = matrix.field.split("/")[1]  # mod/NAME/X
        adata = mudata.read_h5ad(matrix.path, mod=name)
    else:
        adata = anndata.read_h5ad(matrix.path)
    adata.obs_names, adata.var_names = adata.obs_names.astype(str), adata.var_names.astype(str)
    # A file of several kinds of features in one matrix: those of the source.
    if set(matrix.feature_names) < set(adata.var_names):
        adata = adata[:, matrix.feature_names].copy()
    return name, adata


def _from_counts(matrix: CountsMatrix) -> Any:
    import anndata

    counts = sp.vstack([whole(chunk).astype(np.int32) for _, chunk in matrix.chunks()], format="csr")
    var = writable_table(matrix.feature_table)
    var.index = pd.Index(matrix.feature_names.astype(object))
    obs = writable_table(matrix.obs)
    obs.index = pd.Index(matrix.cell_ids.astype(object))
    return anndata.AnnData(X=counts, obs=obs, var=var)


@contextmanager
def _without_announcements() -> Iterator[None]:
    """MuData announces a coming default, and that modalities share names of features (CD4 and CD4): both are meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="mudata")
        warnings.filterwarnings("ignore", category=UserWarning, module="mudata")
        yield
