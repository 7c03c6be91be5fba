"""The data sets that a corpus is built from: opened, cells selected, checked, and what the manifest says of them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import corpus
from data_pipelines.cell_selection import CellSelection, select_cells
from data_pipelines.feature_space import FeatureSpace
from data_pipelines.input_check import InputReport, check_dataset, require_usable
from data_pipelines.pair_check import refuse_unpaired_files
from data_pipelines.readers import ACCEPTED, CountsMatrix, Dataset, ReadingOptions, open_datasets
from data_pipelines.region_check import refuse_several_region_spaces
from scmbert_jax.errors import InputError

Progress = Callable[[str, int, int], None]


class Source(NamedTuple):
    """A data set that passed the check.

    Attributes:
      name: unique in the corpus.
      matrices: those that are read, one per modality.
      rows: per matrix, int64 [its cells]: place of each in `dataset.cell_ids`; -1 where the check drops it.
      files: base name, bytes and sha256 of each file.
      num_not_selected: cells of the files that were not asked for; `dataset` is without them.
    """

    name: str
    dataset: Dataset
    report: InputReport
    matrices: list[CountsMatrix]
    rows: list[np.ndarray]
    files: list[dict[str, Any]]
    num_not_selected: int

    @property
    def kept(self) -> np.ndarray:
        """int64 [cells of this data set in the corpus], ascending places in `dataset.cell_ids`."""
        is_kept = np.zeros(len(self.dataset.cell_ids), bool)
        for rows in self.rows:
            is_kept[rows[rows >= 0]] = True
        return np.flatnonzero(is_kept)


def checked_sources(
    specs: Sequence[Any],
    options: dict[str, Any],
    obs_fields: Mapping[str, str | None] | None,
    selection: CellSelection,
    unpaired: bool,
    reading: ReadingOptions,
    progress: Progress,
) -> list[Source]:
    """Opens the data sets, selects their cells and checks what is left.

    Args:
      specs: what `open_dataset` takes.
      options, obs_fields: for `check_dataset`.
      selection: which cells; the check sees no others.
      unpaired, reading: see `open_dataset`.
      progress: called with (what is being done, how much is done, of how much).

    Raises:
      InputError: a data set that cannot be used, a selection of what is not there, or the same file twice.
    """
    if not specs:
        raise InputError(f"no input files; give at least one {ACCEPTED}")
    datasets = open_datasets(specs, unpaired=unpaired, reading=reading, obs_fields=obs_fields)
    refuse_several_region_spaces(datasets)
    if not unpaired:
        refuse_unpaired_files(datasets)
    names: list[str] = []
    for dataset in datasets:
        names.append(_unused_name(dataset.name, names))
    num_opened = [len(dataset.cell_ids) for dataset in datasets]
    if selection:
        datasets = select_cells(datasets, names, selection, obs_fields)
    sources: list[Source] = []
    where_seen: dict[str, str] = {}
    for number, (name, dataset) in enumerate(zip(names, datasets, strict=True)):
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
        num_not_selected = num_opened[number] - len(dataset.cell_ids)
        sources.append(Source(name, dataset, report, matrices, rows, files, num_not_selected))
    progress("checking", len(datasets), len(datasets))
    return sources


def _unused_name(name: str, taken: Sequence[str]) -> str:
    """The name, or name_2, ...: two folders may each hold a filtered_feature_bc_matrix.h5."""
    candidates = (name if number == 1 else f"{name}_{number}" for number in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)


def _source_files(matrices: list[CountsMatrix]) -> list[dict[str, Any]]:
    """Base name, bytes and sha256 of the files; nothing of where they lie on this machine. None: data in memory.

    Of a 10x folder the file of counts, which is what would be twice in a corpus; of a zarr store its whole folder.
    """
    paths = [Path(path) for path in dict.fromkeys(matrix.path for matrix in matrices)]
    return [_file_entry(path) for path in paths if path.is_file()] + [_folder_entry(p) for p in paths if p.is_dir()]


def _file_entry(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": corpus.sha256_of_file(path)}


def _folder_entry(folder: Path) -> dict[str, Any]:
    """`sha256`: of the lines `<sha256 of the file>  <its path in the folder>`, sorted by path."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{corpus.sha256_of_file(path)}  {name}\n".encode())
    num_bytes = sum(path.stat().st_size for _, path in files)
    return {"file": folder.resolve().name, "bytes": num_bytes, "sha256": digest.hexdigest()}


def joint_feature_space(sources: list[Source]) -> FeatureSpace:
    """The union of the mapped features of all data sets."""
    space = FeatureSpace(sources[0].report.features)
    for source in sources[1:]:
        space = space.union(FeatureSpace(source.report.features))
    return space


def measured_features(feature_space: FeatureSpace, sources: list[Source]) -> dict[str, np.ndarray]:
    """modality -> bool [data sets, features]."""
    measured = {}
    for name, features in feature_space.modalities.items():
        measured[name] = np.zeros((len(sources), len(features)), bool)
        for index, source in enumerate(sources):
            if name in source.report.features:
                part = source.report.modalities[name].mapping
                assert part is not None  # a report with features has their mapping
                measured[name][index, features.index_of(part.features.ids[part.measured])] = True
    return measured


def dataset_entry(source: Source) -> dict[str, Any]:
    """What the manifest says of a data set."""
    report = source.report
    return {
        "name": source.name,
        "files": source.files,
        "organism": report.organism,
        "cells_read": report.num_cells + source.num_not_selected,
        "cells_not_selected": source.num_not_selected,
        "cells": len(source.kept),
        "cells_dropped": report.num_cells - len(source.kept),
        "combinations": report.combinations,
        "pseudo_pairs": source.dataset.pseudo_pairs,
        "modalities": {
            name: {
                "counts_field": part.counts_field,
                "cells": part.num_kept,
                "cells_dropped": part.dropped,
                "features": len(report.features[name]),
                "linked": sum(bool(genes) for genes in report.features[name].links),
                "coverage": round(part.mapping.coverage, 6) if part.mapping is not None else None,
                "derivation": part.derivation,
                "regions": part.regions,
            }
            for name, part in report.modalities.items()
        },
        "obs_fields": report.obs_fields,
    }
