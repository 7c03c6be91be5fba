"""HDF5 files -> `Dataset`: which of the layouts of `LAYOUTS` a file has, by the groups in it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py

from data_pipelines.files.hdf5_file import open_hdf5
from data_pipelines.readers.anndata_reader import read_stored_anndata, read_stored_mudata
from data_pipelines.readers.dataset import Dataset
from data_pipelines.readers.other_formats import of_other_program
from data_pipelines.readers.reader import Reader, Request
from data_pipelines.readers.tenx_reader import is_tenx, read_tenx
from scmbert_jax.errors import InputError


class Layout(NamedTuple):
    """One way in which HDF5 holds counts.

    Attributes:
      recognises: of an open file.
      read: (file, path, name, layer) -> the data set, which reads on from the file while it is open.
      accepts: as in `Reader`.
    """

    recognises: Callable[[h5py.File], bool]
    read: Callable[[h5py.File, str, str, str | None], Dataset]
    accepts: str


# The first that recognises a file reads it.
LAYOUTS = [
    Layout(lambda file: "mod" not in file and "obs" in file and "var" in file, read_stored_anndata, ".h5ad"),
    Layout(lambda file: "mod" in file, read_stored_mudata, ".h5mu"),
    Layout(is_tenx, lambda file, path, name, layer: read_tenx(file, path, name), "10x .h5"),
]
ACCEPTED = ", ".join(layout.accepts for layout in LAYOUTS)


def is_hdf5(place: str) -> bool:
    # Some .h5mu begin with 512 bytes of text, which HDF5 allows.
    return Path(place).is_file() and bool(h5py.is_hdf5(place))


def read_hdf5(request: Request) -> list[Dataset]:
    """Raises InputError when the file is truncated or damaged, or has none of the layouts."""
    try:
        file = open_hdf5(request.path)
    except OSError as error:
        raise InputError(f"{request.place}: truncated or damaged HDF5 ({error}); copy or download it again") from error
    try:
        return [_of_layout(file, request)]
    except BaseException:
        file.close()  # nobody else knows of it, and whoever mends the file wants to open it
        raise


def _of_layout(file: h5py.File, request: Request) -> Dataset:
    path = str(request.path)
    known = of_other_program(list(file), request.path)
    if known is not None:
        raise InputError(f"{path}: {known}")
    layout = next((layout for layout in LAYOUTS if layout.recognises(file)), None)
    if layout is None:
        raise InputError(f"{path}: HDF5 with {', '.join(list(file)[:6]) or 'nothing in it'}; expected an {ACCEPTED}")
    return layout.read(file, path, request.name or request.path.stem, request.reading.layer)


READER = Reader(is_hdf5, read_hdf5, ACCEPTED)
