"""The suite on small files whose types are planted."""

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from annotated_cells import write_cells
from conftest import scmbert, scmbert_ok

from scmbert_jax.annotation.label_tree import Hierarchy
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.annotation import suite
from scmbert_jax.evaluation.annotation.baselines import ALL_BASELINES
from scmbert_jax.evaluation.annotation.cells import read_suite_cells
from scmbert_jax.evaluation.annotation.choice import AnnotationChoice
from scmbert_jax.evaluation.annotation.kept_fits import KeptFits, digest_of_cells
from scmbert_jax.evaluation.annotation.run import fit_all
from scmbert_jax.evaluation.annotation.splits import make_tasks
from scmbert_jax.evaluation.annotation.suite import evaluate_annotation
from scmbert_jax.evaluation.annotation.task import Predictions

QUICK = ("majority", "nearest centroid", "SVD + shrinkage LDA")
FEW = AnnotationChoice(only=QUICK, num_seeds=2, num_resamples=50)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_cells(tmp_path_factory.mktemp("annotated") / "cells.h5ad")


@pytest.fixture(scope="module")
def cells(file):
    return read_suite_cells([str(file)])


@dataclass(frozen=True)
class Scripted:
    """A method of ours that says what the test wants."""

    name: str = "ours"
    role: str = "ours"
    arms: tuple[str, ...] = ("",)
    parallel: bool = False
    fails: str = ""
    answers: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def identity(self):
        return {"name": self.name}

    def lacks(self, task):
        return ""

    def fit_predict(self, cells, task):
        if self.fails:
            raise RuntimeError(self.fails)
        return {"": Predictions(np.eye(task.num_classes, dtype=np.float32)[self.answers[task.test]])}


# --- baselines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ALL_BASELINES, ids=lambda method: method.name)
def test_every_baseline_finds_planted_types_with_either_setting(method, cells):
    """180 cells, of which a fold of 36 is predicted; one left-out part, so that costly ones take a second."""
    task = make_tasks(cells.labelled, "cell", num_seeds=1)[0]
    few = replace(method, grid=method.grid[:2]) if method.costly else method
    (found,) = fit_all(cells.values, [task], [few]).found.values()  # with one thread, as the suite does
    assert list(found) == list(method.arms)
    for predictions in found.values():
        p = predictions.probabilities
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
        right = (p.argmax(1) == cells.labelled.codes[task.test]).mean()
        assert right < 0.6 if method.name == "majority" else right > 0.8
        held_out = predictions.left_out_probabilities
        assert held_out.shape == (predictions.left_out.size, 3)
        assert np.unique(predictions.left_out).size == predictions.left_out.size


def test_a_setting_is_chosen_by_training_cells_alone(cells):
    task = make_tasks(cells.labelled, "cell", num_seeds=1)[0]
    (method,) = [method for method in ALL_BASELINES if method.name == "kNN"]
    before = fit_all(cells.values, [task], [method]).found[0, 0]["tuned"]
    assert before.setting != method.grid[0]
    task.test[:] = task.test[::-1].copy()  # other cells asked for in another order: the same answers, no other choice
    after = fit_all(cells.values, [task], [method]).found[0, 0]["tuned"]
    task.test[:] = task.test[::-1].copy()
    assert after.setting == before.setting
    np.testing.assert_allclose(after.probabilities[::-1], before.probabilities)


def test_one_cell_of_each_type_leaves_nothing_to_choose_by(cells):
    task = make_tasks(cells.labelled, "cell", per_type=(1,), num_seeds=1)[0]
    methods = [method for method in ALL_BASELINES if method.name in ("SVD + LR", "SVD + shrinkage LDA")]
    fits = fit_all(cells.values, [task], methods)
    assert fits.lacking == {("SVD + shrinkage LDA", "cell", "1 per type"): "it needs 2 cells of a type"}
    (arms,) = fits.found.values()
    assert arms["tuned"].setting == arms["default"].setting
    assert arms["tuned"].left_out_probabilities is None


# --- the whole suite -------------------------------------------------------------------------------------------------


def test_rows_of_every_metric_for_every_method(file):
    report = evaluate_annotation([str(file)], FEW)
    for metric in ("accuracy", "macro_f1", "ece", "ece_raw", "brier", "coverage", "set_size", "accuracy_at_80"):
        row = report.row("SVD + shrinkage LDA (tuned)", metric)
        assert (row.num_seeds, row.num_cells) == (2, 180)
    assert report.row("SVD + shrinkage LDA (tuned)", "macro_f1").mean > 0.9
    assert report.row("majority", "macro_f1").mean < 0.25
    assert report.row("SVD + shrinkage LDA (tuned)", "coverage").mean > 0.85
    assert not report.failed
    assert "no row" not in report.text()


