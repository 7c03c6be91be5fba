"""Opens what people have: .h5ad, .h5mu, .zarr, 10x .h5 and .mtx, fragments, SOMA, AnnData and MuData, an example.

    open_dataset("cells.h5ad")                 one file
    open_dataset("cells.zarr")                 AnnData or MuData in a zarr store
    open_dataset("filtered_feature_bc_matrix") a 10x folder (matrix.mtx.gz, barcodes.tsv.gz, features.tsv.gz)
    open_dataset("GSM1_a_matrix.mtx.gz")       one sample of a folder that holds several
    open_dataset("rna.h5ad+atac.h5ad")         several files of one dataset, paired by cell id
    open_dataset("fragments.tsv.gz", reading=...) ATAC fragments, counted on regions (`ReadingOptions`)
    open_dataset("soma:experiment.soma")       a TileDB-SOMA experiment
    open_dataset("census:2025-11-08?organism=human") the public Census
    open_dataset("cells.h5ad?assay=Smart-seq2") options for one file behind its name
    open_dataset("example:pbmc_mosaic")        the data set that travels with the package
    open_dataset(adata)                        an AnnData or MuData; a Dataset, as it is

Each format has a file of its own and a line in `READERS` (docs/extending.md). Opening reads names and metadata; the
values are read later, chunk by chunk (`CountsMatrix.chunks`).
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.cells.cell_metadata import recognise_obs_fields
from data_pipelines.readers import (
    example_reader,
    fragments_reader,
    hdf5_reader,
    soma_reader,
    tenx_folder,
    zarr_store,
)
from data_pipelines.readers.anndata_reader import read_anndata, read_mudata
from data_pipelines.readers.dataset import CountsMatrix, Dataset, join_matrices
from data_pipelines.readers.example_reader import EXAMPLES, example_path
from data_pipelines.readers.full_length import length_normalised
from data_pipelines.readers.other_formats import described
from data_pipelines.readers.pair_check import require_shared_cells, separate_modalities
from data_pipelines.readers.reader import Cells, Reader, Request
from data_pipelines.readers.reading_options import DEFAULT_READING, ReadingOptions, split_query
from scmbert_jax.errors import InputError

__all__ = [
    "open_dataset",
    "open_datasets",
    "ReadingOptions",
    "CountsMatrix",
    "Dataset",
    "READERS",
    "EXAMPLES",
    "example_path",
    "accepted",
]

# The first that recognises a place reads it.
READERS: list[Reader] = [
    hdf5_reader.READER,
    zarr_store.READER,
    tenx_folder.READER,
    fragments_reader.READER,
    soma_reader.READER,
    example_reader.READER,
]


def accepted() -> str:
    """ ".h5ad, .h5mu, ... or example:pbmc_mosaic": what people are told that they can give."""
    *others, last = [reader.accepts for reader in READERS]
    return f"{', '.join(others)} or {last}"


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
    datasets = _open(spec, name, unpaired, reading, obs_fields)
    if len(datasets) > 1:
        listed = ", ".join(dataset.name for dataset in datasets[:3])
        raise InputError(
            f"{spec}: {len(datasets):,} data sets ({listed} ...), and here one is needed; select it with "
            f"obs_value_filter=dataset_id == '{datasets[0].name}'"
        )
    return datasets[0]


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
    datasets = [dataset for spec in specs for dataset in _open(spec, None, unpaired, reading, obs_fields)]
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


def _open(
    spec: Any, name: str | None, unpaired: bool, reading: ReadingOptions, obs_fields: Mapping[str, str | None] | None
) -> list[Dataset]:
    if isinstance(spec, (str, os.PathLike)) and _names_several(os.fspath(spec)):
        return [_open_together(os.fspath(spec), name, unpaired, reading, obs_fields)]
    datasets = _open_alone(spec, name, reading, obs_fields)
    return [separate_modalities(part.name, [part]) for part in datasets] if unpaired else datasets


def _names_several(text: str) -> bool:
    """A place whose own text has a "+" stands before the reading as several."""
    return "+" in text and not Path(text).exists() and _reader_of(text) is None


def _open_alone(
    spec: Any,
    name: str | None,
    reading: ReadingOptions,
    obs_fields: Mapping[str, str | None] | None,
    partners: Cells | None = None,
) -> list[Dataset]:
    """The data sets of one place; the reading options are carried out, or go with the matrices."""
    query: dict[str, str] = {}
    if not isinstance(spec, (str, os.PathLike)):
        datasets = [_open_object(spec, name, reading.layer)]
    else:
        place, query = split_query(os.fspath(spec))
        reader = _reader_of(place)
        own = reader.options if reader is not None else ()
        options = {option: query.pop(option) for option in list(query) if option in own}
        reading = reading.replaced(query, os.fspath(spec))
        datasets = _read(reader, Request(place, name, reading, options, partners))
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
    """In the order given. What asks for the cells of the others is opened after them."""

    def is_last(part: str) -> bool:
        reader = _reader_of(split_query(part)[0])
        return reader is not None and reader.opened_last

    opened: dict[int, Dataset] = {}
    partners: Cells | None = None
    for number in sorted(range(len(parts)), key=lambda number: is_last(parts[number])):
        (opened[number],) = _open_alone(parts[number], None, reading, obs_fields, None if unpaired else partners)
        if not is_last(parts[number]):
            ids = {cell: None for dataset in opened.values() for cell in dataset.cell_ids.tolist()}
            partners = Cells(list(ids), f"cells of {'+'.join(Path(dataset.path).name for dataset in opened.values())}")
    return [opened[number] for number in range(len(parts))]


def _reader_of(place: str) -> Reader | None:
    return next((reader for reader in READERS if reader.recognises(place)), None)


def _read(reader: Reader | None, request: Request) -> list[Dataset]:
    try:
        if reader is None:
            raise InputError(_nobody_reads(request.place))
        return reader.read(request)
    except InputError:
        raise
    except Exception as error:  # a file that somebody spoilt or forged brings all kinds out of h5py, zarr and anndata
        if not request.path.exists():
            raise
        raise InputError(
            f"{request.place}: cannot be read ({type(error).__name__}: {error}). If anndata can read it, write it "
            "again in Python: anndata.read_h5ad(FILE).write_h5ad(NEW); else it is damaged: copy or download it again"
        ) from error


def _nobody_reads(place: str) -> str:
    """Why, and what to do."""
    path, expected = Path(place), f"expected an {accepted()}"
    if not path.exists():
        return f"{place}: no such file; {expected}"
    if path.is_dir():
        inside = (str(inside) for inside in sorted(path.iterdir()) if inside.is_dir())
        inner = next((inside for inside in inside if _reader_of(inside)), None)
        hint = f". Did you mean {inner}?" if inner else ""
        return f"{place}: a folder with neither matrix.mtx[.gz] nor zarr metadata in it; {expected}{hint}"
    with open(path, "rb") as stream:
        start = stream.read(8)
    if not start:
        return f"{place}: an empty file (0 bytes); copy or download it again"
    known = described(path)
    found = f" but {known}" if known else f" (it begins with {start!r}); {expected}"
    return f"{place}: not an HDF5 file{found}"
