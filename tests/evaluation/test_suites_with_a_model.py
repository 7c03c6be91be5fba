"""A trained model through the suites between modalities, as a user asks for them: scored, or refused."""

import json
import re

import mudata
import numpy as np
import pytest
from conftest import scmbert, scmbert_ok
from multimodal_model import multimodal_model  # noqa: F401

from data_pipelines.readers.example_reader import example_path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]

# The model has seen p3 and not p4.
UNSEEN = ("--train-batches", "p3", "--test-batches", "p4")
SEEN = ("--train-batches", "p4", "--test-batches", "p3")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """120 cells of each technical batch, under the name the corpus has for them."""
    whole = mudata.read_h5mu(example_path("pbmc_mosaic"))
    rows = np.concatenate([np.arange(first, first + 120) for first in (0, 400, 800, 1200)])
    file = tmp_path_factory.mktemp("few") / "pbmc_mosaic.h5mu"
    whole[rows].copy().write(file)
    return file


def test_a_model_is_scored_on_translations_of_a_batch_it_has_not_seen(multimodal_model, data, tmp_path):  # noqa: F811
    skip = ("--skip", "BABEL-type network", "--num-seeds", "2", "--report", tmp_path / "report.html", "--json")
    command = ("evaluate", "translation", "--model", multimodal_model, multimodal_model, "--data", data)
    found = json.loads(scmbert_ok(*command, *UNSEEN, *skip))
    rows = [row for row in found["rows"] if row["method"] == "scMBERT"]
    assert {row["direction"] for row in rows} == {"rna -> protein", "protein -> rna"}
    assert all(row["num_cells"] == 120 for row in rows)
    rmse = {row["method"]: row["value"] for row in found["rows"] if row["metric"] == "rmse"}
    assert rmse["scMBERT"] < 2 * rmse["train mean"], "a model one step old is near the mean, in the same unit"
    assert {row["uses"] for row in rows} == {"pairs + links"}
    alone = [row for row in found["rows"] if row["method"] == "scMBERT, linear path alone"]
    assert len(alone) == len(rows)
    assert rmse["scMBERT, linear path alone"] < rmse["train mean"], "it starts from the regression of the pairs"
    assert any("it trained on none of the 120 cells that are scored" in note for note in found["notes"])
    assert "rna -&gt; protein" in (tmp_path / "report.html").read_text()


def test_a_model_is_scored_on_matching_of_a_batch_it_has_not_seen(multimodal_model, data, tmp_path):  # noqa: F811
    report = tmp_path / "report.html"
    command = ("evaluate", "matching", "--model", multimodal_model, "--data", data, *UNSEEN)
    found = json.loads(scmbert_ok(*command, "--num-seeds", "2", "--report", report, "--json"))
    methods = {row["method"] for row in found["rows"]}
    assert {
        "model",
        "linear path alone",
        "CCA",
        "SVD + ridge",
        "pseudo-pairs",
        "links only",
        "cell type only",
        "random",
    } <= methods
    model = next(row for row in found["rows"] if row["method"] == "model" and row["metric"] == "FOSCTTM")
    assert model["whole"] is None
    assert (model["num_seeds"], model["num_cells"]) == (2, 120)
    assert 0 < model["mean"] < 0.7
    assert found["information"]["model 0"]["paired_cells"] == 400
    assert any("it trained on none of the 120 cells that are scored" in note for note in found["notes"])
    page = report.read_text()
    assert "Coloured by modality" in page
    assert "Which cell types are matched" in page


@pytest.mark.usefixtures("exact_neighbours")
def test_a_model_is_scored_on_integration_of_all_cells(multimodal_model, data):  # noqa: F811
    found = json.loads(
        scmbert_ok("evaluate", "integration", "--model", multimodal_model, "--data", data, "--num-seeds", "2", "--json")
    )
    of = {(row["method"], row["metric"]): row for row in found["rows"]}
    for method in ("model", "linear path alone"):
        # It was trained to compare modalities, so the space for that is its own; the other is shown, too.
        for space in ("aligned space, the model's own", "cell space"):
            rows = {metric: of[f"{method}, {space}", metric] for metric in ("bio", "batch", "total")}
            assert all(np.isfinite(row["mean"]) for row in rows.values())
            assert rows["total"]["num_cells"] == 480


