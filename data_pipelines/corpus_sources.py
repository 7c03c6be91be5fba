"""The data sets that a corpus is built from: opened, cells selected, checked, and what the manifest says of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from data_pipelines.cell_identity import NOT_MEASURED
from data_pipelines.cell_metadata import KEY_COLUMNS
from data_pipelines.cell_selection import CellSelection, not_primary, select_cells
from data_pipelines.corpus_overlap import KnownCells, cells_known, shared_metadata
from data_pipelines.duplicate_cells import CellSet, Keys, cells_of_dataset, drop_cells, drop_copies
from data_pipelines.feature_space import FeatureSpace
from data_pipelines.input_check import InputReport, check_dataset, require_usable
from data_pipelines.pair_check import refuse_unpaired_files
from data_pipelines.readers import ACCEPTED, CountsMatrix, Dataset, open_dataset
from data_pipelines.source_files import source_files
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


def checked_sources(
    specs: Sequence[Any],
    options: dict[str, Any],
    obs_fields: Mapping[str, str | None] | None,
    selection: CellSelection,
    unpaired: bool,
    keep_duplicates: bool,
    disjoint_from: Sequence[KnownCells],
    licences: Mapping[str, str],
    progress: Progress,
) -> list[Source]:
    """Opens the data sets, selects their cells and checks what is left.

    Args:
      specs: what `open_dataset` takes.
      options, obs_fields: for `check_dataset`.
      selection: which cells; the check sees no others.
      unpaired: see `open_dataset`.
      keep_duplicates: do not drop cells that are copies of others (`duplicate_cells`).
      disjoint_from: cells that are dropped wherever they are found.
      licences: data set -> what its licence is, over what its files say.
      progress: called with (what is being done, how much is done, of how much).

    Raises:
      InputError: a data set that cannot be used, a selection of what is not there, or the same file twice.
    """
    datasets, names, num_opened = _opened(specs, obs_fields, selection, unpaired)
    if not unpaired:
        refuse_unpaired_files(datasets)
    for name in licences:
        if name not in names:
            raise InputError(f"licence {name}={licences[name]}: no such data set; there is {', '.join(names)}")
    reports = []
    for number, dataset in enumerate(datasets):
        progress("checking", number, len(datasets))
        reports.append(check_dataset(dataset, obs_fields=obs_fields, **options))
        require_usable(reports[-1])
    progress("checking", len(datasets), len(datasets))
    files = _files_of(datasets, reports)
    checked = list(zip(names, datasets, reports, strict=True))
    identities = drop_seen_cells(checked, keep_duplicates, disjoint_from)
    sources = []
    for place, (name, dataset, report) in enumerate(checked):
        require_usable(report)
        matrices = [matrix for matrix in dataset.matrices if matrix.modality in report.modalities]
        rows = [np.where(report.modalities[matrix.modality].keep, dataset.rows_of(matrix), -1) for matrix in matrices]
        num_not_selected = num_opened[place] - len(dataset.cell_ids)
        statements = {key: value for matrix in reversed(matrices) for key, value in matrix.statements.items()}
        statements |= {"licence": licences[name]} if name in licences else {}
        sources.append(
            Source(
                name, dataset, report, matrices, rows, files[place], num_not_selected, statements, *identities[place]
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
    identities = []
    for (_, dataset, report), cells in zip(checked, sets, strict=True):
        known = [_drop_known(dataset, report, cells, other) for other in disjoint_from]
        identities.append(Identities(cells.keys, known))
    return identities


def _drop_known(dataset: Dataset, report: InputReport, cells: CellSet, known: KnownCells) -> int:
    """How many cells were dropped because they are known."""
    before = report.num_cells_kept
    drop_cells(
        dataset,
        report,
        cells_known(cells, known),
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
    keep_duplicates: bool,
) -> list[InputReport]:
    """The report of each data set, usable or not, as a build would see them together (`checked_sources`).

    Raises InputError where one cannot be opened, or a selection asks for what is not there.
    """
    datasets, names, _ = _opened(specs, obs_fields, selection, unpaired=False)
    reports = [check_dataset(dataset, obs_fields=obs_fields, **options) for dataset in datasets]
    checked = list(zip(names, datasets, reports, strict=True))
    if not keep_duplicates:
        drop_seen_cells([found for found in checked if found[2].usable], keep_duplicates, ())
    return reports


def _opened(
    specs: Sequence[Any], obs_fields: Mapping[str, str | None] | None, selection: CellSelection, unpaired: bool
) -> tuple[list[Dataset], list[str], list[int]]:
    """The data sets with the selected cells, their names in a corpus, and how many cells each had."""
    if not specs:
        raise InputError(f"no input files; give at least one {ACCEPTED}")
    datasets = [open_dataset(spec, unpaired=unpaired) for spec in specs]
    names: list[str] = []
    for dataset in datasets:
        names.append(_unused_name(dataset.name, names))
    num_opened = [len(dataset.cell_ids) for dataset in datasets]
    return select_cells(datasets, names, selection, obs_fields) if selection else datasets, names, num_opened


def _files_of(datasets: Sequence[Dataset], reports: Sequence[InputReport]) -> list[list[dict[str, Any]]]:
    """Per data set, the entry of each of its files. Raises InputError where a file is given twice."""
    files = []
    where_seen: dict[str, str] = {}
    for dataset, report in zip(datasets, reports, strict=True):
        files.append(source_files([matrix for matrix in dataset.matrices if matrix.modality in report.modalities]))
        for entry in files[-1]:
            if entry["sha256"] in where_seen:
                raise InputError(
                    f"{dataset.path} and {where_seen[entry['sha256']]} are the same file: its cells would be in the "
                    "corpus twice; give it once"
                )
            where_seen[entry["sha256"]] = dataset.path
    return files


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
                measured[name][index, features.index_of(source.report.features[name].ids)] = True
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
            }
            for name, part in report.modalities.items()
        },
        "obs_fields": report.obs_fields,
    }
