"""Groups and arrays of HDF5 files and zarr stores, which have nearly the same interface, as one.

What differs: an absent HDF5 element is an array without a shape; a zarr array whose chunk is absent reads as zeros.
"""

import functools
import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import h5py
import numpy as np

from data_pipelines.files.hdf5_file import missing_filters, open_hdf5
from scmbert_jax.errors import CorpusError, InputError

# h5py.Group or zarr.Group: neither library types what indexing gives.
StoredGroup: TypeAlias = Any


class StoredArray(Protocol):
    """h5py.Dataset or zarr.Array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: Any  # tuple of ints, or None where HDF5 stores it in one piece
    attrs: Any

    def __getitem__(self, key: Any) -> Any: ...


def is_array(node: Any) -> bool:
    return hasattr(node, "dtype") and hasattr(node, "shape")


def is_group(node: Any) -> bool:
    return hasattr(node, "keys") and not is_array(node)


def is_null(node: Any) -> bool:
    """How AnnData writes None."""
    return attribute_text(node, "encoding-type") == "null" or (is_array(node) and node.shape is None)


def lacks_chunks(array: StoredArray) -> bool:
    """Whether a zarr array has chunks that nobody wrote: all zeros, or lost. HDF5 knows its own chunks: False."""
    return getattr(array, "nchunks_initialized", 0) < getattr(array, "nchunks", 0)


def read_values(array: StoredArray, key: Any, where: str) -> np.ndarray:
    """`array[key]`. Raises InputError with the reason: a filter that is not installed, or damage."""
    try:
        return array[key]
    except Exception as error:  # every codec of zarr raises its own types; to a user all mean the same
        missing = missing_filters(array) if isinstance(array, h5py.Dataset) else []
        if missing:
            raise InputError(
                f"{where}: packed with {' and '.join(missing)}, which is not installed here. Install it (pip install "
                "hdf5plugin), or write the file without it, where it can be read: anndata.read_h5ad(FILE)"
                ".write_h5ad(NEW, compression='gzip')"
            ) from error
        raise InputError(
            f"{where}: cannot be read ({error}); the file is damaged: copy or download it again"
        ) from error


def attribute_text(node: Any, *names: str) -> str:
    """The first of these attributes that is there, as text; "" for none."""
    for name in names:
        if name in node.attrs:
            value = node.attrs[name]
            return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
    return ""


class _Pickler(pickle.Pickler):
    """Knows HDF5 nodes by file and name; zarr's know themselves."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (h5py.Group, h5py.Dataset)):
            return _open_node, (os.path.abspath(obj.file.filename), obj.name)
        return NotImplemented


class _Hashing(io.RawIOBase):
    """Passes on what is written to it."""

    def __init__(self, file: BinaryIO):
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)


def write_pickle(value: Any, file: BinaryIO) -> str:
    """Pickles what holds stored nodes; they are opened again by the process that loads it. Returns the sha256.

    Raises TypeError, AttributeError or pickle.PicklingError for what no other process can have.
    """
    written = _Hashing(file)
    _Pickler(written, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return written.digest.hexdigest()


def opened_pickle(path: Path, sha256: str) -> Any:
    """What `write_pickle` wrote. The last few, and the files they opened, stay open until `close_all`.

    Args:
      sha256: of what was written. A pickle runs what is in it, so none is loaded that this build did not write.

    Raises:
      CorpusError: the file is gone, or another one.
    """
    try:
        return _opened_pickle(path, sha256, _version(path))
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error}); run the same command again") from error


@functools.lru_cache(maxsize=2)
def _opened_pickle(path: Path, sha256: str, version: tuple[int, int]) -> Any:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CorpusError(f"{path}: was changed since this build wrote it; nobody else may write there")
    return pickle.loads(content)


def close_all() -> None:
    """Forget what `opened_pickle` keeps open; files close when nobody uses them."""
    _opened_pickle.cache_clear()
    _open_file.cache_clear()


def _version(path: str | Path) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_ino, stat.st_mtime_ns


def _open_node(path: str, name: str) -> Any:
    return _open_file(path, _version(path))[name]


@functools.lru_cache(maxsize=8)
def _open_file(path: str, version: tuple[int, int]) -> h5py.File:
    return open_hdf5(path)
