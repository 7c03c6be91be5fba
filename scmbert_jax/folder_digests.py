"""SHA-256 of every file of a folder, in a JSON document of the same folder that holds a digest of its own text, too.

So that nobody believes a file in which a bit has flipped, or that was edited. It is no signature: who can write the
folder can write new digests.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scmbert_jax.errors import CheckpointError
from scmbert_jax.outputs import FolderKind

_NONE_YET = "0" * 64


def write_document(folder: Path, name: str, document: dict[str, Any]) -> dict[str, Any]:
    """Writes `document` as `name`, with the digests of all other files ("files") and of its own text ("sha256")."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / name)
    files = {path.relative_to(folder).as_posix(): _sha256(path) for path in paths}
    text = json.dumps({**document, "files": files, "sha256": _NONE_YET}, indent=2) + "\n"
    text = text.replace(_NONE_YET, hashlib.sha256(text.encode()).hexdigest())
    (folder / name).write_text(text, encoding="utf-8")
    return json.loads(text)


def read_document(
    folder: Path, kind: FolderKind, version: int, command: str, other_version: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    """The document `kind.mark` of a folder of which every file is what was written.

    Args:
      kind: of the folder; command: makes one.
      version: the "format_version" that this program reads; other_version: what to tell of a document of another one.

    Raises:
      CheckpointError: it is none, of another version, or damaged; names the file that is not what was written. A file
        that was added is refused where a reader might take it for one of its own: in a subfolder.
    """
    name = kind.mark
    try:
        text = (folder / name).read_text(encoding="utf-8")
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError(f"holds {type(document).__name__}, expected an object")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}: not {kind.name} ({name}: {error}). Make one with: {command}") from error
    if document.get("format_version") != version:
        raise CheckpointError(f"{folder}: {other_version(document)}")
    own, files = document.get("sha256"), document.get("files")
    remedy = f"Copy the folder again, or make it again ({command})."
    if not isinstance(own, str) or not isinstance(files, dict):
        raise CheckpointError(f"{folder / name}: without digests of its files. {remedy}")
    if hashlib.sha256(text.replace(own, _NONE_YET).encode()).hexdigest() != own:
        raise CheckpointError(f"{folder / name}: is not what was written (SHA-256 differs). {remedy}")
    for relative, digest in files.items():
        path = folder / relative
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing. {remedy}")
        if _sha256(path) != digest:
            raise CheckpointError(f"{path}: is not what was written (SHA-256 differs). {remedy}")
    for path in sorted(folder.glob("*/**/*")):
        if path.is_file() and path.relative_to(folder).as_posix() not in files:
            raise CheckpointError(f"{path}: is no part of what was written. Remove it.")
    return document


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
