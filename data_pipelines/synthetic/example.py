"""Rebuilds the built-in example from the file it came in, compactly and without changing a number.

    python -m data_pipelines.synthetic.example quickstart_pbmc_mosaic.h5mu data_pipelines/example/pbmc_mosaic.h5mu

Counts and indices go to the smallest integer type that holds them, every array is shuffled and gzipped.
"""

import argparse
from pathlib import Path

import h5py
import numpy as np

from data_pipelines.files.hdf5_file import open_hdf5
from scmbert_jax.errors import InputError

# A .h5mu begins with this many bytes of text that name the format; mudata looks for it.
_USER_BLOCK = 512


def rewrite_compactly(source: str | Path, out: str | Path) -> None:
    """Copies a .h5mu or .h5ad with small integers and gzip-9. Raises InputError where a matrix is not of integers."""
    source, out = Path(source), Path(out)
    header = source.read_bytes()[:_USER_BLOCK]
    with open_hdf5(source) as old:
        block = old.userblock_size
        with h5py.File(out, "w", userblock_size=block) as new:
            _copy_group(old, new, str(source))
    if block:
        with open(out, "r+b") as stream:
            stream.write(header[:block])


def _copy_group(old: h5py.Group, new: h5py.Group, source: str) -> None:
    _copy_attributes(old, new)
    for name, node in old.items():
        if isinstance(node, h5py.Group):
            _copy_group(node, new.create_group(name), source)
            continue
        values = node[()]
        if node.ndim == 0 or node.size == 0 or node.dtype.kind == "O":
            # Text of variable length lives in HDF5's heap, which no filter compresses.
            made = new.create_dataset(name, data=values, dtype=node.dtype)
        else:
            made = new.create_dataset(
                name,
                data=_smallest(values, f"{source}, {node.name}"),
                compression="gzip",
                compression_opts=9,
                shuffle=True,
            )
        _copy_attributes(node, made)


def _smallest(values: np.ndarray, where: str) -> np.ndarray:
    if values.dtype.kind not in "iuf":
        return values
    whole = np.rint(values)
    if not np.array_equal(whole, values):
        raise InputError(f"{where}: not of integers; only counts are rewritten")
    # Category codes use -1 for "missing", so signed stays signed.
    signed = values.dtype.kind == "i" or values.min() < 0
    kinds = (np.int8, np.int16, np.int32, np.int64) if signed else (np.uint8, np.uint16, np.uint32, np.uint64)
    kind = next(kind for kind in kinds if np.iinfo(kind).min <= whole.min() and whole.max() <= np.iinfo(kind).max)
    return whole.astype(kind)


def _copy_attributes(old: h5py.HLObject, new: h5py.HLObject) -> None:
    for key, value in old.attrs.items():
        new.attrs.create(key, value, dtype=old.attrs.get_id(key).dtype)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.synthetic.example", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parsed = parser.parse_args(arguments)
    rewrite_compactly(parsed.source, parsed.out)


if __name__ == "__main__":
    main()
