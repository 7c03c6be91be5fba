"""SHA-256 of every file of a folder, in a JSON document of the same folder that holds a digest of its own text, too.

So that nobody believes a file in which a bit has flipped, or that was edited. It is no signature: who can write the
folder can write new digests.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from scmbert_jax.errors import CheckpointError

_NONE_YET = "0" * 64


def write_document(folder: Path, name: str, document: dict[str, Any]) -> dict[str, Any]:
    """Writes `document` as `name`, with the digests of all other files ("files") and of its own text ("sha256")."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / name)
    files = {path.relative_to(folder).as_posix(): _sha256(path) for path in paths}
    text = json.dumps({**document, "files": files, "sha256": _NONE_YET}, indent=2) + "\n"
    text = text.replace(_NONE_YET, hashlib.sha256(text.encode()).hexdigest())
    (folder / name).write_text(text, encoding="utf-8")
    return json.loads(text)


def check_document(folder: Path, name: str, text: str) -> None:
    """Raises `CheckpointError` naming the file that is not what was written: `name` itself (`text`), or another.

    A file that was added is refused where a reader might take it for one of its own: in a subfolder.
    """
    document = json.loads(text)
    own, files = document.get("sha256"), document.get("files")
    remedy = "Copy the folder again, or export the model again (scmbert export)."
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
