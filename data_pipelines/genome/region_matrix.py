"""Regions by regulators (motif hits, binding), or regions by cell types or cells (accessibility): a matrix with keys.

Rows are found by the region's id, "chr1:100-200" (0-based half-open), columns by their name, never by their place: a
matrix whose rows are in another order than somebody thinks gives chance level, and no error. Who must join by place
asks `check_order` first.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp

from data_pipelines.features.genome_assembly import parse_regions
from data_pipelines.files.atomic_files import growing_file
from data_pipelines.files.bounded_npz import open_arrays
from data_pipelines.files.parquet_file import read_parquet_frame
from data_pipelines.genome.interval_table import COLUMNS, interval_ids
from data_pipelines.genome.left_out import LeftOut
from scmbert_jax.errors import InputError

_ARRAYS = ("regions", "columns", "data", "indices", "indptr")
_EXPECTED = "expected a .parquet or .csv table with a column of regions, a .npz of ours, or an .h5ad"


@dataclass(frozen=True)
class RegionMatrix:
    """R regions by C columns.

    Attributes:
      regions: str [R], ids, "chr1:100-200", 0-based half-open; no two are the same.
      columns: str [C], names of regulators, cell types or cells; no two are the same.
      values: float32 CSR [R, C].
      where: the file.
      problems: what was found -> how many rows, of those that were merged.

    Raises InputError: a shape that does not fit, a region or a column twice, values that are not finite.
    """

    regions: np.ndarray
    columns: np.ndarray
    values: sp.csr_array
    where: str = "a matrix of regions"
    problems: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.regions), len(self.columns)):
            raise InputError(
                f"{self.where}: {self.values.shape} values for {len(self.regions):,} regions and "
                f"{len(self.columns):,} columns"
            )
        for what, names in (("region", self.regions), ("column", self.columns)):
            unique, counts = np.unique(names, return_counts=True)
            if len(unique) < len(names):
                twice = unique[counts > 1]
                raise InputError(f"{self.where}: {what} {twice[0]} is there twice ({len(twice):,} are); remove one")
        if not np.isfinite(self.values.data).all():
            raise InputError(f"{self.where}: values that are not finite; a region that was not measured is left out")

    def __len__(self) -> int:
        return len(self.regions)

    def joined(
        self,
        regions: Sequence[str] | np.ndarray,
        columns: Sequence[str] | np.ndarray | None = None,
        most_missing: float = 0.0,
    ) -> tuple[sp.csr_array, np.ndarray]:
        """The rows of these regions and the columns of these names, in the order in which they are asked for.

        Args:
          regions: n ids; each may be asked for several times.
          columns: m names; None: all, as they are.
          most_missing: fraction of the regions that the matrix may lack.

        Returns:
          (float32 CSR [n, m], bool [n]: the matrix has the region; rows of others are empty, which is no measured 0).

        Raises InputError: more missing than that, or a column that is not there.
        """
        place, found = _places(self.regions, np.asarray(regions, dtype=str))
        left_out = LeftOut(f"regions of {self.where}", len(place))
        left_out.drop(np.ones(len(place), bool), ~found, "that the matrix has not", np.asarray(regions, dtype=str))
        remedy = f"Its regions are called as in {str(self.regions[0])!r}." if len(self) else ""
        left_out.refuse(most_missing, remedy)
        values = self.values[place] if len(self) else sp.csr_array((len(place), len(self.columns)), dtype=np.float32)
        values = sp.csr_array(sp.diags_array(found.astype(np.float32)) @ values)
        if columns is not None:
            column, known = _places(self.columns, np.asarray(columns, dtype=str))
            if not known.all():
                first = np.asarray(columns, dtype=str)[~known]
                raise InputError(f"{self.where}: no column {first[0]} ({len(first):,} of {len(known):,} are not there)")
            values = sp.csr_array(values[:, column])
        return values, found

    def check_order(self, regions: Sequence[str] | np.ndarray, where: str = "the other table") -> None:
        """Raises InputError unless the rows are these regions in this order, as a join by place needs it."""
        others = np.asarray(regions, dtype=str)
        if len(others) == len(self) and (others == self.regions).all():
            return
        same = len(others) == len(self) and set(others.tolist()) == set(self.regions.tolist())
        number = min(len(others), len(self))
        differ = np.flatnonzero(others[:number] != self.regions[:number])
        row = int(differ[0]) if len(differ) else number
        shown = [str(names[row]) if row < len(names) else "nothing" for names in (self.regions, others)]
        raise InputError(
            f"{self.where}: row {row:,} is {shown[0]}, in {where} it is {shown[1]}: "
            + ("the same regions in another order" if same else "other regions")
            + ". Join them by their ids: RegionMatrix.joined(ids)"
        )


def write_region_matrix(matrix: RegionMatrix, path: str | Path) -> None:
    """Writes a .npz, which `read_region_matrix` reads. Raises CorpusError when the disk refuses."""
    arrays = {
        "regions": matrix.regions.astype(np.str_),
        "columns": matrix.columns.astype(np.str_),
        "data": matrix.values.data.astype(np.float32),
        "indices": matrix.values.indices.astype(np.int64),
        "indptr": matrix.values.indptr.astype(np.int64),
    }
    with growing_file(Path(path)) as file:
        np.savez_compressed(file, **arrays)


def read_region_matrix(path: str | Path) -> RegionMatrix:
    """Reads a matrix of regions.

    A .parquet or .csv table has a row per region, whose id is in the first column with ids of regions ("chr1:1-2",
    "chr1_1_2", "chr1-1-2"; 0-based half-open); its columns of numbers are the columns, but for those without a name and
    for the start and the end of a region; others are not looked at. An .h5ad has regions in `var` (as CREsted has it)
    or in `obs`, and cell types, cells or regulators in the other.

    Raises InputError: another file, no regions, a region twice with different values.
    """
    path = Path(path)
    readers = {".npz": _read_npz, ".h5ad": _read_h5ad, ".parquet": _read_table, ".csv": _read_table}
    reader = readers.get(path.suffix)
    if reader is None:
        raise InputError(f"{path}: {_EXPECTED}")
    try:
        return reader(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read ({error}); {_EXPECTED}") from error


def _places(known: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [n], the place of each among the known, 0 where it is not there; bool [n], it is)."""
    if not len(known):
        return np.zeros(len(asked), np.int64), np.zeros(len(asked), bool)
    order = np.argsort(known, kind="stable")
    place = order[np.minimum(np.searchsorted(known, asked, sorter=order), len(known) - 1)]
    found = known[place] == asked
    return np.where(found, place, 0), found


