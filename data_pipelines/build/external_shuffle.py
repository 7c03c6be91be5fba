"""Cells in random order without holding them in memory: two passes, and segments of cells on disk between them.

The order of a corpus is ascending `cell_hashes`: it depends on the seed, on which data set a cell belongs to and on its
id, and not on chunk sizes, the number of buckets, or the order of cells in a file. It is known before a count is read;
so a bucket is a range of whole blocks, and a shard a range of buckets. Pass 1 (`SegmentWriter`) sorts what it reads
into buckets, and writes for each a few segments, compressed as blocks are: 1.6 kB a cell where the counts have 13 kB.
Pass 2 (`read_bucket`) takes the segments of one bucket out of all files.

Memory: 16 bytes an entry (a count of a feature of a cell) of what pass 1 gathers, 16 an entry of a bucket in pass 2.
"""

import hashlib
import itertools
import math
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import scipy.sparse

from data_pipelines.corpus import cell_block, tfrecord
from data_pipelines.corpus.cell_block import CellBlock, ModalityColumns
from scmbert_jax.errors import CorpusError

GATHER_ENTRIES = 1 << 25  # pass 1 writes segments after so many: half a GiB
BUCKET_ENTRIES = 1 << 26  # aim of a bucket: one GiB
SEGMENT_CELLS = 1024  # at most; encoding takes about 40 bytes an entry

_END = struct.Struct("<8sQ")  # magic, number of segments
_MAGIC = b"SCMBSEG1"


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
    sorted_hashes = hashes[order]
    equal = sorted_hashes[1:] == sorted_hashes[:-1]  # one pair in 10^4 corpora of 100 million cells
    for first in np.flatnonzero(equal & ~np.concatenate([[False], equal[:-1]])).tolist():
        stop = int(np.searchsorted(sorted_hashes, sorted_hashes[first], side="right"))
        order[first:stop] = sorted(
            order[first:stop], key=lambda cell: (datasets[cell], cell_ids[datasets[cell]][positions[cell]])
        )
    return order


class BucketEdges(NamedTuple):
    """Where buckets and shards begin and end: int64, the first is 0.

    Attributes:
      shards: [shards + 1], in buckets.
      buckets: [buckets + 1], in blocks.
    """

    shards: np.ndarray
    buckets: np.ndarray


