"""Arrays out of an .npz that a stranger may have made: what its headers claim is not believed.

`numpy.load` asks for as much memory as a header says, which may be terabytes in a file of a kilobyte.
"""

import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np


def read_arrays(file: BinaryIO, expected: Mapping[str, tuple[tuple[int, ...], type]]) -> dict[str, np.ndarray]:
    """The arrays of these names, as `numpy.savez` wrote them.

    Args:
      expected: name -> shape and dtype.

    Raises ValueError, KeyError, zipfile.BadZipFile, ...: something else.
    """
    found: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(file) as archive:
        for name, (shape, dtype) in expected.items():
            with archive.open(f"{name}.npy") as member:
                if np.lib.format.read_magic(member) != (1, 0):
                    raise ValueError(f"{name} is not as numpy writes a small header")
                claimed, by_column, kind = np.lib.format.read_array_header_1_0(member)
                if claimed != shape or kind != np.dtype(dtype) or (by_column and len(shape) > 1 and min(shape) > 1):
                    raise ValueError(f"{name} claims {kind} {list(claimed)}, expected {np.dtype(dtype)} {list(shape)}")
                data = member.read(int(np.prod(shape)) * kind.itemsize)
                found[name] = np.frombuffer(data, dtype).reshape(shape)
    return found


MOST_BYTES = 4 << 30  # of all arrays of a file together: the statistics of a million features are 0.3 GB


@contextmanager
def open_arrays(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """`numpy.load` of an .npz whose shapes are not known before, without pickles.

    Raises ValueError, zipfile.BadZipFile, ...: it unpacks to more than MOST_BYTES, or an array claims more than it has.
    """
    with zipfile.ZipFile(path) as archive:
        if (total := sum(member.file_size for member in archive.infolist())) > MOST_BYTES:
            raise ValueError(f"it unpacks to {total:,} bytes, at most {MOST_BYTES:,} are read")
        for member in archive.infolist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, kind = read(file)
            if any(size < 0 for size in shape) or math.prod(shape) * kind.itemsize > member.file_size:
                raise ValueError(f"{member.filename} claims {kind} {list(shape)} in {member.file_size:,} bytes")
    with np.load(path, allow_pickle=False) as arrays:
        yield arrays
