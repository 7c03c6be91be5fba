"""Benchmark folders that the test writes itself, and the organisers' metrics against direct arithmetic."""

import json

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import scmbert
from scipy.stats import pearsonr, spearmanr

from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.translation.benchmark_metrics import kaggle_correlations, kaggle_score, openproblems_scores
from scmbert_jax.evaluation.translation.task_formats import score_folder


def linked_values(num_cells):
    """Sources [num_cells, 20] and the targets [num_cells, 9] that follow from them, nearly."""
    rng = np.random.default_rng(num_cells)
    source = rng.gamma(1.0, size=(num_cells, 20)) * (rng.random((num_cells, 20)) < 0.6)
    return source, np.maximum(source @ WEIGHTS + 0.3 * rng.normal(size=(num_cells, 9)), 0)


WEIGHTS = np.random.default_rng(0).normal(size=(20, 9))


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_openproblems_metrics_are_means_of_row_and_column_correlations_and_those_of_all_entries():
    truth, predicted = np.random.default_rng(0).random((2, 30, 8)).round(1)
    found = openproblems_scores(truth, predicted)
    assert found["rmse"] == pytest.approx(np.sqrt(((truth - predicted) ** 2).mean()))
    assert found["mae"] == pytest.approx(np.abs(truth - predicted).mean())
    for name, correlation in (("pearson", pearsonr), ("spearman", spearmanr)):
        rows = [correlation(a, b)[0] for a, b in zip(truth, predicted, strict=True)]
        columns = [correlation(a, b)[0] for a, b in zip(truth.T, predicted.T, strict=True)]
        assert found[f"mean_{name}_per_cell"] == pytest.approx(np.mean(rows), abs=1e-6)
        assert found[f"mean_{name}_per_gene"] == pytest.approx(np.mean(columns), abs=1e-6)
        assert found[f"overall_{name}"] == pytest.approx(correlation(truth.ravel(), predicted.ravel())[0], abs=1e-6)


def test_a_constant_scores_0_at_openproblems_and_minus_1_at_kaggle():
    truth = np.random.default_rng(1).random((4, 5))
    predicted = truth.copy()
    predicted[1] = 0.3
    assert openproblems_scores(truth, predicted)["mean_pearson_per_cell"] == pytest.approx(3 / 4)
    np.testing.assert_allclose(kaggle_correlations(truth, predicted), [1, -1, 1, 1])
    assert openproblems_scores(truth, np.zeros_like(truth))["overall_spearman"] == 0


def test_every_cell_counts_once_at_kaggle_whatever_its_technology():
    assert kaggle_score([np.ones(3), np.zeros(1)]) == 0.75


@pytest.mark.parametrize("score", [openproblems_scores, kaggle_correlations])
def test_predictions_that_are_no_numbers_are_refused(score):
    with pytest.raises(ValueError, match="nan"):
        score(np.eye(3), np.full((3, 3), np.nan))


# --- OpenProblems ----------------------------------------------------------------------------------------------------


