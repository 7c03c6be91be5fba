"""Cells in random order without holding them in memory: two passes over hash-range buckets on disk.

The order of a corpus is ascending `cell_hashes`: it depends on the seed, on which data set a cell belongs to and on its
id, and not on chunk sizes, the number of buckets, or the order of cells in a file. Pass 1 (`CellSpool.add`) appends
what it reads to the bucket of each cell; pass 2 (`CellSpool.bucket`) loads one bucket at a time, which holds a
contiguous stretch of the final order, and sorts it. Memory: one bucket and 28 bytes per cell.
"""

import contextlib
import hashlib
import math
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from data_pipelines.cell_block import ModalityColumns
from data_pipelines.durable_files import writing

BUCKET_BYTES = 64 << 20  # aim; a bucket takes about three times that while it is sorted
MAX_BUCKETS = 512  # each is an open file during pass 1, and a process may commonly have 1,024

_SEGMENT = struct.Struct("<BIQ")  # modality, rows, entries
_ENTRY_BYTES = 8  # feature id int32 and count uint32


def cell_hashes(seed: int, dataset_index: int, cell_ids: np.ndarray) -> np.ndarray:
    """uint64 [n]: the place of each cell in the shuffled corpus (BLAKE2b, 8 bytes, keyed by seed and data set)."""
    keyed = hashlib.blake2b(digest_size=8, key=struct.pack("<qI", seed, dataset_index))
    digests = bytearray()
    for cell_id in cell_ids.tolist():
        digest = keyed.copy()
        digest.update(cell_id.encode())
        digests += digest.digest()
    return np.frombuffer(bytes(digests), "<u8").astype(np.uint64)


def shuffled_order(hashes: np.ndarray, datasets: np.ndarray, cell_ids: list[np.ndarray], positions: np.ndarray):
    """int64 [n], the cells by ascending hash; cells of equal hash by data set, then by cell id.

    Args:
      hashes: uint64 [n].
      datasets: int32 [n].
      cell_ids: per data set, the ids that `positions` refer to.
      positions: int64 [n].
    """
    order = np.lexsort((datasets, hashes))
    equal = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    if len(equal):  # one pair in 10^4 corpora of 100 million cells
        first = 0
        while first < len(order):
            stop = first + 1
            while stop < len(order) and hashes[order[stop]] == hashes[order[first]]:
                stop += 1
            if stop - first > 1:
                order[first:stop] = sorted(
                    order[first:stop], key=lambda cell: (datasets[cell], cell_ids[datasets[cell]][positions[cell]])
                )
            first = stop
    return order


def choose_num_buckets(estimated_entries: float) -> int:
    """A power of two such that a bucket holds about BUCKET_BYTES, at most MAX_BUCKETS."""
    wanted = max(1.0, estimated_entries * _ENTRY_BYTES / BUCKET_BYTES)
    return min(MAX_BUCKETS, 1 << math.ceil(math.log2(wanted)))


class CellRows(NamedTuple):
    """Cells of one modality as they come from a file.

    Attributes:
      rows: int64 [n], where the cell will lie in the corpus.
      hashes: uint64 [n].
      starts: int64 [n + 1], where each cell's entries begin.
      feature_ids: int32 [nnz], in corpus numbering, ascending within a cell.
      counts: uint32 [nnz].
    """

    rows: np.ndarray
    hashes: np.ndarray
    starts: np.ndarray
    feature_ids: np.ndarray
    counts: np.ndarray

    def take(self, rows: np.ndarray) -> "CellRows":
        """Some of the cells, in the order of `rows`."""
        entries = entries_of(self.starts, rows)
        lengths = np.diff(self.starts)[rows]
        return CellRows(
            self.rows[rows],
            self.hashes[rows],
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            self.feature_ids[entries],
            self.counts[entries],
        )


