"""The block: a few hundred cells as one record on disk.

    header    magic "SCMB", format version u16, codec u8, 0 u8, payload bytes before compression u64, stored u64,
              CRC32C u32 of the header before it and the stored payload
    payload   cells u32, modalities u8, obs fields u8
              global cell index     int64 first, then the differences
              per obs field         name, code + 1
              per modality          name, measured bits, lengths, total counts,
                                    feature ids as gaps, counts (u8, 255 = see the list), list of large counts u32

Integers of a column lie in byte planes: first all lowest bytes, then all second bytes, as many planes as the largest
value needs. The high planes of gaps are nearly all zero and vanish under zstd: 1.5 kB per cell where a plain h5ad has
13 kB. A modality that no cell of the block measured is not written, so that mosaic cells cost nothing.
"""

import struct
import threading
from typing import NamedTuple

import google_crc32c
import numba
import numpy as np
import zstandard

from scmbert_jax.errors import CorpusError

MAGIC = b"SCMB"
BLOCK_VERSION = 1
CODECS = {"none": 0, "zstd": 1}
ZSTD_LEVEL = 3  # level 9 saves 3% more at a fifth of the speed

_HEADER = struct.Struct("<4sHBBQQ")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
_COUNT_ESCAPE = 255  # a count of 255 or more stands in the list of large counts
_MAX_PAYLOAD = 1 << 36  # a damaged length must not make us ask for all memory

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


def encode(block: CellBlock, codec: str = "zstd") -> bytes:
    """The record of a block. Raises ValueError where the columns contradict each other."""
    return pack(serialise(block), codec)


def decode(record: bytes) -> CellBlock:
    """The block of a record. Raises CorpusError for anything but an undamaged record of this format version."""
    return deserialise(unpack(record))


# --- the payload -----------------------------------------------------------------------------------------------------


def serialise(block: CellBlock) -> bytes:
    """The payload before compression: a pure function of the block's content (the corpus fingerprint hashes it)."""
    num_cells = block.num_cells
    modalities = {name: columns for name, columns in block.modalities.items() if columns.measured.any()}
    for name, columns in block.modalities.items():
        _check_columns(name, columns, num_cells)
    parts = [struct.pack("<IBB", num_cells, len(modalities), len(block.obs_codes))]
    cell_index = block.cell_index.astype(np.int64)
    parts.append(struct.pack("<q", int(cell_index[0]) if num_cells else 0))
    parts.append(_planes(_zigzag(np.diff(cell_index))))
    for name, codes in block.obs_codes.items():
        if len(codes) != num_cells or (num_cells and codes.min() < -1):
            raise ValueError(f"obs field {name!r}: expected {num_cells} codes >= -1")
        parts += [_name(name), _planes((codes.astype(np.int64) + 1).astype(np.uint64))]
    for name, columns in modalities.items():
        parts += [
            _name(name),
            np.packbits(columns.measured.astype(bool)).tobytes(),
            _planes(columns.lengths.astype(np.uint64)),
            _planes(columns.total_counts.astype(np.uint64)),
            struct.pack("<Q", len(columns.feature_ids)),
            _planes(_gaps(name, columns)),
            np.minimum(columns.counts, _COUNT_ESCAPE).astype(np.uint8).tobytes(),
        ]
        large = columns.counts[columns.counts >= _COUNT_ESCAPE].astype("<u4")
        parts += [struct.pack("<I", len(large)), large.tobytes()]
    return b"".join(parts)


def deserialise(payload: bytes, wanted: tuple[str, ...] | None = None) -> CellBlock:
    """The inverse of `serialise`; modalities that are not wanted (None: all are) are stepped over.

    Raises CorpusError where the payload contradicts itself.
    """
    cursor = _Cursor(payload)
    num_cells, num_modalities, num_obs = cursor.unpack("<IBB")
    (first,) = cursor.unpack("<q")
    cell_index = np.empty(num_cells, np.int64)
    steps = _unzigzag(cursor.planes(max(num_cells - 1, 0)))
    if num_cells:
        cell_index[0] = first
        cell_index[1:] = first + np.cumsum(steps)
    obs_codes = {}
    for _ in range(num_obs):
        name = cursor.name()
        obs_codes[name] = (cursor.planes(num_cells).astype(np.int64) - 1).astype(np.int32)
    modalities = {}
    for _ in range(num_modalities):
        name = cursor.name()
        columns = _read_columns(cursor, name, num_cells, wanted is None or name in wanted)
        if columns is not None:
            modalities[name] = columns
    if cursor.position != len(payload):
        raise CorpusError(f"block has {len(payload) - cursor.position} bytes after its last column")
    return CellBlock(modalities, obs_codes, cell_index)


