"""The data sets that a corpus is built from: opened, cells selected, checked, and what the manifest says of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from data_pipelines.build.corpus_overlap import KnownCells, cells_known, shared_metadata
from data_pipelines.build.duplicate_cells import drop_cells, drop_copies
from data_pipelines.build.select_cells import select_cells
from data_pipelines.build.source_files import source_files
from data_pipelines.cells.cell_identity import NOT_MEASURED
from data_pipelines.cells.cell_metadata import KEY_COLUMNS
from data_pipelines.cells.cell_selection import CellSelection, not_primary
from data_pipelines.checks.input_check import check_dataset, require_usable
from data_pipelines.checks.input_report import InputReport
from data_pipelines.checks.region_check import refuse_several_region_spaces
from data_pipelines.checks.shared_counts import Keys, cells_of_dataset
from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.readers.dataset import CountsMatrix, Dataset
from data_pipelines.readers.open_dataset import accepted, open_datasets
from data_pipelines.readers.reading_options import ReadingOptions
from scmbert_jax.errors import InputError


class OpenedSource(NamedTuple):
    """A data set before its check: a name unique in the corpus, its selected cells, and how many others it has."""

    name: str
    dataset: Dataset
    num_not_selected: int


class Inspection(NamedTuple):
    """What reading a whole data set tells: the check's report, and base name, bytes and sha256 of each file."""

    report: InputReport
    files: list[dict[str, Any]]


class Source(NamedTuple):
    """A data set that passed the check.

    Attributes:
      name: unique in the corpus.
      matrices: those that are read, one per modality.
      rows: per matrix, int64 [its cells]: place of each in `dataset.cell_ids`; -1 where the check drops it.
      files: base name, bytes and sha256 of each file.
      num_not_selected: cells of the files that were not asked for; `dataset` is without them.
      statements: what the files say of themselves, or the user of them: title, citation, licence ...
      keys, known: see `Identities`.
    """

    name: str
    dataset: Dataset
    report: InputReport
    matrices: list[CountsMatrix]
    rows: list[np.ndarray]
    files: list[dict[str, Any]]
    num_not_selected: int
    statements: dict[str, str]
    keys: Keys
    known: list[int]

    @property
    def kept(self) -> np.ndarray:
        """int64 [cells of this data set in the corpus], ascending places in `dataset.cell_ids`."""
        is_kept = np.zeros(len(self.dataset.cell_ids), bool)
        for rows in self.rows:
            is_kept[rows[rows >= 0]] = True
        return np.flatnonzero(is_kept)


def open_sources(
    specs: Sequence[Any],
    obs_fields: Mapping[str, str | None] | None,
    selection: CellSelection,
    unpaired: bool,
    reading: ReadingOptions,
) -> list[OpenedSource]:
    """Opens the data sets and selects their cells.

    Args:
      specs: what `open_dataset` takes.
      obs_fields: standard field -> column of obs, for the selection.
      selection: which cells; the check sees no others.
      unpaired, reading: see `open_dataset`.

    Raises:
      InputError: a data set that cannot be opened, or a selection of what is not there.
    """
    if not specs:
        raise InputError(f"no input files; give at least one {accepted()}")
    datasets = open_datasets(specs, unpaired=unpaired, reading=reading, obs_fields=obs_fields)
    refuse_several_region_spaces(datasets)
    names: list[str] = []
    for dataset in datasets:
        names.append(_unused_name(dataset.name, names))
    num_opened = [len(dataset.cell_ids) for dataset in datasets]
    if selection:
        datasets = select_cells(datasets, names, selection, obs_fields)
    return [
        OpenedSource(name, dataset, number - len(dataset.cell_ids))
        for name, dataset, number in zip(names, datasets, num_opened, strict=True)
    ]


def inspect_dataset(
    dataset: Dataset, options: dict[str, Any], obs_fields: Mapping[str, str | None] | None
) -> Inspection:
    """Reads every count and every byte; `options` and `obs_fields` are for `check_dataset`."""
    report = check_dataset(dataset, obs_fields=obs_fields, **options)
    matrices = [matrix for matrix in dataset.matrices if matrix.modality in report.modalities]
    return Inspection(report, source_files(matrices) if report.usable else [])


def checked_sources(
    opened: Sequence[OpenedSource],
    inspections: Sequence[Inspection],
    keep_duplicates: bool,
    disjoint_from: Sequence[KnownCells],
    licences: Mapping[str, str],
) -> list[Source]:
    """Those that passed, without the cells that are copies.

    Args:
      opened: the data sets.
      inspections: `inspect_dataset` of each; reports learn which cells are dropped here.
      keep_duplicates: do not drop cells that are copies of others (`duplicate_cells`).
      disjoint_from: cells that are dropped wherever they are found.
      licences: data set -> what its licence is, over what its files say.

    Raises:
      InputError: a data set that cannot be used, the same file twice, or a licence of what is not there.
    """
    names = [source.name for source in opened]
    for name in licences:
        if name not in names:
            raise InputError(f"licence {name}={licences[name]}: no such data set; there is {', '.join(names)}")
    reports = [inspection.report for inspection in inspections]
    require_usable(*reports)
    _refuse_one_file_twice(opened, inspections)
    checked = [(name, dataset, report) for (name, dataset, _), report in zip(opened, reports, strict=True)]
    identities = drop_seen_cells(checked, keep_duplicates, disjoint_from)
    require_usable(*reports)
    sources = []
    for place, (name, dataset, report) in enumerate(checked):
        matrices = [matrix for matrix in dataset.matrices if matrix.modality in report.modalities]
        rows = [np.where(report.modalities[matrix.modality].keep, dataset.rows_of(matrix), -1) for matrix in matrices]
        statements = {key: value for matrix in reversed(matrices) for key, value in matrix.statements.items()}
        statements |= {"licence": licences[name]} if name in licences else {}
        sources.append(
            Source(
                name=name,
                dataset=dataset,
                report=report,
                matrices=matrices,
                rows=rows,
                files=inspections[place].files,
                num_not_selected=opened[place].num_not_selected,
                statements=statements,
                keys=identities[place].keys,
                known=identities[place].known,
            )
        )
    return sources


