"""Counts files in, a corpus folder out: checked, mapped to one feature space, shuffled over all data sets, atomic.

    check      every data set; any that cannot be used stops the build before a count is written
    decide     the order of the cells that the check keeps; the obs table
    pass 1     chunks of counts -> corpus feature numbers -> hash-range buckets on disk
    pass 2     bucket after bucket, sorted -> blocks of balanced sizes -> shards
    publish    manifest, fsync, rename: only now is there a corpus

The same specs, options and seed give the same bytes, however often the build was killed before.
"""

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse

from data_pipelines import cell_block, cell_metadata, corpus, corpus_writer
from data_pipelines.cell_block import CellBlock, ModalityColumns
from data_pipelines.collate import MAX_COUNT
from data_pipelines.corpus import Corpus
from data_pipelines.durable_files import GrowingFolder
from data_pipelines.external_shuffle import (
    CellRows,
    CellSpool,
    cell_hashes,
    choose_num_buckets,
    empty_columns,
    shuffled_order,
)
from data_pipelines.feature_space import FeatureSpace
from data_pipelines.input_check import InputReport, check_dataset, refuse_unpaired_files, require_usable
from data_pipelines.readers import CountsMatrix, Dataset, open_dataset
from scmbert_jax.errors import CorpusError, InputError

DEFAULT_SHARD_BYTES = 512 << 20
CHUNK_ROWS = 2048  # rows of a matrix in memory at a time
_MAX_WORKERS = 4  # compress blocks; the main thread feeds them no faster

Progress = Callable[[str, int, int], None]


class _Source(NamedTuple):
    """A data set that passed the check.

    Attributes:
      name: unique in the corpus.
      matrices: those that are read, one per modality.
      rows: per matrix, int64 [its cells]: place of each in `dataset.cell_ids`; -1 where the check drops it.
      files: base name, bytes and sha256 of each file.
    """

    name: str
    dataset: Dataset
    report: InputReport
    matrices: list[CountsMatrix]
    rows: list[np.ndarray]
    files: list[dict[str, Any]]

    @property
    def kept(self) -> np.ndarray:
        """int64 [cells of this data set in the corpus], ascending places in `dataset.cell_ids`."""
        is_kept = np.zeros(len(self.dataset.cell_ids), bool)
        for rows in self.rows:
            is_kept[rows[rows >= 0]] = True
        return np.flatnonzero(is_kept)


