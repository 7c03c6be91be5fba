"""Reads every byte of a corpus, wherever it lies, and says what is wrong with which file and which block."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.cells.cell_metadata import code_fields
from data_pipelines.corpus.cell_block import PackedBlock
from data_pipelines.corpus.corpus import (
    Corpus,
    content_digest,
    read_feature_space,
    read_measured,
    wrong_fingerprint,
    wrong_hash,
    wrong_sizes,
)
from data_pipelines.corpus.manifest import MANIFEST, OBS, read_manifest
from data_pipelines.corpus.open_files import open_files
from data_pipelines.corpus.retries import UnreachableError
from data_pipelines.corpus.storage import CorpusFiles, Location, read_chunks
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
        feature_space = read_feature_space(files, manifest)
        measured = read_measured(files, manifest, feature_space)
    except UnreachableError:
        raise
    except UserError as error:
        told = any(str(error).startswith(problem) for problem in problems)
        return VerifyReport(files.root, 0, 0, (*problems, *[str(error)] * (not told)), ())
    damaged: list[int] = []
    cells, digests = 0, []
    with Corpus(files, manifest, feature_space, measured) as corpus:
        codes = _codes_of_cells(corpus, problems)
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
                    _check_codes(corpus, index, block, codes)
                    cells += block.num_cells
                    damaged.pop()
                if progress is not None:
                    progress(index + 1, corpus.num_blocks)
            problems += _wrong_hash(corpus.shard_path(shard), frames.hexdigest(), entry)
    if not damaged:
        content = content_digest(digests)
        problem = wrong_fingerprint(files, manifest, feature_space, measured, content)
        if problem is not None:
            problems.append(problem)
        elif content != manifest["content_sha256"]:
            problems.append(f"{files.path(MANIFEST)}: content_sha256 is not that of the blocks")
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


def _codes_of_cells(corpus: Corpus, problems: list[str]) -> dict[str, np.ndarray]:
    """Field -> int32 [cells]: the codes that the obs table gives, with which vocabularies and blocks are compared.

    Empty where the table cannot be read; that, and other vocabularies, join the problems."""
    with _listed(problems):
        try:
            vocabularies, codes = code_fields(corpus.obs(), [entry["name"] for entry in corpus.datasets])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorpusError(f"{corpus.files.path(OBS)}: not the obs table of a corpus ({error})") from error
        for field in sorted({*vocabularies, *corpus.vocabularies}):
            if vocabularies.get(field) != corpus.vocabularies.get(field):
                raise CorpusError(
                    f"{corpus.files.path(MANIFEST)}: vocabularies[{field!r}] is not that of the cells in {OBS}"
                )
        return codes
    return {}


def _check_codes(corpus: Corpus, index: int, block: PackedBlock, codes: dict[str, np.ndarray]) -> None:
    """Raises CorpusError where a block says another thing of its cells than the obs table."""
    cells = slice(int(block.cell_index[0]), int(block.cell_index[-1]) + 1) if block.num_cells else slice(0)
    for field, of_cells in codes.items():
        if field not in block.obs_codes or not np.array_equal(block.obs_codes[field], of_cells[cells]):
            raise CorpusError(f"{corpus.block_name(index)}: its cells have another {field} than in {OBS}")


def _wrong_hash(path: Location, found: str, entry: dict[str, Any]) -> list[str]:
    problem = wrong_hash(path, found, entry)
    return [] if problem is None else [problem]


def sha256_at(files: CorpusFiles, file: str, size: int) -> str:
    """Of the first `size` bytes of a file, wherever it lies. Raises CorpusError: it cannot be read or is shorter."""
    digest = hashlib.sha256()
    for chunk in read_chunks(files, file, size):
        digest.update(chunk)
    return digest.hexdigest()
