"""Counts files in, a corpus folder out: checked, mapped to one feature space, shuffled over all data sets, atomic.

    select     of every data set the cells that were asked for; each modality by itself where pairs are not to be used
    check      every data set; any that cannot be used stops the build before a count is written
    decide     the order of the cells that the check keeps; the obs table; which blocks go into which shard
    pass 1     a stretch of cells of one file -> corpus feature numbers -> segments, sorted by their place in the corpus
    pass 2     the segments of one shard -> blocks of balanced sizes
    publish    data card, manifest, fsync, rename: only now is there a corpus

Check, pass 1 and pass 2 are tasks that do not need one another (`runners`): they run in one process, in several, or
on a cluster, and those that a killed build had finished are not run again. The same specs, options and seed give the
same bytes however the tasks were run, and however often the build was killed.

Memory of a process that runs tasks: below 2 GB for any number of cells, and what the metadata of the largest data set
take (about 0.5 kB a cell) while it is checked. Memory of the process that decides: about as much for all cells.
Disk: 1.6 kB a cell of RNA for the segments, beside the corpus itself.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from data_pipelines.build import external_shuffle
from data_pipelines.build import tasks as source_tasks
from data_pipelines.build import write_corpus as corpus_writer
from data_pipelines.build.corpus_overlap import open_known_cells
from data_pipelines.build.data_card import DATA_CARD, composition, data_card, software_versions
from data_pipelines.build.external_shuffle import cell_hashes, partition, shuffled_order
from data_pipelines.build.runners import InProcess, LocalProcesses, Progress, Runner, available_cores, run_tasks
from data_pipelines.build.sources import (
    OpenedSource,
    Source,
    checked_sources,
    dataset_entry,
    disjoint_entries,
    joint_feature_space,
    key_columns,
    measured_features,
    open_sources,
)
from data_pipelines.build.tasks import CheckTask, Handed, SegmentTask, hand_over, stretches
from data_pipelines.build.work_folder import WorkFolder, damaged_work, open_work, plan_of, remove_work
from data_pipelines.build.write_blocks import ShardTask
from data_pipelines.cells import cell_metadata
from data_pipelines.cells.cell_identity import KEY_VERSION
from data_pipelines.cells.cell_selection import CellSelection
from data_pipelines.cells.held_out import HeldOutRule, held_out_cells
from data_pipelines.cells.supervision import cells_by_modalities
from data_pipelines.corpus import cell_block, corpus
from data_pipelines.corpus.corpus import Corpus
from data_pipelines.corpus.manifest import FORMAT, FORMAT_VERSION, building_path
from data_pipelines.corpus.storage import is_url
from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.files.atomic_files import GrowingFolder
from data_pipelines.readers.dataset import CountsMatrix
from data_pipelines.readers.pair_check import refuse_unpaired_files
from data_pipelines.readers.reading_options import DEFAULT_READING, ReadingOptions
from scmbert_jax.batch import MODALITIES
from scmbert_jax.errors import CorpusError
from scmbert_jax.outputs import CORPUS, check_output_folder

DEFAULT_SHARD_BYTES = 512 << 20
_ONE_PROCESS_CELLS = 50_000  # fewer are built before other processes have started
_BYTES_PER_ENTRY = {"zstd": 1.0, "none": 3.0}  # of a count of a feature in a block; measured on RNA


def build_corpus(
    out: str | Path,
    specs: Sequence[Any],
    *,
    organism: str | None = None,
    assembly: str | None = None,
    min_genes: int | None = None,
    min_coverage: float = 0.5,
    block_size: int = 256,
    codec: str = "zstd",
    seed: int = 0,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    obs_fields: dict[str, str | None] | None = None,
    unpaired: bool = False,
    only: Mapping[str, Sequence[str]] | None = None,
    exclude: Mapping[str, Sequence[str]] | None = None,
    held_out: Sequence[str] = (),
    keep_duplicates: bool = False,
    disjoint_from: Sequence[Any] = (),
    licences: Mapping[str, str] | None = None,
    reading: ReadingOptions = DEFAULT_READING,
    overwrite: bool = False,
    workers: int | None = 1,
    beam_options: Sequence[str] | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> Corpus:
    """Build the corpus folder `out` from data sets, and open it.

    Args:
      out: the folder to make.
      specs: what `open_dataset` takes, one per data set.
      organism, assembly, min_genes, min_coverage, obs_fields: see `check_dataset`.
      block_size: cells of a block, at most; sizes differ by at most one.
      codec: "zstd" or "none".
      seed: of the shuffle.
      shard_bytes: aim for the size of a shard; what it becomes depends on how well the counts compress.
      unpaired: every modality of every file becomes cells of its own; no cell is joined to another by its id.
      only, exclude: obs field -> values; only cells that have one of them, none that has one (`CellSelection`).
      held_out: rules such as "donor=0.2" (held_out.py): a run on this corpus does not train on these cells, and is
        judged by them.
      keep_duplicates: keep cells that are copies of others, in the same file or in an earlier one (`duplicate_cells`).
      disjoint_from: corpora, or what `open_dataset` takes, of which no cell may be in this corpus: held-out data, say.
      licences: data set -> its licence, for the data card, over what its files say.
      reading: what was decided about the files: regions, cells of fragments files, full-length assays.
      overwrite: replace a corpus that is there. Nothing but a corpus (or an empty folder) is ever replaced.
      workers: processes; a script that asks for several needs `if __name__ == "__main__":`. None: one for each CPU that
        this process may use, or this one alone where there are few cells.
      beam_options: given, the tasks run as Apache Beam pipelines with these options (`beam_runner`).
      progress: called with (what is being done, how much is done, of how much).
      notice: called with what a person should know, such as that an unfinished build continues.

    Raises:
      ConfigError: a text in `held_out` that is no rule.
      InputError: a data set that cannot be used, data sets that cannot be together in one corpus, or rules that hold
        out no cell or all of them.
      CorpusError: `out` is there already, another process builds it, the disk refuses, or a worker was killed. What was
        finished stays in `OUT.building`, and the same call continues with it.
    """
    if is_url(out):
        raise CorpusError(
            f"{out}: a corpus is built in a folder of this machine: build it there, and bring it to its place with "
            f"`scmbert corpus copy FOLDER {out}`"
        )
    out = Path(out)
    if codec not in cell_block.CODECS:
        raise CorpusError(f"codec {codec!r}; known: {sorted(cell_block.CODECS)}")
    if block_size < 1:
        raise CorpusError(f"block size {block_size}; expected at least 1 (256 reads fastest)")
    if workers is not None and workers < 1:
        raise CorpusError(f"{workers} workers; expected at least 1")
    inputs = [*specs, *disjoint_from]
    check_output_folder(out, CORPUS, inputs, overwrite)
    report_progress = progress or (lambda stage, done, total: None)
    tell = notice or (lambda message: None)
    check_options = {"organism": organism, "assembly": assembly, "min_genes": min_genes, "min_coverage": min_coverage}
    selection = CellSelection(only or {}, exclude or {})
    for text in held_out:
        HeldOutRule.parse(text)
    reading = dataclasses.replace(reading, assembly=assembly or reading.assembly)
    known = [
        open_known_cells(spec, organism=organism, assembly=reading.assembly, obs_fields=obs_fields)
        for spec in disjoint_from
    ]
    options = {
        **check_options,
        "selection": selection.to_dict(),
        "obs_fields": obs_fields,
        "unpaired": unpaired,
        "reading": dataclasses.asdict(reading),
        "keep_duplicates": keep_duplicates,
        "disjoint_from": [of_other.identity for of_other in known],
        "licences": dict(licences or {}),
        "block_size": block_size,
        "codec": codec,
        "seed": seed,
        "shard_bytes": shard_bytes,
        "division": [source_tasks.MIN_TASK_ROWS, source_tasks.MAX_TASK_ROWS, external_shuffle.BUCKET_ENTRIES],
    }
    with GrowingFolder(out, building_path(out), overwrite, inputs) as folder:
        opened = open_sources(specs, obs_fields, selection, unpaired, reading)
        if not unpaired:
            refuse_unpaired_files([source.dataset for source in opened])
        work = open_work(folder, plan_of(specs, [source.dataset for source in opened], options), tell)
        num_opened = sum(len(source.dataset.cell_ids) for source in opened)
        with closing(_runner(work, workers, beam_options, num_opened)) as runner:
            checks = [
                CheckTask(work, number, dataset, check_options, obs_fields)
                for number, dataset in enumerate(_handed_datasets(runner, work, opened))
            ]
            run_tasks(runner, "checking", checks, report_progress)
            inspections = [check.read() for check in checks]
            sources = checked_sources(opened, inspections, keep_duplicates, known, licences or {})
            feature_space = joint_feature_space(sources)
            cells = _decide(sources, seed)
            vocabularies, codes, obs = _metadata(sources, cells)
            if held_out:
                held_out_cells(obs, held_out, str(out))  # raises where the rules do not fit these cells
            measured = _measured_cells(feature_space, sources, cells)
            entries = sum(part.num_mapped_values for source in sources for part in source.report.modalities.values())
            sizes = corpus.balanced_block_sizes(len(cells.order), block_size)
            deal = partition(len(sizes), entries, round(entries * _BYTES_PER_ENTRY[codec] / shard_bytes))
            shards = [
                ShardTask(
                    work=work,
                    path=folder.path.resolve() / f"shard-{number:05d}.tfrecord",
                    buckets=(first, last),
                    modalities=tuple(feature_space.modalities),
                    obs_fields=tuple(codes),
                    num_cells=len(cells.order),
                    block_size=block_size,
                    codec=codec,
                )
                for number, (first, last) in enumerate(itertools.pairwise(deal.shards.tolist()))
            ]
            for shard in shards:
                if shard.output.exists() and shard.written() is None:  # of a build before this one, and damaged since
                    shard.output.unlink()
            if not all(shard.output.exists() for shard in shards):
                work.save_array("buckets", deal.buckets)
                work.save_array("first-rows", np.concatenate([[0], np.cumsum(sizes)])[deal.buckets])
                for name, values in codes.items():
                    work.save_array(f"codes-{name}", values)
                for name, values in measured.items():
                    work.save_array(f"measured-{name}", values)
                segments = _segment_tasks(runner, work, feature_space, sources, cells)
                run_tasks(runner, "reading", segments, report_progress)
                run_tasks(runner, "writing", shards, report_progress)
        written = [_written(shard) for shard in shards]
        described = {
            "block_size": block_size,
            "codec": codec,
            "seed": seed,
            "min_genes": min_genes,
            "unpaired": unpaired,
            "cell_selection": selection.to_dict(),
            "held_out": [str(HeldOutRule.parse(text)) for text in held_out],
            "keep_duplicates": keep_duplicates,
            "cell_keys": KEY_VERSION,
            "disjoint_from": disjoint_entries(sources, known, obs),
            "composition": composition(obs),
            "versions": software_versions(),
            "cells_by_modalities": cells_by_modalities(obs, measured),
            "datasets": [dataset_entry(source) for source in sources],
            "vocabularies": vocabularies,
        }
        flags = measured_features(feature_space, sources)
        manifest = _manifest(feature_space, flags, measured, written, described)
        manifest["files"] = corpus_writer.write_side_files(
            folder.path, feature_space, flags, obs, manifest["shards"], list(codes)
        )
        manifest["data_card"] = corpus_writer.write_text(folder.path / DATA_CARD, data_card(manifest))
        corpus_writer.write_manifest(folder.path, manifest)
        remove_work(folder, work)
        folder.publish()
    return corpus.open_corpus(out)


def _written(shard: ShardTask) -> dict[str, Any]:
    try:
        return json.loads(shard.output.read_bytes())
    except (OSError, ValueError) as error:
        raise CorpusError(damaged_work(shard.output, error)) from error


def _manifest(
    feature_space: FeatureSpace,
    measured_features: dict[str, np.ndarray],
    measured_cells: dict[str, np.ndarray],
    shards: list[dict[str, Any]],
    described: dict[str, Any],
) -> dict[str, Any]:
    """All but the side files.

    Args:
      measured_features: modality -> bool [data sets, features].
      measured_cells: modality -> bool [N].
      shards: what each `ShardTask` wrote.
      described: what the caller knows.
    """
    modalities = {}
    for name, features in feature_space.modalities.items():
        num_cells = int(measured_cells[name].sum())
        modalities[name] = {
            "space": features.space,
            "features": len(features),
            "cells": num_cells,
            "mean_expressed": round(sum(shard["entries"][name] for shard in shards) / max(num_cells, 1), 1),
            "largest_count": max(shard["largest_count"][name] for shard in shards),
        }
    content_sha256 = corpus.content_digest(digest for shard in shards for digest in shard["block_sha256"])
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "feature_space_hash": feature_space.content_hash,
        "modalities": modalities,
        "num_cells": sum(shard["entry"]["cells"] for shard in shards),
        "num_blocks": sum(shard["entry"]["blocks"] for shard in shards),
        **described,
        "shards": [shard["entry"] for shard in shards],
        "content_sha256": content_sha256,
        "fingerprint": corpus.fingerprint_of(
            feature_space.content_hash,
            corpus.measured_digest(measured_features),
            described["vocabularies"],
            content_sha256,
        ),
    }


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
    modalities = [name for name in MODALITIES if any(name in source.report.modalities for source in sources)]
    joined = cell_metadata.join_metadata(tables).assign(**key_columns(sources, modalities))
    obs = joined.iloc[cells.order].reset_index(drop=True)
    vocabularies, codes = cell_metadata.code_fields(obs, [source.name for source in sources])
    return vocabularies, codes, obs


def _measured_cells(feature_space: FeatureSpace, sources: list[Source], cells: _Cells) -> dict[str, np.ndarray]:
    """modality -> bool [N], in corpus order."""
    measured = {name: np.zeros(len(cells.order), bool) for name in feature_space.modalities}
    for source, corpus_rows in zip(sources, cells.corpus_rows, strict=True):
        for matrix, positions in zip(source.matrices, source.rows, strict=True):
            measured[matrix.modality][corpus_rows[positions[positions >= 0]]] = True
    return measured


# --- tasks -----------------------------------------------------------------------------------------------------------


def _runner(work: WorkFolder, workers: int | None, beam_options: Sequence[str] | None, num_cells: int) -> Runner:
    if beam_options is not None:
        from data_pipelines.build.beam_runner import BeamPipelines

        return BeamPipelines(beam_options, work.path)
    if workers is None:
        workers = 1 if num_cells < _ONE_PROCESS_CELLS else available_cores()
    return InProcess() if workers == 1 else LocalProcesses(workers)


def _handed_datasets(runner: Runner, work: WorkFolder, opened: list[OpenedSource]) -> list[Handed]:
    return [
        hand_over(source.dataset, f"dataset-{number:06d}", source.dataset.path, work, runner.in_process)
        for number, source in enumerate(opened)
    ]


def _segment_tasks(
    runner: Runner, work: WorkFolder, feature_space: FeatureSpace, sources: list[Source], cells: _Cells
) -> list[SegmentTask]:
    """Those of pass 1, after what they read was written."""
    all_rows = sum(matrix.shape[0] for source in sources for matrix in source.matrices)
    tasks: list[SegmentTask] = []
    number = 0
    for source, corpus_rows in zip(sources, cells.corpus_rows, strict=True):
        for matrix, positions in zip(source.matrices, source.rows, strict=True):
            work.save_array(f"rows-{number:06d}", np.where(positions >= 0, corpus_rows[positions], -1))
            work.save_array(f"columns-{number:06d}", _corpus_columns(feature_space, source, matrix))
            handed = hand_over(matrix.stored, f"matrix-{number:06d}", matrix.where, work, runner.in_process)
            tasks += [
                SegmentTask(
                    work=work,
                    number=len(tasks) + place,
                    matrix=handed,
                    matrix_number=number,
                    first=first,
                    last=last,
                    where=matrix.where,
                    modality=matrix.modality,
                    num_features=len(feature_space.modalities[matrix.modality]),
                )
                for place, (first, last) in enumerate(stretches(matrix.stored, all_rows))
            ]
            number += 1
    return tasks


def _corpus_columns(feature_space: FeatureSpace, source: Source, matrix: CountsMatrix) -> np.ndarray:
    """int64 [columns of the matrix]: feature number in the corpus, -1 where the column is not mapped."""
    mine = source.report.modalities[matrix.modality].column_to_feature
    in_corpus = feature_space.modalities[matrix.modality].index_of(source.report.features[matrix.modality].ids)
    return np.where(mine >= 0, in_corpus[np.maximum(mine, 0)] if len(in_corpus) else -1, -1)
