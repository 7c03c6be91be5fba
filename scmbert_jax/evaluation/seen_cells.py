"""Has a model seen the answers? Asked of the cells that are scored themselves, by their keys, in all suites.

Names of files and batches say nothing: a renamed copy of the training file holds the answers, and batch "1" of another
file does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.batches.trained_cells import MOST_CELLS, TRAINED_CELLS, TrainedCells
from data_pipelines.cells.cell_identity import BARCODES, NOT_MEASURED, cell_keys
from data_pipelines.checks.input_check import check_dataset
from data_pipelines.checks.shared_counts import CellSet, cells_of_dataset
from data_pipelines.readers.dataset import Dataset
from scmbert_jax.errors import InputError

Array = np.ndarray


@dataclass(frozen=True)
class SeenCells:
    """What training had of the scored cells.

    Attributes:
      status: "pairs" (the answers), "pseudo-pairs", "cells" (counts, no pairs), "not seen" or "unknown".
      sentence: the same for a reader, without a full stop.
    """

    status: str
    sentence: str


def identified_cells(dataset: Dataset, *, organism: str | None = None, assembly: str | None = None) -> CellSet:
    """The cells of a data set with the keys by which they are known again; reads its counts once."""
    return cells_of_dataset(
        dataset.name, dataset, check_dataset(dataset, organism=organism, assembly=assembly, min_genes=0)
    )


def scored_cells_seen(
    trained: TrainedCells | None, cells: CellSet, rows: Array, pair: tuple[str, str] | None = None
) -> SeenCells:
    """What a model's training had of some cells of a data set.

    Args:
      trained: of the model (`PretrainedModel.trained_cells`); None where its folder does not say.
      cells: all of the data set.
      rows: int64 [m], those that are scored.
      pair: the modalities whose pairs are the answers; None: there are no such.
    """
    if trained is None:
        return SeenCells(
            "unknown",
            f"unknown whether it trained on the {len(rows):,} cells that are scored: its folder has no {TRAINED_CELLS} "
            f"(an earlier version, or more than {MOST_CELLS:,} cells); `scmbert corpus overlap` compares its corpus",
        )
    mine = {name: keys[rows] for name, keys in cells.keys.items() if name in trained.keys}
    if pair is not None:
        of_cells, of_trained = _pair_keys(mine, pair), _pair_keys(trained.keys, pair)
        number = int(np.count_nonzero(np.isin(of_cells[of_cells != NOT_MEASURED], of_trained[~trained.by_program])))
        if number:
            return SeenCells("pairs", f"it trained on {number:,} pairs of the {len(rows):,} cells that are scored")
    known = _known(trained, mine)
    is_known = cells_trained_on(trained, cells)[rows]
    others = _with_a_known_barcode(trained, cells, rows[~is_known])
    if trained.by_program.any():  # such a cell is two cells under a new name
        made = f"it trained on {int(trained.by_program.sum()):,} pseudo-pairs, whose cells cannot be known again"
        return SeenCells("pseudo-pairs", f"{made}; {others}" if others else made)
    if is_known.any():
        names = " and ".join(name for name, flags in known.items() if flags.any())
        not_pairs = ", not on their pairs" if pair is not None else ", without labels unless its card names them"
        return SeenCells(
            "unknown" if pair is not None and others else "cells",
            f"it trained on {names} of {int(is_known.sum()):,} of the {len(rows):,} cells that are scored{not_pairs}"
            + (f"; {others}" if others else ""),
        )
    if others:
        return SeenCells("unknown", others)
    return SeenCells("not seen", f"it trained on none of the {len(rows):,} cells that are scored")


def cells_trained_on(trained: TrainedCells | None, cells: CellSet) -> Array:
    """bool [cells]: known as cells of training by counts of some modality; False where the model's folder is silent."""
    none = np.zeros(len(cells.cell_ids), bool)
    if trained is None:
        return none
    mine = {name: keys for name, keys in cells.keys.items() if name in trained.keys}
    return np.any([*_known(trained, mine).values(), none], axis=0)


def _known(trained: TrainedCells, keys: dict[str, Array]) -> dict[str, Array]:
    return {name: np.isin(own, trained.keys[name]) & (own != NOT_MEASURED) for name, own in keys.items()}


def _pair_keys(keys: dict[str, Array], pair: tuple[str, str]) -> Array:
    """uint64 [n]: one number for the counts of both modalities; NOT_MEASURED where one is not there."""
    if not set(pair) <= set(keys):
        return np.full(len(next(iter(keys.values()), ())), NOT_MEASURED)
    first, second = (keys[name] for name in sorted(pair))
    both = (first != NOT_MEASURED) & (second != NOT_MEASURED)
    return np.where(both, cell_keys(first, second), NOT_MEASURED)


def _with_a_known_barcode(trained: TrainedCells, cells: CellSet, rows: Array) -> str:
    """What to say of cells that are not known by their counts, where more of their barcodes are than chance gives."""
    barcodes = np.unique(trained.barcodes)
    number = int(np.count_nonzero(np.isin(cells.barcodes[rows], barcodes)))
    by_chance = len(rows) * len(barcodes) / BARCODES
    if number <= by_chance + 3 * by_chance**0.5 + 3:
        return ""
    return (
        f"unknown whether it trained on {number:,} of the cells that are scored: they have the barcode of a cell it "
        f"trained on, with counts of other features or other counts, where chance gives up to {by_chance:,.0f}; "
        "`scmbert corpus overlap` compares its corpus on the shared features"
    )


def what_models_saw(
    models: Sequence[tuple[str, TrainedCells | None]], cells: CellSet, rows: Array, pair: tuple[str, str] | None = None
) -> list[str]:
    """One sentence for each model (name, its `trained_cells`); args as in `scored_cells_seen`.

    Raises `InputError` where a score would be of pairs that a model was trained on.
    """
    sentences = []
    for name, trained in models:
        seen = scored_cells_seen(trained, cells, rows, pair)
        if seen.status == "pairs":
            raise InputError(
                f"{name}: {seen.sentence}; their score would say nothing. Hold out other cells, or train on a corpus "
                "built without them (--disjoint-from FILE, or --exclude technical_batch=...)"
            )
        sentences.append(f"{name}: {seen.sentence}.")
    return list(dict.fromkeys(sentences))
