"""A run and its model say in numbers and in words which information they have used."""

import json
import shutil

import pytest
from conftest import scmbert_ok

from scmbert_jax.training.run_information import information_in_words, run_information

OF_CORPUS = {
    "paired_cells": 800,
    "pseudo_paired_cells": 0,
    "pseudo_pairs": {},
    "links": {"protein": 39},
    "cells": {"pbmc/p1": {"rna": 400}, "pbmc/p3": {"rna+protein": 400}},
    "unpaired": False,
}


def words(covariates=(), **changes) -> str:
    return "\n".join(information_in_words(run_information({**OF_CORPUS, **changes}, {name: [] for name in covariates})))


def test_pairs_labels_links_and_cells_are_each_told():
    for part in (
        "Pairs: 800 cells in which an assay measured",
        "Labels: none were used",
        "39 from protein features",
        "pbmc/p1 (400 rna); pbmc/p3 (400 rna+protein)",
    ):
        assert part in words()
    assert "Pseudo-pairs" not in words()


def test_a_cell_type_among_the_covariates_is_a_label():
    assert "cell types were given as a covariate" in words(covariates=("technical_batch", "cell_type"))
    assert "none were used" in words(covariates=("technical_batch",))


def test_pseudo_pairs_are_never_told_as_pairs():
    told = words(paired_cells=0, pseudo_paired_cells=400, pseudo_pairs={"matched": {"method": "sinkhorn", "links": 39}})
    assert "Pairs: none. No cell was measured in several" in told
    assert "Pseudo-pairs: 400 cells that a program, not an assay" in told
    assert "matched: method sinkhorn, links 39" in told


def test_what_is_not_recorded_is_told_as_such_and_not_guessed():
    told = words(paired_cells=None, pseudo_paired_cells=None, cells=None, unpaired=None)
    assert told.count("not recorded by the corpus") == 2
    assert "Pairs: none" not in told
    assert "earlier version" in information_in_words(None)[0]


def test_a_run_folder_and_the_model_card_carry_it(pbmc_run, pbmc_model):
    information = json.loads((pbmc_run / "provenance.json").read_text())["information"]
    assert information["paired_cells"] == 800
    assert (information["pseudo_paired_cells"], information["labels"], information["unpaired"]) == (0, False, False)
    assert information["cells"]["pbmc_mosaic/p3_0"] == {"rna+protein": 400}
    assert information["links"]["protein"] > 0
    assert json.loads((pbmc_model / "model.json").read_text())["provenance"]["information"] == information
    card = (pbmc_model / "MODEL_CARD.md").read_text()
    assert "Pairs: 800 cells in which an assay measured several modalities at once." in card


@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_exported_and_its_card_says_what_is_not_known(pbmc_run, tmp_path):
    run_dir = shutil.copytree(pbmc_run, tmp_path / "run")
    provenance = json.loads((run_dir / "provenance.json").read_text())
    del provenance["information"]
    (run_dir / "provenance.json").write_text(json.dumps(provenance))
    scmbert_ok("export", run_dir, tmp_path / "model")
    assert "is not recorded: an earlier version trained it" in (tmp_path / "model" / "MODEL_CARD.md").read_text()
