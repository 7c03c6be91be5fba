"""The block: a few hundred cells as one record on disk.

    header    magic "SCMB", format version u16, codec u8, 0 u8, payload bytes before compression u64, stored u64
    payload   cells u32, modalities u8, obs fields u8, corpus number of the first cell i64 (the others count on from it)
              per obs field         name, code + 1
              per modality          name, measured bits, lengths, total counts, gaps, small counts, and after its number
                                    u32 each list: large gaps, large counts (packed_counts.py)

Integers of a column lie in byte planes: first all lowest bytes, then all second bytes, as many planes as the largest
value needs. A modality that no cell of the block measured is not written, so that mosaic cells cost nothing. The
checksum is that of the frame around the record (tfrecord.py).
"""

import struct
import threading
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import zstandard

from data_pipelines.corpus import packed_counts
from data_pipelines.corpus.packed_counts import CellIndex, PackedCounts
from scmbert_jax.errors import CorpusError

MAGIC = b"SCMB"
BLOCK_VERSION = 2
CODECS = {"none": 0, "zstd": 1}
ZSTD_LEVEL = 1  # of bytes without repeats: level 3 is 2% larger and takes three times as long, level 9 saves 1%
MAX_CELLS = 1 << 20  # of a block; a damaged number must not make us ask for all memory

_HEADER = struct.Struct("<4sHBBQQ")
MAX_PAYLOAD = 1 << 30  # likewise, bytes; 256 cells of 36,601 genes are 1 MB as a rule

_thread = threading.local()  # zstandard objects must not be shared by threads


class ModalityColumns(NamedTuple):
    """What n cells have of one modality.

    Attributes:
      lengths: int32 [n], expressed features of each cell.
      feature_ids: int32 [nnz], index of the feature within its modality, strictly ascending within a cell.
      counts: uint32 [nnz].
      total_counts: uint64 [n], counts of the cell over all mapped features of this modality.
      measured: bool [n]; a cell that was not measured has length 0, which is not the same as no counts.
    """

    lengths: np.ndarray
    feature_ids: np.ndarray
    counts: np.ndarray
    total_counts: np.ndarray
    measured: np.ndarray


class PackedColumns(NamedTuple):
    """As `ModalityColumns`, the counts as they lie in the record."""

    counts: PackedCounts
    places: CellIndex
    total_counts: np.ndarray
    measured: np.ndarray

    @classmethod
    def of(cls, columns: ModalityColumns) -> "PackedColumns":
        counts = packed_counts.pack(columns.lengths, columns.feature_ids, columns.counts)
        return cls(counts, packed_counts.index_of(counts), columns.total_counts, columns.measured)

    def unpacked(self) -> ModalityColumns:
        feature_ids, counts = packed_counts.unpack(self.counts, self.places)
        return ModalityColumns(self.counts.lengths, feature_ids, counts, self.total_counts, self.measured)


class CellBlock(NamedTuple):
    """Cells as they lie in a record. A modality that is absent was measured in none of them.

    Attributes:
      modalities: modality -> its columns.
      obs_codes: obs field -> int32 [n], index into the vocabulary of the corpus; -1 where unknown.
      cell_index: int64 [n], position of the cell in the corpus.
    """

    modalities: dict[str, ModalityColumns]
    obs_codes: dict[str, np.ndarray]
    cell_index: np.ndarray

    @property
    def num_cells(self) -> int:
        return len(self.cell_index)


class PackedBlock(NamedTuple):
    """As `CellBlock`, the counts as they lie in the record."""

    modalities: dict[str, PackedColumns]
    obs_codes: dict[str, np.ndarray]
    cell_index: np.ndarray

    @property
    def num_cells(self) -> int:
        return len(self.cell_index)

    def unpacked(self) -> CellBlock:
        return CellBlock(
            {name: columns.unpacked() for name, columns in self.modalities.items()}, self.obs_codes, self.cell_index
        )


def encode(block: CellBlock, codec: str = "zstd") -> bytes:
    """The record of a block. Raises ValueError where the columns contradict each other."""
    return pack(serialise(block), codec)


def decode(record: bytes | memoryview) -> CellBlock:
    """The block of a record. Raises CorpusError for anything but a record of this format version.

    Damage that leaves a well-formed record is found by the checksum of its frame (`tfrecord.unframe`), not here.
    """
    return deserialise(unpack(record)).unpacked()


# --- the payload -----------------------------------------------------------------------------------------------------


