"""A corpus folder: opened quickly, read by block from any thread, verified to the last byte.

    manifest.json            what is here, written last: no manifest, no corpus
    feature_space.parquet    what was measured (feature_space.py)
    measured.npz             per modality: one bit per (dataset, feature), measured or not
    obs.parquet              what is known of each cell, one row per cell in corpus order
    shard-00000.tfrecord     blocks (cell_block.py), framed as TFRecord; shard-00000.offsets beside it

`fingerprint` is the sha256 of all that determines the batches (feature space, measured features, vocabularies, cells in
their order), and of nothing else: codec, shard size and the names of source files do not change it.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from data_pipelines import cell_block, tfrecord
from data_pipelines.cell_block import CellBlock, PackedBlock
from data_pipelines.feature_space import FeatureSpace
from data_pipelines.packed_counts import largest_feature
from data_pipelines.parquet_file import read_parquet_frame
from data_pipelines.supervision import information_of
from scmbert_jax.errors import CorpusError, UserError

FORMAT = "scmbert-corpus"
FORMAT_VERSION = 2

MANIFEST = "manifest.json"
FEATURE_SPACE = "feature_space.parquet"
MEASURED = "measured.npz"
OBS = "obs.parquet"
SIDE_FILES = (FEATURE_SPACE, MEASURED, OBS)

_REQUIRED = (
    *("feature_space_hash", "block_size", "codec", "num_cells", "num_blocks", "shards", "files", "modalities"),
    *("datasets", "vocabularies", "content_sha256", "fingerprint"),
)
_HASH_CHUNK = 1 << 22


def building_path(path: Path) -> Path:
    """Where a corpus grows before it is renamed to `path`."""
    return path.with_name(path.name + ".building")


def balanced_block_sizes(num_cells: int, block_size: int) -> np.ndarray:
    """int64 [ceil(num_cells / block_size)]: sizes that differ by at most one, larger ones first. An epoch is then as
    long for every stream, whichever blocks it drew."""
    num_blocks = -(-num_cells // block_size)
    sizes = np.full(num_blocks, num_cells // max(num_blocks, 1), np.int64)
    sizes[: num_cells - int(sizes.sum())] += 1
    return sizes


def fingerprint_of(feature_space_hash: str, measured_sha256: str, vocabularies: dict, content_sha256: str) -> str:
    """The sha256 of what determines the batches; `content_sha256` is over the uncompressed blocks in order."""
    parts = [FORMAT_VERSION, feature_space_hash, measured_sha256, vocabularies, content_sha256]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


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
      path: the folder.
      manifest: manifest.json as a dict.
      feature_space: the features of all data sets.
      fingerprint: 64 hex digits; equal fingerprints give equal batches.
      num_cells, num_blocks: how many.
      block_sizes: int64 [num_blocks].
      modalities: those of the feature space, in the order of the feature table.
      vocabularies: obs field -> its categories; `CellBlock.obs_codes` are indices into them.
      datasets: the manifest's entry of each data set.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], feature_space: FeatureSpace, measured: dict):
        self.path = path
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
        self._shard_ends = np.cumsum([shard["blocks"] for shard in manifest["shards"]])
        self._lock = threading.Lock()
        self._open_shards: dict[int, tuple[int, np.ndarray]] = {}  # shard -> (file descriptor, offsets)

    def measured(self, dataset_index: int, modality: str) -> np.ndarray:
        """bool [features of the modality]: which of them this data set measured."""
        return self._measured[modality][dataset_index]

    def read_block(self, index: int, modalities: tuple[str, ...] | None = None) -> CellBlock:
        """Block `index`, checked; of the modalities only those asked for (None: all).

        Raises:
          CorpusError: damaged; the shard and the block are named.
          IndexError: no such block.
        """
        return self.read_packed_block(index, modalities).unpacked()

    def read_packed_block(
        self, index: int, modalities: Collection[str] | None = None, obs_fields: Collection[str] | None = None
    ) -> PackedBlock:
        """As `read_block`, the counts as they lie in the record; of the obs fields only those asked for (None: all)."""
        return self.read_payload_and_block(index, modalities, obs_fields)[1]

    def read_payload_and_block(
        self, index: int, modalities: Collection[str] | None = None, obs_fields: Collection[str] | None = None
    ) -> tuple[bytes | memoryview, PackedBlock]:
        """The uncompressed payload of a block, and the block."""
        if not 0 <= index < self.num_blocks:
            raise IndexError(f"block {index} of {self.num_blocks}")
        shard = int(np.searchsorted(self._shard_ends, index, side="right"))
        within = index - (int(self._shard_ends[shard - 1]) if shard else 0)
        where = f"{self.shard_path(shard)}: block {index} (record {within} of the shard)"
        try:
            descriptor, offsets = self._open_shard(shard)
            framed = tfrecord.read_frame(descriptor, int(offsets[within]), int(offsets[within + 1]))
            payload = cell_block.unpack(tfrecord.unframe(framed))
            block = cell_block.deserialise(payload, modalities, obs_fields)
            self._check_block(index, block)
        except CorpusError as error:
            raise CorpusError(f"{where}: {error}. Run `scmbert corpus verify` and rebuild the corpus") from error
        except OSError as error:
            raise CorpusError(f"{where}: cannot be read ({error.strerror})") from error
        return payload, block

    def _check_block(self, index: int, block: PackedBlock) -> None:
        """What the checksums cannot know: that the block is the one that belongs here."""
        size = int(self.block_sizes[index])
        if block.num_cells != size:
            raise CorpusError(f"{block.num_cells} cells, expected {size}")
        first = int(self._first_cells[index])
        if size and block.cell_index[0] != first:
            raise CorpusError(f"cells {block.cell_index[0]} to {block.cell_index[-1]}, expected those from {first} on")
        for field, codes in block.obs_codes.items():
            if field not in self.vocabularies or codes.max(initial=-1) >= len(self.vocabularies[field]):
                raise CorpusError(f"obs field {field!r} with code {codes.max(initial=-1)}, which the manifest has not")
        for modality, columns in block.modalities.items():
            if modality not in self.feature_space.modalities:
                raise CorpusError(f"modality {modality!r}, which the feature space has not")
            num_features = len(self.feature_space.modalities[modality])
            if (largest := largest_feature(columns.counts, columns.starts)) >= num_features:
                raise CorpusError(f"feature {largest} of {num_features} of {modality}")

    def _open_shard(self, shard: int) -> tuple[int, np.ndarray]:
        with self._lock:
            if shard not in self._open_shards:
                offsets = tfrecord.read_offsets(self.shard_path(shard), self.manifest["shards"][shard]["blocks"])
                self._open_shards[shard] = (os.open(self.shard_path(shard), os.O_RDONLY), offsets)
            return self._open_shards[shard]

    def shard_path(self, shard: int) -> Path:
        return self.path / self.manifest["shards"][shard]["file"]

    def obs(self) -> pd.DataFrame:
        """What is known of each cell, in corpus order: cell_id, dataset, standard fields, columns of the sources."""
        path = self.path / OBS
        try:
            table = read_parquet_frame(path)
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
        """Close the shard files; they open again when needed."""
        with self._lock:
            for descriptor, _ in self._open_shards.values():
                os.close(descriptor)
            self._open_shards.clear()

    def __enter__(self) -> "Corpus":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_corpus(path: str | Path) -> Corpus:
    """Open a corpus folder. Quick: reads the manifest, the feature space and file sizes, but no cell.

    Raises:
      CorpusError: no manifest (it says whether an unfinished build lies beside), another format version, a file missing
        or of another size, or another feature space than the manifest's.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    for problem in _wrong_sizes(path, manifest):
        raise CorpusError(problem + "; copy the corpus again or rebuild it")
    space_path = path / FEATURE_SPACE
    try:
        feature_space = FeatureSpace.load(space_path)
    except UserError as error:
        raise CorpusError(f"{error}; rebuild the corpus") from error
    if feature_space.content_hash != manifest["feature_space_hash"]:
        raise CorpusError(
            f"{space_path}: feature space {feature_space.content_hash[:12]}..., but the manifest was written for "
            f"{manifest['feature_space_hash'][:12]}...: the two files do not belong together; rebuild the corpus"
        )
    return Corpus(path, manifest, feature_space, _read_measured(path, manifest, feature_space))


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        message = f"{path}: no corpus here ({'no manifest.json in it' if path.is_dir() else 'no such folder'})"
        if building_path(path).exists():
            message += f"; an unfinished build lies at {building_path(path)}: run the same `corpus build` again"
        else:
            message += "; make one with `scmbert corpus build OUT FILE...`"
        raise CorpusError(message)
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorpusError(f"{manifest_path}: cannot be read ({error}); rebuild the corpus") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CorpusError(f"{manifest_path}: not the manifest of a corpus (its 'format' is not {FORMAT!r})")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CorpusError(
            f"{manifest_path}: corpus of format version {manifest.get('format_version')}; this program reads version "
            f"{FORMAT_VERSION}: rebuild the corpus from its source files, or use the version that wrote it"
        )
    missing = [field for field in _REQUIRED if field not in manifest]
    if missing:
        raise CorpusError(f"{manifest_path}: field {missing[0]!r} is missing; rebuild the corpus")
    return manifest


