"""An output file that appears whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmbert_jax.errors import InputError
from scmbert_jax.outputs import partial_beside

_MARGIN = 1 << 20  # bytes of an HDF5 file that are no values: names, attributes, what stands in `uns`


@contextmanager
def written_whole(path: Path, size: int) -> Iterator[Path]:
    """Gives a name beside `path` to write to, which becomes `path` in the end.

    Whatever happens, `path` is what it was before or complete, and nothing else is left.

    Args:
      size: bytes that will be written, not too few: so much room is asked of the disk first. HDF5 does not survive a
        disk that fills up: what it could not write it tries again when the process ends, and crashes.

    Raises:
      InputError: the system refuses (a full disk, no permission).
    """
    partial = None
    try:
        partial = partial_beside(path)
        _require_room(partial, size)
        yield partial
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # HDF5 raises the second where the first happens while it closes
        raise InputError(f"{path}: cannot be written ({_reason(error)}).") from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def _require_room(partial: Path, size: int) -> None:
    """Raises OSError where a file of so many bytes finds no room; leaves an empty one."""
    with open(partial, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(0)
        elif shutil.disk_usage(partial.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def size_in_file(*parts: Any) -> int:
    """About how many bytes AnnData, tables, arrays and dicts of them take in an HDF5 file: rather too many."""
    return sum(map(_bytes_of, parts)) * 9 // 8 + _MARGIN


def _bytes_of(part: Any) -> int:
    if isinstance(part, Mapping):
        return sum(map(_bytes_of, part.values()))
    if isinstance(part, pd.DataFrame):
        return int(part.memory_usage(deep=True).sum())
    if sp.issparse(part):
        return part.data.nbytes + part.indices.nbytes + part.indptr.nbytes
    if isinstance(part, np.ndarray):
        return part.nbytes if part.dtype != object else sum(len(str(value)) + 64 for value in part.ravel().tolist())
    if hasattr(part, "obsm"):  # AnnData
        tables = [part.layers, part.obsm, part.varm, part.obsp, part.varp, part.uns]
        raw = [] if part.raw is None else [part.raw.X, part.raw.var]
        return sum(map(_bytes_of, [part.X, part.obs, part.var, *raw, *map(dict, tables)]))
    return 64 + len(str(part)) if part is not None else 0


def _reason(error: BaseException) -> str:
    """What the system said of a failed write, without HDF5's words around it."""
    number = getattr(error, "errno", None)
    if number is None and error.__context__ is not None:
        return _reason(error.__context__)
    return os.strerror(number) if number is not None else str(error).partition("\n")[0]


def writable_table(table: pd.DataFrame) -> pd.DataFrame:
    """A copy in which every column of mixed Python values is of one kind: numbers, truth values, or text.

    Missing values stay missing.
    """
    written = table.copy()
    for column in written.columns:
        if written[column].dtype != object:
            continue
        values = written[column].infer_objects()
        if values.dtype == object and not values.dropna().map(lambda value: isinstance(value, str)).all():
            values = values.convert_dtypes()
        if values.dtype == object:
            values = values.where(values.isna(), values.astype(str))
        written[column] = values
    return written
