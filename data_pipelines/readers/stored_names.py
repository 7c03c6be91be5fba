"""Names of cells and features as files have them -> text of a bounded length.

Names are held in arrays of fixed width, as wide as the longest: one name of 300,000 characters in a table of a million
cells would take 1.2 TB.
"""

from collections.abc import Iterable
from typing import Any

import h5py
import numpy as np
import pandas as pd

from data_pipelines.features.column_names import LONGEST_NAME
from data_pipelines.readers.stored_nodes import StoredArray, read_values
from scmbert_jax.errors import InputError

_MOST_BYTES = 1 << 28
_MOST_PACKED = 100  # times: names are unlike each other, so that no filter packs them further


def read_names(array: StoredArray, where: str) -> np.ndarray:
    """str [n]: a stored array of names.

    Raises InputError when it is no list, a name is longer than `LONGEST_NAME`, no text, or missing, or where a small
    file claims to hold very many.
    """
    if array.shape is None or len(array.shape) != 1:
        raise InputError(f"{where}: of shape {array.shape}; expected a list of names")
    if array.dtype.kind in "SU" and array.dtype.itemsize > 4 * LONGEST_NAME:
        _refuse_length(array.dtype.itemsize // (4 if array.dtype.kind == "U" else 1), "texts of a width", where)
    size, stored = array.shape[0] * array.dtype.itemsize, _stored_bytes(array)
    if size > _MOST_BYTES and size > _MOST_PACKED * stored:
        raise InputError(
            f"{where}: {array.shape[0]:,} names of {size:,} bytes, stored in {stored:,}; no names can be packed so "
            "far: the file is not what it says"
        )
    return as_names(read_values(array, slice(None), where), where)


def as_names(values: Iterable[Any], where: str) -> np.ndarray:
    """str [n] of text, bytes (UTF-8) or numbers. Raises InputError as `read_names`."""
    found = np.asarray(values).astype(object)
    refuse_missing(np.asarray(pd.isna(found)), where)
    names = [_text(value, row, where) for row, value in enumerate(found.tolist())]
    longest = max(map(len, names), default=0)
    if longest > LONGEST_NAME:
        row = next(row for row, name in enumerate(names) if len(name) == longest)
        _refuse_length(longest, f"entry {row:,} ({names[row][:20]!r} ...) is a name", where)
    return np.array(names, dtype=str)


def refuse_missing(missing: np.ndarray, where: str) -> None:
    """Raises InputError where a name is missing (bool [n])."""
    if missing.any():
        raise InputError(
            f"{where}: entry {int(np.argmax(missing)):,} is missing; every cell and every feature needs a name"
        )


def _text(value: Any, row: int, where: str) -> str:
    try:
        if isinstance(value, bytes):
            return value.decode()
        text = str(value)
        text.encode()  # what HDF5 could not decode stands in a text as surrogates
        return text
    except UnicodeError as error:
        raise InputError(
            f"{where}: entry {row:,} ({str(value)[:40]!r}) is not UTF-8; write the names again, as UTF-8"
        ) from error


def _stored_bytes(array: Any) -> int:
    return array.id.get_storage_size() if isinstance(array, h5py.Dataset) else int(array.nbytes_stored())


def _refuse_length(length: int, what: str, where: str) -> None:
    raise InputError(f"{where}: {what} of {length:,} characters; at most {LONGEST_NAME:,} are read. Shorten it")
