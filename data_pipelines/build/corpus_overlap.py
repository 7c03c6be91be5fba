"""What a corpus has in common with other cells: cells, by barcode and counts, and donors, batches, data sets, files.

For held-out data this is the question whether the model has seen them; `scmbert corpus build --disjoint-from` builds a
corpus that has none of the cells.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_pipelines.build.duplicate_cells import cells_in
from data_pipelines.build.source_files import source_files
from data_pipelines.cells.cell_identity import BARCODES, GROUPS, KEY_VERSION, add_to_groups, barcode_keys
from data_pipelines.cells.cell_metadata import KEY_COLUMNS, dataset_metadata
from data_pipelines.checks.input_check import check_dataset, require_usable
from data_pipelines.checks.shared_counts import CellSet, Features, Wanted, cells_of_dataset, has_key, keys_beside
from data_pipelines.corpus.corpus import Corpus, open_corpus
from data_pipelines.corpus.manifest import MANIFEST
from data_pipelines.corpus.storage import Location, base_name, is_url
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import CorpusError

# Fields of which equal values may mean the same people and experiments.
SHARED_FIELDS = ("donor", "technical_batch", "dataset", "dataset_id")
_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class KnownCells:
    """The cells of a corpus or of a file.

    Attributes:
      name: base name of the folder or file.
      identity: the fingerprint of the corpus, or the sha256 of the files.
      sets: one per data set.
      obs: what is known of the cells: `dataset`, `donor`, ... as in the obs table of a corpus.
      files: sha256 -> base name of the files it was made from.
    """

    name: str
    identity: str
    sets: list[CellSet]
    obs: pd.DataFrame
    files: dict[str, str]

    @property
    def num_cells(self) -> int:
        return sum(int(np.count_nonzero(has_key(cells.keys))) for cells in self.sets)


def open_known_cells(
    spec: Any,
    *,
    organism: str | None = None,
    assembly: str | None = None,
    obs_fields: Mapping[str, str | None] | None = None,
) -> KnownCells:
    """Opens a corpus folder, or whatever `open_dataset` takes: all cells with counts, however few genes they have.

    Args:
      spec: which.
      organism, assembly: of a file; see `check_dataset`.
      obs_fields: of a file: standard field -> column of obs, for the columns that it has.

    Raises:
      CorpusError: a corpus that cannot be read, or that was built before keys of cells were stored.
      InputError: a file that cannot be used.
    """
    if isinstance(spec, (str, Path)) and (is_url(spec) or (Path(spec) / MANIFEST).is_file()):
        with open_corpus(spec) as corpus:
            return cells_of_corpus(corpus)
    dataset = open_dataset(spec)
    chosen = {field: column for field, column in (obs_fields or {}).items() if column in (None, *dataset.obs.columns)}
    report = check_dataset(dataset, organism=organism, assembly=assembly, min_genes=0, obs_fields=chosen)
    require_usable(report)
    entries = source_files([matrix for matrix in dataset.matrices if matrix.modality in report.modalities])
    cells = cells_of_dataset(dataset.name, dataset, report)
    kept = np.flatnonzero(has_key(cells.keys))
    obs = dataset_metadata(dataset.name, dataset.cell_ids, dataset.obs, report.obs_fields, kept)
    identity = "+".join(entry["sha256"] for entry in entries)
    return KnownCells(dataset.name, identity, [cells], obs, {entry["sha256"]: entry["file"] for entry in entries})


def cells_of_corpus(corpus: Corpus, rows: np.ndarray | None = None) -> KnownCells:
    """Counts are read from the corpus only where they are compared over other features: let it stay where it is.

    `rows`: int [n], only these cells; None: all. Raises CorpusError: it was built before keys of cells were stored.
    """
    obs = corpus.obs()
    missing = [KEY_COLUMNS[name] for name in corpus.modalities if KEY_COLUMNS[name] not in obs]
    if missing or corpus.manifest.get("cell_keys") != KEY_VERSION:
        lacks = f"obs has no column {missing[0]!r}" if missing else "its cell keys are not those of this version"
        raise CorpusError(
            f"{corpus.path}: {lacks}, by which its cells are known again; it was built by an earlier version: build it "
            "again"
        )
    features = {name: (known.space, known.ids) for name, known in corpus.feature_space.modalities.items()}
    reader, sets = _CorpusReader(corpus.location, features), []
    wanted = np.ones(len(obs), bool) if rows is None else np.isin(np.arange(len(obs)), rows)
    for index, entry in enumerate(corpus.datasets):
        places = np.flatnonzero((obs["dataset"] == entry["name"]).to_numpy() & wanted)
        table = obs.iloc[places]
        measured = {name: corpus.measured(index, name) for name in corpus.modalities}
        own = {name: (features[name][0], features[name][1][flags]) for name, flags in measured.items() if flags.any()}
        sets.append(
            CellSet(
                name=entry["name"],
                cell_ids=table["cell_id"].to_numpy(),
                barcodes=barcode_keys(table["cell_id"].to_numpy()),
                keys={name: table[KEY_COLUMNS[name]].to_numpy(np.uint64) for name in own},
                features=own,
                reader=reader,
                places=places,
            )
        )
    files = {file["sha256"]: file["file"] for entry in corpus.datasets for file in entry["files"]}
    return KnownCells(base_name(corpus.path), corpus.fingerprint, sets, obs, files)


class _CorpusReader:
    """`CountsReader` of a corpus, its cells numbered by their rows, its features as it numbers them."""

    def __init__(self, path: Location, features: Features):
        self._path, self.features = path, features

    def group_sums(self, wanted: Sequence[Wanted]) -> list[np.ndarray]:
        sums = [np.zeros((len(part.cells), GROUPS), np.uint64) for part in wanted]
        with open_corpus(self._path) as corpus:
            starts = np.concatenate([[0], np.cumsum(corpus.block_sizes)])
            for index in range(corpus.num_blocks):
                ranges = [np.searchsorted(part.cells, starts[index : index + 2]) for part in wanted]
                mine = [number for number, (start, stop) in enumerate(ranges) if stop > start]
                if not mine:
                    continue
                block = corpus.read_block(index, tuple({wanted[number].modality for number in mine}))
                for number in mine:
                    if wanted[number].modality not in block.modalities:
                        continue
                    columns = block.modalities[wanted[number].modality]
                    indptr = np.concatenate([[0], np.cumsum(columns.lengths, dtype=np.int64)])
                    places = np.arange(*ranges[number])
                    rows = wanted[number].cells[places] - starts[index]
                    counts = columns.counts.astype(np.int64)
                    add_to_groups(
                        sums[number], places, rows, indptr, columns.feature_ids, counts, wanted[number].weights
                    )
        return sums


def cells_known(sets: Sequence[CellSet], known: KnownCells) -> list[np.ndarray]:
    """bool [cells] of each set: those of which the counts of any modality are those of a cell that is known."""
    others = [other.keys for other in known.sets]
    return [cells_in(keys, others) for keys in keys_beside(sets, known.sets)]


def shared_metadata(obs: pd.DataFrame, files: Mapping[str, str], known: KnownCells) -> dict[str, list[str] | None]:
    """What is in both: `files` (the same sha256), then field -> values; None where one of the two does not know the
    field. A donor "1" of both may be two people."""
    shared: dict[str, list[str] | None] = {"files": sorted(files[sha] for sha in files.keys() & known.files.keys())}
    for field in SHARED_FIELDS:
        tables = [table for table in (obs, known.obs) if field in table]
        values = [{str(value) for value in table[field].dropna().unique()} for table in tables]
        shared[field] = sorted(values[0] & values[1]) if len(values) == 2 else None
    return shared


def overlap(corpus: KnownCells, other: KnownCells) -> dict[str, Any]:
    """How much of `other` is in `corpus`, as JSON values."""
    in_corpus = cells_known(other.sets, corpus)
    barcodes = np.unique(np.concatenate([cells.barcodes for cells in corpus.sets]))
    same_barcode = sum(
        int(np.count_nonzero(np.isin(cells.barcodes, barcodes) & has_key(cells.keys))) for cells in other.sets
    )
    number = sum(int(np.count_nonzero(found)) for found in in_corpus)
    by_chance = (other.num_cells - number) * len(barcodes) / BARCODES
    return {
        "corpus": {"name": corpus.name, "identity": corpus.identity, "cells": corpus.num_cells},
        "other": {"name": other.name, "identity": other.identity, "cells": other.num_cells},
        "cells_in_both": number,
        "share_of_other": round(number / max(other.num_cells, 1), 6),
        "barcodes_in_both": same_barcode,
        "barcodes_by_chance": round(by_chance, 1),
        "cells_in_both_by_dataset": {
            cells.name: int(np.count_nonzero(found)) for cells, found in zip(other.sets, in_corpus, strict=True)
        },
        "shared": shared_metadata(corpus.obs, corpus.files, other),
    }


def overlap_text(found: dict[str, Any]) -> str:
    """`overlap` for people."""
    corpus, other, number = found["corpus"], found["other"], found["cells_in_both"]
    how_many = f"{number:,} of the {other['cells']:,} cells" if number else f"none of the {other['cells']:,} cells"
    part = f" ({found['share_of_other']:.1%})" * bool(number)
    lines = [
        f"{how_many} of {other['name']}{part} {'are' if number > 1 else 'is'} in {corpus['name']} "
        f"({corpus['cells']:,} cells): the same barcode and the same counts",
        _other_counts(found["barcodes_in_both"] - number, found["barcodes_by_chance"]),
    ]
    if len(found["cells_in_both_by_dataset"]) > 1:
        lines += [f"  {name}: {count:,} cells" for name, count in found["cells_in_both_by_dataset"].items() if count]
    return "\n".join([*lines, *shared_lines(found["shared"])])


def _other_counts(number: int, by_chance: float) -> str:
    """What to think of cells whose barcode occurs in the corpus with other counts, where chance gives so many."""
    text = f"  {number:,} more have a barcode that occurs there, with other counts; chance gives up to {by_chance:,.0f}"
    if number <= by_chance + 3 * by_chance**0.5 + 3:
        return text
    return (
        f"{text} and does not explain them. They may be the same cells, counted by another program or changed since: "
        "leave out what they come from (donors, batches, data sets in both)"
    )


def shared_lines(shared: Mapping[str, Sequence[str] | None]) -> list[str]:
    """One line per kind of `shared_metadata`."""
    return [f"  {'the same files' if kind == 'files' else f'{kind} in both'}: {_few(v)}" for kind, v in shared.items()]


def _few(values: Sequence[str] | None) -> str:
    if values is None:
        return "not known of both"
    more = f" and {len(values) - _SHOWN:,} more" if len(values) > _SHOWN else ""
    return (", ".join(values[:_SHOWN]) or "none") + more
