"""Opens what people have: .h5ad, .h5mu, .zarr, 10x .h5 and .mtx, fragments, SOMA, AnnData and MuData, an example.

    open_dataset("cells.h5ad")                 one file
    open_dataset("cells.zarr")                 AnnData or MuData in a zarr store
    open_dataset("filtered_feature_bc_matrix") a 10x folder (matrix.mtx.gz, barcodes.tsv.gz, features.tsv.gz)
    open_dataset("GSM1_a_matrix.mtx.gz")       one sample of a folder that holds several
    open_dataset("rna.h5ad+atac.h5ad")         several files of one dataset, paired by cell id
    open_dataset("fragments.tsv.gz", reading=...) ATAC fragments, counted on regions (`ReadingOptions`)
    open_dataset("soma:experiment.soma")       a TileDB-SOMA experiment; "census:2025-11-08?organism=human": the public
    Census open_dataset("cells.h5ad?assay=Smart-seq2") options for one file behind its name
    open_dataset("example:pbmc_mosaic")        the data set that travels with the package
    open_dataset(adata)                        an AnnData or MuData; a Dataset, as it is

Opening reads names and metadata; the values are read later, chunk by chunk (`CountsMatrix.chunks`).
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import h5py

from data_pipelines.cells.cell_metadata import recognise_obs_fields
from data_pipelines.files.hdf5_file import open_hdf5
from data_pipelines.readers.anndata_reader import read_anndata, read_mudata, read_stored_anndata, read_stored_mudata
from data_pipelines.readers.dataset import CountsMatrix, Dataset, join_matrices
from data_pipelines.readers.fragments_reader import Cells, default_fragments_name, is_fragments, read_fragments
from data_pipelines.readers.full_length import length_normalised
from data_pipelines.readers.other_formats import described, of_other_program
from data_pipelines.readers.pair_check import require_shared_cells
from data_pipelines.readers.reading_options import DEFAULT_READING, ReadingOptions, split_query
from data_pipelines.readers.soma_reader import OPTIONS, PREFIXES, is_soma, read_soma
from data_pipelines.readers.tenx_folder import default_name, is_matrix_market, matrices_in, matrix_in, read_tenx_folder
from data_pipelines.readers.tenx_reader import is_tenx, read_tenx
from data_pipelines.readers.unpaired_cells import separate_modalities
from data_pipelines.readers.zarr_store import is_zarr, read_zarr
from scmbert_jax.errors import InputError

__all__ = ["open_dataset", "open_datasets", "ReadingOptions", "CountsMatrix", "Dataset", "ACCEPTED", "EXAMPLES"]

# Name after "example:" -> file in data_pipelines/example, of which its README.md says more; what data cards say of it.
EXAMPLES = {"pbmc_mosaic": "pbmc_mosaic.h5mu"}
_STATEMENTS = {
    "pbmc_mosaic": {
        "title": "1,600 human blood cells in four technical batches, with RNA, surface proteins or both",
        "citation": "He Z. et al. Mosaic integration and knowledge transfer of single-cell multimodal data with MIDAS. "
        "Nature Biotechnology 42, 1594-1605 (2024)",
        "doi": "10.1038/s41587-023-02040-y",
        "licence": "MIT, as the Python package scmidas 0.3.0 that it is from",
    }
}
ACCEPTED = ".h5ad, .h5mu, .zarr, 10x .h5, 10x .mtx folder, fragments .tsv.gz, soma:, census: or example:pbmc_mosaic"
_EXPECTED = f"expected an {ACCEPTED}"


def open_dataset(
    spec: Any,
    name: str | None = None,
    *,
    unpaired: bool = False,
    reading: ReadingOptions = DEFAULT_READING,
    obs_fields: Mapping[str, str | None] | None = None,
) -> Dataset:
    """Opens a path, `A+B` (files or folders of one data set), `example:NAME`, an AnnData or a MuData.

    Args:
      spec: which; a text may end in options for this file: `PLACE?NAME=VALUE&NAME=VALUE` (`ReadingOptions`, or those of
        `soma_reader`).
      name: of the data set; None: that of its files.
      unpaired: every modality of every file becomes cells of its own (`separate_modalities`); cells are not joined by
        id, nor are ids of files compared.
      reading: what was decided for all files.
      obs_fields: standard name -> column of obs, overriding what is recognised; here for the assay.

    Raises InputError when there is no such file, it is not one of the formats, truncated, damaged or empty, a decision
    about it is missing, the files of `A+B` do not hold the same cells, or a SOMA store holds several data sets.
    """
    # A file whose own name has a "+" stands before the reading as several files.
    if isinstance(spec, (str, os.PathLike)) and _names_several(os.fspath(spec)):
        return _open_together(os.fspath(spec), name, unpaired, reading, obs_fields)
    datasets = _open_alone(spec, name, reading, obs_fields)
    if len(datasets) > 1:
        listed = ", ".join(dataset.name for dataset in datasets[:3])
        raise InputError(
            f"{spec}: {len(datasets):,} data sets ({listed} ...), and here one is needed; select it with "
            f"obs_value_filter=dataset_id == '{datasets[0].name}'"
        )
    return separate_modalities(datasets[0].name, datasets) if unpaired else datasets[0]


def open_datasets(
    specs: Sequence[Any],
    *,
    unpaired: bool = False,
    reading: ReadingOptions = DEFAULT_READING,
    obs_fields: Mapping[str, str | None] | None = None,
) -> list[Dataset]:
    """`open_dataset` for several specs; a SOMA store gives as many data sets as it holds.

    Raises InputError also where an option for all files has no use for any of them.
    """
    datasets: list[Dataset] = []
    for spec in specs:
        if isinstance(spec, str) and is_soma(spec):
            found = _open_alone(spec, None, reading, obs_fields)
            datasets += [separate_modalities(part.name, [part]) for part in found] if unpaired else found
        else:
            datasets.append(open_dataset(spec, unpaired=unpaired, reading=reading, obs_fields=obs_fields))
    _refuse_soma_cells_twice(datasets)
    _refuse_unused(dataclasses.asdict(reading), [matrix for dataset in datasets for matrix in dataset.matrices])
    return datasets


def _refuse_soma_cells_twice(datasets: list[Dataset]) -> None:
    """A file given twice is noticed by its content; two selections of one store may overlap."""
    seen: dict[tuple[str, str | None], tuple[set[str], str]] = {}
    for dataset in datasets:
        for about in (matrix.derivation["soma"] for matrix in dataset.matrices if "soma" in matrix.derivation):
            cells, first = seen.setdefault((about["store"], about["dataset_id"]), (set(), dataset.path))
            twice = cells.intersection(dataset.cell_ids.tolist())
            if twice:
                raise InputError(
                    f"{first} and {dataset.path} share {len(twice):,} cells: they would be in the corpus twice; make "
                    "the filters exclude each other"
                )
            cells.update(dataset.cell_ids.tolist())


def _refuse_unused(options: Mapping[str, Any], matrices: list[CountsMatrix]) -> None:
    """Raises InputError for an option that was given and has nothing to work on: it was meant for another file."""
    has_fragments = any("fragments" in matrix.derivation for matrix in matrices)
    has_regions = any(matrix.modality == "atac" for matrix in matrices)
    for option, is_used, lacks in (
        ("barcodes", has_fragments, "is a fragments file"),
        ("min_fragments", has_fragments, "is a fragments file"),
        ("regions", has_regions, "has regions"),
    ):
        if options.get(option) is not None and not is_used:
            where = ", ".join(dict.fromkeys(matrix.path for matrix in matrices))
            raise InputError(f"{option} {options[option]}: none of {where} {lacks}; leave the option out")


def _names_several(text: str) -> bool:
    return "+" in text and not text.startswith(("example:", *PREFIXES)) and not Path(text).exists()


def _open_alone(
    spec: Any,
    name: str | None,
    reading: ReadingOptions,
    obs_fields: Mapping[str, str | None] | None,
    partners: Cells | None = None,
) -> list[Dataset]:
    """One data set, or those of a SOMA store; the reading options are carried out, or go with the matrices."""
    query: dict[str, str] = {}
    if not isinstance(spec, (str, os.PathLike)):
        datasets = [_open_object(spec, name, reading.layer)]
    else:
        place, query = split_query(os.fspath(spec))
        if is_soma(place):
            soma_options = {option: query.pop(option) for option in list(query) if option in OPTIONS}
            reading = reading.replaced(query, os.fspath(spec))
            datasets = read_soma(place, soma_options, name)
        else:
            reading = reading.replaced(query, os.fspath(spec))
            opened = _open_example if place.startswith("example:") else _open_place
            datasets = [opened(place, name, reading, partners)]
    return [_as_decided(dataset, reading, query, obs_fields) for dataset in datasets]


def _as_decided(
    dataset: Dataset, reading: ReadingOptions, query: dict[str, str], obs_fields: Mapping[str, str | None] | None
) -> Dataset:
    for matrix in dataset.matrices:
        matrix.reading = reading
    _refuse_unused(query, dataset.matrices)
    if reading.assay is not None:
        dataset = _with_assay(dataset, reading.assay, obs_fields)
    return length_normalised(dataset, obs_fields)


def _with_assay(dataset: Dataset, assay: str, obs_fields: Mapping[str, str | None] | None) -> Dataset:
    column = recognise_obs_fields(dataset.obs.columns, obs_fields)[0].get("assay")
    if column is not None:
        raise InputError(f"{dataset.path}: the assay was given as {assay!r}, but obs[{column!r}] says it; leave it out")
    matrices = [dataclasses.replace(m, obs=m.obs.assign(assay=assay)) for m in dataset.matrices]
    return dataclasses.replace(dataset, matrices=matrices, obs=dataset.obs.assign(assay=assay))


def _open_object(spec: Any, name: str | None, layer: str | None) -> Dataset:
    if isinstance(spec, Dataset):
        return spec if name is None else dataclasses.replace(spec, name=name)
    if hasattr(spec, "mod") and hasattr(spec, "obs"):
        return read_mudata(spec, name or "mudata", layer)
    if all(hasattr(spec, part) for part in ("X", "obs", "var", "layers")):
        return read_anndata(spec, name or "adata", layer)
    raise InputError(f"a {type(spec).__name__} is not a data set; expected a path, an AnnData or a MuData")


def _open_example(text: str, name: str | None, reading: ReadingOptions, partners: Cells | None) -> Dataset:
    example = text.partition(":")[2]
    if example not in EXAMPLES:
        raise InputError(f"{text}: no such example; there is {', '.join('example:' + known for known in EXAMPLES)}")
    dataset = _open_place(str(example_path(example)), name or example, reading, partners)
    for matrix in dataset.matrices:
        matrix.statements = _STATEMENTS[example]
    return dataset


def example_path(example: str) -> Path:
    """Where a built-in example lies. Packages are installed as folders, so the path stays valid."""
    return Path(str(resources.files("data_pipelines") / "example" / EXAMPLES[example]))


def _open_together(
    text: str,
    name: str | None,
    unpaired: bool,
    reading: ReadingOptions,
    obs_fields: Mapping[str, str | None] | None,
) -> Dataset:
    parts = text.split("+")
    if not all(parts):
        raise InputError(f"{text}: a `+` with nothing beside it; write FILE+FILE")
    datasets = _open_parts(parts, unpaired, reading, obs_fields)
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


def _open_parts(
    parts: list[str], unpaired: bool, reading: ReadingOptions, obs_fields: Mapping[str, str | None] | None
) -> list[Dataset]:
    """In the order given. Fragments files come last to be opened: the cells of the others are their cells."""
    opened: dict[int, Dataset] = {}
    partners: Cells | None = None
    for number in sorted(range(len(parts)), key=lambda number: _is_fragments_file(parts[number])):
        (opened[number],) = _open_alone(parts[number], None, reading, obs_fields, None if unpaired else partners)
        if not _is_fragments_file(parts[number]):
            ids = {cell: None for dataset in opened.values() for cell in dataset.cell_ids.tolist()}
            partners = Cells(list(ids), f"cells of {'+'.join(Path(dataset.path).name for dataset in opened.values())}")
    return [opened[number] for number in range(len(parts))]


def _is_fragments_file(spec: str) -> bool:
    return is_fragments(Path(split_query(spec)[0]))


def _open_place(path: str, name: str | None, reading: ReadingOptions, partners: Cells | None) -> Dataset:
    place = Path(path)
    if not place.exists():
        raise InputError(f"{path}: no such file; {_EXPECTED}")
    if is_fragments(place):
        return read_fragments(place, name or default_fragments_name(place), reading, partners)
    try:
        if place.is_dir():
            return _open_folder(place, name, reading.layer)
        if is_matrix_market(place):
            return read_tenx_folder(place, name or default_name(place))
        return _open_file(place, name or place.stem, reading.layer)
    except InputError:
        raise
    except Exception as error:  # a file that somebody spoilt or forged brings all kinds out of h5py, zarr and anndata
        raise InputError(
            f"{path}: cannot be read ({type(error).__name__}: {error}). If anndata can read it, write it again in "
            "Python: anndata.read_h5ad(FILE).write_h5ad(NEW); else it is damaged: copy or download it again"
        ) from error


def _open_folder(folder: Path, name: str | None, layer: str | None) -> Dataset:
    if is_zarr(folder):
        return read_zarr(folder, name or folder.resolve().name.removesuffix(".zarr"), layer)
    matrix = matrix_in(folder)
    if matrix is not None:
        return read_tenx_folder(matrix, name or default_name(matrix))
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and (is_zarr(path) or matrices_in(path)))
    hint = f". Did you mean {inside[0]}?" if inside else ""
    raise InputError(f"{folder}: a folder with neither matrix.mtx[.gz] nor zarr metadata in it; {_EXPECTED}{hint}")


def _open_file(place: Path, name: str, layer: str | None) -> Dataset:
    path, file = str(place), _open_hdf5(place)
    try:
        return _of_hdf5(file, path, name, layer)
    except BaseException:
        file.close()  # nobody else knows of it, and whoever mends the file wants to open it
        raise


def _of_hdf5(file: h5py.File, path: str, name: str, layer: str | None) -> Dataset:
    if "mod" in file:
        return read_stored_mudata(file, path, name, layer)
    if "obs" in file and "var" in file:
        return read_stored_anndata(file, path, name, layer)
    known = of_other_program(list(file), Path(path))
    if known is not None:
        raise InputError(f"{path}: {known}")
    if is_tenx(file):
        return read_tenx(file, path, name)
    raise InputError(f"{path}: HDF5 with {', '.join(list(file)[:6]) or 'nothing in it'}; {_EXPECTED}")


def _open_hdf5(place: Path) -> h5py.File:
    with open(place, "rb") as stream:
        start = stream.read(8)
    if not start:
        raise InputError(f"{place}: an empty file (0 bytes); copy or download it again")
    if not h5py.is_hdf5(place):  # a .h5mu begins with 512 bytes of text, which HDF5 allows
        known = described(place)
        found = f" but {known}" if known else f" (it begins with {start!r}); {_EXPECTED}"
        raise InputError(f"{place}: not an HDF5 file{found}")
    try:
        return open_hdf5(place)
    except OSError as error:
        raise InputError(f"{place}: truncated or damaged HDF5 ({error}); copy or download it again") from error