def test_batches_of_a_probe_are_held_out_together(multimodal_model, data):  # noqa: F811
    command = ("evaluate", "probe", "--model", multimodal_model, "--data", data, "--num-seeds", "1", "--json")
    found = json.loads(scmbert_ok(*command, "--test-batches", "p1", "p4"))
    (rna,) = [result for result in found["results"] if result["modality"] == "rna"]
    folds = [(fold["held_out"], fold["num_train"], fold["num_test"]) for fold in rna["folds"]]
    assert folds == [("p1_0+p4_0", 120, 240)]
    assert "it trained on" in found["seen"][0], "the model's corpus holds cells of this file"
    refused = scmbert(*command, "--test-batches", "p9")
    assert refused.code != 0
    assert "--test-batches p9" in refused.err


@pytest.mark.parametrize("suite", ["translation", "matching"])
def test_a_model_is_not_scored_on_pairs_it_was_trained_on(suite, multimodal_model, data):  # noqa: F811
    ran = scmbert("evaluate", suite, "--model", multimodal_model, "--data", data, *SEEN, "--num-seeds", "2")
    assert ran.code == 2
    assert re.search(
        r"it trained on \d+ pairs of the \d+ cells that are scored; their score would say nothing", ran.err
    )
    assert ran.out == ""


def test_labels_between_cells_without_partner_are_scored_for_a_model_of_all_pairs(
    multimodal_model,  # noqa: F811
    data,
    tmp_path,
):
    """p1 and p2 have no pairs: whichever pairs the model has seen, none is of them."""
    command = ("evaluate", "matching", "--model", multimodal_model, "--data", data, *SEEN, "--num-seeds", "1")
    alone = ("--labels-only", "--no-baselines", "--report", tmp_path / "report.html", "--json")
    found = json.loads(scmbert_ok(*command, *alone))
    assert {row["method"] for row in found["rows"]} == {"model", "linear path alone"}
    assert {row["direction"].split()[0] for row in found["rows"]} == {"labels"}
    assert "accuracy (knn)" in (tmp_path / "report.html").read_text()
    paired = mudata.read_h5mu(data)
    paired[paired.obs["batch"].astype(str).isin(["p3_0", "p4_0"])].copy().write(tmp_path / "pbmc_mosaic.h5mu")
    ran = scmbert("evaluate", "matching", "--data", tmp_path / "pbmc_mosaic.h5mu", *SEEN, "--labels-only")
    assert ran.code == 4
    assert "no technical batches of one modality only" in ran.err


@pytest.mark.parametrize("suite", ["translation", "matching"])
def test_nothing_to_score_is_said(suite):
    ran = scmbert("evaluate", suite, "--no-baselines")
    assert ran.code == 4
    assert "no baselines and no model" in ran.err


def test_a_model_is_scored_on_cell_types_beside_its_controls(multimodal_model, data, tmp_path):  # noqa: F811
    out, controls = tmp_path / "scores", ("linear path alone", "no pre-training", "no gene identities")
    rows = ["scMBERT, probe", *(f"{name}, probe" for name in controls)]
    command = ("evaluate", "annotation", "--model", multimodal_model, "--data", data, "--modalities", "rna")
    options = ("--only", *rows, "majority", "--num-seeds", "2", "--workers", "1", "--output", out, "--json")
    found = json.loads(scmbert_ok(*command, *options))
    accuracy = {row["method"]: row["mean"] for row in found["rows"] if row["metric"] == "accuracy"}
    assert set(accuracy) == {*rows, "majority"}
    assert accuracy["scMBERT, probe"] > accuracy["majority"]
    assert {d["other"] for d in found["differences"]} == {*rows[1:], "majority"}
    assert any("it trained on" in note for note in found["notes"]), "its corpus holds cells of this file"
    again = scmbert(*command, *options)
    assert "20 fits" not in again.err
    assert "50 fits were there from an earlier command" in again.err


def test_a_fine_tuned_model_is_scored_as_one_more_method(multimodal_model, data):  # noqa: F811
    rows = ("scMBERT, last:1", "no pre-training, last:1")
    command = ("evaluate", "annotation", "--model", multimodal_model, "--data", data, "--modalities", "rna")
    options = ("--method", "last:1", "--steps", "2", "--per-type", "5", "--only", *rows, "--num-seeds", "1", "--json")
    found = json.loads(scmbert_ok(*command, *options, "--workers", "1"))
    for metric in ("accuracy", "ece", "coverage"):
        assert {row["method"] for row in found["rows"] if row["metric"] == metric} == set(rows)
    assert found["differences"][0]["other"] == rows[1]
    assert found["failures"] == []
