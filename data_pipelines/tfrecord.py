"""TFRecord files, written and read without TensorFlow.

A record is framed as: length u64, masked CRC32C of the length u32, data, masked CRC32C of the data u32 (all little
endian; tensorflow/core/lib/io/record_writer.h). Beside `x.tfrecord` lies `x.offsets`: u64 little endian, where each
record's frame begins, and last the size of the file; so any record is one `pread` away.
"""

import os
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


def frame(data: bytes) -> bytes:
    """The bytes of one record in the file."""
    length = struct.pack("<Q", len(data))
    return b"".join(
        [length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))],
    )


def unframe(framed: bytes) -> bytes:
    """The data of one record. Raises CorpusError if the frame or the data are damaged."""
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
    return data


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


def write_offsets(shard: Path, offsets: list[int]) -> None:
    """Write the sidecar; `offsets` ends with the size of the shard. Durable when this returns."""
    with open(offsets_path(shard), "wb") as file:
        file.write(np.asarray(offsets, "<u8").tobytes())
        file.flush()
        os.fsync(file.fileno())
