"""A corpus, in a folder or at a URL: opened quickly, read by block from any thread.

    manifest.json            what is here, written last: no manifest, no corpus
    feature_space.parquet    what was measured (feature_space.py)
    measured.npz             per modality: one bit per (dataset, feature), measured or not
    obs.parquet              what is known of each cell, one row per cell in corpus order
    DATA_CARD.md             where the cells come from and which they are, for people (data_card.py)
    shard-00000.tfrecord     blocks (cell_block.py), framed as TFRecord; shard-00000.offsets beside it
    dataset_info.json, features.json     what `tfds.builder_from_directory` needs (tfds_blocks.py)

`fingerprint` is the sha256 of all that determines the batches (feature space, measured features, vocabularies, cells in
their order), and of nothing else: codec, shard size, names of source files and the place do not change it.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from data_pipelines.cells.supervision import information_of
from data_pipelines.corpus import cell_block, tfrecord
from data_pipelines.corpus.block_cache import CachedFiles, cache_for, shard_key
from data_pipelines.corpus.cell_block import CellBlock, PackedBlock
from data_pipelines.corpus.manifest import (
    FEATURE_SPACE,
    FORMAT_VERSION,
    MANIFEST,
    MEASURED,
    OBS,
    file_sizes,
    read_manifest,
)
from data_pipelines.corpus.open_files import open_files
from data_pipelines.corpus.packed_counts import largest_feature
from data_pipelines.corpus.retries import UnreachableError
from data_pipelines.corpus.storage import CorpusFiles, Location
from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.files.bounded_npz import read_arrays
from data_pipelines.files.parquet_file import read_parquet_frame
from scmbert_jax.errors import CorpusError, InputError
from scmbert_jax.modalities import MODALITIES

_HASH_CHUNK = 1 << 22
_SIZES_AT_ONCE = 16  # files asked for their size together; each answer may come from far away


def balanced_block_sizes(num_cells: int, block_size: int) -> np.ndarray:
    """int64 [ceil(num_cells / block_size)]: sizes that differ by at most one, larger ones first. An epoch is then as
    long for every stream, whichever blocks it drew."""
    num_blocks = -(-num_cells // block_size)
    sizes = np.full(num_blocks, num_cells // max(num_blocks, 1), np.int64)
    sizes[: num_cells - int(sizes.sum())] += 1
    return sizes


def fingerprint_of(feature_space_hash: str, measured_sha256: str, vocabularies: dict, content_sha256: str) -> str:
    """The sha256 of what determines the batches."""
    parts = [FORMAT_VERSION, feature_space_hash, measured_sha256, vocabularies, content_sha256]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def content_digest(block_sha256: Iterable[str]) -> str:
    """The sha256 of the cells in their order: over the hex digests of the uncompressed payloads of all blocks, so that
    shards can be made and verified side by side, and their limits do not show."""
    return hashlib.sha256("".join(block_sha256).encode()).hexdigest()


def measured_digest(measured: dict[str, np.ndarray]) -> str:
    """sha256 over the measured flags: modality -> bool [num_datasets, features]."""
    digest = hashlib.sha256()
    for modality, flags in measured.items():
        digest.update(f"{modality} {flags.shape}\n".encode() + np.packbits(flags, axis=1).tobytes())
    return digest.hexdigest()


def sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class Corpus:
    """An open corpus. Threads may share it.

    Attributes:
      files: where everything is read from.
      path: the folder, or the URL, to be said and recorded.
      location: what opens it again; see `CorpusFiles`.
      manifest: manifest.json as a dict.
      feature_space: the features of all data sets.
      fingerprint: 64 hex digits; equal fingerprints give equal batches.
      num_cells, num_blocks: how many.
      block_sizes: int64 [num_blocks].
      shard_ends: int64 [shards], the block after the last one of each.
      modalities: those of the feature space, in the order of the feature table.
      vocabularies: obs field -> its categories; `CellBlock.obs_codes` are indices into them.
      datasets: the manifest's entry of each data set.
    """

    def __init__(self, files: CorpusFiles, manifest: dict[str, Any], feature_space: FeatureSpace, measured: dict):
        self.files = files
        self.path, self.location = files.root, files.location
        self.manifest = manifest
        self.feature_space = feature_space
        self.fingerprint: str = manifest["fingerprint"]
        self.num_cells: int = manifest["num_cells"]
        self.num_blocks: int = manifest["num_blocks"]
        self.block_sizes = balanced_block_sizes(self.num_cells, manifest["block_size"])
        self.modalities = list(feature_space.modalities)
        self.vocabularies: dict[str, list[str]] = manifest["vocabularies"]
        self.datasets: list[dict[str, Any]] = manifest["datasets"]
        self._measured = measured
        self._first_cells = np.cumsum(self.block_sizes) - self.block_sizes
        self.shard_ends = np.cumsum([shard["blocks"] for shard in manifest["shards"]])
        self._shard_offsets: dict[int, np.ndarray] = {}

    def measured(self, dataset_index: int, modality: str) -> np.ndarray:
        """bool [features of the modality]: which of them this data set measured."""
        return self._measured[modality][dataset_index]

    def read_block(self, index: int, modalities: tuple[str, ...] | None = None) -> CellBlock:
        """Block `index`, checked; of the modalities only those asked for (None: all).

        Raises:
          CorpusError: damaged or out of reach; the shard and the block are named.
          IndexError: no such block.
        """
        return self.read_packed_block(index, modalities).unpacked()

    def read_packed_block(
        self, index: int, modalities: Collection[str] | None = None, obs_fields: Collection[str] | None = None
    ) -> PackedBlock:
        """As `read_block`, the counts as they lie in the record; of the obs fields only those asked for (None: all)."""
        return self.decode_frame(index, self.read_frame(index), modalities, obs_fields)[1]

    def read_ahead(self, indices: Iterable[int]) -> None:
        """Blocks that will be read soon: at a URL they come together, while something else is done.

        Raises CorpusError: where they lie cannot be read."""
        if self.files.remote:
            self.files.read_ahead(self.ranges(indices))

    def ranges(self, indices: Iterable[int]) -> list[tuple[str, int, int]]:
        """File, start and stop of the records of blocks. What says so, and is not here yet, comes together.

        Raises CorpusError: it cannot be read."""
        indices = [int(index) for index in indices]
        shards = dict.fromkeys(self._place(index)[0] for index in indices)
        self.files.read_ahead([self._offsets_range(shard) for shard in shards if shard not in self._shard_offsets])
        return [self._range(index) for index in indices]

    def read_frame(self, index: int) -> bytes:
        """The record of a block as it lies in the shard. Damaged on its way or in the cache, it is read once more."""
        try:
            wanted = self._range(index)
            framed = self.files.read(*wanted)
            if self.files.remote and not tfrecord.is_sound(framed):
                self.files.forget(*wanted)
                framed = self.files.read(*wanted)
        except CorpusError as error:
            raise type(error)(f"{error}; needed for {self.block_name(index)}") from error
        return framed

    def decode_frame(
        self,
        index: int,
        framed: bytes,
        modalities: Collection[str] | None = None,
        obs_fields: Collection[str] | None = None,
    ) -> tuple[bytes | memoryview, PackedBlock]:
        """The uncompressed payload of a block, and the block. Raises CorpusError: damaged."""
        try:
            payload = cell_block.unpack(tfrecord.unframe(framed), self._most_bytes(int(self.block_sizes[index])))
            block = cell_block.deserialise(payload, modalities, obs_fields)
            self._check_block(index, block)
        except CorpusError as error:
            remedy = "Run `scmbert corpus verify` and rebuild the corpus"
            raise CorpusError(f"{self.block_name(index)}: {error}. {remedy}") from error
        return payload, block

    def _most_bytes(self, num_cells: int) -> int:
        """That the payload of a block of so many cells can have: with every feature expressed, and counted by numbers
        of the largest size. A record that claims more is none of ours."""
        per_cell = 10 * self.feature_space.num_features + 24 * len(MODALITIES) + 8 * len(self.vocabularies) + 16
        return num_cells * per_cell + (64 << 10)

    def _place(self, index: int) -> tuple[int, int]:
        """The shard of a block, and its record there."""
        if not 0 <= index < self.num_blocks:
            raise IndexError(f"block {index} of {self.num_blocks}")
        shard = int(np.searchsorted(self.shard_ends, index, side="right"))
        return shard, index - (int(self.shard_ends[shard - 1]) if shard else 0)

    def block_name(self, index: int) -> str:
        """Where a block lies, for messages."""
        shard, within = self._place(index)
        return f"{self.shard_path(shard)}: block {index} (record {within} of the shard)"

    def _range(self, index: int) -> tuple[str, int, int]:
        """File, start and stop of the record of a block."""
        shard, within = self._place(index)
        offsets = self._offsets(shard)
        start, stop = int(offsets[within]), int(offsets[within + 1])
        if stop - start > (most := self._most_bytes(int(self.block_sizes[index])) + (64 << 10)):
            raise CorpusError(
                f"{self.block_name(index)}: {stop - start:,} bytes; a block of its size can have at most {most:,}"
            )
        return self.manifest["shards"][shard]["file"], start, stop

    def _check_block(self, index: int, block: PackedBlock) -> None:
        """What the checksums cannot know: that the block is the one that belongs here."""
        size = int(self.block_sizes[index])
        if block.num_cells != size:
            raise CorpusError(f"{block.num_cells} cells, expected {size}")
        first = int(self._first_cells[index])
        if size and (block.cell_index[0] != first or block.cell_index[-1] != first + size - 1):
            raise CorpusError(f"cells {block.cell_index[0]} to {block.cell_index[-1]}, expected those from {first} on")
        for field, codes in block.obs_codes.items():
            if field not in self.vocabularies or codes.max(initial=-1) >= len(self.vocabularies[field]):
                raise CorpusError(f"obs field {field!r} with code {codes.max(initial=-1)}, which the manifest has not")
        for modality, columns in block.modalities.items():
            if modality not in self.feature_space.modalities:
                raise CorpusError(f"modality {modality!r}, which the feature space has not")
            num_features = len(self.feature_space.modalities[modality])
            if (largest := largest_feature(columns.counts, columns.places)) >= num_features:
                raise CorpusError(f"feature {largest} of {num_features} of {modality}")

    def _offsets(self, shard: int) -> np.ndarray:
        """Two threads may read the same offsets at first; no lock is held while they travel."""
        offsets = self._shard_offsets.get(shard)
        if offsets is None:
            wanted = self._offsets_range(shard)
            size = self.manifest["shards"][shard]["bytes"]
            offsets = tfrecord.parse_offsets(self.files.read(*wanted), size, self.files.path(wanted[0]))
            self._shard_offsets[shard] = offsets
        return offsets

    def _offsets_range(self, shard: int) -> tuple[str, int, int]:
        entry = self.manifest["shards"][shard]
        return tfrecord.offsets_path(Path(entry["file"])).name, 0, tfrecord.offsets_bytes(entry["blocks"])

    def shard_path(self, shard: int) -> Location:
        return self.files.path(self.manifest["shards"][shard]["file"])

    def obs(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """What is known of each cell, in corpus order: cell_id, dataset, standard fields, columns of the sources.

        `columns`: only those of these that there are; None: all. Raises CorpusError when the table cannot be read.
        """
        path = self.files.path(OBS)
        try:
            with open_side_file(self.files, self.manifest, OBS) as file:
                table = read_parquet_frame(file, columns, max_rows=self.num_cells)
        except CorpusError:
            raise
        except Exception as error:  # pyarrow raises many kinds
            raise CorpusError(f"{path}: cannot be read ({error}); rebuild the corpus") from error
        if len(table) != self.num_cells:
            raise CorpusError(f"{path}: {len(table)} rows, expected one for each of {self.num_cells} cells")
        return table

    @cached_property
    def measured_modalities(self) -> list[list[str]]:
        """Per data set: the modalities it has."""
        return [
            [name for name in self.modalities if self._measured[name][index].any()]
            for index in range(len(self.datasets))
        ]

    def information(self, modalities: Collection[str] | None = None) -> dict[str, Any]:
        """What a run that reads these modalities (None: all) learns beside counts: `supervision.information_of`."""
        return information_of(self.manifest, self.feature_space, self.modalities if modalities is None else modalities)

    def close(self) -> None:
        """Close files and connections; they open again when needed."""
        self.files.close()

    def __enter__(self) -> "Corpus":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_corpus(path: Location, *, cache_dir: str | Path | None = None, cache_gigabytes: float | None = None) -> Corpus:
    """Open a corpus. Quick: reads the manifest, the feature space and file sizes, but no cell.

    Args:
      path: the folder, or a URL that fsspec reads: s3://bucket/corpus, gs://bucket/corpus, https://host/corpus.
      cache_dir, cache_gigabytes: where on this machine blocks are kept that were read before, and how much of them
        (`block_cache.cache_for`). Left out, only a corpus at a URL is cached.

    Raises:
      CorpusError: no manifest (it says whether an unfinished build lies beside), another format version, a file missing
        or of another size, another feature space than the manifest's, or a URL that cannot be read.
      ConfigError: a negative size of the cache.
    """
    cache = cache_for(path, cache_dir, cache_gigabytes)
    files = open_files(path)
    manifest = read_manifest(files)
    for problem in wrong_sizes(files, manifest):
        raise CorpusError(problem + "; copy the corpus again or rebuild it")
    feature_space = read_feature_space(files, manifest)
    measured = read_measured(files, manifest, feature_space)
    wrong = wrong_fingerprint(files, manifest, feature_space, measured, manifest["content_sha256"])
    if wrong is not None:
        raise CorpusError(f"{wrong}; rebuild the corpus")
    if cache is not None:
        keys = {shard["file"]: shard_key(path, shard["file"], shard["sha256"]) for shard in manifest["shards"]}
        files = CachedFiles(files, cache, keys)
    return Corpus(files, manifest, feature_space, measured)


def wrong_sizes(files: CorpusFiles, manifest: dict[str, Any]) -> list[str]:
    """Files that are missing or of another size than the manifest says, as messages. Raises UnreachableError."""

    def problem(name: str, size: int) -> str | None:
        try:
            found = files.size(name)
        except UnreachableError:
            raise
        except CorpusError as error:
            return str(error)
        return f"{files.path(name)}: {found} bytes, the manifest says {size}" if found != size else None

    expected = file_sizes(manifest)
    with ThreadPoolExecutor(_SIZES_AT_ONCE) as pool:
        return [found for found in pool.map(problem, expected, expected.values()) if found]


def wrong_fingerprint(
    files: CorpusFiles, manifest: dict[str, Any], feature_space: FeatureSpace, measured: dict, content_sha256: str
) -> str | None:
    """What is said where the fingerprint of the manifest is not that of what determines the batches."""
    parts = (feature_space.content_hash, measured_digest(measured), manifest["vocabularies"], content_sha256)
    if (found := fingerprint_of(*parts)) == manifest["fingerprint"]:
        return None
    return f"{files.path(MANIFEST)}: fingerprint {manifest['fingerprint'][:12]}..., the content gives {found[:12]}..."


@contextmanager
def open_side_file(files: CorpusFiles, manifest: dict[str, Any], name: str) -> Iterator[BinaryIO]:
    """A file that is no shard, compared with its hash before anything in it is believed. Raises CorpusError."""
    with files.open(name) as file:
        digest = hashlib.sha256()
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
        if problem := wrong_hash(files.path(name), digest.hexdigest(), manifest["files"][name]):
            raise CorpusError(f"{problem}; copy the corpus again or rebuild it")
        file.seek(0)
        yield file


def wrong_hash(path: Location, found: str, entry: dict[str, Any]) -> str | None:
    """What is said where a file has another sha256 than its entry in the manifest."""
    if found == entry["sha256"]:
        return None
    return f"{path}: sha256 {found[:12]}..., the manifest says {entry['sha256'][:12]}..."


def read_feature_space(files: CorpusFiles, manifest: dict[str, Any]) -> FeatureSpace:
    """That of the manifest. Raises CorpusError."""
    path = files.path(FEATURE_SPACE)
    try:
        with open_side_file(files, manifest, FEATURE_SPACE) as file:
            feature_space = FeatureSpace.load(path, file)
    except InputError as error:
        raise CorpusError(f"{error}; rebuild the corpus") from error
    if feature_space.content_hash != manifest["feature_space_hash"]:
        raise CorpusError(
            f"{path}: feature space {feature_space.content_hash[:12]}..., but the manifest was written for "
            f"{manifest['feature_space_hash'][:12]}...: the two files do not belong together; rebuild the corpus"
        )
    here = {name: (part.space, len(part)) for name, part in feature_space.modalities.items()}
    if here != (said := {name: (part["space"], part["features"]) for name, part in manifest["modalities"].items()}):
        raise CorpusError(f"{path}: holds {here}, but the manifest says {said}; rebuild the corpus")
    return feature_space


def read_measured(files: CorpusFiles, manifest: dict[str, Any], feature_space: FeatureSpace) -> dict[str, np.ndarray]:
    """modality -> bool [num_datasets, features]."""
    sizes = {name: len(features) for name, features in feature_space.modalities.items()}
    rows = len(manifest["datasets"])
    try:
        with open_side_file(files, manifest, MEASURED) as file:
            packed = read_arrays(file, {name: ((rows, (size + 7) // 8), np.uint8) for name, size in sizes.items()})
    except CorpusError:
        raise
    except Exception as error:  # zipfile and numpy raise many kinds
        raise CorpusError(f"{files.path(MEASURED)}: cannot be read ({error}); rebuild the corpus") from error
    return {name: np.unpackbits(packed[name], axis=1, count=size).astype(bool) for name, size in sizes.items()}
