"""The `GenomeLayout` of a corpus: its columns' names, and their scale over the training regions."""

import json
import zipfile
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from data_pipelines.files.bounded_npz import open_arrays
from data_pipelines.genome.genome_corpus import GenomeCorpus
from data_pipelines.genome.region_matrix import RegionMatrix
from scmbert_jax.errors import CheckpointError, InputError
from scmbert_jax.genome_layout import GenomeLayout

LAYOUT_FILE = "genome_layout.npz"
_NUMBERS = ("regulator_mean", "regulator_scale", "occurs_above", "accessibility_mean", "accessibility_scale")


def layout_of(corpus: GenomeCorpus, quantile: float) -> GenomeLayout:
    """Args:
      quantile: of a regulator's values over the training regions, above which it occurs.

    Raises InputError: no training region; accessibility below 0.
    """
    rows = corpus.rows("train")
    own: dict[str, np.ndarray] = {}
    names: dict[str, tuple[str, ...]] = {"regulators": (), "cell_types": ()}
    if corpus.regulators is not None:
        values = sp.csc_array(corpus.regulators.values[rows])
        own["regulator_mean"], own["regulator_scale"] = _mean_and_scale(values)
        own["occurs_above"] = _quantiles(values, quantile)
        names["regulators"] = tuple(corpus.regulators.columns.tolist())
    if corpus.accessibility is not None:
        values = sp.csc_array(_not_negative(corpus.accessibility).values[rows])
        values.data = np.log1p(values.data)
        own["accessibility_mean"], own["accessibility_scale"] = _mean_and_scale(values)
        names["cell_types"] = tuple(corpus.accessibility.columns.tolist())
    return GenomeLayout(corpus.assembly, names["regulators"], names["cell_types"], **own)


def _not_negative(matrix: RegionMatrix) -> RegionMatrix:
    if matrix.values.nnz and matrix.values.data.min() < 0:
        raise InputError(
            f"{matrix.where}: accessibility of {matrix.values.data.min():g}; expected reads, fractions or others of 0 "
            "or more (0: closed)"
        )
    return matrix


def _mean_and_scale(values: sp.csc_array) -> tuple[np.ndarray, np.ndarray]:
    """(mean, standard deviation) of each column [n, C]; a column that is the same everywhere has scale 1."""
    number = max(values.shape[0], 1)
    mean = np.asarray(values.sum(axis=0, dtype=np.float64)).ravel() / number
    square = np.asarray(values.power(2).sum(axis=0, dtype=np.float64)).ravel() / number
    scale = np.sqrt(np.maximum(square - mean**2, 0))
    return mean.astype(np.float32), np.where(scale > 1e-6, scale, 1).astype(np.float32)


def _quantiles(values: sp.csc_array, quantile: float) -> np.ndarray:
    """float32 [C]; what is not stored is 0."""
    number, found = values.shape[0], []
    for first, stop in zip(values.indptr[:-1], values.indptr[1:], strict=True):
        column = np.zeros(number, np.float32)
        column[: stop - first] = values.data[first:stop]
        found.append(np.quantile(column, quantile))
    return np.array(found, np.float32)


def save_layout(layout: GenomeLayout, folder: Path) -> None:
    """Writes genome_layout.npz."""
    said = {name: getattr(layout, name) for name in ("assembly", "regulators", "cell_types")}
    np.savez(
        folder / LAYOUT_FILE, about=np.array(json.dumps(said)), **{name: getattr(layout, name) for name in _NUMBERS}
    )


def load_layout(folder: Path) -> GenomeLayout:
    """What `save_layout` wrote. Raises CheckpointError: something else."""
    path = folder / LAYOUT_FILE
    try:
        with open_arrays(path) as arrays:
            said = json.loads(str(arrays["about"]))
            numbers = {name: arrays[name].astype(np.float32) for name in _NUMBERS}
        return GenomeLayout(said["assembly"], tuple(said["regulators"]), tuple(said["cell_types"]), **numbers)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); restore it, or train again") from error
