"""The tasks of a build that read its data sets: check one whole, or read a range of cells of one matrix (pass 1)."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.build.external_shuffle import SegmentWriter
from data_pipelines.build.hand_over import opened_pickle, write_pickle
from data_pipelines.build.sources import Inspection, inspect_dataset
from data_pipelines.build.stored_records import read_record, write_record
from data_pipelines.build.work_folder import WorkFolder
from data_pipelines.checks.input_report import InputReport, ModalityReport
from data_pipelines.features.feature_mapping import FeatureMapping
from data_pipelines.features.feature_space import ModalityFeatures
from data_pipelines.files.atomic_files import growing_file
from data_pipelines.readers.stored_matrix import chunks_between, row_ranges
from data_pipelines.readers.whole_counts import by_feature
from scmbert_jax.errors import InputError

_INSPECTION = (Inspection, InputReport, ModalityReport, FeatureMapping, ModalityFeatures)
CHUNK_ROWS = 2048  # rows of a matrix in memory at a time
MIN_TASK_ROWS, MAX_TASK_ROWS = 4096, 65536  # that one task of pass 1 reads


@dataclass(frozen=True)
class Handed:
    """A data set or a matrix as a task has it: the thing itself, or the file that another process opens it from.

    `sha256`, of the file, comes to that process with the task: it opens this file and no other that was laid there.
    """

    thing: Any = None
    path: Path | None = None
    sha256: str = ""

    def get(self) -> Any:
        return self.thing if self.path is None else opened_pickle(self.path, self.sha256)


def hand_over(thing: Any, name: str, where: str, work: WorkFolder, in_process: bool) -> Handed:
    """To tasks that run in this process, or anywhere.

    Args:
      name: of a file for it.
      where: what it is, for people.

    Raises InputError for what cannot leave this process.
    """
    if in_process:
        return Handed(thing)
    path = work.path / f"{name}.pickle"
    try:
        with growing_file(path) as file:
            sha256 = write_pickle(thing, file)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise InputError(
            f"{where}: cannot be handed to another process ({error}); write it to a file, or build with 1 worker"
        ) from error
    return Handed(path=path, sha256=sha256)


@dataclass(frozen=True)
class CheckTask:
    """`inspect_dataset` of one data set; `output` is the `Inspection`."""

    work: WorkFolder
    number: int
    dataset: Handed
    options: dict[str, Any]
    obs_fields: Mapping[str, str | None] | None

    @property
    def output(self) -> Path:
        return self.work.path / f"check-{self.number:06d}.npz"

    def run(self) -> None:
        inspection = inspect_dataset(self.dataset.get(), self.options, self.obs_fields)
        with growing_file(self.output) as file:
            write_record(inspection, _INSPECTION, file)

    def read(self) -> Inspection:
        """What an earlier `run` found. Raises CorpusError: its file is damaged."""
        return read_record(self.output, _INSPECTION)


@dataclass(frozen=True)
class SegmentTask:
    """Pass 1 of the cells first:last of one matrix: in the numbering of the corpus, sorted into its buckets.

    Attributes:
      number: of this task.
      matrix: `StoredMatrix`.
      matrix_number: names its arrays in `work`: columns (int64 [columns], feature of the corpus or -1) and rows
        (int64 [cells], row of the corpus or -1).
      where, modality, num_features: of the matrix, and how many the corpus has.
    """

    work: WorkFolder
    number: int
    matrix: Handed
    matrix_number: int
    first: int
    last: int
    where: str
    modality: str
    num_features: int

    @property
    def output(self) -> Path:
        return self.work.segments(self.number)

    def run(self) -> None:
        columns = np.array(self.work.load_array(f"columns-{self.matrix_number:06d}"))
        rows = self.work.load_array(f"rows-{self.matrix_number:06d}")
        with growing_file(self.output) as file:
            writer = SegmentWriter(file, self.modality, self.work.load_array("first-rows"))
            for first, chunk in chunks_between(self.matrix.get(), CHUNK_ROWS, self.first, self.last):
                of_chunk = rows[first : first + chunk.shape[0]]
                kept = of_chunk >= 0
                writer.add(of_chunk[kept], by_feature(chunk[kept], columns, self.num_features, self.where))
            writer.finish()


def task_rows(matrix: Any, all_rows: int) -> list[tuple[int, int]]:
    """(first, last) of the tasks of a matrix, if all matrices have `all_rows` cells: the more there are, the fewer
    cells of a task belong into one bucket, and the shorter and worse compressed its segments would be."""
    return row_ranges(matrix, min(max(all_rows // 64, MIN_TASK_ROWS), MAX_TASK_ROWS))