def _wrong_sizes(path: Path, manifest: dict[str, Any]) -> list[str]:
    """Files that are missing or of another size than the manifest says, as messages."""
    expected = {shard["file"]: shard["bytes"] for shard in manifest["shards"]}
    expected |= {
        tfrecord.offsets_path(Path(shard["file"])).name: 8 * (shard["blocks"] + 1) for shard in manifest["shards"]
    }
    expected |= {name: entry["bytes"] for name, entry in manifest["files"].items()}
    problems = []
    for name, size in expected.items():
        try:
            found = (path / name).stat().st_size
        except OSError as error:
            problems.append(f"{path / name}: {error.strerror}")
            continue
        if found != size:
            problems.append(f"{path / name}: {found} bytes, the manifest says {size}")
    return problems


def _read_measured(path: Path, manifest: dict[str, Any], feature_space: FeatureSpace) -> dict[str, np.ndarray]:
    """modality -> bool [num_datasets, features]."""
    measured = {}
    try:
        with np.load(path / MEASURED) as packed:
            for modality, features in feature_space.modalities.items():
                flags = np.unpackbits(packed[modality], axis=1, count=len(features)).astype(bool)
                if len(flags) != len(manifest["datasets"]):
                    raise ValueError(f"{len(flags)} data sets, the manifest names {len(manifest['datasets'])}")
                measured[modality] = flags
    except Exception as error:  # zipfile and numpy raise many kinds
        raise CorpusError(f"{path / MEASURED}: cannot be read ({error}); rebuild the corpus") from error
    return measured


