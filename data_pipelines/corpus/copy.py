"""Copies a corpus between a folder and object storage, file by file, each read back and compared, the manifest last.

A copy that was broken off is no corpus, since it has no manifest; the same command continues where it stopped: a file
that lies there with the right size and sha256 is not sent again.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.corpus.manifest import DATA_CARD, MANIFEST, file_sizes, read_manifest
from data_pipelines.corpus.open_files import open_files
from data_pipelines.corpus.retries import UnreachableError
from data_pipelines.corpus.storage import CorpusFiles, LocalFiles, Location, read_chunks
from data_pipelines.corpus.verify import sha256_at
from scmbert_jax.errors import CorpusError
from scmbert_jax.outputs import CORPUS, foreign_names


class CopyReport(NamedTuple):
    """Attributes:
    copied, found: files that were sent, and that lay there already.
    bytes: of all files.
    """

    copied: int
    found: int
    bytes: int


def copy_corpus(source: Location, target: Location, progress: Callable[[int, int], None] | None = None) -> CopyReport:
    """Copy the corpus at `source` to `target`; either is a folder or a URL.

    Args:
      progress: called with (bytes done, bytes in all).

    Raises:
      CorpusError: no corpus at `source`, another corpus at `target`, a place that cannot be read or written, or a file
        whose sha256 is not that of the manifest after it was copied.
    """
    here, there = open_files(source), open_files(target)
    manifest = read_manifest(here)
    with here.open(MANIFEST) as file:
        text = file.read()
    _refuse_another_corpus(there, text)
    _refuse_other_files(here, there, manifest)
    digests = {entry["file"]: entry["sha256"] for entry in manifest["shards"]}
    digests |= {name: entry["sha256"] for name, entry in manifest["files"].items()}
    sizes = file_sizes(manifest) | _card_size(here, manifest)
    copied = done = 0
    for name, size in sizes.items():
        # The manifest has none for offsets, and people may edit the card.
        digest = digests.get(name) or sha256_at(here, name, size)
        if not _lies_there(there, name, size, digest):
            _refuse_to_replace(there, name)
            _bring(here, there, name, size)
            copied += 1
            if not _lies_there(there, name, size, digest):
                if isinstance(there, LocalFiles):
                    there.path(name).unlink(missing_ok=True)
                raise CorpusError(
                    f"{there.path(name)}: not what the manifest says (sha256 {digest[:12]}...) after it was copied: "
                    f"run `scmbert corpus verify {here.root}`, and if that is sound, copy again"
                )
        done += size
        if progress is not None:
            progress(done, sum(sizes.values()))
    if not _lies_there(there, MANIFEST, len(text), hashlib.sha256(text).hexdigest()):
        _bring(here, there, MANIFEST, len(text))
        copied += 1
    here.close()
    there.close()
    return CopyReport(copied, len(sizes) + 1 - copied, sum(sizes.values()) + len(text))


def _card_size(here: CorpusFiles, manifest: dict[str, Any]) -> dict[str, int]:
    """Name and bytes of the data card, which people read and no program needs: none where it was taken away."""
    card = (manifest.get("data_card") or {}).get("file")
    try:
        return {} if card is None else {card: here.size(card)}
    except UnreachableError:
        raise
    except CorpusError:
        return {}


def _refuse_another_corpus(there: CorpusFiles, manifest: bytes) -> None:
    try:
        size = there.size(MANIFEST)
    except UnreachableError:
        raise
    except CorpusError:
        return  # none there
    if there.read(MANIFEST, 0, size) != manifest:
        raise CorpusError(f"{there.root}: another corpus lies there; choose another place, or remove it first")


def _refuse_other_files(here: CorpusFiles, there: CorpusFiles, manifest: dict[str, Any]) -> None:
    """A folder is copied to where it holds nothing else. (At a URL, where nobody lists files, each is looked at.)"""
    if not isinstance(there, LocalFiles) or not os.path.lexists(there.root):
        return
    if isinstance(here, LocalFiles) and here.root.resolve() == there.root.resolve():
        raise CorpusError(f"{there.root}: is the corpus itself; choose another place")
    if there.root.is_symlink() or not there.root.is_dir():
        raise CorpusError(f"{there.root}: is there and is no folder; choose another place")
    names = {MANIFEST, DATA_CARD, *file_sizes(manifest)}
    foreign = sorted(name for name in foreign_names(there.root, CORPUS) if name not in names)
    if foreign:
        raise CorpusError(
            f"{there.root}: holds {foreign[0]!r}, which is no file of a corpus; choose another place, or an empty one"
        )


def _refuse_to_replace(there: CorpusFiles, name: str) -> None:
    """A local file appears whole or not at all, so that one with other content is none that this copy left behind."""
    if isinstance(there, LocalFiles) and os.path.lexists(there.path(name)):
        raise CorpusError(
            f"{there.path(name)}: is there already and is another file; remove it, or choose another place"
        )


def _lies_there(there: CorpusFiles, name: str, size: int, digest: str) -> bool:
    try:
        return there.size(name) == size and sha256_at(there, name, size) == digest
    except UnreachableError:
        raise
    except CorpusError:
        return False


def _bring(here: CorpusFiles, there: CorpusFiles, name: str, size: int) -> None:
    if (found := here.size(name)) != size:
        raise CorpusError(f"{here.path(name)}: {found:,} bytes, the manifest says {size:,}; rebuild the corpus")
    if isinstance(here, LocalFiles):
        there.write(here.path(name), name)
        return
    with tempfile.TemporaryDirectory(prefix="scmbert-copy-") as folder:
        between = Path(folder) / name
        with open(between, "wb") as file:
            for chunk in read_chunks(here, name, size):
                file.write(chunk)
        there.write(between, name)
