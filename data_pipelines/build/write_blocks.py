"""Pass 2 of a build: one shard. Bucket after bucket, put in order -> blocks of balanced sizes -> a file of records."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.build.external_shuffle import SegmentFile, read_bucket
from data_pipelines.build.work_folder import WorkFolder
from data_pipelines.corpus import cell_block, tfrecord
from data_pipelines.corpus.cell_block import CellBlock
from data_pipelines.corpus.corpus import balanced_block_sizes, sha256_of_file
from data_pipelines.files.atomic_files import growing_file
from scmbert_jax.errors import CorpusError


@dataclass(frozen=True)
class ShardTask:
    """Writes one shard and its offsets, and then `output`: what the manifest needs to know of them.

    Memory: one bucket, see `external_shuffle`.

    Attributes:
      work: where the segments and the arrays of the plan are.
      path: of the shard.
      buckets: first and last + 1.
      modalities, obs_fields: of the corpus, in their order in a block.
      num_cells, block_size, codec: of the corpus.
    """

    work: WorkFolder
    path: Path
    buckets: tuple[int, int]
    modalities: tuple[str, ...]
    obs_fields: tuple[str, ...]
    num_cells: int
    block_size: int
    codec: str

    @property
    def output(self) -> Path:
        return self.work.path / f"{self.path.stem}.json"

    def written(self) -> dict[str, Any] | None:
        """What `run` wrote: `entry` of the manifest, `block_sha256`, `entries`, `largest_count`. None: it is not there,
        or is not what was written, and `run` has to be called."""
        try:
            written = json.loads(self.output.read_bytes())
            entry = written["entry"]
            sound = (
                entry["file"] == self.path.name
                and sha256_of_file(self.path) == entry["sha256"]
                and tfrecord.offsets_path(self.path).stat().st_size == tfrecord.offsets_bytes(entry["blocks"])
                and len(written["block_sha256"]) == entry["blocks"]
                and {*self.modalities} == {*written["entries"]} == {*written["largest_count"]}
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return written if sound else None

    def run(self) -> None:
        offsets, digests, num_cells, whole = [0], [], 0, hashlib.sha256()
        entries, largest = (dict.fromkeys(self.modalities, 0) for _ in range(2))
        with growing_file(self.path) as file:
            for block in self._blocks():
                payload = cell_block.serialise(block)
                framed = tfrecord.frame(cell_block.pack(payload, self.codec))
                file.write(framed)
                whole.update(framed)
                offsets.append(offsets[-1] + len(framed))
                digests.append(hashlib.sha256(payload).hexdigest())
                num_cells += block.num_cells
                for name, columns in block.modalities.items():
                    entries[name] += len(columns.counts)
                    largest[name] = max(largest[name], int(columns.counts.max(initial=0)))
        with growing_file(tfrecord.offsets_path(self.path)) as file:
            file.write(np.array(offsets, "<u8").tobytes())
        written = {
            "entry": {
                "file": self.path.name,
                "bytes": offsets[-1],
                "blocks": len(digests),
                "cells": num_cells,
                "sha256": whole.hexdigest(),
            },
            "block_sha256": digests,
            "entries": entries,
            "largest_count": largest,
        }
        with growing_file(self.output) as file:
            file.write(json.dumps(written).encode())

    def _blocks(self) -> Iterator[CellBlock]:
        sizes = balanced_block_sizes(self.num_cells, self.block_size)
        block_starts = np.concatenate([[0], np.cumsum(sizes)])
        codes = {field: self.work.load_array(f"codes-{field}") for field in self.obs_fields}
        measured = {name: self.work.load_array(f"measured-{name}") for name in self.modalities}
        bucket_edges = self.work.load_array("buckets")
        files = [SegmentFile(path) for path in self.work.segment_files()]
        for bucket in range(*self.buckets):
            cells = read_bucket(files, bucket, self.modalities)
            first, last = (int(edge) for edge in bucket_edges[bucket : bucket + 2])
            start, stop = int(block_starts[first]), int(block_starts[last])
            orders = {name: np.argsort(part.rows, kind="stable") for name, part in cells.items()}
            rows = {name: part.rows[orders[name]] for name, part in cells.items()}
            for name in self.modalities:
                if not np.array_equal(rows[name], start + np.flatnonzero(measured[name][start:stop])):
                    raise CorpusError(
                        f"{self.work.path}: the segments of {name} do not hold the cells {start:,} to {stop - 1:,} "
                        "once each; remove the folder and build again"
                    )
            for block in range(first, last):
                index = np.arange(block_starts[block], block_starts[block + 1])
                modalities = {}
                for name, part in cells.items():
                    low, high = np.searchsorted(rows[name], [index[0], index[-1] + 1])
                    if high > low:
                        chosen, place = orders[name][low:high], rows[name][low:high] - index[0]
                        modalities[name] = part.columns(chosen, place, len(index))
                obs_codes = {field: values[index[0] : index[-1] + 1] for field, values in codes.items()}
                yield CellBlock(modalities, obs_codes, index)