def serialise(block: CellBlock) -> bytes:
    """The payload before compression: a pure function of the block's content (the corpus fingerprint hashes it)."""
    num_cells = block.num_cells
    if num_cells > MAX_CELLS:
        raise ValueError(f"a block of {num_cells} cells; the most is {MAX_CELLS}")
    first = int(block.cell_index[0]) if num_cells else 0
    for name, columns in block.modalities.items():
        _check_columns(name, columns, num_cells)
    modalities = {name: columns for name, columns in block.modalities.items() if columns.measured.any()}
    parts = [
        struct.pack("<IBBq", num_cells, len(modalities), len(block.obs_codes), first),
        _planes(_zigzag(np.diff(block.cell_index.astype(np.int64)) - 1)),  # none of consecutive numbers
    ]
    for name, codes in block.obs_codes.items():
        if len(codes) != num_cells or (num_cells and codes.min() < -1):
            raise ValueError(f"obs field {name!r}: expected {num_cells} codes >= -1")
        parts += [_name(name), _planes(codes.astype(np.int64) + 1)]
    for name, columns in modalities.items():
        try:
            counts = packed_counts.pack(columns.lengths, columns.feature_ids, columns.counts)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        parts += [
            _name(name),
            np.packbits(columns.measured.astype(bool)).tobytes(),
            _planes(counts.lengths),
            _planes(columns.total_counts),
            counts.gaps.tobytes(),
            counts.small_counts.tobytes(),
            struct.pack("<I", len(counts.large_gaps)),
            _planes(counts.large_gaps),
            struct.pack("<I", len(counts.large_counts)),
            _planes(counts.large_counts),
        ]
    return b"".join(parts)


def deserialise(
    payload: bytes | memoryview, modalities: Collection[str] | None = None, obs_fields: Collection[str] | None = None
) -> PackedBlock:
    """The inverse of `serialise`; its arrays are views of `payload`.

    Modalities and obs fields that are not wanted (None: all are) are stepped over.

    Raises:
      CorpusError: the payload contradicts itself.
    """
    cursor = _Cursor(payload)
    num_cells, num_modalities, num_obs, first = cursor.unpack("<IBBq")
    if num_cells > MAX_CELLS or not 0 <= first <= np.iinfo(np.int64).max - num_cells:
        raise CorpusError(f"block of {num_cells} cells from number {first} on")
    cell_index = np.arange(first, first + num_cells)
    steps = cursor.planes(max(num_cells - 1, 0), 1 << 64)
    if steps.any():
        cell_index[1:] += np.cumsum(_unzigzag(steps))
    obs_codes = {}
    for _ in range(num_obs):
        name = cursor.name()
        if obs_fields is None or name in obs_fields:
            obs_codes[name] = (cursor.planes(num_cells, 1 << 31).astype(np.int64) - 1).astype(np.int32)
        else:
            cursor.step_over_planes(num_cells)
    found = {}
    for _ in range(num_modalities):
        name = cursor.name()
        columns = _read_columns(cursor, name, num_cells, modalities is None or name in modalities)
        if columns is not None:
            found[name] = columns
    if cursor.position != len(cursor.bytes):
        raise CorpusError(f"block has {len(cursor.bytes) - cursor.position} bytes after its last column")
    return PackedBlock(found, obs_codes, cell_index)


