"""TFRecord files of blocks, written and read without TensorFlow.

A record is framed as: length u64, masked CRC32C of the length u32, data, masked CRC32C of the data u32 (all little
endian; tensorflow/core/lib/io/record_writer.h). Its data are a `tf.train.Example` with one feature, `block`, of bytes:
the block is the end of it, after five nested headers. So TensorFlow Datasets reads the files as they are. Beside
`x.tfrecord` lies `x.offsets`: u64 little endian, where each record's frame begins, and last the size of the file; so
any record is one `pread` away.
"""

import struct
from pathlib import Path

import google_crc32c
import numpy as np

from scmbert_jax.errors import CorpusError

FRAME_BYTES = 16  # length, its checksum, and the checksum of the data
_MASK_DELTA = 0xA282EAD8


def masked_crc32c(data: bytes) -> int:
    """CRC32C rotated right by 15 bits plus a constant, as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def frame(block: bytes) -> bytes:
    """The bytes of one record in the file."""
    data = _example(block)
    length = struct.pack("<Q", len(data))
    return b"".join(
        [length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))],
    )


def unframe(framed: bytes) -> memoryview:
    """The block of one record. Raises CorpusError if the frame or the data are damaged."""
    if len(framed) < FRAME_BYTES:
        raise CorpusError(f"record of {len(framed)} bytes; its frame alone has {FRAME_BYTES}")
    length, length_crc = struct.unpack("<QI", framed[:12])
    if masked_crc32c(framed[:8]) != length_crc:
        raise CorpusError("record frame is damaged: the checksum of its length does not match")
    if length != len(framed) - FRAME_BYTES:
        raise CorpusError(f"record of {length} bytes where the offsets leave room for {len(framed) - FRAME_BYTES}")
    data = framed[12:-4]
    if masked_crc32c(data) != struct.unpack("<I", framed[-4:])[0]:
        raise CorpusError("record is damaged: the checksum of its data does not match")
    return memoryview(data)[_block_start(data) :]


# --- tf.train.Example ------------------------------------------------------------------------------------------------

# Example.features, Features.feature (one entry of a map), its value, Feature.bytes_list, BytesList.value: each a tag
# and a length around the next (tensorflow/core/example/{example,feature}.proto). An entry's key is before its value.
_KEY = b"\x0a\x05block"


def _example(block: bytes) -> bytes:
    """A serialised `tf.train.Example` whose only feature is `block`."""
    header, size = b"", len(block)
    # from the inside out
    for before, tag in ((b"", b"\x0a"), (b"", b"\x0a"), (_KEY, b"\x12"), (b"", b"\x0a"), (b"", b"\x0a")):
        header = before + tag + _varint(size) + header
        size = len(header) + len(block)
    return header + block


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _block_start(data: bytes) -> int:
    """Where the block begins in what `_example` made."""
    start = data.find(_KEY, 0, 64) + len(_KEY)
    for tag in (0x12, 0x0A, 0x0A):
        if start >= len(data) or data[start] != tag:
            raise CorpusError("record holds no block: not a tf.train.Example with the one feature `block`")
        start += 1
        while start < len(data) and data[start] > 127:
            start += 1
        start += 1
    return start


def is_sound(framed: bytes) -> bool:
    """Whether `unframe` would take it."""
    try:
        unframe(framed)
    except CorpusError:
        return False
    return True


def offsets_path(shard: Path) -> Path:
    return shard.with_suffix(".offsets")


def offsets_bytes(num_records: int) -> int:
    """Size of the sidecar of a shard."""
    return 8 * (num_records + 1)


def parse_offsets(raw: bytes, shard_bytes: int, path: object) -> np.ndarray:
    """Where the frames begin, and the end: int64 [records + 1].

    Args:
      raw: the bytes of the sidecar.
      shard_bytes: size of the shard.
      path: of the sidecar, for messages.

    Raises:
      CorpusError: they do not ascend from 0 to the size of the shard.
    """
    offsets = np.frombuffer(raw, "<u8").astype(np.int64)
    if offsets[0] != 0 or np.any(np.diff(offsets) < FRAME_BYTES) or offsets[-1] != shard_bytes:
        raise CorpusError(
            f"{path}: offsets do not ascend from 0 to {shard_bytes}, by at least a frame each; rebuild the corpus"
        )
    return offsets
