"""One streaming pass over a matrix: are these counts, and what does each cell hold?"""

from dataclasses import dataclass, field
from urllib.parse import quote

import numpy as np

from data_pipelines.cells.cell_identity import counts_hashes
from data_pipelines.readers.dataset import CountsMatrix
from data_pipelines.readers.whole_counts import MAX_COUNT, exact_below, is_whole, whole


@dataclass
class CountsScan:
    """What a pass over all values found.

    Attributes:
      totals: float64 [cells], counts of each cell over the mapped columns.
      detected: int32 [cells], mapped columns with a count.
      hashes: uint64 [cells], of the counts of each cell over the mapped columns (`cell_identity`); means nothing where
        there are faults.
      totals_all: float64, counts of all cells over all columns.
      num_values: stored non-zeros.
      num_mapped_values: those in mapped columns.
      max_value: the largest finite value.
      storage: dtype the values are stored in.
      faults: why these are not usable counts, for people; empty if they are.
    """

    totals: np.ndarray
    detected: np.ndarray
    hashes: np.ndarray
    totals_all: float = 0.0
    num_values: int = 0
    num_mapped_values: int = 0
    max_value: float = 0.0
    storage: str = ""
    faults: list[str] = field(default_factory=list)


@dataclass
class _Tally:
    """How many values are at fault in one way, and where the first of them is."""

    count: int = 0
    first: tuple[int, int, float] | None = None

    def add(self, bad: np.ndarray, first_row: int, indptr: np.ndarray, indices: np.ndarray, data: np.ndarray) -> None:
        found = int(np.count_nonzero(bad))
        if found and self.first is None:
            place = int(np.argmax(bad))
            row = int(np.searchsorted(indptr, place, side="right")) - 1
            self.first = (first_row + row, int(indices[place]), float(data[place]))
        self.count += found


def scan_counts(
    matrix: CountsMatrix, column_to_feature: np.ndarray, column_weights: np.ndarray, rows: int = 4096
) -> CountsScan:
    """Reads every value once, chunk by chunk. Raises InputError where the file is damaged.

    Args:
      column_to_feature: int64 [columns], -1 where a column has no feature.
      column_weights: uint64 [columns], of the hash of counts (`cell_identity.column_weights`).
    """
    mapped = column_to_feature >= 0
    num_cells = matrix.shape[0]
    scan = CountsScan(np.zeros(num_cells), np.zeros(num_cells, np.int32), np.zeros(num_cells, np.uint64))
    scan.storage, limit = str(matrix.stored.dtype), exact_below(matrix.stored.dtype)
    not_finite, negative, fractional, too_large, inexact = (_Tally() for _ in range(5))
    for first, part in matrix.chunks(rows):
        data, indices, indptr = part.data, part.indices, part.indptr
        scan.num_values += len(data)
        finite = np.isfinite(data)
        values = data.astype(np.float64, copy=False) if finite.all() else np.where(finite, data, 0.0)
        not_finite.add(~finite, first, indptr, indices, data)
        negative.add(values < 0, first, indptr, indices, data)
        if data.dtype.kind == "f":
            fractional.add(finite & ~is_whole(values), first, indptr, indices, data)
        too_large.add(values > MAX_COUNT, first, indptr, indices, data)
        inexact.add((values >= limit) & (values <= MAX_COUNT), first, indptr, indices, data)
        if len(values):
            scan.max_value = max(scan.max_value, float(values.max()))
        used = mapped[indices]
        row = np.repeat(np.arange(part.shape[0]), np.diff(indptr))
        cells = slice(first, first + part.shape[0])
        scan.totals[cells] = np.bincount(row, weights=np.where(used, values, 0.0), minlength=part.shape[0])
        scan.detected[cells] = np.bincount(row[used], minlength=part.shape[0])
        if not any(tally.count for tally in (not_finite, negative, fractional, too_large)):
            scan.hashes[cells] = counts_hashes(indptr, column_weights[indices], whole(part).data)
        scan.totals_all += float(values.sum())
        scan.num_mapped_values += int(np.count_nonzero(used))
    _describe_faults(scan, matrix, not_finite, negative, fractional, too_large)
    if inexact.count:
        scan.faults.append(
            f"{inexact.count:,} counts of {limit:,.0f} or more, first {_place(inexact, matrix)}: {scan.storage} holds "
            "whole numbers only below, so they were rounded; write the counts again, from their source, as int32"
        )
    return scan


def _describe_faults(
    scan: CountsScan, matrix: CountsMatrix, not_finite: _Tally, negative: _Tally, fractional: _Tally, too_large: _Tally
) -> None:
    remedy = "raw counts are needed: put them into layers['counts'], raw.X or X"
    if matrix.offered:
        first = matrix.offered[0]
        how = f"read them with '{matrix.path}?layer={quote(first, safe='')}'"
        if matrix.path.endswith(" in memory"):
            how = f"put them where they are found: adata.layers['counts'] = adata.layers[{first!r}]"
        remedy = f"raw counts are needed. Maybe layers[{' or '.join(map(repr, matrix.offered))}] holds them: {how}"
    if not_finite.count:
        scan.faults.append(f"{not_finite.count:,} NaN or infinite values, first {_place(not_finite, matrix)}; {remedy}")
    if negative.count:
        scan.faults.append(
            f"{negative.count:,} negative values, first {_place(negative, matrix)}: looks scaled or corrected; {remedy}"
        )
    if fractional.count:
        fraction = fractional.count / max(1, scan.num_values)
        looks = "log-normalised" if scan.max_value < 20 else "normalised or corrected"
        scan.faults.append(
            f"non-integers: {fraction:.0%} of the values, max {scan.max_value:.4g}: looks {looks}; "
            f"first {_place(fractional, matrix)}; {remedy}"
        )
    if too_large.count:
        scan.faults.append(
            f"{too_large.count:,} counts over 2^31-1, first {_place(too_large, matrix)}; no assay counts that far: "
            "the values were probably multiplied or misread"
        )


def _place(tally: _Tally, matrix: CountsMatrix) -> str:
    assert tally.first is not None
    row, column, value = tally.first
    return f"{value:.6g} in cell {str(matrix.cell_ids[row])!r}, feature {str(matrix.feature_names[column])!r}"
