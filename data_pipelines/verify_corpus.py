"""Reads every byte of a corpus, wherever it lies, and says what is wrong with which file and which block."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from data_pipelines.corpus import (
    MANIFEST,
    Corpus,
    content_digest,
    fingerprint_of,
    measured_digest,
    read_feature_space,
    read_manifest,
    read_measured,
    wrong_sizes,
)
from data_pipelines.corpus_files import CorpusFiles, Location, open_files, read_chunks
from data_pipelines.retries import UnreachableError
from scmbert_jax.errors import CorpusError, UserError

_AHEAD = 32  # blocks under way while one is checked


class VerifyReport(NamedTuple):
    """What `verify_corpus` found.

    Attributes:
      path: the folder, or the URL.
      num_blocks, num_cells: read without a fault.
      problems: one message per fault; each names the file, and the block where it is one. Empty: sound.
      damaged_blocks: numbers of the blocks that cannot be read.
    """

    path: Location
    num_blocks: int
    num_cells: int
    problems: tuple[str, ...]
    damaged_blocks: tuple[int, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def verify_corpus(path: Location, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Read every byte once, from the place itself: hashes of all files, every block, the fingerprint.

    Args:
      path: the folder or the URL.
      progress: called with (blocks done, blocks in all).

    Raises:
      CorpusError: there is no manifest that can be read, so that there is nothing to compare with.
      UnreachableError: the storage does not answer or refuses, so that nothing can be said of the corpus.
    """
    files = open_files(path)
    manifest = read_manifest(files)
    problems = wrong_sizes(files, manifest)
    for name, entry in manifest["files"].items():
        with _listed(problems):
            problems += _wrong_hash(files.path(name), sha256_at(files, name, entry["bytes"]), entry)
    try:
        feature_space = read_feature_space(files)
        measured = read_measured(files, manifest, feature_space)
    except UnreachableError:
        raise
    except UserError as error:
        return VerifyReport(files.root, 0, 0, (*problems, str(error)), ())
    damaged: list[int] = []
    cells, digests = 0, []
    with Corpus(files, manifest, feature_space, measured) as corpus:
        for shard, entry in enumerate(manifest["shards"]):
            stop = int(corpus.shard_ends[shard])
            frames = hashlib.sha256()
            for index in range(stop - entry["blocks"], stop):
                damaged.append(index)
                with _listed(problems):
                    corpus.read_ahead(range(index, min(index + _AHEAD, stop)))
                    framed = corpus.read_frame(index)
                    frames.update(framed)
                    payload, block = corpus.decode_frame(index, framed)
                    digests.append(hashlib.sha256(payload).hexdigest())
                    cells += block.num_cells
                    damaged.pop()
                if progress is not None:
                    progress(index + 1, corpus.num_blocks)
            problems += _wrong_hash(corpus.shard_path(shard), frames.hexdigest(), entry)
        with _listed(problems):
            corpus.obs()
    if not damaged:
        found = fingerprint_of(
            feature_space.content_hash, measured_digest(measured), manifest["vocabularies"], content_digest(digests)
        )
        if found != manifest["fingerprint"]:
            problems.append(
                f"{files.path(MANIFEST)}: fingerprint {manifest['fingerprint'][:12]}..., the content gives "
                f"{found[:12]}..."
            )
    return VerifyReport(files.root, corpus.num_blocks - len(damaged), cells, tuple(problems), tuple(damaged))


@contextmanager
def _listed(problems: list[str]) -> Iterator[None]:
    """A fault of the corpus joins the list; that of its storage passes."""
    try:
        yield
    except UnreachableError:
        raise
    except CorpusError as error:
        problems.append(str(error))


def _wrong_hash(path: Location, found: str, entry: dict[str, Any]) -> list[str]:
    if found == entry["sha256"]:
        return []
    return [f"{path}: sha256 {found[:12]}..., the manifest says {entry['sha256'][:12]}..."]


def sha256_at(files: CorpusFiles, file: str, size: int) -> str:
    """Of the first `size` bytes of a file, wherever it lies. Raises CorpusError: it cannot be read or is shorter."""
    digest = hashlib.sha256()
    for chunk in read_chunks(files, file, size):
        digest.update(chunk)
    return digest.hexdigest()