def test_ours_is_compared_with_every_row_and_a_failure_stops_no_other(file, cells):
    truth = cells.labelled.codes
    ours = [Scripted(answers=truth), Scripted("broken", fails="the weights are gone")]
    choice = replace(FEW, only=(*QUICK, "ours", "broken"))
    report = evaluate_annotation([str(file)], choice, ours=lambda *asked: (ours, ["A note on ours."]))
    assert report.row("ours", "accuracy").mean == 1.0
    (against,) = [d for d in report.differences if d.other == "majority" and d.metric == "macro_f1"]
    assert against.verdict == "better"
    assert against.p_cells < 0.05
    assert {d.method for d in report.differences} == {"ours"}
    (failure,) = report.failures
    assert (failure.method, failure.kind) == ("broken", "failed")
    assert failure.reason == "10 of 10 fits: RuntimeError: the weights are gone"
    assert report.failed
    assert "the weights are gone" in report.text()
    assert "A note on ours." in report.markdown()


def test_new_types_are_scored_by_type_and_on_average(file):
    report = evaluate_annotation([str(file)], replace(FEW, splits=("type",), only=(*QUICK, "SVD + LR")))
    for score in ("energy", "mahalanobis", "knn"):
        assert 0.5 < report.row("SVD + LR (tuned)", f"novelty AUROC, {score}", "mean of types").mean <= 1.0
    row = report.row("SVD + shrinkage LDA (tuned)", "novelty AUROC, max softmax", "B")
    assert 0.6 < row.mean <= 1.0
    each = [report.row("majority", "novelty AUROC, max softmax", case).mean for case in ("B", "NK", "T")]
    assert each == [0.5] * 3
    assert report.row("majority", "union_accuracy", "mean of types").mean == pytest.approx(
        np.mean([report.row("majority", "union_accuracy", case).mean for case in ("B", "NK", "T")])
    )


def test_two_files_of_other_genes_and_names_predict_each_other(tmp_path):
    import anndata

    first = write_cells(tmp_path / "a.h5ad")
    second = write_cells(tmp_path / "b.h5ad", seed=1, number=120)
    other = anndata.read_h5ad(second)[:, 5:].copy()
    other.obs["cell_type"] = other.obs["cell_type"].astype(str).replace({"T": "T cells"})
    other.write_h5ad(second)
    choice = replace(FEW, splits=("data_set",))
    names = {"T cells": "T"}
    report = evaluate_annotation([str(first), str(second)], choice, renamed=names)
    for case in ("a -> b", "b -> a"):
        assert report.row("SVD + shrinkage LDA (tuned)", "macro_f1", case).mean > 0.85
    assert "The files share 75 rna features; every method reads these." in report.notes
    unnamed = evaluate_annotation([str(first), str(second)], choice)
    assert unnamed.row("SVD + shrinkage LDA (tuned)", "macro_f1", "a -> b").mean < 0.8
    assert any("b alone has the labels T cells" in note for note in unnamed.notes)
    with pytest.raises(ConfigError, match="--label-names: no cell has the label 'Monocyte'"):
        evaluate_annotation([str(first), str(second)], choice, renamed={"Monocyte": "M"})


def test_a_file_and_a_copy_of_it_under_other_genes_are_refused(tmp_path):
    import anndata

    first, second = write_cells(tmp_path / "a.h5ad"), tmp_path / "b.h5ad"
    anndata.read_h5ad(first)[:60, :70].copy().write_h5ad(second)
    with pytest.raises(InputError, match="120 cells are tested on"):
        evaluate_annotation([str(first), str(second)], replace(FEW, splits=("data_set",)))


def test_a_label_below_the_true_one_is_right_by_a_hierarchy(file, cells):
    """Ours says NK for every T cell; below T in this table, so that is right by its rule."""
    answers = np.where(cells.labelled.codes == 2, 1, cells.labelled.codes)
    hierarchy = Hierarchy({"NK": ("T",), "T": (), "B": ()})
    ours = lambda *asked: ([Scripted(answers=answers)], [])  # noqa: E731
    report = evaluate_annotation([str(file)], replace(FEW, only=("ours",)), ours=ours, hierarchy=hierarchy)
    assert report.row("ours", "accuracy").mean < 0.8
    assert report.row("ours", "ontology").mean == 1.0


def test_unknown_names_of_methods_are_refused(file):
    with pytest.raises(ConfigError, match="--skip 'SVM': there are 'majority'"):
        evaluate_annotation([str(file)], replace(FEW, skip=("SVM",)))


# --- kept fits -------------------------------------------------------------------------------------------------------


def test_what_was_fitted_is_not_fitted_again_unless_something_changed(cells, tmp_path):
    tasks = make_tasks(cells.labelled, "cell", num_seeds=1)
    methods = [method for method in ALL_BASELINES if method.name in QUICK]
    kept = KeptFits(tmp_path, digest_of_cells(cells.values))
    first = fit_all(cells.values, tasks, methods, kept=kept)
    again = fit_all(cells.values, tasks, methods, kept=kept)
    assert (first.num_kept, again.num_kept) == (0, 15)
    for job, arms in first.found.items():
        for arm, predictions in arms.items():
            read = again.found[job][arm]
            np.testing.assert_array_equal(read.probabilities, predictions.probabilities)
            np.testing.assert_array_equal(read.left_out_probabilities, predictions.left_out_probabilities)
            assert read.setting == predictions.setting
    one = replace(tasks[0], codes=np.roll(tasks[0].codes, 1))
    assert fit_all(cells.values, [one], methods, kept=kept).num_kept == 0, "other labels"
    assert fit_all(cells.values, tasks, [replace(methods[1], grid=methods[1].grid[:1])], kept=kept).num_kept == 0
    kept.path(methods[0], tasks[0]).write_bytes(b"PK half of a file")
    assert fit_all(cells.values, tasks, methods, kept=kept).num_kept == 14, "what is not whole is made again"


