"""Tables of cells and features (obs, var) of AnnData: read column by column, so that one bad column is not the end.

Layouts: groups of columns (anndata 0.7 and later), and one array of records with its categories in `uns` (0.6).
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import pandas as pd

from data_pipelines.features.column_names import plain_name
from data_pipelines.readers.stored_names import as_names, read_names, refuse_missing
from data_pipelines.readers.stored_nodes import StoredGroup, attribute_text, is_array, is_group, read_values
from scmbert_jax.errors import InputError

# A corpus keeps a table of the cells with all columns; tables of so many take a minute and more to write.
MOST_COLUMNS = 1000
_LONGEST_TEXT = 1 << 16  # bytes, of a column of fixed width


def read_table(
    group: StoredGroup, key: str, path: str, wanted: Collection[str] = (), needed: Collection[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """(the table `key` of an AnnData, indexed by names as text; what was left out, for people).

    A column that cannot be read, or is no column of values, is left out; of a table with more than `MOST_COLUMNS` the
    first ones stay, and those that have a name of `wanted`.

    Args:
      wanted: names without case and punctuation (`plain_name`).
      needed: as `wanted`, of columns without which the rest would mean something else; where one cannot be read, the
        table cannot.

    Raises InputError when there is no table, its names cannot be read, or a needed column.
    """
    where = f"{path}: {group.name.rstrip('/')}/{key}"
    if key not in group:
        raise InputError(f"{where} is missing; not a complete AnnData file")
    node = group[key]
    if is_array(node) and node.dtype.names:
        index, names, column = _records(node, group, where)
    elif is_group(node):
        index, names, column = _columns(node, where)
    else:
        raise InputError(f"{where} is no table but {'a group' if is_group(node) else f'an array of {node.dtype}'}")
    kept, notes = _bounded(names, where, wanted)
    table: dict[str, Any] = {}
    for name in kept:
        try:
            table[name] = _checked(column(name), len(index))
        except Exception as error:  # h5py, zarr and anndata raise many types on what is damaged or new to them
            if plain_name(name) in needed:
                raise InputError(
                    f"{where} cannot be read: column {name!r} ({_reason(error)}); write it again"
                ) from error
            notes.append(f"{where}: column {name!r} is left out: {_reason(error)}")
    return pd.DataFrame(table, index=pd.Index(index, dtype=object)), notes


def table_in_memory(frame: pd.DataFrame, where: str, wanted: Collection[str] = ()) -> tuple[pd.DataFrame, list[str]]:
    """As `read_table`, of an AnnData in memory."""
    kept, notes = _bounded(frame.columns.tolist(), where, wanted)
    frame = frame.copy(deep=False) if len(kept) == frame.shape[1] else frame[kept]
    frame.index = pd.Index(as_names(frame.index, f"{where} index"), dtype=object)
    return frame, notes


_Table = tuple[np.ndarray, list[str], Callable[[str], Any]]


def _columns(node: StoredGroup, where: str) -> _Table:
    from anndata.io import read_elem

    index = attribute_text(node, "_index")
    if not _is_inside(index, node):
        raise InputError(f"{where}: its index {index!r} (attribute _index) is not there; not a complete AnnData file")
    order = node.attrs.get("column-order", [key for key in node if key not in (index, "__categories")])
    names = as_names(np.atleast_1d(np.asarray(order, dtype=object)), f"{where}, attribute column-order").tolist()

    def column(name: str) -> Any:
        if not _is_inside(name, node):
            raise ValueError("it is named in column-order and not there")
        stored = node[name]
        if is_array(stored):
            _require_narrow(stored.dtype)
            if "categories" in stored.attrs:  # anndata 0.7
                categories = read_elem(node[stored.attrs["categories"]])
                return pd.Categorical.from_codes(stored[:], categories)
        return read_elem(stored)

    return _index(node[index], f"{where}/{index}"), names, column


def _index(held: Any, where: str) -> np.ndarray:
    """Names of rows: an array; with pandas 3 an array beside a mask of those that are missing; or anything else."""
    from anndata.io import read_elem

    if is_array(held):
        return read_names(held, where)
    if not all(part in held and is_array(held[part]) for part in ("values", "mask")):
        return as_names(read_elem(held), where)
    names = read_names(held["values"], where)
    missing = np.asarray(read_values(held["mask"], slice(None), where))
    if missing.shape != names.shape:
        raise InputError(f"{where}: {len(names):,} names with a mask of shape {missing.shape}; write the file again")
    refuse_missing(missing, where)
    return names


def _is_inside(name: str, node: StoredGroup) -> bool:
    """Whether a group has something of this name, which is no path out of it."""
    return bool(name) and ".." not in name.split("/") and name in node


def _records(node: Any, group: StoredGroup, where: str) -> _Table:
    """anndata 0.6: the first field is the index; categories stand in `uns` as "NAME_categories"."""
    for name in node.dtype.names:
        _require_narrow(node.dtype[name])
    records = read_values(node, slice(None), where)
    first, *names = node.dtype.names
    uns = group.get("uns")

    def column(name: str) -> Any:
        values = records[name]
        categories = f"{name}_categories"
        if is_group(uns) and categories in uns and values.dtype.kind in "iu":
            listed = np.atleast_1d(read_values(uns[categories], (), f"{where}, uns/{categories}"))
            return pd.Categorical.from_codes(values, _as_text(listed))
        return _as_text(values)

    return as_names(records[first], f"{where}[{first!r}]"), names, column


def _as_text(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "SO":
        return values
    return np.array([v.decode() if isinstance(v, bytes) else v for v in values.tolist()], dtype=object)


def _bounded(names: list[str], where: str, wanted: Collection[str]) -> tuple[list[str], list[str]]:
    kept = [name for place, name in enumerate(names) if place < MOST_COLUMNS or plain_name(str(name)) in wanted]
    if len(kept) == len(names):
        return kept, []
    return kept, [
        f"{where}: {len(names):,} columns, of which the first {MOST_COLUMNS:,} are read, and those that usually hold "
        "cell types, batches, ids ... To have others, put them first or write the file without those in front"
    ]


def _checked(values: Any, length: int) -> Any:
    """Raises ValueError, with the reason in words, when these are not one value for each row."""
    shape = getattr(values, "shape", None)
    if shape is None or len(shape) != 1:
        raise ValueError(f"it is a {type(values).__name__}{'' if shape is None else f' of shape {shape}'}")
    if shape[0] != length:
        raise ValueError(f"it has {shape[0]:,} values for {length:,} rows")
    texts: Iterable[Any] = values.categories if isinstance(values, pd.Categorical) else values
    if np.asarray(texts).dtype.kind == "O":
        "\n".join(text for text in texts if isinstance(text, str)).encode()
    return values


def _require_narrow(dtype: np.dtype) -> None:
    if dtype.itemsize > _LONGEST_TEXT:
        raise InputError(f"every value of it takes {dtype.itemsize:,} bytes; at most {_LONGEST_TEXT:,} are read")


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeError):
        return "it is not UTF-8"
    return str(error).partition("\n")[0] or type(error).__name__
