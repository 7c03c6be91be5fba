"""HDF5 files of strangers: opened only where all that is read lies in the file itself.

HDF5 lets a file say that a part of it lies elsewhere: an external link, values in another file ("external storage"), a
virtual data set put together from other files. Its maker would choose which file of this machine is read, and the
bytes would stand in a corpus that is passed on.
"""

import contextlib
import os
from pathlib import Path

import h5py

from scmbert_jax.errors import InputError

# Far more than a table of cells has columns; a walk of so many takes some ten seconds.
_MOST_NODES = 1_000_000
_INSIDE = (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT)
# https://github.com/HDFGroup/hdf5_plugins/blob/master/docs/RegisteredFilterPlugins.md
_FILTERS = {307: "bzip2", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32015: "zstd"}
_FILTERS |= {32017: "sz", 32024: "sz3", 32026: "blosc2", 32028: "sperr"}


def open_hdf5(path: str | os.PathLike) -> h5py.File:
    """The only way in which this project opens the HDF5 file of somebody else; read only.

    Where the file has a filter that HDF5 itself lacks, hdf5plugin is asked for it, if it is installed.

    Raises OSError where it cannot be opened, InputError where a part of it lies in another file.
    """
    file = h5py.File(path, "r")
    try:
        _require_self_contained(file, os.fspath(path))
    except BaseException:
        file.close()
        raise
    return file


def require_self_contained(path: Path) -> None:
    """For a file that another library opens: the same check. Raises as `open_hdf5`."""
    open_hdf5(path).close()


def missing_filters(array: h5py.Dataset) -> list[str]:
    """What its values are packed with and cannot be unpacked here: "zstd (HDF5 filter 32015)"."""
    made = array.id.get_create_plist()
    codes = [made.get_filter(place)[0] for place in range(made.get_nfilters())]
    return [
        f"{_FILTERS.get(code, 'unknown')} (HDF5 filter {code})" for code in codes if not h5py.h5z.filter_avail(code)
    ]


def _require_self_contained(file: h5py.File, path: str) -> None:
    # Low-level and without recursion: names need not be text, nor nesting be shallow, nor groups be a tree.
    root = h5py.h5g.open(file.id, b"/")
    waiting, seen, number = [(root, "")], {_address(root)}, 0
    while waiting:
        group, place = waiting.pop()
        links: list[tuple[bytes, int]] = []
        group.links.iterate(lambda name, info, links=links: links.append((name, info.type)), info=True)
        number += len(links)
        if number > _MOST_NODES:
            raise InputError(f"{path}: more than {_MOST_NODES:,} groups and arrays; no file of cells has so many")
        for name, kind in links:
            where = f"{place}/{name.decode(errors='backslashreplace')}"
            if kind not in _INSIDE:
                _refuse(path, where, "an external link")
            if kind == h5py.h5l.TYPE_SOFT:  # to a place of this file, which the walk comes to as well
                continue
            try:
                node = h5py.h5o.open(group, name)
            except (OSError, RuntimeError, KeyError, ValueError, TypeError):
                continue  # damaged: no reader can open it either, and the one that needs it says so
            if isinstance(node, h5py.h5d.DatasetID):
                _check_array(node, path, where)
            elif isinstance(node, h5py.h5g.GroupID) and _address(node) not in seen:
                seen.add(_address(node))
                waiting.append((node, where))


def _check_array(array: h5py.h5d.DatasetID, path: str, where: str) -> None:
    made = array.get_create_plist()
    if made.get_layout() == h5py.h5d.VIRTUAL:
        _refuse(path, where, "a virtual data set")
    if made.get_external_count():
        _refuse(path, where, "an array in external storage")
    if any(not h5py.h5z.filter_avail(made.get_filter(place)[0]) for place in range(made.get_nfilters())):
        with contextlib.suppress(ImportError):
            import hdf5plugin  # noqa: F401 - importing it teaches h5py its filters


def _address(group: h5py.h5g.GroupID) -> int:
    return h5py.h5o.get_info(group).addr


def _refuse(path: str, where: str, what: str) -> None:
    raise InputError(
        f"{path}: {where!r} is {what}: such parts lie in other files, which are not read for one that may come from "
        "anyone. If it is yours, write it whole, in Python: anndata.read_h5ad(FILE).write_h5ad(NEW)"
    )
