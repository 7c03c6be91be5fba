"""Pass 2 of a build: bucket after bucket, sorted -> blocks of balanced sizes -> shards."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import cell_block, corpus_writer
from data_pipelines.cell_block import CellBlock, ModalityColumns
from data_pipelines.external_shuffle import CellSpool, empty_columns

_MAX_WORKERS = 4  # compress blocks; the main thread feeds them no faster


class Written(NamedTuple):
    """What was written.

    Attributes:
      shards: the manifest's entries.
      statistics: modality -> cells, mean_expressed, largest_count.
      measured: modality -> bool [N].
      content_sha256: over the uncompressed blocks in order.
    """

    shards: list[dict[str, Any]]
    statistics: dict[str, dict[str, Any]]
    measured: dict[str, np.ndarray]
    content_sha256: str


def write_blocks(
    folder: Path,
    spool: CellSpool,
    hashes: np.ndarray,
    codes: dict[str, np.ndarray],
    sizes: np.ndarray,
    codec: str,
    shard_bytes: int,
    progress: Callable[[str, int, int], None],
) -> Written:
    """Blocks out of the buckets, compressed in threads, written in order.

    Args:
      folder: of the corpus.
      spool: closed, with all cells.
      hashes: uint64 [N], ascending.
      codes: field -> int32 [N], in corpus order.
      sizes: int64 [blocks], cells of each.
      codec, shard_bytes, progress: see `build_corpus`.
    """
    writer = corpus_writer.ShardWriter(folder, shard_bytes)
    digest = hashlib.sha256()
    measured = {name: np.zeros(len(hashes), bool) for name in spool.modalities}
    entries, largest = (dict.fromkeys(spool.modalities, 0) for _ in range(2))
    workers = min(_MAX_WORKERS, os.cpu_count() or 1)
    waiting: deque[tuple[int, Future]] = deque()

    def make(block: CellBlock) -> tuple[bytes, bytes]:
        payload = cell_block.serialise(block)
        return payload, cell_block.pack(payload, codec)

    def write_oldest() -> None:
        num_cells, future = waiting.popleft()
        payload, record = future.result()
        digest.update(payload)
        writer.add(record, num_cells)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")
    try:
        for number, block in enumerate(_blocks(spool, hashes, codes, sizes)):
            for name, columns in block.modalities.items():
                measured[name][block.cell_index] = columns.measured
                entries[name] += len(columns.counts)
                largest[name] = max(largest[name], int(columns.counts.max(initial=0)))
            waiting.append((block.num_cells, pool.submit(make, block)))
            if len(waiting) > 2 * workers:
                write_oldest()
            progress("writing blocks", number + 1, len(sizes))
        while waiting:
            write_oldest()
        writer.finish()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        writer.abandon()
    statistics = {
        name: {
            "cells": int(measured[name].sum()),
            "mean_expressed": round(entries[name] / max(int(measured[name].sum()), 1), 1),
            "largest_count": largest[name],
        }
        for name in spool.modalities
    }
    return Written(writer.shards, statistics, measured, digest.hexdigest())


def _blocks(
    spool: CellSpool, hashes: np.ndarray, codes: dict[str, np.ndarray], sizes: np.ndarray
) -> Iterator[CellBlock]:
    """Blocks in corpus order. Between buckets at most one unfinished block is carried over."""
    edges = np.searchsorted(spool.bucket_of(hashes), np.arange(spool.num_buckets + 1))
    pending = {name: empty_columns(0) for name in spool.modalities}
    first, number = 0, 0
    for bucket in range(spool.num_buckets):
        loaded = spool.bucket(bucket, int(edges[bucket]), int(edges[bucket + 1] - edges[bucket]))
        pending = {name: _joined(pending[name], columns) for name, columns in loaded.items()}
        starts = {
            name: np.concatenate([[0], np.cumsum(columns.lengths, dtype=np.int64)]) for name, columns in pending.items()
        }
        available = int(edges[bucket + 1]) - first
        used = 0
        while number < len(sizes) and sizes[number] <= available - used:
            rows = slice(used, used + int(sizes[number]))
            index = np.arange(first + rows.start, first + rows.stop)
            yield CellBlock(
                {
                    name: part
                    for name, columns in pending.items()
                    if (part := _rows_of(columns, starts[name], rows)).measured.any()
                },
                {field: values[index] for field, values in codes.items()},
                index,
            )
            used = rows.stop
            number += 1
        pending = {name: _rows_of(columns, starts[name], slice(used, available)) for name, columns in pending.items()}
        first += used


def _rows_of(columns: ModalityColumns, starts: np.ndarray, rows: slice) -> ModalityColumns:
    entries = slice(int(starts[rows.start]), int(starts[rows.stop]))
    return ModalityColumns(
        columns.lengths[rows],
        columns.feature_ids[entries],
        columns.counts[entries],
        columns.total_counts[rows],
        columns.measured[rows],
    )


def _joined(first: ModalityColumns, second: ModalityColumns) -> ModalityColumns:
    return ModalityColumns(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))
