"""Numeric tables as pandas writes them to HDF5 ("fixed" format), read as sparse values without PyTables.

On disk: a group with `axis0` (column names), `axis1` (row names) and one block of values, `block0_items` (its columns)
and `block0_values` [rows, columns]. The benchmark's largest table is 97 GB when dense, so rows are read in pieces.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp

from data_pipelines.files.hdf5_file import open_hdf5
from data_pipelines.readers.stored_names import read_names
from data_pipelines.readers.stored_nodes import read_values
from scmbert_jax.errors import InputError

Array = np.ndarray

_ROWS = 1024


@dataclass(frozen=True)
class Frame:
    """A table of a file: str [n] cells, str [F] features, float32 CSR [n, F] values; `uns` of an AnnData."""

    path: Path
    cells: Array
    features: Array
    values: sp.csr_matrix
    uns: dict[str, Any] = field(default_factory=dict)

    def rows(self, chosen: Array) -> "Frame":
        return replace(self, cells=self.cells[chosen], values=self.values[chosen])


def read_frame(path: Path) -> Frame:
    """Raises `InputError` for a missing or damaged file, another layout, or a compression that cannot be read here."""
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    try:
        with open_hdf5(path) as file:
            groups = [group for group in file.values() if isinstance(group, h5py.Group) and "axis0" in group]
            if len(groups) != 1 or "block0_values" not in groups[0] or "block1_values" in groups[0]:
                raise InputError(
                    f"{path}: {len(groups)} pandas tables ({', '.join(file) or 'nothing'} in it); expected one, with "
                    "values of a single type, as DataFrame.to_hdf writes it."
                )
            group = groups[0]
            values = _sparse_rows(group["block0_values"], f"{path}, block0_values")
            features, cells, items = (read_names(group[n], f"{path}, {n}") for n in ("axis0", "axis1", "block0_items"))
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"{path}: truncated or damaged HDF5 ({error}); copy or download it again.") from error
    if values.shape != (len(cells), len(features)) or not np.array_equal(items, features):
        raise InputError(f"{path}: {values.shape} values for {len(cells):,} rows x {len(features):,} columns.")
    return Frame(path, cells, features, values)


def _sparse_rows(stored: h5py.Dataset, where: str) -> sp.csr_matrix:
    if stored.ndim != 2 or stored.dtype.kind not in "biuf":
        raise InputError(f"{where}: {stored.ndim}-dimensional, of type {stored.dtype}; expected a table of numbers.")
    parts = [
        sp.csr_matrix(np.asarray(read_values(stored, slice(start, start + _ROWS), where), np.float32))
        for start in range(0, len(stored), _ROWS)
    ]
    return sp.vstack(parts, format="csr") if parts else sp.csr_matrix(stored.shape, dtype=np.float32)