def _read_columns(cursor: "_Cursor", modality: str, num_cells: int, wanted: bool) -> ModalityColumns | None:
    bits = cursor.take((num_cells + 7) // 8)
    measured = np.unpackbits(bits, count=num_cells).astype(bool)
    lengths = cursor.planes(num_cells).astype(np.int32)
    total_counts = cursor.planes(num_cells)
    (nnz,) = cursor.unpack("<Q")
    if int(lengths.sum(dtype=np.int64)) != nnz:
        raise CorpusError(f"block: lengths of {modality} add up to {lengths.sum(dtype=np.int64)}, not to {nnz}")
    (num_planes,) = cursor.unpack("<B")
    gap_planes = cursor.take(nnz * num_planes)
    small = cursor.take(nnz)
    (num_large,) = cursor.unpack("<I")
    large = cursor.take(num_large * 4).view("<u4")
    if not wanted:
        return None
    feature_ids = np.empty(nnz, np.int32)
    counts = np.empty(nnz, np.uint32)
    used = _restore(gap_planes, num_planes, small, large, lengths, feature_ids, counts)
    if used != num_large:
        raise CorpusError(f"block: {modality} lists {num_large} large counts, its columns refer to {used}")
    return ModalityColumns(lengths, feature_ids, counts, total_counts, measured)


@numba.njit(nogil=True, cache=True)
def _restore(gap_planes, num_planes, small, large, lengths, feature_ids, counts):
    """Fill `feature_ids` and `counts`; return how many large counts were referred to."""
    nnz = small.shape[0]
    position = 0
    used = 0
    for cell in range(lengths.shape[0]):
        feature = -1
        for _ in range(lengths[cell]):
            gap = 0
            for plane in range(num_planes):
                gap += int(gap_planes[plane * nnz + position]) << (8 * plane)
            feature += 1 + gap
            feature_ids[position] = feature
            count = np.uint32(small[position])
            if count == _COUNT_ESCAPE:
                if used < large.shape[0]:
                    count = large[used]
                used += 1
            counts[position] = count
            position += 1
    return used


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


def _gaps(modality: str, columns: ModalityColumns) -> np.ndarray:
    """id - previous id - 1 within a cell, the first counted from -1: never negative, small where cells are dense."""
    ids = columns.feature_ids.astype(np.int64)
    previous = np.concatenate([[-1], ids[:-1]]) if len(ids) else ids
    starts = np.cumsum(columns.lengths, dtype=np.int64) - columns.lengths
    previous[starts[columns.lengths > 0]] = -1
    gaps = ids - previous - 1
    if len(gaps) and gaps.min() < 0:
        raise ValueError(f"{modality}: feature ids are not strictly ascending within each cell")
    return gaps.astype(np.uint64)


def _zigzag(values: np.ndarray) -> np.ndarray:
    return ((values << 1) ^ (values >> 63)).astype(np.uint64)


def _unzigzag(values: np.ndarray) -> np.ndarray:
    return (values >> np.uint64(1)).astype(np.int64) ^ -(values & np.uint64(1)).astype(np.int64)


def _planes(values: np.ndarray) -> bytes:
    """uint64 [n] as a number of planes u8 and that many planes of n bytes (none if all values are 0)."""
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

    def __init__(self, payload: bytes):
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
        return self.take(size).tobytes().decode()

    def planes(self, length: int) -> np.ndarray:
        """uint64 [length], as written by `_planes`."""
        (num_planes,) = self.unpack("<B")
        if num_planes > 8:
            raise CorpusError(f"block: a column of {num_planes} byte planes; 8 is the most")
        wide = np.zeros((length, 8), np.uint8)
        wide[:, :num_planes] = self.take(num_planes * length).reshape(num_planes, length).T
        return wide.reshape(-1).view("<u8")


# --- the record ------------------------------------------------------------------------------------------------------


def pack(payload: bytes, codec: str) -> bytes:
    """Header, checksum and the (compressed) payload."""
    if codec not in CODECS:
        raise ValueError(f"codec {codec!r}; known: {sorted(CODECS)}")
    stored = payload
    if codec == "zstd":
        if not hasattr(_thread, "compressor"):
            _thread.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        stored = _thread.compressor.compress(payload)
    header = _HEADER.pack(MAGIC, BLOCK_VERSION, CODECS[codec], 0, len(payload), len(stored))
    crc = google_crc32c.extend(google_crc32c.value(header), stored)
    return header + _CRC.pack(crc) + stored


def unpack(record: bytes) -> bytes:
    """The payload of a record, checked. Raises CorpusError: no block, another version, damaged, unknown codec."""
    if len(record) < HEADER_BYTES:
        raise CorpusError(f"block of {len(record)} bytes; its header alone has {HEADER_BYTES}")
    header = record[: _HEADER.size]
    magic, version, codec, _, payload_bytes, stored_bytes = _HEADER.unpack(header)
    if magic != MAGIC:
        raise CorpusError(f"not a cell block: it begins with {magic!r}, expected {MAGIC!r}")
    if version != BLOCK_VERSION:
        raise CorpusError(
            f"cell block of format version {version}; this program reads version {BLOCK_VERSION}: "
            "rebuild the corpus with this version, or read it with the version that wrote it"
        )
    stored = record[HEADER_BYTES:]
    if len(stored) != stored_bytes:
        raise CorpusError(f"cell block has {len(stored)} bytes of payload, its header says {stored_bytes}")
    (expected,) = _CRC.unpack(record[_HEADER.size : HEADER_BYTES])
    found = google_crc32c.extend(google_crc32c.value(header), stored)
    if found != expected:
        raise CorpusError(f"cell block is damaged: CRC32C {found:08x}, expected {expected:08x}")
    if codec == CODECS["none"]:
        return stored
    if codec != CODECS["zstd"] or payload_bytes > _MAX_PAYLOAD:
        raise CorpusError(f"cell block with codec {codec} and {payload_bytes} payload bytes; known codecs: {CODECS}")
    if not hasattr(_thread, "decompressor"):
        _thread.decompressor = zstandard.ZstdDecompressor()
    try:
        return _thread.decompressor.decompress(stored, max_output_size=payload_bytes)
    except zstandard.ZstdError as error:
        raise CorpusError(f"cell block cannot be decompressed: {error}") from error
