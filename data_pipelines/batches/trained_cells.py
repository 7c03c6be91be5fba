"""The cells that a run draws from, by their keys: what answers later whether a model has seen a cell.

A model folder holds them (8 bytes for each modality and 8 for the barcode of a cell), so that the answer needs neither
the corpus nor names of files and batches. Keys are hashes of barcode and counts (`cell_identity`).
"""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.cells.cell_identity import KEY_VERSION, NOT_MEASURED, barcode_keys
from data_pipelines.cells.cell_metadata import KEY_COLUMNS
from data_pipelines.checks.shared_counts import Keys
from data_pipelines.files.atomic_files import growing_file
from data_pipelines.files.bounded_npz import open_arrays
from data_pipelines.sampling.mixture import Mixture
from scmbert_jax.errors import CheckpointError

TRAINED_CELLS = "trained_cells.npz"
MOST_CELLS = 10_000_000  # of more, nothing is kept: 240 MB


class TrainedCells(NamedTuple):
    """Attributes:
    keys: modality -> uint64 [n], NOT_MEASURED where it was not read.
    barcodes: uint64 [n].
    by_program: bool [n], cells of data sets whose pairs a program made.
    """

    keys: Keys
    barcodes: np.ndarray
    by_program: np.ndarray


def trained_cells(mixture: Mixture, modalities: list[str]) -> TrainedCells | None:
    """Those that are drawn; None where there are too many, or a corpus of an earlier version does not know its keys."""
    corpora = mixture.joined.corpora
    if any(corpus.manifest.get("cell_keys") != KEY_VERSION for corpus in corpora):
        return None
    rows = [mixture.drawn_rows(place) for place in range(len(corpora))]
    sizes = [corpus.num_cells if drawn is None else len(drawn) for corpus, drawn in zip(corpora, rows, strict=True)]
    if sum(sizes) > MOST_CELLS:
        return None
    keys: dict[str, list[np.ndarray]] = {name: [] for name in modalities}
    barcodes, by_program = [], []
    for corpus, drawn, size in zip(corpora, rows, sizes, strict=True):
        columns = {name: KEY_COLUMNS[name] for name in modalities if name in corpus.modalities}
        obs = corpus.obs(columns=["cell_id", "dataset", *columns.values()])
        obs = obs if drawn is None else obs.iloc[drawn]
        for name, parts in keys.items():
            parts.append(obs[columns[name]].to_numpy(np.uint64) if name in columns else np.full(size, NOT_MEASURED))
        barcodes.append(barcode_keys(obs["cell_id"].to_numpy()))
        made = [entry["name"] for entry in corpus.datasets if entry.get("pseudo_pairs") is not None]
        by_program.append(obs["dataset"].isin(made).to_numpy())
    joined = {name: np.concatenate(parts) for name, parts in keys.items()}
    return TrainedCells(joined, np.concatenate(barcodes), np.concatenate(by_program))


def joined_cells(some: TrainedCells | None, others: TrainedCells | None) -> TrainedCells | None:
    """Those of both; None where either is not known."""
    if some is None or others is None:
        return None
    sizes = len(some.barcodes), len(others.barcodes)
    if sum(sizes) > MOST_CELLS:
        return None

    def keys(name: str) -> np.ndarray:
        parts = zip((some, others), sizes, strict=True)
        return np.concatenate([cells.keys.get(name, np.full(size, NOT_MEASURED)) for cells, size in parts])

    names = dict.fromkeys([*some.keys, *others.keys])
    barcodes, by_program = (np.concatenate([a, b]) for a, b in zip(some[1:], others[1:], strict=True))
    return TrainedCells({name: keys(name) for name in names}, barcodes, by_program)


def save_trained_cells(cells: TrainedCells, path: Path) -> None:
    arrays: dict[str, Any] = {f"keys_{name}": values for name, values in cells.keys.items()}
    with growing_file(path) as file:
        np.savez(file, barcodes=cells.barcodes, by_program=cells.by_program, **arrays)


def load_trained_cells(path: Path) -> TrainedCells | None:
    """None where there is no such file. Raises CheckpointError where it is damaged."""
    if not path.exists():
        return None
    try:
        with open_arrays(path) as file:
            keys = {name.removeprefix("keys_"): file[name] for name in file.files if name.startswith("keys_")}
            found = TrainedCells(keys, file["barcodes"], file["by_program"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: damaged ({error}); copy the model folder again, or export it again") from error
    if any(len(values) != len(found.barcodes) for values in (*found.keys.values(), found.by_program)):
        raise CheckpointError(f"{path}: its parts are of different lengths; copy the model folder again")
    return found
