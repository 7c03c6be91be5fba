"""Counts files in, a corpus folder out: checked, mapped to one feature space, shuffled over all data sets, atomic.

    select     of every data set the cells that were asked for; each modality by itself where pairs are not to be used
    check      every data set; any that cannot be used stops the build before a count is written
    decide     the order of the cells that the check keeps; the obs table
    pass 1     chunks of counts -> corpus feature numbers -> hash-range buckets on disk
    pass 2     bucket after bucket, sorted -> blocks of balanced sizes -> shards
    publish    manifest, fsync, rename: only now is there a corpus

The same specs, options and seed give the same bytes, however often the build was killed before.
"""

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse

from data_pipelines import cell_block, cell_metadata, corpus, corpus_writer
from data_pipelines.cell_selection import CellSelection
from data_pipelines.collate import MAX_COUNT
from data_pipelines.corpus import Corpus
from data_pipelines.corpus_blocks import write_blocks
from data_pipelines.corpus_sources import (
    Progress,
    Source,
    checked_sources,
    dataset_entry,
    joint_feature_space,
    measured_features,
)
from data_pipelines.durable_files import GrowingFolder
from data_pipelines.external_shuffle import (
    CellRows,
    CellSpool,
    cell_hashes,
    choose_num_buckets,
    shuffled_order,
)
from data_pipelines.feature_space import FeatureSpace
from data_pipelines.readers import CountsMatrix
from data_pipelines.reading_options import DEFAULT_READING, ReadingOptions
from data_pipelines.supervision import cells_by_modalities
from scmbert_jax.errors import CorpusError, InputError

DEFAULT_SHARD_BYTES = 512 << 20
CHUNK_ROWS = 2048  # rows of a matrix in memory at a time


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
    unpaired: bool = False,
    only: Mapping[str, Sequence[str]] | None = None,
    exclude: Mapping[str, Sequence[str]] | None = None,
    reading: ReadingOptions = DEFAULT_READING,
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
      unpaired: every modality of every file becomes cells of its own; no cell is joined to another by its id.
      only, exclude: obs field -> values; only cells that have one of them, none that has one (`CellSelection`).
      reading: what was decided about the files: regions, cells of fragments files, full-length assays.
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
        selection = CellSelection(only or {}, exclude or {})
        reading = dataclasses.replace(reading, assembly=assembly or reading.assembly)
        sources = checked_sources(specs, options, obs_fields, selection, unpaired, reading, report_progress)
        feature_space = joint_feature_space(sources)
        cells = _decide(sources, seed)
        vocabularies, codes, obs = _metadata(sources, cells)
        sizes = corpus.balanced_block_sizes(len(cells.order), block_size)
        entries = sum(part.num_mapped_values for source in sources for part in source.report.modalities.values())
        with CellSpool(folder.path / "buckets", choose_num_buckets(entries), list(feature_space.modalities)) as spool:
            for index, source in enumerate(sources):
                _spool_dataset(spool, feature_space, index, source, cells, report_progress)
            spool.close()
            written = write_blocks(folder.path, spool, cells.hashes, codes, sizes, codec, shard_bytes, report_progress)
        shutil.rmtree(spool.folder)
        measured = measured_features(feature_space, sources)
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
            "unpaired": unpaired,
            "cell_selection": selection.to_dict(),
            "cells_by_modalities": cells_by_modalities(obs, written.measured),
            "shards": written.shards,
            "files": files,
            "datasets": [dataset_entry(source) for source in sources],
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


# --- decide ----------------------------------------------------------------------------------------------------------


class _Cells(NamedTuple):
    """The cells that stay (N), in corpus order."""

    order: np.ndarray  # int64 [N], into the concatenation of all kept cells by data set
    hashes: np.ndarray  # uint64 [N], ascending
    corpus_rows: list[np.ndarray]  # per data set, int64 [its cells]: row in the corpus, -1 if dropped


def _decide(sources: list[Source], seed: int) -> _Cells:
    """The order of the cells that the check keeps."""
    kept = [source.kept for source in sources]
    keys = [
        source.dataset.cell_ids if source.dataset.shuffle_keys is None else source.dataset.shuffle_keys
        for source in sources
    ]
    hashes = np.concatenate(
        [
            cell_hashes(seed, index, names[positions])
            for index, (names, positions) in enumerate(zip(keys, kept, strict=True))
        ]
    )
    dataset_of = np.concatenate([np.full(len(positions), index, np.int32) for index, positions in enumerate(kept)])
    order = shuffled_order(hashes, dataset_of, keys, np.concatenate(kept))
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


def _metadata(sources: list[Source], cells: _Cells) -> tuple[dict[str, list[str]], dict[str, np.ndarray], pd.DataFrame]:
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
    spool: CellSpool, feature_space: FeatureSpace, index: int, source: Source, cells: _Cells, progress: Progress
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


def _corpus_columns(feature_space: FeatureSpace, source: Source, matrix: CountsMatrix) -> np.ndarray:
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