def write_openproblems(folder, *, layer="normalized", prefix=""):
    """Training and test files; the truth of the test cells."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = linked_values(80), linked_values(30)
    for side, parts in (("train", train), ("test", test)):
        for modality, values in zip(("mod1", "mod2"), parts, strict=True):
            write_values(folder / f"{prefix}{side}_{modality}.h5ad", values, side, modality, layer)
    return test[1]


def write_values(path, values, side, modality, layer="normalized", **uns):
    names = {
        "obs": pd.DataFrame(index=[f"{side}{i}" for i in range(len(values))]),
        "var": pd.DataFrame(index=[f"{modality}_{i}" for i in range(values.shape[1])]),
    }
    matrix = sp.csr_matrix(values.astype(np.float32))
    uns = {"dataset_id": "bmmc", **uns}
    if layer is None:
        anndata.AnnData(matrix, **names, uns=uns).write_h5ad(path)
    else:
        anndata.AnnData(**names, layers={layer: matrix}, uns=uns).write_h5ad(path)


@pytest.mark.parametrize(("layer", "prefix"), [("normalized", ""), (None, "openproblems_bmmc_cite_phase2_rna.")])
def test_both_layouts_of_openproblems_are_read_and_their_predictions_scored(tmp_path, layer, prefix):
    truth = write_openproblems(tmp_path, layer=layer, prefix=prefix)
    write_values(tmp_path / "prediction.h5ad", truth + 0.5, "test", "mod2", layer, method_id="shifted")
    (tmp_path / "predictions").mkdir()
    write_values(tmp_path / "predictions" / "best.h5ad", truth, "test", "mod2", layer, method_id="truth")
    found = score_folder(tmp_path)
    assert found.value("shifted", "rmse") == pytest.approx(0.5, abs=1e-6)
    assert found.value("shifted", "overall_pearson") == pytest.approx(1, abs=1e-6)
    assert found.value("truth", "rmse") == 0
    assert found.value("zeros", "mean_pearson_per_gene") == 0
    assert found.value("SVD19 + ridge", "mean_pearson_per_gene") > 0.6
    assert found.value("SVD19 + ridge", "rmse") < found.value("train mean", "rmse")
    assert found.rows[0]["task"] == "bmmc"


def test_the_command_line_takes_a_folder(tmp_path):
    write_openproblems(tmp_path / "bmmc")
    ran = scmbert("evaluate", "translation", "--data", tmp_path / "bmmc", "--json")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["format"] == "OpenProblems, predict modality"
    assert {row["method"] for row in document["rows"]} == {"zeros", "train mean", "SVD19 + ridge", "KNN25"}
    assert "KNN25" in scmbert("evaluate", "translation", "--data", tmp_path / "bmmc").out
    refused = scmbert("evaluate", "translation", "--data", tmp_path / "bmmc", "--model", tmp_path)
    assert refused.code == 4
    assert "Leave --model" in refused.err


def test_a_prediction_in_another_order_or_of_another_data_set_is_refused(tmp_path):
    truth = write_openproblems(tmp_path)
    write_values(tmp_path / "prediction.h5ad", truth, "test", "mod2", dataset_id="other")
    with pytest.raises(InputError, match=r"prediction.h5ad: uns.*'other'; the solution's is 'bmmc'"):
        score_folder(tmp_path)
    write_values(tmp_path / "prediction.h5ad", truth, "test", "mod2")
    adata = anndata.read_h5ad(tmp_path / "prediction.h5ad")
    adata[::-1].copy().write_h5ad(tmp_path / "prediction.h5ad")
    with pytest.raises(InputError, match="its 30 cells are the same, in another order"):
        score_folder(tmp_path)


def test_a_folder_with_a_file_missing_or_none_of_a_benchmark_says_what_it_found(tmp_path):
    write_openproblems(tmp_path / "a")
    (tmp_path / "a" / "test_mod2.h5ad").unlink()
    with pytest.raises(InputError, match=r"0 files \*test_mod2.h5ad \(none\)"):
        score_folder(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "cells.h5ad").touch()
    with pytest.raises(InputError, match=r"Found: cells.h5ad"):
        score_folder(tmp_path / "b")


# --- Kaggle ----------------------------------------------------------------------------------------------------------


def write_frame(path, values, cells, features):
    """As DataFrame.to_hdf(format="fixed") lays a float frame out."""
    with h5py.File(path, "w") as file:
        group = file.create_group(path.stem)
        group["axis0"], group["axis1"] = np.array(features, "S"), np.array(cells, "S")
        group["block0_items"] = np.array(features, "S")
        group["block0_values"] = values.astype(np.float32)


def write_kaggle(folder, technology, with_test=True, num_test=30):
    """Training files, and the test files (truth returned); the training cells are of days 2 and 3."""
    sides = {"train": 60, **({"test": num_test} if with_test else {})}
    metadata, truth = [], None
    for side, number in sides.items():
        source, target = linked_values(number)
        cells = [f"{technology}_{side}{i}" for i in range(number)]
        write_frame(folder / f"{side}_{technology}_inputs.h5", source, cells, [f"in{i}" for i in range(20)])
        write_frame(folder / f"{side}_{technology}_targets.h5", target, cells, [f"{technology}{i}" for i in range(9)])
        metadata += [{"cell_id": cell, "day": 2 + (i % 3 == 0), "donor": 1} for i, cell in enumerate(cells)]
        truth = pd.DataFrame(target, cells, [f"{technology}{i}" for i in range(9)]) if side == "test" else truth
    pd.DataFrame(metadata).to_csv(folder / "metadata.csv", index=False)
    return truth


def test_a_kaggle_folder_is_scored_over_the_cells_of_both_technologies(tmp_path):
    for technology, number in (("cite", 30), ("multi", 10)):
        write_kaggle(tmp_path, technology, num_test=number)
    found = score_folder(tmp_path)
    cite, multi = (found.value("SVD19 + ridge", "pearson", task) for task in ("cite", "multi"))
    assert cite > 0.6
    assert found.value("SVD19 + ridge", "pearson", "all cells") == pytest.approx((30 * cite + 10 * multi) / 40)
    assert found.value("zeros", "pearson", "all cells") == -1


def test_without_test_targets_the_last_day_is_held_out_and_the_notes_say_so(tmp_path):
    write_kaggle(tmp_path, "cite", with_test=False)
    found = score_folder(tmp_path)
    assert found.rows[0]["num_cells"] == 20
    assert "20 cells of day 3 are held out" in found.notes[0]


def test_a_submission_counts_the_cells_it_was_asked_for(tmp_path):
    truth = write_kaggle(tmp_path, "cite")
    asked = truth.iloc[[3, 7]].stack().rename_axis(["cell_id", "gene_id"]).reset_index(name="target")
    asked = asked.sample(frac=1, random_state=0).reset_index(drop=True).rename_axis("row_id").reset_index()
    asked[["row_id", "cell_id", "gene_id"]].to_csv(tmp_path / "evaluation_ids.csv", index=False)
    answers = asked[["row_id", "target"]].copy()
    answers.loc[asked["cell_id"] == "cite_test7", "target"] = 1.0  # constant: -1
    answers.iloc[::-1].to_csv(tmp_path / "submission.csv", index=False)
    found = score_folder(tmp_path)
    assert found.value("submission", "pearson", "all cells") == pytest.approx((1 - 1) / 2, abs=1e-6)
    answers.iloc[:-2].to_csv(tmp_path / "submission.csv", index=False)
    with pytest.raises(InputError, match="2 of the 18 rows asked for are missing"):
        score_folder(tmp_path)


def test_a_table_of_another_layout_is_refused(tmp_path):
    write_kaggle(tmp_path, "cite")
    with h5py.File(tmp_path / "train_cite_targets.h5", "w") as file:
        file["matrix"] = np.eye(3)
    with pytest.raises(InputError, match=r"0 pandas tables .matrix in it.; expected one"):
        score_folder(tmp_path)
    (tmp_path / "train_cite_targets.h5").write_bytes(b"no hdf5")
    with pytest.raises(InputError, match="truncated or damaged HDF5"):
        score_folder(tmp_path)