def build_corpus(
    out: str | Path,
    specs: Sequence[Any],
    *,
    organism: str | None = None,
    assembly: str | None = None,
    min_genes: int = 200,
    min_coverage: float = 0.5,
    block_size: int = 256,
    codec: str = "zstd",
    seed: int = 0,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    obs_fields: dict[str, str | None] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """Build the corpus folder `out` from data sets, and open it.

    Args:
      out: the folder to make.
      specs: what `open_dataset` takes, one per data set.
      organism, assembly, min_genes, min_coverage, obs_fields: see `check_dataset`.
      block_size: cells of a block, at most; sizes differ by at most one.
      codec: "zstd" or "none".
      seed: of the shuffle.
      shard_bytes: aim for the size of a shard.
      overwrite: replace a corpus that is there. Nothing but a corpus (or an empty folder) is ever replaced.
      progress: called with (what is being done, how much is done, of how much).

    Raises:
      InputError: a data set that cannot be used, or data sets that cannot be together in one corpus.
      CorpusError: `out` is there already, another process builds it, or the disk refuses.
    """
    out = Path(out)
    if codec not in cell_block.CODECS:
        raise CorpusError(f"codec {codec!r}; known: {sorted(cell_block.CODECS)}")
    if block_size < 1:
        raise CorpusError(f"block size {block_size}; expected at least 1 (256 reads fastest)")
    if overwrite:
        _refuse_to_replace_what_is_no_corpus(out)
    report_progress = progress or (lambda stage, done, total: None)
    with GrowingFolder(out, corpus.building_path(out), overwrite) as folder:
        options = {"organism": organism, "assembly": assembly, "min_genes": min_genes, "min_coverage": min_coverage}
        sources = _checked_sources(specs, options, obs_fields, report_progress)
        feature_space = _joint_feature_space(sources)
        cells = _decide(sources, seed)
        vocabularies, codes, obs = _metadata(sources, cells)
        sizes = corpus.balanced_block_sizes(len(cells.order), block_size)
        entries = sum(part.num_mapped_values for source in sources for part in source.report.modalities.values())
        with CellSpool(folder.path / "buckets", choose_num_buckets(entries), list(feature_space.modalities)) as spool:
            for index, source in enumerate(sources):
                _spool_dataset(spool, feature_space, index, source, cells, report_progress)
            spool.close()
            written = _write_blocks(folder.path, spool, cells, codes, sizes, codec, shard_bytes, report_progress)
        shutil.rmtree(spool.folder)
        measured = _measured(feature_space, sources)
        files = corpus_writer.write_side_files(folder.path, feature_space, measured, obs)
        manifest = {
            "format": corpus.FORMAT,
            "format_version": corpus.FORMAT_VERSION,
            "feature_space_hash": feature_space.content_hash,
            "modalities": {
                name: {"space": features.space, "features": len(features), **written.statistics[name]}
                for name, features in feature_space.modalities.items()
            },
            "num_cells": len(cells.order),
            "num_blocks": len(sizes),
            "block_size": block_size,
            "codec": codec,
            "seed": seed,
            "min_genes": min_genes,
            "shards": written.shards,
            "files": files,
            "datasets": [_dataset_entry(source) for source in sources],
            "vocabularies": vocabularies,
            "content_sha256": written.content_sha256,
            "fingerprint": corpus.fingerprint_of(
                feature_space.content_hash, corpus.measured_digest(measured), vocabularies, written.content_sha256
            ),
        }
        corpus_writer.write_manifest(folder.path, manifest)
        folder.publish()
    return corpus.open_corpus(out)


def _refuse_to_replace_what_is_no_corpus(out: Path) -> None:
    if not os.path.lexists(out):
        return
    if not out.is_dir() or (not (out / corpus.MANIFEST).is_file() and any(out.iterdir())):
        raise CorpusError(
            f"{out}: is there and is not a corpus; --overwrite replaces only a corpus. Choose another name"
        )


# --- check -----------------------------------------------------------------------------------------------------------


def _checked_sources(
    specs: Sequence[Any], options: dict[str, Any], obs_fields: dict[str, str | None] | None, progress: Progress
) -> list[_Source]:
    if not specs:
        raise InputError("no input files; give at least one .h5ad, .h5mu, 10x .h5 or example:pbmc_mosaic")
    datasets = [open_dataset(spec) for spec in specs]
    refuse_unpaired_files(datasets)
    sources: list[_Source] = []
    where_seen: dict[str, str] = {}
    for number, dataset in enumerate(datasets):
        progress("checking", number, len(datasets))
        report = check_dataset(dataset, obs_fields=obs_fields, **options)
        require_usable(report)
        matrices = [matrix for matrix in dataset.matrices if matrix.modality in report.modalities]
        rows = [np.where(report.modalities[matrix.modality].keep, dataset.rows_of(matrix), -1) for matrix in matrices]
        files = _source_files(matrices)
        for entry in files:
            if entry["sha256"] in where_seen:
                raise InputError(
                    f"{dataset.path} and {where_seen[entry['sha256']]} are the same file: its cells would be in the "
                    "corpus twice; give it once"
                )
            where_seen[entry["sha256"]] = dataset.path
        sources.append(_Source(_unused_name(dataset.name, sources), dataset, report, matrices, rows, files))
    progress("checking", len(datasets), len(datasets))
    return sources


def _unused_name(name: str, sources: list[_Source]) -> str:
    """The name, or name_2, ...: two folders may each hold a filtered_feature_bc_matrix.h5."""
    taken = {source.name for source in sources}
    candidates = (name if number == 1 else f"{name}_{number}" for number in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)


def _source_files(matrices: list[CountsMatrix]) -> list[dict[str, Any]]:
    """Base name, bytes and sha256 of the files; nothing of where they lie on this machine. None: data in memory."""
    paths = [Path(path) for path in dict.fromkeys(matrix.path for matrix in matrices)]
    return [
        {"file": path.name, "bytes": path.stat().st_size, "sha256": corpus.sha256_of_file(path)}
        for path in paths
        if path.is_file()
    ]


def _joint_feature_space(sources: list[_Source]) -> FeatureSpace:
    """The union of the mapped features of all data sets."""
    space = FeatureSpace(sources[0].report.features)
    for source in sources[1:]:
        space = space.union(FeatureSpace(source.report.features))
    return space


def _measured(feature_space: FeatureSpace, sources: list[_Source]) -> dict[str, np.ndarray]:
    """modality -> bool [data sets, features]."""
    measured = {}
    for name, features in feature_space.modalities.items():
        measured[name] = np.zeros((len(sources), len(features)), bool)
        for index, source in enumerate(sources):
            if name in source.report.features:
                measured[name][index, features.index_of(source.report.features[name].ids)] = True
    return measured


def _dataset_entry(source: _Source) -> dict[str, Any]:
    """What the manifest says of a data set."""
    report = source.report
    return {
        "name": source.name,
        "files": source.files,
        "organism": report.organism,
        "cells_read": report.num_cells,
        "cells": len(source.kept),
        "cells_dropped": report.num_cells - len(source.kept),
        "combinations": report.combinations,
        "modalities": {
            name: {
                "counts_field": part.counts_field,
                "cells": part.num_kept,
                "cells_dropped": part.dropped,
                "features": len(report.features[name]),
                "coverage": round(part.mapping.coverage, 6) if part.mapping is not None else None,
            }
            for name, part in report.modalities.items()
        },
        "obs_fields": report.obs_fields,
    }


# --- decide ----------------------------------------------------------------------------------------------------------


class _Cells(NamedTuple):
    """The cells that stay (N), in corpus order."""

    order: np.ndarray  # int64 [N], into the concatenation of all kept cells by data set
    hashes: np.ndarray  # uint64 [N], ascending
    corpus_rows: list[np.ndarray]  # per data set, int64 [its cells]: row in the corpus, -1 if dropped


def _decide(sources: list[_Source], seed: int) -> _Cells:
    """The order of the cells that the check keeps."""
    kept = [source.kept for source in sources]
    hashes = np.concatenate(
        [
            cell_hashes(seed, index, source.dataset.cell_ids[positions])
            for index, (source, positions) in enumerate(zip(sources, kept, strict=True))
        ]
    )
    dataset_of = np.concatenate([np.full(len(positions), index, np.int32) for index, positions in enumerate(kept)])
    order = shuffled_order(hashes, dataset_of, [source.dataset.cell_ids for source in sources], np.concatenate(kept))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    corpus_rows = []
    first = 0
    for source, positions in zip(sources, kept, strict=True):
        rows = np.full(len(source.dataset.cell_ids), -1, np.int64)
        rows[positions] = ranks[first : first + len(positions)]
        corpus_rows.append(rows)
        first += len(positions)
    return _Cells(order, hashes[order], corpus_rows)


def _metadata(
    sources: list[_Source], cells: _Cells
) -> tuple[dict[str, list[str]], dict[str, np.ndarray], pd.DataFrame]:
    """Vocabularies, codes and the obs table, in corpus order."""
    tables = [
        cell_metadata.dataset_metadata(
            source.name, source.dataset.cell_ids, source.dataset.obs, source.report.obs_fields, source.kept
        )
        for source in sources
    ]
    obs = cell_metadata.join_metadata(tables).iloc[cells.order].reset_index(drop=True)
    vocabularies, codes = cell_metadata.code_fields(obs, [source.name for source in sources])
    return vocabularies, codes, obs


# --- pass 1 ----------------------------------------------------------------------------------------------------------


def _spool_dataset(
    spool: CellSpool, feature_space: FeatureSpace, index: int, source: _Source, cells: _Cells, progress: Progress
) -> None:
    total = sum(matrix.shape[0] for matrix in source.matrices)
    done = 0
    for matrix, positions in zip(source.matrices, source.rows, strict=True):
        columns = _corpus_columns(feature_space, source, matrix)
        num_features = len(feature_space.modalities[matrix.modality])
        for first, chunk in matrix.chunks(CHUNK_ROWS):
            done += chunk.shape[0]
            kept = positions[first : first + chunk.shape[0]] >= 0
            counts = _mapped(chunk[kept], columns, num_features, matrix)
            rows = cells.corpus_rows[index][positions[first : first + chunk.shape[0]][kept]]
            spool.add(
                matrix.modality,
                CellRows(
                    rows,
                    cells.hashes[rows],
                    counts.indptr.astype(np.int64),
                    counts.indices.astype(np.int32),
                    counts.data.astype(np.uint32),
                ),
            )
            progress(f"reading {source.name}", done, total)


def _corpus_columns(feature_space: FeatureSpace, source: _Source, matrix: CountsMatrix) -> np.ndarray:
    """int64 [columns of the matrix]: feature number in the corpus, -1 where the column is not mapped."""
    mine = source.report.modalities[matrix.modality].column_to_feature
    in_corpus = feature_space.modalities[matrix.modality].index_of(source.report.features[matrix.modality].ids)
    return np.where(mine >= 0, in_corpus[np.maximum(mine, 0)] if len(in_corpus) else -1, -1)


def _mapped(
    chunk: scipy.sparse.csr_matrix, columns: np.ndarray, num_features: int, matrix: CountsMatrix
) -> scipy.sparse.csr_matrix:
    """int64 CSR [rows, num_features]: unmapped columns left out, columns of one feature summed, zeros removed."""
    features = columns[chunk.indices]
    kept = features >= 0
    starts = np.concatenate([[0], np.cumsum(kept)])[chunk.indptr]
    counts = scipy.sparse.csr_matrix(
        (np.rint(chunk.data[kept]).astype(np.int64), features[kept], starts), shape=(chunk.shape[0], num_features)
    )
    counts.has_sorted_indices = False
    counts.sum_duplicates()
    counts.eliminate_zeros()
    if counts.nnz and counts.data.max() > MAX_COUNT:
        raise InputError(
            f"{matrix.path}, {matrix.field}: a count of {counts.data.max():,}; the most a cell may have of one feature "
            f"is {MAX_COUNT:,}. Are these counts?"
        )
    return counts


# --- pass 2 ----------------------------------------------------------------------------------------------------------


class _Written(NamedTuple):
    shards: list[dict[str, Any]]
    statistics: dict[str, dict[str, Any]]  # modality -> cells, mean_expressed, largest count
    content_sha256: str


def _write_blocks(
    folder: Path,
    spool: CellSpool,
    cells: _Cells,
    codes: dict[str, np.ndarray],
    sizes: np.ndarray,
    codec: str,
    shard_bytes: int,
    progress: Progress,
) -> _Written:
    """Compress in threads, write in order."""
    writer = corpus_writer.ShardWriter(folder, shard_bytes)
    digest = hashlib.sha256()
    measured, entries, largest = (dict.fromkeys(spool.modalities, 0) for _ in range(3))
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
        for number, block in enumerate(_blocks(spool, cells, codes, sizes)):
            for name, columns in block.modalities.items():
                measured[name] += int(columns.measured.sum())
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
            "cells": measured[name],
            "mean_expressed": round(entries[name] / max(measured[name], 1), 1),
            "largest_count": largest[name],
        }
        for name in spool.modalities
    }
    return _Written(writer.shards, statistics, digest.hexdigest())


def _blocks(spool: CellSpool, cells: _Cells, codes: dict[str, np.ndarray], sizes: np.ndarray) -> Iterator[CellBlock]:
    """Blocks in corpus order. Between buckets at most one unfinished block is carried over."""
    edges = np.searchsorted(spool.bucket_of(cells.hashes), np.arange(spool.num_buckets + 1))
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