class VerifyReport(NamedTuple):
    """What `verify_corpus` found.

    Attributes:
      path: the folder.
      num_blocks, num_cells: read without a fault.
      problems: one message per fault; each names the file, and the block where it is one. Empty: sound.
      damaged_blocks: numbers of the blocks that cannot be read.
    """

    path: Path
    num_blocks: int
    num_cells: int
    problems: tuple[str, ...]
    damaged_blocks: tuple[int, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def verify_corpus(path: str | Path, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Read every byte: hashes of all files, every block, the fingerprint.

    Args:
      path: the corpus folder.
      progress: called with (blocks done, blocks in all).

    Raises:
      CorpusError: there is no manifest that can be read, so that there is nothing to compare with.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    problems = _wrong_sizes(path, manifest)
    for name, entry in [(s["file"], s) for s in manifest["shards"]] + list(manifest["files"].items()):
        if (path / name).is_file() and (found := sha256_of_file(path / name)) != entry["sha256"]:
            problems.append(f"{path / name}: sha256 {found[:12]}..., the manifest says {entry['sha256'][:12]}...")
    try:
        feature_space = FeatureSpace.load(path / FEATURE_SPACE)
        measured = _read_measured(path, manifest, feature_space)
    except UserError as error:
        return VerifyReport(path, 0, 0, (*problems, str(error)), ())
    damaged, cells, digest = [], 0, hashlib.sha256()
    with Corpus(path, manifest, feature_space, measured) as corpus:
        for index in range(corpus.num_blocks):
            try:
                payload, block = corpus.read_payload_and_block(index)
                digest.update(payload)
                cells += block.num_cells
            except CorpusError as error:
                problems.append(str(error))
                damaged.append(index)
            if progress is not None:
                progress(index + 1, corpus.num_blocks)
        try:
            corpus.obs()
        except CorpusError as error:
            problems.append(str(error))
    if not damaged:
        found = fingerprint_of(
            feature_space.content_hash, measured_digest(measured), manifest["vocabularies"], digest.hexdigest()
        )
        if found != manifest["fingerprint"]:
            problems.append(
                f"{path / MANIFEST}: fingerprint {manifest['fingerprint'][:12]}..., the content gives {found[:12]}..."
            )
    return VerifyReport(path, corpus.num_blocks - len(damaged), cells, tuple(problems), tuple(damaged))