def bucket_edges(num_blocks: int, num_entries: int, num_shards: int) -> BucketEdges:
    """Shards of about equally many blocks, and in each as many buckets as it takes for BUCKET_ENTRIES a bucket."""
    num_shards = max(1, min(num_shards, num_blocks))
    shard_edges = np.arange(num_shards + 1) * num_blocks // num_shards
    wanted = max(1, math.ceil(num_entries / num_shards / BUCKET_ENTRIES))
    edges, shards = [0], [0]
    for first, last in itertools.pairwise(shard_edges.tolist()):
        count = min(wanted, last - first)
        edges += [first + number * (last - first) // count for number in range(1, count + 1)]
        shards.append(len(edges) - 1)
    return BucketEdges(np.array(shards), np.array(edges))


def entries_of(starts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int64: the entries of `rows` of a CSR with these starts, row after row."""
    lengths = starts[rows + 1] - starts[rows]
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts[rows] - (ends - lengths), lengths)


class Cells(NamedTuple):
    """What some cells have of one modality, in any order.

    Attributes:
      rows: int64 [n], where each cell lies in the corpus.
      starts: int64 [n + 1], where each cell's entries begin.
      feature_ids: int32 [nnz], in corpus numbering, ascending within a cell.
      counts: uint32 [nnz].
    """

    rows: np.ndarray
    starts: np.ndarray
    feature_ids: np.ndarray
    counts: np.ndarray

    def columns(self, cells: np.ndarray, place: np.ndarray, num_rows: int) -> ModalityColumns:
        """Columns of `num_rows` cells; those to which no cell belongs are not measured.

        Args:
          cells: int64 [m], which cells.
          place: int64 [m], ascending: where among the `num_rows` each goes.
        """
        entries = entries_of(self.starts, cells)
        counts = self.counts[entries]
        lengths, totals = np.zeros(num_rows, np.int32), np.zeros(num_rows, np.uint64)
        measured = np.zeros(num_rows, bool)
        lengths[place] = self.starts[cells + 1] - self.starts[cells]
        running = np.concatenate([[0], np.cumsum(counts, dtype=np.uint64)]).astype(np.uint64)
        ends = np.cumsum(lengths[place], dtype=np.int64)
        totals[place] = running[ends] - running[ends - lengths[place]]
        measured[place] = True
        return ModalityColumns(lengths, self.feature_ids[entries], counts, totals, measured)


def _joined(parts: Sequence[Cells]) -> Cells:
    lengths = [np.diff(part.starts) for part in parts]
    return Cells(
        np.concatenate([np.zeros(0, np.int64), *(part.rows for part in parts)]),
        np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))]).astype(np.int64),
        np.concatenate([np.zeros(0, np.int32), *(part.feature_ids for part in parts)]),
        np.concatenate([np.zeros(0, np.uint32), *(part.counts for part in parts)]),
    )


# --- pass 1 ----------------------------------------------------------------------------------------------------------


class SegmentWriter:
    """Writes cells of one modality as segments, and where they are at the end of the file.

    Args:
      file: at its beginning; nobody else writes to it.
      modality: which.
      edges: int64 [buckets + 1], the first corpus row of each bucket, and the number of cells.
    """

    def __init__(self, file: BinaryIO, modality: str, edges: np.ndarray):
        self._file, self._modality, self._edges = file, modality, edges
        self._index: list[tuple[int, int, int]] = []
        self._gathered: list[Cells] = []
        self._num_entries = 0

    def add(self, rows: np.ndarray, counts: scipy.sparse.csr_matrix) -> None:
        """Cells that will lie at `rows` of the corpus."""
        parts = (counts.indptr.astype(np.int64), counts.indices.astype(np.int32), counts.data.astype(np.uint32))
        self._gathered.append(Cells(rows, *parts))
        self._num_entries += counts.nnz
        if self._num_entries >= GATHER_ENTRIES:
            self._write_segments()

    def _write_segments(self) -> None:
        cells = _joined(self._gathered)
        self._gathered, self._num_entries = [], 0
        order = np.argsort(cells.rows)
        rows = cells.rows[order]
        bounds = np.searchsorted(rows, self._edges)
        for bucket in np.flatnonzero(np.diff(bounds)).tolist():
            for first in range(int(bounds[bucket]), int(bounds[bucket + 1]), SEGMENT_CELLS):
                chosen = order[first : min(first + SEGMENT_CELLS, int(bounds[bucket + 1]))]
                columns = cells.columns(chosen, np.arange(len(chosen)), len(chosen))
                self._write(bucket, CellBlock({self._modality: columns}, {}, cells.rows[chosen]))

    def _write(self, bucket: int, block: CellBlock) -> None:
        record = tfrecord.frame(cell_block.encode(block))  # with a checksum
        self._index.append((bucket, self._file.tell(), len(record)))
        self._file.write(record)

    def finish(self) -> None:
        if self._gathered:
            self._write_segments()
        self._file.write(np.array(self._index, "<i8").reshape(-1, 3).tobytes())
        self._file.write(_END.pack(_MAGIC, len(self._index)))


# --- pass 2 ----------------------------------------------------------------------------------------------------------


class SegmentFile:
    """What a `SegmentWriter` wrote, as far as its index. Raises CorpusError where the file is not whole."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - _END.size))
                magic, number = _END.unpack(file.read())
                if magic != _MAGIC:
                    raise ValueError(f"it ends with {magic!r}")
                file.seek(size - _END.size - 24 * number)
                self._index = np.frombuffer(file.read(24 * number), "<i8").reshape(-1, 3)
        except (OSError, ValueError, struct.error) as error:
            raise CorpusError(f"{path}: not whole ({error}); remove its folder and build again") from error

    def segments(self, bucket: int) -> Iterable[CellBlock]:
        wanted = self._index[self._index[:, 0] == bucket]
        if not len(wanted):
            return
        with open(self.path, "rb") as file:
            for _, offset, size in wanted.tolist():
                file.seek(offset)
                try:
                    yield cell_block.decode(tfrecord.unframe(file.read(size)))
                except CorpusError as error:
                    raise CorpusError(f"{self.path}: {error}; remove its folder and build again") from error


def read_bucket(files: Sequence[SegmentFile], bucket: int, modalities: Sequence[str]) -> dict[str, Cells]:
    """modality -> `Cells` of one bucket."""
    parts: dict[str, list[Cells]] = {modality: [] for modality in modalities}
    for file in files:
        for block in file.segments(bucket):
            for modality, columns in block.modalities.items():
                starts = np.concatenate([[0], np.cumsum(columns.lengths, dtype=np.int64)])
                parts[modality].append(Cells(block.cell_index, starts, columns.feature_ids, columns.counts))
    return {modality: _joined(parts.pop(modality)) for modality in modalities}
