"""Groups and arrays of HDF5 files and zarr stores, which have nearly the same interface, as one.

What differs: an absent HDF5 element is an array without a shape; a zarr array whose chunk is absent reads as zeros.
"""

from typing import Any, Protocol, TypeAlias

import h5py
import numpy as np

from data_pipelines.files.hdf5_file import missing_filters
from scmbert_jax.errors import InputError

# h5py.Group or zarr.Group: neither library types what indexing gives.
StoredGroup: TypeAlias = Any


class StoredArray(Protocol):
    """h5py.Dataset or zarr.Array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: Any  # tuple of ints, or None where HDF5 stores it in one piece
    attrs: Any

    def __getitem__(self, key: Any) -> Any: ...


def is_array(node: Any) -> bool:
    return hasattr(node, "dtype") and hasattr(node, "shape")


def is_group(node: Any) -> bool:
    return hasattr(node, "keys") and not is_array(node)


def is_null(node: Any) -> bool:
    """How AnnData writes None."""
    return attribute_text(node, "encoding-type") == "null" or (is_array(node) and node.shape is None)


def lacks_chunks(array: StoredArray) -> bool:
    """Whether a zarr array has chunks that nobody wrote: all zeros, or lost. HDF5 knows its own chunks: False."""
    return getattr(array, "nchunks_initialized", 0) < getattr(array, "nchunks", 0)


def read_values(array: StoredArray, key: Any, where: str) -> np.ndarray:
    """`array[key]`. Raises InputError with the reason: a filter that is not installed, or damage."""
    try:
        return array[key]
    except Exception as error:  # every codec of zarr raises its own types; to a user all mean the same
        missing = missing_filters(array) if isinstance(array, h5py.Dataset) else []
        if missing:
            raise InputError(
                f"{where}: packed with {' and '.join(missing)}, which is not installed here. Install it (pip install "
                "hdf5plugin), or write the file without it, where it can be read: anndata.read_h5ad(FILE)"
                ".write_h5ad(NEW, compression='gzip')"
            ) from error
        raise InputError(
            f"{where}: cannot be read ({error}); the file is damaged: copy or download it again"
        ) from error


def attribute_text(node: Any, *names: str) -> str:
    """The first of these attributes that is there, as text; "" for none."""
    for name in names:
        if name in node.attrs:
            value = node.attrs[name]
            return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
    return ""
