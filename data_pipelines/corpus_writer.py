"""Writes the files of a corpus folder: shards of blocks, the side files, and last of all the manifest."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from data_pipelines import corpus, tfrecord
from data_pipelines.durable_files import sync, writing
from data_pipelines.feature_space import FeatureSpace


class ShardWriter:
    """Blocks in, `shard-00000.tfrecord` and its offsets out; a new shard where the next block would pass `shard_bytes`.

    Args:
      folder: where.
      shard_bytes: aim; a shard has at least one block.

    Attributes:
      shards: the manifest's entry of each finished shard.
    """

    def __init__(self, folder: Path, shard_bytes: int):
        self.folder = folder
        self.shard_bytes = shard_bytes
        self.shards: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._offsets: list[int] = []

    def add(self, record: bytes, num_cells: int) -> None:
        framed = tfrecord.frame(record)
        if self._file is not None and self._offsets[-1] + len(framed) > self.shard_bytes:
            self.finish()
        if self._file is None:
            self._path = self.folder / f"shard-{len(self.shards):05d}.tfrecord"
            with writing(self._path):
                self._file = open(self._path, "wb")  # noqa: SIM115 - closed in `finish`
            self._offsets, self._cells, self._digest = [0], 0, hashlib.sha256()
        with writing(self._path):
            self._file.write(framed)
        self._digest.update(framed)
        self._offsets.append(self._offsets[-1] + len(framed))
        self._cells += num_cells

    def finish(self) -> None:
        """Close the open shard; durable when this returns."""
        if self._file is None:
            return
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            tfrecord.write_offsets(self._path, self._offsets)
        self._file = None
        self.shards.append(
            {
                "file": self._path.name,
                "bytes": self._offsets[-1],
                "blocks": len(self._offsets) - 1,
                "cells": self._cells,
                "sha256": self._digest.hexdigest(),
            }
        )

    def abandon(self) -> None:
        """Close the open shard without finishing it: an error is on its way."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what was still in memory does not fit either
                self._file.close()
            self._file = None


def write_side_files(
    folder: Path, feature_space: FeatureSpace, measured: dict[str, np.ndarray], obs: pd.DataFrame
) -> dict[str, dict[str, Any]]:
    """Feature space, measured flags and obs table; returns name -> bytes and sha256. Durable when this returns."""
    with writing(folder / corpus.FEATURE_SPACE):
        feature_space.save(folder / corpus.FEATURE_SPACE)
    with writing(folder / corpus.MEASURED), open(folder / corpus.MEASURED, "wb") as file:
        packed: dict[str, Any] = {name: np.packbits(flags, axis=1) for name, flags in measured.items()}
        np.savez_compressed(file, **packed)
    with writing(folder / corpus.OBS):
        obs.to_parquet(folder / corpus.OBS, index=False, compression="zstd")
    files = {}
    for name in corpus.SIDE_FILES:
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


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """The last file: written beside, then renamed, so that a manifest is whole or not there."""
    path = folder / corpus.MANIFEST
    growing = folder / (corpus.MANIFEST + ".growing")
    with writing(path):
        with open(growing, "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(growing, path)
