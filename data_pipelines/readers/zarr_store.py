"""AnnData and MuData in zarr stores: folders, usually called `*.zarr`, of zarr format 2 or 3.

A zarr chunk is decoded whole: reading holds one chunk of cells and the zarr chunks that it touches.

What a store says of itself is read here before zarr itself does: a store of a stranger may name any codec, any file. A
codec is code that is chosen by name, and numcodecs has one that loads pickles. So every codec and filter of a store is
on a list here, and every file of it lies in its folder.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.readers.anndata_reader import read_stored_anndata, read_stored_mudata
from data_pipelines.readers.dataset import Dataset
from data_pipelines.readers.reader import Reader, Request
from data_pipelines.readers.stored_nodes import StoredGroup
from scmbert_jax.errors import InputError

# What the folder of a group or an array has in zarr format 2 or 3.
_METADATA = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")
# Where codecs are named.
FILES = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
# Those that turn bytes into numbers and text, by their names in zarr 2 and 3.
_CODECS = (
    *("blosc", "bz2", "gzip", "lz4", "lzma", "pcodec", "zfpy", "zlib", "zstd"),
    *("bytes", "sharding_indexed", "transpose", "vlen-bytes", "vlen-utf8"),
    *("adler32", "crc32", "crc32c", "fletcher32", "jenkins_lookup3"),
    *("astype", "bitround", "delta", "fixedscaleoffset", "packbits", "quantize", "shuffle"),
)
_MOST_BYTES = 64 << 20  # of one metadata file; a table of 30,000 columns has 1 MB


def is_zarr(place: str) -> bool:
    """Also for a folder that is only called so: `read_zarr` tells what it lacks."""
    folder = Path(place)
    return folder.is_dir() and (folder.suffix == ".zarr" or any((folder / name).is_file() for name in _METADATA))


def read_zarr(request: Request) -> list[Dataset]:
    """Raises InputError when it is no AnnData or MuData, or damaged."""
    folder, layer = request.path, request.reading.layer
    name = request.name or folder.resolve().name.removesuffix(".zarr")
    store = _open(folder)
    if "mod" in store:
        return [read_stored_mudata(store, str(folder), name, layer)]
    if "obs" in store or "var" in store or "X" in store:
        return [read_stored_anndata(store, str(folder), name, layer)]
    found = ", ".join(sorted(store.keys())[:6]) or "nothing"
    inner = next((path for path in ("tables/table", "tables/counts") if f"{path}/obs" in store), None)
    hint = f"; its table of cells is {folder / inner}" if inner else ""
    raise InputError(f"{folder}: zarr with {found} in it; expected an AnnData (obs, var, X) or a MuData (mod){hint}")


def _open(folder: Path) -> StoredGroup:
    import zarr

    if not any((folder / name).is_file() for name in _METADATA):
        raise InputError(
            f"{folder}: a .zarr folder without zarr.json or .zgroup; the copy is incomplete: copy or download it again"
        )
    require_plain_store(folder)
    try:
        # Consolidated metadata would tell of arrays that are not there, and they would read as zeros.
        return zarr.open_group(str(folder), mode="r", use_consolidated=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: no zarr group can be opened ({error}); give the folder that holds obs, var and X"
        ) from error


def require_plain_store(folder: Path) -> None:
    """Raises InputError where a file of the store lies elsewhere or is no file, or a codec is not a known one."""
    root = folder.resolve()
    for place, directories, files in os.walk(root):
        for entry in map(Path(place).joinpath, [*directories, *files]):
            if entry.is_symlink() and not entry.resolve().is_relative_to(root):
                raise InputError(
                    f"{folder}: {entry.relative_to(root)} is a link to {os.readlink(entry)}, outside of the store, and "
                    f"is not read. If you know what it is, copy the store with what it links to: cp -rL {folder} COPY"
                )
        for entry in map(Path(place).joinpath, files):
            if not entry.is_file():
                raise InputError(f"{folder}: {entry.relative_to(root)} is no regular file; copy the store without it")
        for name in set(FILES).intersection(files):
            _check_codecs(_parsed(Path(place) / name), f"{folder}: {(Path(place) / name).relative_to(root)}")


def _parsed(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise InputError(f"{path}: {size:,} bytes of metadata; at most {_MOST_BYTES:,} are read")
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON ({error}); the store is damaged: copy or download it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: a JSON {type(found).__name__}; expected an object. The store is damaged")
    return found


def _check_codecs(metadata: dict[str, Any], where: str) -> None:
    for codec in _codecs(metadata):
        name = codec.get("name", codec.get("id")) if isinstance(codec, dict) else codec
        if not isinstance(name, str) or name.removeprefix("numcodecs.") not in _CODECS:
            raise InputError(
                f"{where} names the codec {str(name)[:40]!r}, which is not among those that are read, since codecs are "
                "code. If the store is yours, write it again with the codecs of zarr: anndata.read_zarr(STORE)"
                ".write_zarr(NEW)"
            )
        if isinstance(codec, dict) and isinstance(codec.get("configuration"), dict):
            _check_codecs(codec["configuration"], where)


def _codecs(metadata: dict[str, Any]) -> Iterator[Any]:
    """Of an array in format 2 or 3, and of the shards of format 3."""
    for key in ("codecs", "index_codecs", "filters"):
        listed = metadata.get(key) or []
        yield from listed if isinstance(listed, list) else [listed]
    if metadata.get("compressor") is not None:
        yield metadata["compressor"]
    consolidated = metadata.get("consolidated_metadata")
    inner = consolidated.get("metadata") if isinstance(consolidated, dict) else None
    for node in inner.values() if isinstance(inner, dict) else ():
        if isinstance(node, dict):
            yield from _codecs(node)


READER = Reader(is_zarr, read_zarr, ".zarr")