@pytest.mark.slow
def test_processes_give_what_one_process_gives(cells):
    tasks = make_tasks(cells.labelled, "cell", num_seeds=1)[:2]
    methods = [*[method for method in ALL_BASELINES if method.name in QUICK], Scripted(answers=cells.labelled.codes)]
    alone, several = (fit_all(cells.values, tasks, methods, workers=number) for number in (1, 2))
    assert alone.found.keys() == several.found.keys()
    for job, arms in alone.found.items():
        for arm, predictions in arms.items():
            np.testing.assert_array_equal(several.found[job][arm].probabilities, predictions.probabilities)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_three_reports_and_continues(file, tmp_path):
    out = tmp_path / "scores"
    command = ("evaluate", "annotation", "--data", file, "--only", *QUICK, "--num-seeds", "2", "--workers", "1")
    said = scmbert_ok(*command, "--per-type", "2", "10", "--output", out)
    assert "Macro-F1 by labelled cells" in said
    document = json.loads((out / "annotation.json").read_text())
    assert {row["case"] for row in document["rows"]} == {"2 per type", "10 per type"}
    assert "| nearest centroid (tuned)" in (out / "annotation.md").read_text()
    page = (out / "report.html").read_text()
    assert "Who is taken for whom" in page
    assert "labelled cells of each type" in page
    assert "fits were there from an earlier command" in scmbert(*command, "--per-type", "2", "--output", out).err


def test_a_failed_method_leaves_the_reports_and_an_exit_code(file, tmp_path, monkeypatch):
    broken = replace(ALL_BASELINES[1], fit=lambda *arguments: 1 / 0)
    monkeypatch.setattr(suite, "ALL_BASELINES", (ALL_BASELINES[0], broken))
    out = tmp_path / "scores"
    ran = scmbert("evaluate", "annotation", "--data", file, "--num-seeds", "1", "--workers", "1", "--output", out)
    assert ran.code == 11
    assert "nearest centroid (all cells): 5 of 5 fits: ZeroDivisionError" in ran.err
    assert "Rows that are missing" in (out / "annotation.md").read_text()
    assert "| majority" in ran.out


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--per-type", "many"), 4, "--per-type many: expected all, or numbers"),
        (("--split", "donors"), 4, "--split donors: expected cell, donor"),
        (("--split", "technical_batch"), 2, "every cell needs one, of two or more"),
        (("--num-seeds", "0"), 4, "--num-seeds 0: expected 1 or more"),
        (("--modalities", "atac"), 4, "--modalities atac: the data has rna"),
        (("--obs-field", "cell_type="), 2, "no cell has a type. Say which column holds them"),
    ],
)
def test_what_cannot_be_scored_is_refused(options, code, said, file):
    ran = scmbert("evaluate", "annotation", "--data", file, "--workers", "1", *options)
    assert ran.code == code
    assert said in ran.err


def test_copies_of_cells_are_refused_by_name(tmp_path):
    file = write_cells(tmp_path / "copies.h5ad", copies=20)
    command = ("evaluate", "annotation", "--data", file, "--only", "majority", "--num-seeds", "1", "--workers", "1")
    ran = scmbert(*command)
    assert ran.code == 2
    assert "stand among those to learn from" in ran.err
    assert "--allow-identical-cells" in ran.err
    assert "this was allowed" in scmbert_ok(*command, "--allow-identical-cells")


def test_names_of_types_may_be_numbers_or_markup(tmp_path):
    names = np.array(["<b>B</b>", "7", "x|y"])
    file = write_cells(tmp_path / "names.h5ad", cell_type=names[np.arange(180) % 3])
    out = tmp_path / "scores"
    command = ("evaluate", "annotation", "--data", file, "--only", "nearest centroid", "--num-seeds", "1")
    scmbert_ok(*command, "--workers", "1", "--output", out)
    page = (out / "report.html").read_text()
    assert "&lt;b&gt;B" in page
    assert "<b>B</b>" not in page
    assert json.loads((out / "annotation.json").read_text())["classes"] == ["7", "<b>B</b>", "x|y"]


def test_a_folder_of_other_things_is_not_written_to(file, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    ran = scmbert("evaluate", "annotation", "--data", file, "--workers", "1", "--output", tmp_path)
    assert ran.code == 4
    assert "is there and is not a folder of annotation scores" in ran.err
