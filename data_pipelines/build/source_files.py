"""What names the files that cells came from, wherever they lie: base name, size and sha256."""

import hashlib
from pathlib import Path
from typing import Any

from data_pipelines.corpus.corpus import sha256_of_file
from data_pipelines.readers.dataset import CountsMatrix


def source_files(matrices: list[CountsMatrix]) -> list[dict[str, Any]]:
    """Base name, bytes and sha256 of the files; nothing of where they lie on this machine. None: data in memory.

    Of a 10x folder the file of counts, which is what would be twice in a corpus; of a zarr store its whole folder.
    """
    paths = [Path(path) for path in dict.fromkeys(matrix.path for matrix in matrices)]
    return [_file_entry(path) for path in paths if path.is_file()] + [_folder_entry(p) for p in paths if p.is_dir()]


def _file_entry(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of_file(path)}


def _folder_entry(folder: Path) -> dict[str, Any]:
    """`sha256`: of the lines `<sha256 of the file>  <its path in the folder>`, sorted by path."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{sha256_of_file(path)}  {name}\n".encode())
    num_bytes = sum(path.stat().st_size for _, path in files)
    return {"file": folder.resolve().name, "bytes": num_bytes, "sha256": digest.hexdigest()}
