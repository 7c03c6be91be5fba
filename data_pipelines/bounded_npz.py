"""Arrays out of an .npz of which shapes and dtypes are known before: what else its headers claim is not believed.

`numpy.load` asks for as much memory as a header says, which may be terabytes in a file of a kilobyte.
"""

import zipfile
from collections.abc import Mapping
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