class Identities(NamedTuple):
    """Attributes:
    keys: modality -> uint64 [cells of the data set] (`duplicate_cells`).
    known: per corpus or file that the corpus is to be disjoint from, how many cells were dropped for it.
    """

    keys: Keys
    known: list[int]


def drop_seen_cells(
    checked: Sequence[tuple[str, Dataset, InputReport]], keep_duplicates: bool, disjoint_from: Sequence[KnownCells]
) -> list[Identities]:
    """Takes out of what the checks keep the copies of other cells, and the cells that are known elsewhere.

    Args:
      checked: (name, data set, report) of each; the first keep their cells. A report of which nothing is left has a
        problem afterwards.
      keep_duplicates, disjoint_from: see `checked_sources`.
    """
    sets = [cells_of_dataset(*found) for found in checked]
    if not keep_duplicates:
        drop_copies(checked, sets)
    identities = [Identities(cells.keys, []) for cells in sets]
    for other in disjoint_from:
        for (_, dataset, report), known, of_set in zip(checked, cells_known(sets, other), identities, strict=True):
            of_set.known.append(_drop_known(dataset, report, known, other))
    return identities


def _drop_known(dataset: Dataset, report: InputReport, is_known: np.ndarray, known: KnownCells) -> int:
    """How many cells were dropped because they are known. `is_known`: bool [cells]."""
    before = report.num_cells_kept
    drop_cells(
        dataset,
        report,
        is_known,
        f"that are in {known.name}",
        "same barcode, same counts; dropped, since the corpus is to be disjoint from it",
        f"every cell is in {known.name}, from which the corpus is to be disjoint; leave this file out",
    )
    return before - report.num_cells_kept


def check_files(
    specs: Sequence[Any],
    options: dict[str, Any],
    obs_fields: Mapping[str, str | None] | None,
    selection: CellSelection,
    reading: ReadingOptions,
    keep_duplicates: bool,
) -> list[InputReport]:
    """The report of each data set, usable or not, as a build would see them together (`checked_sources`).

    Raises InputError where one cannot be opened, or a selection asks for what is not there.
    """
    opened = open_sources(specs, obs_fields, selection, False, reading)
    reports = [check_dataset(source.dataset, obs_fields=obs_fields, **options) for source in opened]
    checked = [(source.name, source.dataset, report) for source, report in zip(opened, reports, strict=True)]
    if not keep_duplicates:
        drop_seen_cells([found for found in checked if found[2].usable], keep_duplicates, ())
    return reports


def _refuse_one_file_twice(opened: Sequence[OpenedSource], inspections: Sequence[Inspection]) -> None:
    paths: dict[str, list[str]] = {}
    for (_, dataset, _), (_, files) in zip(opened, inspections, strict=True):
        for entry in files:
            paths.setdefault(entry["sha256"], []).append(dataset.path)
    same = [" and ".join(of_file) for of_file in paths.values() if len(of_file) > 1]
    if same:
        raise InputError(
            f"{' are the same file; '.join(same)} are the same file: its cells would be in the corpus twice; give each "
            "file once"
        )


def key_columns(sources: Sequence[Source], modalities: Sequence[str]) -> dict[str, np.ndarray]:
    """Column of the obs table -> uint64 [cells that are kept, source after source]."""
    absent = [np.full(len(source.dataset.cell_ids), NOT_MEASURED) for source in sources]
    return {
        KEY_COLUMNS[name]: np.concatenate(
            [source.keys.get(name, none)[source.kept] for source, none in zip(sources, absent, strict=True)]
        )
        for name in modalities
    }


def _unused_name(name: str, taken: Sequence[str]) -> str:
    """The name, or name_2, ...: two folders may each hold a filtered_feature_bc_matrix.h5."""
    candidates = (name if number == 1 else f"{name}_{number}" for number in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)


def disjoint_entries(
    sources: Sequence[Source], disjoint_from: Sequence[KnownCells], obs: pd.DataFrame
) -> list[dict[str, Any]]:
    """What the manifest says of the cells that the corpus does not have. `obs`: its obs table."""
    files = {entry["sha256"]: entry["file"] for source in sources for entry in source.files}
    return [
        {
            "name": known.name,
            "identity": known.identity,
            "cells": known.num_cells,
            "cells_dropped": sum(source.known[place] for source in sources),
            "shared": shared_metadata(obs, files, known),
        }
        for place, known in enumerate(disjoint_from)
    ]


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
        "statements": source.statements,
        "organism": report.organism,
        "assembly": report.assembly,
        "min_genes": report.min_genes,
        "cells_read": report.num_cells + source.num_not_selected,
        "cells_not_selected": source.num_not_selected,
        "cells": len(source.kept),
        "cells_dropped": report.num_cells - len(source.kept),
        "copies_dropped": report.copies,
        "known_cells_dropped": sum(source.known),
        "cells_not_primary": int(np.count_nonzero(not_primary(source.dataset.obs)[source.kept])),
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
