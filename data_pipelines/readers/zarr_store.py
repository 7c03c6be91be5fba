"""AnnData and MuData in zarr stores: folders, usually called `*.zarr`, of zarr format 2 or 3.

A zarr chunk is decoded whole: reading holds one chunk of cells and the zarr chunks that it touches.
"""

from pathlib import Path

from data_pipelines.readers.anndata_reader import read_stored_anndata, read_stored_mudata
from data_pipelines.readers.dataset import Dataset
from data_pipelines.readers.reader import Reader, Request
from data_pipelines.readers.stored_nodes import StoredGroup
from data_pipelines.readers.zarr_metadata import require_plain_store
from scmbert_jax.errors import InputError

# What the folder of a group or an array has in zarr format 2 or 3.
_METADATA = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")


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


READER = Reader(is_zarr, read_zarr, ".zarr")