def entries_of(starts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int64: the entries of `rows` of a CSR with these starts, row after row."""
    lengths = starts[rows + 1] - starts[rows]
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts[rows] - (ends - lengths), lengths)


class CellSpool:
    """The buckets on disk.

    Args:
      folder: made here; the caller removes it.
      num_buckets: a power of two.
      modalities: of the corpus.
    """

    def __init__(self, folder: Path, num_buckets: int, modalities: list[str]):
        self.folder = folder
        self.num_buckets = num_buckets
        self.modalities = modalities
        self._shift = 64 - (num_buckets.bit_length() - 1)
        with writing(folder):
            folder.mkdir()
        self._files: list[BinaryIO] = []
        for number in range(num_buckets):
            with writing(self._path(number)):
                self._files.append(open(self._path(number), "wb", buffering=1 << 16))  # noqa: SIM115 - closed in `close`

    def _path(self, number: int) -> Path:
        return self.folder / f"bucket-{number:04d}"

    def bucket_of(self, hashes: np.ndarray) -> np.ndarray:
        """int64 [n]: buckets hold ascending ranges of the hash."""
        if self.num_buckets == 1:
            return np.zeros(len(hashes), np.int64)
        return (hashes >> np.uint64(self._shift)).astype(np.int64)

    def add(self, modality: str, cells: CellRows) -> None:
        """Append cells to their buckets. Raises CorpusError when the disk does not take them."""
        buckets = self.bucket_of(cells.hashes)
        order = np.argsort(buckets, kind="stable")
        edges = np.searchsorted(buckets[order], np.arange(self.num_buckets + 1))
        for number in np.unique(buckets):
            part = cells.take(order[edges[number] : edges[number + 1]])
            rows, entries = len(part.rows), len(part.counts)
            with writing(self._path(number)):
                file = self._files[number]
                file.write(_SEGMENT.pack(self.modalities.index(modality), rows, entries))
                for array, kind in [
                    (part.rows, "<i8"),
                    (np.diff(part.starts), "<i4"),
                    (part.feature_ids, "<i4"),
                    (part.counts, "<u4"),
                ]:
                    file.write(array.astype(kind).tobytes())

    def close(self) -> None:
        """End of pass 1. Raises CorpusError when the disk does not take what was still in memory."""
        for number, file in enumerate(self._files):
            with writing(self._path(number)):
                file.close()

    def __enter__(self) -> "CellSpool":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):  # an error is on its way already, and the files go with their folder
                file.close()

    def bucket(self, number: int, first_row: int, num_rows: int) -> dict[str, ModalityColumns]:
        """The cells of one bucket in corpus order: modality -> columns of `num_rows` cells. Its file is removed.

        Args:
          number: which bucket.
          first_row, num_rows: the stretch of corpus rows that falls into this bucket.
        """
        parts: dict[str, list[tuple[np.ndarray, ...]]] = {modality: [] for modality in self.modalities}
        with open(self._path(number), "rb") as file:
            while header := file.read(_SEGMENT.size):
                modality, size, entries = _SEGMENT.unpack(header)
                rows = np.frombuffer(file.read(8 * size), "<i8")
                lengths = np.frombuffer(file.read(4 * size), "<i4")
                feature_ids = np.frombuffer(file.read(4 * entries), "<i4")
                counts = np.frombuffer(file.read(4 * entries), "<u4")
                parts[self.modalities[modality]].append((rows, lengths, feature_ids, counts))
        with writing(self._path(number)):
            self._path(number).unlink()
        return {modality: _in_order(part, first_row, num_rows) for modality, part in parts.items()}


def _in_order(parts: list[tuple[np.ndarray, ...]], first_row: int, num_rows: int) -> ModalityColumns:
    """Columns of the corpus rows [first_row, first_row + num_rows); rows that no part has are not measured."""
    if not parts:
        return empty_columns(num_rows)
    rows, lengths, feature_ids, counts = (np.concatenate(column) for column in zip(*parts, strict=True))
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    order = np.argsort(rows, kind="stable")
    entries = entries_of(starts, order)
    place = rows[order] - first_row
    out_lengths = np.zeros(num_rows, np.int32)
    out_lengths[place] = lengths[order]
    measured = np.zeros(num_rows, bool)
    measured[place] = True
    sorted_counts = counts[entries].astype(np.uint32)
    totals = np.zeros(num_rows, np.uint64)
    ends = np.cumsum(lengths[order], dtype=np.int64)
    running = np.concatenate([[0], np.cumsum(sorted_counts, dtype=np.uint64)]).astype(np.uint64)
    totals[place] = running[ends] - running[ends - lengths[order]]
    return ModalityColumns(out_lengths, feature_ids[entries].astype(np.int32), sorted_counts, totals, measured)


def empty_columns(num_rows: int) -> ModalityColumns:
    """Columns of cells in which the modality was not measured."""
    return ModalityColumns(
        np.zeros(num_rows, np.int32),
        np.zeros(0, np.int32),
        np.zeros(0, np.uint32),
        np.zeros(num_rows, np.uint64),
        np.zeros(num_rows, bool),
    )