def _read_columns(cursor: "_Cursor", modality: str, num_cells: int, wanted: bool) -> PackedColumns | None:
    measured = np.unpackbits(cursor.take((num_cells + 7) // 8), count=num_cells).astype(bool)
    lengths = cursor.planes(num_cells, 1 << 31).astype(np.int32)
    total_counts = cursor.planes(num_cells, 1 << 64)
    gaps = cursor.take(int(lengths.sum(dtype=np.int64)))
    small_counts = cursor.take(packed_counts.num_pairs(lengths))
    large = []
    for _ in range(2):
        (size,) = cursor.unpack("<I")
        if size > len(gaps):
            raise CorpusError(f"block: {modality} lists {size} large values for {len(gaps)} entries")
        if wanted:
            large.append(cursor.planes(size, 1 << 32).astype(np.uint32))
        else:
            cursor.step_over_planes(size)
    if not wanted:
        return None
    counts = PackedCounts(lengths, gaps, small_counts, *large)
    return PackedColumns(counts, packed_counts.index_of(counts), total_counts, measured)


def _check_columns(modality: str, columns: ModalityColumns, num_cells: int) -> None:
    lengths = columns.lengths
    for field in ("lengths", "total_counts", "measured"):
        if len(getattr(columns, field)) != num_cells:
            raise ValueError(f"{modality}: {len(getattr(columns, field))} {field} for {num_cells} cells")
    if num_cells and lengths.min() < 0:
        raise ValueError(f"{modality}: negative length")
    nnz = int(lengths.sum(dtype=np.int64))
    if len(columns.feature_ids) != nnz or len(columns.counts) != nnz:
        raise ValueError(
            f"{modality}: lengths add up to {nnz}, but there are {len(columns.feature_ids)} feature ids "
            f"and {len(columns.counts)} counts"
        )
    if np.any(lengths[~columns.measured.astype(bool)] > 0):
        raise ValueError(f"{modality}: a cell that was not measured has counts")


def _zigzag(values: np.ndarray) -> np.ndarray:
    return ((values << 1) ^ (values >> 63)).astype(np.uint64)


def _unzigzag(values: np.ndarray) -> np.ndarray:
    return (values >> np.uint64(1)).astype(np.int64) ^ -(values & np.uint64(1)).astype(np.int64)


def _planes(values: np.ndarray) -> bytes:
    """Integers >= 0 [n] as a number of planes u8 and that many planes of n bytes (none if all values are 0)."""
    num_planes = (int(values.max()).bit_length() + 7) // 8 if len(values) else 0
    planes = values.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :num_planes].T
    return bytes([num_planes]) + planes.tobytes()


def _name(name: str) -> bytes:
    text = name.encode()
    if len(text) > 255:
        raise ValueError(f"name longer than 255 bytes: {name!r}")
    return bytes([len(text)]) + text


class _Cursor:
    """Reads a payload front to back and never past its end."""

    def __init__(self, payload: bytes | memoryview):
        self.bytes = np.frombuffer(payload, np.uint8)
        self.position = 0

    def take(self, size: int) -> np.ndarray:
        """The next `size` bytes: uint8 [size]."""
        stop = self.position + size
        if stop > len(self.bytes):
            raise CorpusError(f"block ends at byte {len(self.bytes)} of its payload, a column needs {stop}")
        part = self.bytes[self.position : stop]
        self.position = stop
        return part

    def unpack(self, layout: str) -> tuple:
        return struct.unpack(layout, self.take(struct.calcsize(layout)).tobytes())

    def name(self) -> str:
        (size,) = self.unpack("<B")
        text = self.take(size).tobytes()
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise CorpusError(f"block: the name of a column is no text: {text!r}") from error

    def planes(self, length: int, limit: int) -> np.ndarray:
        """uint64 [length], values below `limit`, as written by `_planes`."""
        values = np.zeros(length, np.uint64)
        for place, plane in enumerate(self.step_over_planes(length)):
            values |= plane.astype(np.uint64) << np.uint64(8 * place)
        if limit < 1 << 64 and length and values.max() >= limit:
            raise CorpusError(f"block: a column holds {values.max()}; it must be below {limit}")
        return values

    def step_over_planes(self, length: int) -> np.ndarray:
        """uint8 [planes, length], the lowest first."""
        (num_planes,) = self.unpack("<B")
        if num_planes > 8:
            raise CorpusError(f"block: a column of {num_planes} byte planes; 8 is the most")
        return self.take(num_planes * length).reshape(num_planes, length)


# --- the record ------------------------------------------------------------------------------------------------------


def pack(payload: bytes, codec: str) -> bytes:
    """Header and the (compressed) payload."""
    if codec not in CODECS:
        raise ValueError(f"codec {codec!r}; known: {sorted(CODECS)}")
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a block of {len(payload):,} bytes; the most is {MAX_PAYLOAD:,}: make blocks of fewer cells")
    stored = payload
    if codec == "zstd":
        if not hasattr(_thread, "compressor"):
            _thread.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        stored = _thread.compressor.compress(payload)
    return _HEADER.pack(MAGIC, BLOCK_VERSION, CODECS[codec], 0, len(payload), len(stored)) + stored


def unpack(record: bytes | memoryview, most: int = MAX_PAYLOAD) -> bytes | memoryview:
    """The payload of a record. Raises CorpusError: no block, another version, cut short, unknown codec, or a payload of
    more than `most` bytes."""
    if len(record) < _HEADER.size:
        raise CorpusError(f"block of {len(record)} bytes; its header alone has {_HEADER.size}")
    magic, version, codec, _, payload_bytes, stored_bytes = _HEADER.unpack_from(record)
    if magic != MAGIC:
        raise CorpusError(f"not a cell block: it begins with {magic!r}, expected {MAGIC!r}")
    if version != BLOCK_VERSION:
        raise CorpusError(
            f"cell block of format version {version}; this program reads version {BLOCK_VERSION}: "
            "rebuild the corpus with this version, or read it with the version that wrote it"
        )
    stored = memoryview(record)[_HEADER.size :]
    if len(stored) != stored_bytes:
        raise CorpusError(f"cell block has {len(stored)} bytes of payload, its header says {stored_bytes}")
    if codec not in CODECS.values():
        raise CorpusError(f"cell block with codec {codec}; known codecs: {CODECS}")
    if payload_bytes > (most := min(most, MAX_PAYLOAD)):
        raise CorpusError(f"cell block that claims a payload of {payload_bytes:,} bytes; it can have at most {most:,}")
    payload: bytes | memoryview = stored
    if codec == CODECS["zstd"]:
        if not hasattr(_thread, "decompressor"):
            _thread.decompressor = zstandard.ZstdDecompressor()
        try:
            if zstandard.frame_content_size(stored) != payload_bytes:
                raise CorpusError(f"cell block: its compressed payload is not of {payload_bytes} bytes")
            payload = _thread.decompressor.decompress(stored)
        except zstandard.ZstdError as error:
            raise CorpusError(f"cell block cannot be decompressed: {error}") from error
    if len(payload) != payload_bytes:
        raise CorpusError(f"cell block holds {len(payload)} bytes, its header says {payload_bytes}")
    return payload