def _ids(names: np.ndarray, path: Path) -> np.ndarray | None:
    """str [n]: regions as ids; None where most names are none. Raises InputError where a few are none."""
    regions = parse_regions(names)
    if not len(names) or regions.valid.mean() <= 0.5:
        return None
    if not regions.valid.all():
        row = int(np.argmin(regions.valid))
        raise InputError(
            f"{path}: row {row:,} is {str(names[row])!r}, no region such as chr1:100-200 "
            f"({(~regions.valid).sum():,} of {len(names):,} are none); remove them"
        )
    return interval_ids(regions.chrom, regions.start, regions.end)


def _read_npz(path: Path) -> RegionMatrix:
    with open_arrays(path) as arrays:
        regions, columns, data, indices, indptr = (arrays[name] for name in _ARRAYS)
    values = sp.csr_array((data.astype(np.float32), indices, indptr), shape=(len(regions), len(columns)))
    values.check_format()
    return RegionMatrix(regions, columns, values, str(path))


def _read_table(path: Path) -> RegionMatrix:
    frame = read_parquet_frame(path) if path.suffix == ".parquet" else pd.read_csv(path)
    numbers = frame.select_dtypes("number")
    numbers = numbers[[name for name in numbers.columns if not _is_place(str(name))]]
    for column in frame.columns.difference(numbers.columns, sort=False):
        ids = _ids(frame[column].to_numpy(str), path)
        if ids is not None:
            return _merged(ids, numbers.columns.to_numpy(str), sp.csr_array(numbers.to_numpy(np.float32)), path)
    raise InputError(f"{path}: no column of regions among {', '.join(map(str, frame.columns[:5]))}; {_EXPECTED}")


def _is_place(column: str) -> bool:
    """Whether a column of numbers says where a row is: pandas' number of it, or where its region begins or ends."""
    return column.startswith("Unnamed: ") or column.lower() in (*COLUMNS["start"], *COLUMNS["end"])


def _read_h5ad(path: Path) -> RegionMatrix:
    import anndata

    adata = anndata.read_h5ad(path)
    values = sp.csr_array(adata.X, dtype=np.float32)
    for names, others, own in (
        (adata.var_names, adata.obs_names, values.T),
        (adata.obs_names, adata.var_names, values),
    ):
        ids = _ids(names.to_numpy(str), path)
        if ids is not None:
            return _merged(ids, others.to_numpy(str), sp.csr_array(own), path)
    raise InputError(
        f"{path}: neither var_names nor obs_names are regions such as chr1:100-200 ({adata.var_names[0]!r})"
    )


def _merged(ids: np.ndarray, columns: np.ndarray, values: sp.csr_array, path: Path) -> RegionMatrix:
    """Rows of the same region are one, if they say the same."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    if len(first) == len(ids):
        return RegionMatrix(ids, columns, values, str(path))
    differ = abs(values - values[first[inverse]]).sum(1) > 0
    if differ.any():
        name = ids[int(np.argmax(differ))]
        raise InputError(f"{path}: region {name} is there twice with different values; remove one, or sum them up")
    kept = np.sort(first)
    return RegionMatrix(
        ids[kept], columns, sp.csr_array(values[kept]), str(path), {"rows that repeat a region": len(ids) - len(kept)}
    )
