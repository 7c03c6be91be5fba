"""What one process of a build hands to another: pickles in which stored arrays are opened again where they lie."""

import functools
import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import h5py

from data_pipelines.files.hdf5_file import open_hdf5
from scmbert_jax.errors import CorpusError


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
