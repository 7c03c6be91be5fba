"""Has a model seen the cells that it is scored on? Known by the cells, whatever files and batches are called."""

import numpy as np
import pytest

from data_pipelines.batches.trained_cells import (
    TrainedCells,
)
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.synthetic.cells import synthetic_cells
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.seen_cells import identified_cells, scored_cells_seen, what_models_saw

PAIR = ("rna", "protein")


@pytest.fixture(scope="module")
def paired():
    """80 cells with RNA and protein in two batches; ids with barcodes."""
    data = synthetic_cells(80, 60, 12, 0, num_batches=2, mosaic=False, seed=0).to_mudata()
    names = ["".join(letters) + "-1" for letters in np.random.default_rng(0).choice(list("ACGT"), (data.n_obs, 16))]
    for part in data.mod.values():
        part.obs_names = names
    data.obs_names = names
    data.update()
    return data


def trained_on(*parts, **options) -> TrainedCells:
    """What a run on these cells would keep."""
    sets = [identified_cells(open_dataset(part), organism="human") for part in parts]
    sizes = [len(cells.barcodes) for cells in sets]
    keys = {
        name: np.concatenate(
            [of.keys.get(name, np.zeros(size, np.uint64)) for of, size in zip(sets, sizes, strict=True)]
        )
        for name in PAIR
    }
    made = np.full(sum(sizes), options.get("by_program", False))
    return TrainedCells(keys, np.concatenate([of.barcodes for of in sets]), made)


def renamed(data, before: str):
    """The same cells as another study names them, and another name of their batches."""
    data = data.copy()
    for part in data.mod.values():
        part.obs_names = [f"{before}_{name}" for name in part.obs_names]
        part.obs["technical_batch"] = before
    data.obs_names = [f"{before}_{name}" for name in data.obs_names]
    return data


def seen(trained, data, pair=PAIR):
    cells = identified_cells(open_dataset(data), organism="human")
    return scored_cells_seen(trained, cells, np.arange(len(cells.barcodes)), pair)


def test_pairs_are_known_whatever_the_file_and_the_batch_are_called(paired):
    found = seen(trained_on(renamed(paired[:40], "other")), paired)
    assert (found.status, found.sentence) == ("pairs", "it trained on 40 pairs of the 80 cells that are scored")


def test_other_cells_under_the_same_names_of_batches_are_not_the_answers(paired):
    found = seen(trained_on(paired[:40].copy()), paired[40:].copy())
    assert (found.status, found.sentence) == ("not seen", "it trained on none of the 40 cells that are scored")


def test_modalities_of_the_cells_without_their_pairs_are_no_answers(paired):
    apart = trained_on(paired.mod["rna"], renamed(paired, "b").mod["protein"])
    found = seen(apart, paired)
    assert found.status == "cells"
    assert found.sentence == "it trained on rna and protein of 80 of the 80 cells that are scored, not on their pairs"
    alone = seen(trained_on(paired.mod["rna"]), paired)
    assert alone.sentence == "it trained on rna of 80 of the 80 cells that are scored, not on their pairs"


def test_cells_that_are_scored_without_pairs_are_counted(paired):
    found = seen(trained_on(paired[:8].copy()), paired, pair=None)
    assert found.status == "cells"
    assert "of 8 of the 80 cells that are scored, without labels unless its card names them" in found.sentence


def test_pseudo_pairs_are_said_and_never_called_unseen(paired):
    assert seen(trained_on(renamed(paired[:40], "x"), by_program=True), paired[40:].copy()).status == "pseudo-pairs"


@pytest.mark.parametrize("change", ["other features", "other counts"])
def test_the_same_barcodes_with_other_hashes_are_unknown_and_never_unseen(paired, change):
    other = renamed(paired, "x")
    rna = other.mod["rna"][:, 30:].copy() if change == "other features" else other.mod["rna"]
    if change == "other counts":
        rna.X = rna.X * 2
    found = seen(trained_on(rna), paired.mod["rna"], pair=None)
    assert found.status == "unknown"
    assert "80 of the cells that are scored: they have the barcode of a cell" in found.sentence
    assert "chance gives up to 0" in found.sentence


def test_a_folder_that_does_not_say_gives_unknown_and_the_command_that_tells(paired):
    found = seen(None, paired)
    assert found.status == "unknown"
    assert "`scmbert corpus overlap` compares its corpus" in found.sentence


def test_a_suite_refuses_to_score_seen_pairs_and_names_the_model(paired):
    cells = identified_cells(open_dataset(paired), organism="human")
    models = [("model 0", None), ("model 1", trained_on(paired[:4].copy()))]
    assert what_models_saw(models, cells, np.arange(10, 80), PAIR)[1] == (
        "model 1: it trained on none of the 70 cells that are scored."
    )
    with pytest.raises(InputError, match=r"model 1: .*4 pairs of the 80 .*--disjoint-from FILE"):
        what_models_saw(models, cells, np.arange(80), PAIR)
