"""Reads and writes files of `torch.save` without torch, and runs nothing that such a file asks for.

Such a file (torch 1.6 and later) is a ZIP archive, stored without compression: NAME/data.pkl, a pickle of the object in
which each tensor names a storage with an offset, a size and strides, and NAME/data/KEY, the bytes of a storage
(torch/serialization.py, BSD-3). A pickle may name any function of any module, to be called while it is read; here it
may name those of `_MEANT`. Whatever else it names (schedulers, optimizers, numpy scalars) becomes an object that does
nothing, and is refused only where an array is wanted.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from scmbert_jax.errors import InputError

_DTYPES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_STORAGE_OF = {np.dtype(np.float32): "FloatStorage", np.dtype(np.int64): "LongStorage"}  # what is written
_MOST_PICKLE_BYTES = 64 << 20
# Where programs put the parameters among other things that they save.
_STATE_DICTS = ("model_state_dict", "state_dict", "model")
_PARALLEL = "module."  # what torch's data-parallel wrappers put before every name


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    """A tensor whose numbers have not been read. Sizes, strides and offset count numbers, not bytes."""

    storage: _Storage
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


class _Nothing:
    """In place of an object of a class or function that is none of `_MEANT`: takes everything, does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Nothing":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None: ...
    def __setitem__(self, _: Any, __: Any) -> None: ...
    def append(self, _: Any) -> None: ...
    def extend(self, _: Any) -> None: ...
    def add(self, _: Any) -> None: ...


def _rebuild_tensor(storage: Any, offset: Any, sizes: Any, strides: Any, *_: Any) -> Any:
    return _Tensor(storage, offset, sizes, strides)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


_MEANT: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): np.dtype(dtype) for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _MEANT.get((module, name), _Nothing)

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
            return _Nothing()
        return _Storage(key, dtype)


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Name -> array, of a file that holds a state dict or a dictionary with one in it (`_STATE_DICTS`).

    Half precision becomes float32; `module.` before all names is taken away.

    Raises `InputError`: no such file, none of torch 1.6 or later, damaged, or no state dict in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(names) != 1:
                raise InputError(f"{path}: a ZIP archive without a data.pkl, so none of torch.save.")
            prefix = names[0].removesuffix("data.pkl")
            _check_entries(path, archive, prefix)
            found = _Unpickler(io.BytesIO(archive.read(names[0]))).load()
            tensors = _state_dict(path, found)
            storages: dict[_Storage, np.ndarray] = {}
            return {name: _array(path, name, tensor, archive, prefix, storages) for name, tensor in tensors.items()}
    except InputError:
        raise
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{path}: not a file of torch.save of torch 1.6 or later ({error}). If it is an older one, load it with "
            "torch and save it again; if it was copied, copy it again."
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # whatever a damaged pickle makes of the unpickler
        raise InputError(f"{path}: damaged, or not a file of torch.save ({type(error).__name__}: {error}).") from error


def _check_entries(path: Path, archive: zipfile.ZipFile, prefix: str) -> None:
    """Nothing in it may be larger than the file: what torch writes is not compressed."""
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"{path}: {entry.filename} is compressed, which torch.save does not do.")
    if archive.getinfo(f"{prefix}data.pkl").file_size > _MOST_PICKLE_BYTES:
        raise InputError(f"{path}: its data.pkl is above {_MOST_PICKLE_BYTES >> 20} MB, which no state dict needs.")
    if f"{prefix}byteorder" in archive.namelist() and archive.read(f"{prefix}byteorder") != b"little":
        raise InputError(
            f"{path}: was written on a big-endian machine; load it with torch there, and save numbers anew."
        )


