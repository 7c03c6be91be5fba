"""Bytes out of the middle of a text file: plain (mapped), bgzip (a block at a time), gzip (unpacked into memory).

bgzip (SAM specification 4.1) is gzip in blocks of at most 64 KiB, each with its size in its header, so that the blocks
that hold a byte are found without unpacking those before it.
"""

import gzip
import mmap
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from scmbert_jax.errors import InputError

_PIECE = 16 << 20
_MOST_UNPACKED = 8 << 30  # of a gzip file: more than any genome's chromosomes


class RandomText(Protocol):
    """A text of `size` bytes; `read` gives [start, stop) of them."""

    size: int

    def read(self, start: int, stop: int) -> bytes: ...


def open_text(path: str | Path) -> RandomText:
    """Opens a file; which kind it is, its first bytes say. Raises InputError: it cannot be read, or is damaged."""
    try:
        with open(path, "rb") as file:
            start = file.read(18)
        if start[:2] != b"\x1f\x8b":
            return _Plain(path)
        return _Blocks(path) if start[3:4] == b"\x04" and start[12:14] == b"BC" else _Whole(path)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy or download it again") from error


def pieces(text: RandomText) -> Iterator[bytes]:
    """All of it, in order."""
    for start in range(0, text.size, _PIECE):
        yield text.read(start, min(start + _PIECE, text.size))


class _Plain:
    def __init__(self, path: str | Path):
        self.size = Path(path).stat().st_size
        if not self.size:
            raise ValueError("it is empty")
        with open(path, "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read(self, start: int, stop: int) -> bytes:
        return self._bytes[start:stop]


class _Whole:
    def __init__(self, path: str | Path):
        with gzip.open(path, "rb") as file:
            self._bytes = file.read(_MOST_UNPACKED + 1)
        self.size = len(self._bytes)
        if self.size > _MOST_UNPACKED:
            raise ValueError(f"it unpacks to more than {_MOST_UNPACKED >> 30} GiB; compress it with bgzip instead")

    def read(self, start: int, stop: int) -> bytes:
        return self._bytes[start:stop]


class _Blocks:
    def __init__(self, path: str | Path):
        self._path = path
        with open(path, "rb") as file:
            self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        begins, sizes, place = [], [], 0
        while place < len(self._file):
            head = self._file[place : place + 18]
            if len(head) < 18 or head[:4] != b"\x1f\x8b\x08\x04" or head[12:14] != b"BC":
                raise ValueError(f"no block of bgzip at byte {place:,}")
            stop = place + int.from_bytes(head[16:18], "little") + 1
            if stop > len(self._file):
                raise ValueError(f"truncated in the block at byte {place:,}")
            begins.append(place)
            sizes.append(int.from_bytes(self._file[stop - 4 : stop], "little"))
            place = stop
        self._begins = [*begins, place]
        self._ends = np.cumsum(sizes)  # unpacked bytes up to the end of each block
        self.size = int(self._ends[-1])
        self._unpacked = lru_cache(maxsize=256)(self._unpack)  # 16 MiB: windows come near each other

    def read(self, start: int, stop: int) -> bytes:
        first, last = np.searchsorted(self._ends, (start, max(start, stop - 1)), side="right").tolist()
        text = b"".join(self._unpacked(block) for block in range(first, min(last + 1, len(self._ends))))
        before = int(self._ends[first - 1]) if first else 0
        return text[start - before : stop - before]

    def _unpack(self, block: int) -> bytes:
        try:
            return zlib.decompress(self._file[self._begins[block] : self._begins[block + 1]], wbits=31)
        except zlib.error as error:
            raise InputError(
                f"{self._path}: damaged at byte {self._begins[block]:,} ({error}); copy it again"
            ) from error
