"""Writes the files of a corpus folder beside the shards, and last of all the manifest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_pipelines.corpus import corpus
from data_pipelines.corpus import manifest as corpus_manifest
from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.files.atomic_files import growing_file, sync, writing


def write_side_files(
    folder: Path,
    feature_space: FeatureSpace,
    measured: dict[str, np.ndarray],
    obs: pd.DataFrame,
    shards: list[dict[str, Any]],
    obs_fields: list[str],
) -> dict[str, dict[str, Any]]:
    """Feature space, measured flags, obs table, and what TFDS needs; returns name -> bytes and sha256. Durable when
    this returns.

    Args:
      measured: modality -> bool [data sets, features].
      shards: the manifest's entries.
      obs_fields: those whose codes are in the blocks.
    """
    with writing(folder / corpus_manifest.FEATURE_SPACE):
        feature_space.save(folder / corpus_manifest.FEATURE_SPACE)
    with writing(folder / corpus_manifest.MEASURED), open(folder / corpus_manifest.MEASURED, "wb") as file:
        packed: dict[str, Any] = {name: np.packbits(flags, axis=1) for name, flags in measured.items()}
        np.savez_compressed(file, **packed)
    with writing(folder / corpus_manifest.OBS):
        obs.to_parquet(folder / corpus_manifest.OBS, index=False, compression="zstd")
    for name, document in (
        (corpus_manifest.TFDS_INFO, _tfds_info(shards)),
        (corpus_manifest.TFDS_FEATURES, _tfds_features(list(feature_space.modalities), obs_fields)),
    ):
        with growing_file(folder / name) as file:
            file.write(json.dumps(document, indent=1).encode())
    files = {}
    for name in corpus_manifest.SIDE_FILES:
        path = folder / name
        with writing(path):
            sync(path)
            files[name] = {"bytes": path.stat().st_size, "sha256": corpus.sha256_of_file(path)}
    return files


def write_text(path: Path, text: str) -> dict[str, Any]:
    """A file for people; returns its name, bytes and sha256. It may be edited later, so no reader compares them."""
    with writing(path):
        path.write_text(text, encoding="utf-8")
        sync(path)
        return {"file": path.name, "bytes": path.stat().st_size, "sha256": corpus.sha256_of_file(path)}


def _tfds_info(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """A `dataset_info.proto` of TensorFlow Datasets as JSON, which writes 64-bit numbers as text."""
    split = {
        "name": "train",
        "shardLengths": [str(shard["blocks"]) for shard in shards],
        "numBytes": str(sum(shard["bytes"] for shard in shards)),
        "filepathTemplate": "shard-{SHARD_INDEX}.{FILEFORMAT}",
    }
    return {
        "name": "scmbert_corpus",
        "version": f"{corpus_manifest.FORMAT_VERSION}.0.0",
        "description": "Counts of single cells in blocks; see data_pipelines/tfds_blocks.py of scmbert_jax.",
        "fileFormat": "tfrecord",
        "splits": [split],
    }


def _tfds_features(modalities: list[str], obs_fields: list[str]) -> dict[str, Any]:
    """A `feature.proto` as JSON: names the class that decodes a record, and what it is made with."""
    content = json.dumps({"modalities": modalities, "obs_fields": obs_fields})
    return {"pythonClassName": "data_pipelines.tfds_blocks.CellBlocks", "jsonFeature": {"json": content}}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """The last file, with a digest of itself; whole or not there."""
    manifest = {**manifest, corpus_manifest.DIGEST: corpus_manifest.manifest_digest(manifest)}
    with growing_file(folder / corpus_manifest.MANIFEST) as file:
        file.write((json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