def _state_dict(path: Path, found: Any) -> dict[str, _Tensor]:
    inner = next((found[name] for name in _STATE_DICTS if isinstance(found, dict) and name in found), found)
    tensors = {}
    for name, value in inner.items() if isinstance(inner, dict) else ():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise InputError(
                f"{path}: {name!r} is no tensor, so this is no state dict. Expected what model.state_dict() gives, "
                f"alone or as one of {', '.join(_STATE_DICTS)} in a dictionary."
            )
        tensors[name] = value
    if not tensors:
        raise InputError(f"{path}: holds no state dict. Save model.state_dict(), not the model itself.")
    if all(name.startswith(_PARALLEL) for name in tensors):
        tensors = {name.removeprefix(_PARALLEL): tensor for name, tensor in tensors.items()}
    return tensors


def _array(
    path: Path, name: str, tensor: _Tensor, archive: zipfile.ZipFile, prefix: str, storages: dict[_Storage, np.ndarray]
) -> np.ndarray:
    storage, offset, sizes, strides = tensor
    numbers = (offset, *sizes, *strides)
    if not isinstance(storage, _Storage) or not all(type(number) is int and number >= 0 for number in numbers):
        raise InputError(f"{path}: tensor {name!r} is of a kind that is not read here.")
    if storage not in storages:
        storages[storage] = np.frombuffer(archive.read(f"{prefix}data/{storage.key}"), storage.dtype)
    flat = storages[storage]
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    empty = 0 in sizes
    if not empty and max(last + 1, math.prod(sizes)) > len(flat):  # parameters are never expanded
        raise InputError(f"{path}: tensor {name!r} reaches beyond its {len(flat):,} numbers: the file is damaged.")
    of_bytes = tuple(stride * flat.itemsize for stride in strides)
    array = np.lib.stride_tricks.as_strided(flat[0 if empty else offset :], sizes, of_bytes, writeable=False)
    is_half = storage.dtype.itemsize == 2 and storage.dtype.kind != "i"
    return array.astype(np.float32) if is_half else np.array(array)


def write_state_dict(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a file from which `torch.load` gives an ordered dict of these tensors, float32 and int64.

    One array under several names is one storage, as of a parameter that torch knows by several names.
    """
    keys: dict[int, str] = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for array in arrays.values():
            if id(array) not in keys:
                keys[id(array)] = str(len(keys))
        archive.writestr("archive/data.pkl", _pickle(arrays, keys))
        archive.writestr("archive/byteorder", "little")
        written = set()
        for array in arrays.values():
            key = keys[id(array)]
            if key not in written:
                archive.writestr(f"archive/data/{key}", array.astype(array.dtype.newbyteorder("<")).tobytes())
                written.add(key)
        archive.writestr("archive/version", "3\n")


def _pickle(arrays: Mapping[str, np.ndarray], keys: Mapping[int, str]) -> bytes:
    """The pickle of protocol 2 that torch would write; by hand, since pickling torch's functions needs torch."""

    def text(value: str) -> bytes:
        raw = value.encode()
        return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw

    def number(value: int) -> bytes:
        if value < 2**31:
            return pickle.BININT + struct.pack("<i", value)
        return pickle.LONG1 + bytes([8]) + struct.pack("<q", value)

    def sequence(parts: tuple[bytes, ...]) -> bytes:
        return pickle.MARK + b"".join(parts) + pickle.TUPLE

    def name_of(module: str, name: str) -> bytes:
        return pickle.GLOBAL + f"{module}\n{name}\n".encode()

    ordered_dict = name_of("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    out = [pickle.PROTO + bytes([2]), ordered_dict, pickle.MARK]
    for name, array in arrays.items():
        storage = name_of("torch", _STORAGE_OF[array.dtype])
        place = sequence((text("storage"), storage, text(keys[id(array)]), text("cpu"), number(array.size)))
        strides = [stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides]
        shape = (sequence(tuple(map(number, array.shape))), sequence(tuple(map(number, strides))))
        arguments = (place + pickle.BINPERSID, number(0), *shape, pickle.NEWFALSE, ordered_dict)
        out += [text(name), name_of("torch._utils", "_rebuild_tensor_v2"), sequence(arguments), pickle.REDUCE]
    return b"".join([*out, pickle.SETITEMS, pickle.STOP])
