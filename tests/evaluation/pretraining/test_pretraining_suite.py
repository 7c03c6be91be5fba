"""`scmbert evaluate pretraining`: what it says of cells that training has not seen, and which cells are not scored."""

import json

import mudata
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import scmbert, scmbert_ok

from data_pipelines.readers.example_reader import example_path
from scmbert_jax.evaluation.intervals import CellInterval
from scmbert_jax.evaluation.pretraining import masked_cells, pca_ridge
from scmbert_jax.evaluation.pretraining.masked_baselines import CELL_RATE, MARGINAL
from scmbert_jax.evaluation.pretraining.pca_ridge import PCA
from scmbert_jax.evaluation.pretraining.result import run_drawings


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """30 cells that the model knows, and 60 with a third of their counts lost, which are others; RNA and protein."""
    whole = mudata.read_h5mu(example_path("pbmc_mosaic"))
    both = np.flatnonzero(np.isin(whole.obs_names, whole["rna"].obs_names.intersection(whole["adt"].obs_names)))
    whole = whole[both[:90]].copy()
    for part in whole.mod.values():
        counts = sp.csr_matrix(part.X)
        kept = np.random.default_rng(0).binomial(counts.data.astype(int), 2 / 3)
        counts.data = np.where(np.repeat(np.arange(90), np.diff(counts.indptr)) < 30, counts.data, kept)
        part.X = counts
    whole.obs["person"] = [f"d{number % 6}" for number in range(90)]
    file = tmp_path_factory.mktemp("thinned") / "thinned.h5mu"
    whole.write(file)
    return file


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(masked_cells, "_MOST_DRAWS", 1)
    monkeypatch.setattr(pca_ridge, "COMPONENTS", (8,))
    monkeypatch.setattr(pca_ridge, "STRENGTHS", (100.0,))


@pytest.mark.slow
def test_a_model_is_scored_beside_its_baselines_on_cells_it_has_not_seen(
    pbmc_model, pbmc_corpus, pbmc_run, data, quickly, tmp_path
):
    report = tmp_path / "report.html"
    command = ("evaluate", "pretraining", "--model", pbmc_model, "--data", data, "--training", pbmc_corpus)
    options = ("--obs-field", "donor=person", "--run-dir", pbmc_run, "--report", report, "--json")
    found = json.loads(scmbert_ok(*command, *options))
    assert found["cells"] == {"rna": 60, "protein": 60}
    assert found["resampled"] == "donors"
    assert any("30 of its 90 cells are left out because the model was trained on them" in x for x in found["notes"])
    bits = {(row["modality"], row["method"]): row for row in found["rows"] if row["level"] == "all"}
    methods = {"model", "model, from [CLS] alone", "linear path alone", PCA, CELL_RATE, MARGINAL}
    assert {method for modality, method in bits if modality == "protein"} == methods
    assert len({row["tokens"] for (modality, _), row in bits.items() if modality == "rna"}) == 1, "the same tokens"
    for modality in ("rna", "protein"):
        # Six steps old, the model is where it began, at each feature's tokens; how rare zeros are there it is not told.
        assert 0.95 < bits[modality, "model"]["bits"] / bits[modality, MARGINAL]["bits"] < 1.1
        assert bits[modality, MARGINAL]["low"] < bits[modality, MARGINAL]["bits"] < bits[modality, MARGINAL]["high"]
    page = report.read_text()
    assert "Bits saved, compared with each feature alone" in page
    assert "bits per masked token" in page


def test_cells_that_training_has_seen_are_not_scored(pbmc_model, pbmc_corpus, data):
    command = ("evaluate", "pretraining", "--model", pbmc_model, "--data", "example:pbmc_mosaic", "--training")
    ran = scmbert(*command, pbmc_corpus)
    assert ran.code == 2
    assert "1,600 of its 1,600 cells are left out because the model was trained on them" in ran.err
    assert "0 are left" in ran.err
    ran = scmbert("evaluate", "pretraining", "--model", pbmc_model, "--data", data, "--training", data)
    assert ran.code == 2
    assert "60 because they are among the training cells of the baselines" in ran.err


def test_the_curves_of_a_run_stand_beside_its_baselines():
    rows = [
        {"step": step, "validation/masked/rna/bits": 2.0 - step / 100, "validation/masked/rna/bits_pca": 1.9}
        for step in (10, 20, 30)
    ]
    ((heading, svg, _),) = run_drawings([{"step": 5, "loss": 1.0}, *rows])
    assert heading == "Validation while it trained, RNA"
    assert "model 1.700" in svg
    assert "PCA, ridge 1.900" in svg
    assert run_drawings([{"step": 5, "loss": 1.0}]) == []


def test_the_verdict_is_that_of_the_interval():
    from scmbert_jax.evaluation.pretraining.result import _verdict

    assert _verdict(CellInterval(-0.1, -0.2, -0.05)) == "better"
    assert _verdict(CellInterval(0.1, 0.05, 0.2)) == "worse"
    assert _verdict(CellInterval(0.1, -0.05, 0.2)) == "no clear difference"
    assert _verdict(CellInterval(0.1, float("nan"), float("nan"))) == "no clear difference"
