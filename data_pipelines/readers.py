"""Opens what people have: .h5ad, .h5mu, .zarr, 10x .h5 and .mtx, AnnData and MuData objects, the built-in example.

    open_dataset("cells.h5ad")                 one file
    open_dataset("cells.zarr")                 AnnData or MuData in a zarr store
    open_dataset("filtered_feature_bc_matrix") a 10x folder (matrix.mtx.gz, barcodes.tsv.gz, features.tsv.gz)
    open_dataset("GSM1_a_matrix.mtx.gz")       one sample of a folder that holds several
    open_dataset("rna.h5ad+atac.h5ad")         several files of one dataset, paired by cell id
    open_dataset("example:pbmc_mosaic")        the data set that travels with the package
    open_dataset(adata)                        an AnnData or MuData; a Dataset, as it is

Opening reads names and metadata; the values are read later, chunk by chunk (`CountsMatrix.chunks`).
"""

import os
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import h5py

from data_pipelines.anndata_reader import read_anndata, read_mudata, read_stored_anndata, read_stored_mudata
from data_pipelines.counts_matrix import CountsMatrix, Dataset, join_matrices
from data_pipelines.pair_check import require_shared_cells
from data_pipelines.tenx_folder import default_name, is_matrix_market, matrices_in, matrix_in, read_tenx_folder
from data_pipelines.tenx_reader import is_tenx, read_tenx
from data_pipelines.unpaired_cells import separate_modalities
from data_pipelines.zarr_store import is_zarr, read_zarr
from scmbert_jax.errors import InputError

__all__ = ["open_dataset", "CountsMatrix", "Dataset", "ACCEPTED", "EXAMPLES"]

# Name after "example:" -> file in data_pipelines/example.
EXAMPLES = {"pbmc_mosaic": "pbmc_mosaic.h5mu"}
ACCEPTED = ".h5ad, .h5mu, .zarr, 10x .h5, 10x .mtx folder or example:pbmc_mosaic"
_EXPECTED = f"expected a {ACCEPTED}"


def open_dataset(spec: Any, name: str | None = None, *, unpaired: bool = False) -> Dataset:
    """Opens a path, `A+B` (files or folders of one dataset), `example:NAME`, an AnnData or a MuData.

    Args:
      spec: which.
      name: of the data set; None: that of its files.
      unpaired: every modality of every file becomes cells of its own (`separate_modalities`); cells are not joined by
        id, nor are ids of files compared.

    Raises InputError when there is no such file, it is not one of the formats, truncated, damaged or empty, or the
    files of `A+B` do not hold the same cells.
    """
    # A file whose own name has a "+" stands before the reading as several files.
    if isinstance(spec, (str, os.PathLike)) and _names_several(os.fspath(spec)):
        return _open_together(os.fspath(spec), name, unpaired)
    dataset = _open_alone(spec, name)
    return separate_modalities(dataset.name, [dataset]) if unpaired else dataset


def _names_several(text: str) -> bool:
    return "+" in text and not text.startswith("example:") and not Path(text).exists()


def _open_alone(spec: Any, name: str | None) -> Dataset:
    if not isinstance(spec, (str, os.PathLike)):
        return _open_object(spec, name)
    text = os.fspath(spec)
    if text.startswith("example:"):
        return _open_example(text, name)
    return _open_place(text, name)


def _open_object(spec: Any, name: str | None) -> Dataset:
    if isinstance(spec, Dataset):
        return spec if name is None else replace(spec, name=name)
    if hasattr(spec, "mod") and hasattr(spec, "obs"):
        return read_mudata(spec, name or "mudata")
    if all(hasattr(spec, part) for part in ("X", "obs", "var", "layers")):
        return read_anndata(spec, name or "adata")
    raise InputError(f"a {type(spec).__name__} is not a data set; expected a path, an AnnData or a MuData")


def _open_example(text: str, name: str | None) -> Dataset:
    example = text.partition(":")[2]
    if example not in EXAMPLES:
        raise InputError(f"{text}: no such example; there is {', '.join('example:' + known for known in EXAMPLES)}")
    return _open_place(str(example_path(example)), name or example)


def example_path(example: str) -> Path:
    """Where a built-in example lies. Packages are installed as folders, so the path stays valid."""
    return Path(str(resources.files("data_pipelines") / "example" / EXAMPLES[example]))


def _open_together(text: str, name: str | None, unpaired: bool) -> Dataset:
    parts = text.split("+")
    if not all(parts):
        raise InputError(f"{text}: a `+` with nothing beside it; write FILE+FILE")
    datasets = [_open_place(part, None) if ":" not in part else open_dataset(part) for part in parts]
    matrices = [matrix for dataset in datasets for matrix in dataset.matrices]
    first_of: dict[str, CountsMatrix] = {}
    for matrix in matrices:
        if matrix.modality and matrix.modality in first_of:
            raise InputError(
                f"{text}: {first_of[matrix.modality].where} and {matrix.where} both measure {matrix.modality}; `+` "
                "pairs different modalities of the same cells. Give two data sets as two arguments"
            )
        first_of[matrix.modality] = matrix
    name = name or "+".join(dataset.name for dataset in datasets)
    if unpaired:
        return separate_modalities(name, datasets)
    require_shared_cells(text, datasets)
    joined = join_matrices(name, matrices)
    joined.notes += [note for dataset in datasets for note in dataset.notes]
    return joined


def _open_place(path: str, name: str | None) -> Dataset:
    place = Path(path)
    if not place.exists():
        raise InputError(f"{path}: no such file; {_EXPECTED}")
    try:
        if place.is_dir():
            return _open_folder(place, name)
        if is_matrix_market(place):
            return read_tenx_folder(place, name or default_name(place))
        return _open_file(place, name or place.stem)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: damaged, or not written by AnnData, MuData or Cell Ranger ({type(error).__name__}: {error}); "
            "copy or download it again"
        ) from error


def _open_folder(folder: Path, name: str | None) -> Dataset:
    if is_zarr(folder):
        return read_zarr(folder, name or folder.resolve().name.removesuffix(".zarr"))
    matrix = matrix_in(folder)
    if matrix is not None:
        return read_tenx_folder(matrix, name or default_name(matrix))
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and (is_zarr(path) or matrices_in(path)))
    hint = f". Did you mean {inside[0]}?" if inside else ""
    raise InputError(f"{folder}: a folder with neither matrix.mtx[.gz] nor zarr metadata in it; {_EXPECTED}{hint}")


def _open_file(place: Path, name: str) -> Dataset:
    path, file = str(place), _open_hdf5(place)
    if "mod" in file:
        return read_stored_mudata(file, path, name)
    if "obs" in file and "var" in file:
        return read_stored_anndata(file, path, name)
    if is_tenx(file):
        return read_tenx(file, path, name)
    raise InputError(f"{path}: HDF5 with {', '.join(list(file)[:6]) or 'nothing in it'}; {_EXPECTED}")


def _open_hdf5(place: Path) -> h5py.File:
    with open(place, "rb") as stream:
        start = stream.read(8)
    if not start:
        raise InputError(f"{place}: an empty file (0 bytes); copy or download it again")
    if not h5py.is_hdf5(place):  # a .h5mu begins with 512 bytes of text, which HDF5 allows
        raise InputError(f"{place}: not an HDF5 file (it begins with {start!r}); {_EXPECTED}")
    try:
        return h5py.File(place, "r")
    except OSError as error:
        raise InputError(f"{place}: truncated or damaged HDF5 ({error}); copy or download it again") from error
