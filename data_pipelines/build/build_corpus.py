"""Counts files in, a corpus folder out: checked, mapped to one feature space, shuffled over all data sets, atomic.

    select     of every data set the cells that were asked for; each modality by itself where pairs are not to be used
    check      every data set; any that cannot be used stops the build before a count is written
    decide     the order of the cells that the check keeps; the obs table; which blocks go into which shard
    pass 1     a range of cells of one file -> corpus feature numbers -> segments, sorted by their place in the corpus
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
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.build import write_corpus as corpus_writer
from data_pipelines.build.corpus_overlap import KnownCells, open_known_cells
from data_pipelines.build.data_card import composition, data_card, software_versions
from data_pipelines.build.external_shuffle import bucket_edges
from data_pipelines.build.layout import CorpusLayout, decide
from data_pipelines.build.options import DEFAULT_BUILD, BuildOptions
from data_pipelines.build.runners import InProcess, LocalProcesses, Progress, Runner, available_cores, run_tasks
from data_pipelines.build.sources import (
    Source,
    checked_sources,
    dataset_entry,
    disjoint_entries,
    measured_features,
    open_sources,
)
from data_pipelines.build.tasks import CheckTask, SegmentTask, hand_over, task_rows
from data_pipelines.build.work_folder import WorkFolder, damaged_work, open_work, plan_of, remove_work
from data_pipelines.build.write_blocks import ShardTask
from data_pipelines.cells.cell_identity import KEY_VERSION
from data_pipelines.cells.held_out import HeldOutRule
from data_pipelines.cells.supervision import cells_by_modalities
from data_pipelines.corpus import corpus
from data_pipelines.corpus.corpus import Corpus
from data_pipelines.corpus.manifest import DATA_CARD, FORMAT, FORMAT_VERSION, building_path
from data_pipelines.corpus.storage import is_url
from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.files.atomic_files import GrowingFolder
from data_pipelines.readers.dataset import CountsMatrix, Dataset
from data_pipelines.readers.pair_check import refuse_unpaired_files
from scmbert_jax.errors import CorpusError
from scmbert_jax.outputs import CORPUS, check_output_folder

_ONE_PROCESS_CELLS = 50_000  # fewer are built before other processes have started
_BYTES_PER_ENTRY = {"zstd": 1.0, "none": 3.0}  # of a count of a feature in a block; measured on RNA


def build_corpus(
    out: str | Path,
    specs: Sequence[Any],
    options: BuildOptions = DEFAULT_BUILD,
    *,
    overwrite: bool = False,
    workers: int | None = 1,
    beam_options: Sequence[str] | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    **changes: Any,
) -> Corpus:
    """Build the corpus folder `out` from data sets, and open it.

    Args:
      out: the folder to make.
      specs: what `open_dataset` takes, one per data set.
      options: which cells the corpus holds, and how it stores them.
      overwrite: replace a corpus that is there. Nothing but a corpus (or an empty folder) is ever replaced.
      workers: processes; a script that asks for several needs `if __name__ == "__main__":`. None: one for each CPU that
        this process may use, or this one alone where there are few cells.
      beam_options: given, the tasks run as Apache Beam pipelines with these options (`beam_runner`).
      progress: called with (what is being done, how much is done, of how much).
      notice: called with what a person should know, such as that an unfinished build is continued.
      changes: fields of `BuildOptions` by their names, over those of `options`: `build_corpus(out, specs, seed=1)`.

    Raises:
      ConfigError: a text in `held_out` that is no rule.
      InputError: a data set that cannot be used, data sets that cannot be together in one corpus, or rules that hold
        out no cell or all of them.
      CorpusError: `out` is there already, another process builds it, the disk refuses, or a worker was killed. What was
        finished stays in `OUT.building`, and the same call continues from it.
      TypeError: a name in `changes` that is no field.
    """
    if is_url(out):
        raise CorpusError(
            f"{out}: a corpus is built in a folder of this machine: build it there, and bring it to its place with "
            f"`scmbert corpus copy FOLDER {out}`"
        )
    options, out = dataclasses.replace(options, **changes), Path(out)
    if workers is not None and workers < 1:
        raise CorpusError(f"{workers} workers; expected at least 1")
    inputs = [*specs, *options.disjoint_from]
    check_output_folder(out, CORPUS, inputs, overwrite)
    report_progress = progress or (lambda stage, done, total: None)
    organism, assembly, obs_fields = options.organism, options.files.assembly, options.obs_fields
    known = [
        open_known_cells(spec, organism=organism, assembly=assembly, obs_fields=obs_fields)
        for spec in options.disjoint_from
    ]
    with GrowingFolder(out, building_path(out), overwrite, inputs) as folder:
        opened = open_sources(specs, obs_fields, options.selection, options.unpaired, options.files)
        datasets = [source.dataset for source in opened]
        if not options.unpaired:
            refuse_unpaired_files(datasets)
        plan = plan_of(specs, datasets, options.identity(known))
        work = open_work(folder, plan, notice or (lambda message: None))
        num_opened = sum(len(dataset.cell_ids) for dataset in datasets)
        with closing(_runner(work, workers, beam_options, num_opened)) as runner:
            checks = _check_tasks(runner, work, datasets, options)
            run_tasks(runner, "checking", checks, report_progress)
            inspections = [check.read() for check in checks]
            sources = checked_sources(opened, inspections, options.keep_duplicates, known, options.licences or {})
            layout = decide(sources, options, out)
            shards = _shard_tasks(work, folder.path, sources, layout, options)
            if not all(shard.output.exists() for shard in shards):
                run_tasks(runner, "reading", _segment_tasks(runner, work, sources, layout), report_progress)
                run_tasks(runner, "writing", shards, report_progress)
        _write_side_files(folder.path, sources, known, layout, options, [_written(shard) for shard in shards])
        remove_work(folder, work)
        folder.publish()
    return corpus.open_corpus(out)


def _write_side_files(
    folder: Path,
    sources: list[Source],
    known: Sequence[KnownCells],
    layout: CorpusLayout,
    options: BuildOptions,
    written: list[dict[str, Any]],
) -> None:
    """All but the shards, the manifest last. `written`: what each `ShardTask` wrote."""
    described = {
        "block_size": options.block_size,
        "codec": options.codec,
        "seed": options.seed,
        "min_genes": options.min_genes,
        "unpaired": options.unpaired,
        "cell_selection": options.selection.to_dict(),
        "held_out": [str(HeldOutRule.parse(text)) for text in options.held_out],
        "keep_duplicates": options.keep_duplicates,
        "cell_keys": KEY_VERSION,
        "disjoint_from": disjoint_entries(sources, known, layout.obs),
        "composition": composition(layout.obs),
        "versions": software_versions(),
        "cells_by_modalities": cells_by_modalities(layout.obs, layout.measured),
        "datasets": [dataset_entry(source) for source in sources],
        "vocabularies": layout.vocabularies,
    }
    flags = measured_features(layout.feature_space, sources)
    manifest = _manifest(layout.feature_space, flags, layout.measured, written, described)
    manifest["files"] = corpus_writer.write_side_files(
        folder, layout.feature_space, flags, layout.obs, manifest["shards"], list(layout.codes)
    )
    manifest["data_card"] = corpus_writer.write_text(folder / DATA_CARD, data_card(manifest))
    corpus_writer.write_manifest(folder, manifest)


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


# --- tasks -----------------------------------------------------------------------------------------------------------


def _runner(work: WorkFolder, workers: int | None, beam_options: Sequence[str] | None, num_cells: int) -> Runner:
    if beam_options is not None:
        from data_pipelines.build.beam_runner import BeamPipelines

        return BeamPipelines(beam_options, work.path)
    if workers is None:
        workers = 1 if num_cells < _ONE_PROCESS_CELLS else available_cores()
    return InProcess() if workers == 1 else LocalProcesses(workers)


def _check_tasks(
    runner: Runner, work: WorkFolder, datasets: Sequence[Dataset], options: BuildOptions
) -> list[CheckTask]:
    handed = [
        hand_over(dataset, f"dataset-{number:06d}", dataset.path, work, runner.in_process)
        for number, dataset in enumerate(datasets)
    ]
    return [CheckTask(work, number, one, options.check, options.obs_fields) for number, one in enumerate(handed)]


def _shard_tasks(
    work: WorkFolder, folder: Path, sources: list[Source], layout: CorpusLayout, options: BuildOptions
) -> list[ShardTask]:
    """Those of pass 2, after what they read was written, if any of them is still to run."""
    entries = sum(part.num_mapped_values for source in sources for part in source.report.modalities.values())
    sizes = corpus.balanced_block_sizes(layout.num_cells, options.block_size)
    num_shards = round(entries * _BYTES_PER_ENTRY[options.codec] / options.shard_bytes)
    edges = bucket_edges(len(sizes), entries, num_shards)
    shards = [
        ShardTask(
            work=work,
            path=folder.resolve() / f"shard-{number:05d}.tfrecord",
            buckets=(first, last),
            modalities=tuple(layout.feature_space.modalities),
            obs_fields=tuple(layout.codes),
            num_cells=layout.num_cells,
            block_size=options.block_size,
            codec=options.codec,
        )
        for number, (first, last) in enumerate(itertools.pairwise(edges.shards.tolist()))
    ]
    for shard in shards:
        if shard.output.exists() and shard.written() is None:  # of a build before this one, and damaged since
            shard.output.unlink()
    if not all(shard.output.exists() for shard in shards):
        work.save_array("buckets", edges.buckets)
        work.save_array("first-rows", np.concatenate([[0], np.cumsum(sizes)])[edges.buckets])
        for name, values in layout.codes.items():
            work.save_array(f"codes-{name}", values)
        for name, values in layout.measured.items():
            work.save_array(f"measured-{name}", values)
    return shards


def _segment_tasks(runner: Runner, work: WorkFolder, sources: list[Source], layout: CorpusLayout) -> list[SegmentTask]:
    """Those of pass 1, after what they read was written."""
    all_rows = sum(matrix.shape[0] for source in sources for matrix in source.matrices)
    tasks: list[SegmentTask] = []
    number = 0
    for source, corpus_rows in zip(sources, layout.corpus_rows, strict=True):
        for matrix, positions in zip(source.matrices, source.rows, strict=True):
            work.save_array(f"rows-{number:06d}", np.where(positions >= 0, corpus_rows[positions], -1))
            work.save_array(f"columns-{number:06d}", _corpus_columns(layout.feature_space, source, matrix))
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
                    num_features=len(layout.feature_space.modalities[matrix.modality]),
                )
                for place, (first, last) in enumerate(task_rows(matrix.stored, all_rows))
            ]
            number += 1
    return tasks


def _corpus_columns(feature_space: FeatureSpace, source: Source, matrix: CountsMatrix) -> np.ndarray:
    """int64 [columns of the matrix]: feature number in the corpus, -1 where the column is not mapped."""
    mine = source.report.modalities[matrix.modality].column_to_feature
    in_corpus = feature_space.modalities[matrix.modality].index_of(source.report.features[matrix.modality].ids)
    return np.where(mine >= 0, in_corpus[np.maximum(mine, 0)] if len(in_corpus) else -1, -1)
