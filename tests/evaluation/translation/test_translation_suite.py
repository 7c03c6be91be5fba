"""The translation suite with models whose answers are known: what is scored, on which cells, and what is refused."""

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import scmbert
from translation_cells import random_cells

from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.data.value_scale import ValueScale
from scmbert_jax.evaluation.translation.baselines import BASELINES
from scmbert_jax.evaluation.translation.fold import make_fold
from scmbert_jax.evaluation.translation.model import (
    TrainedModels,
    source_cells,
    uses_in_words,
)
from scmbert_jax.evaluation.translation.suite import (
    TranslationSettings,
    make_splits,
    run_translation,
    write_translation_report,
)

FAST = TranslationSettings(num_seeds=3, min_cells=2)
MEAN = BASELINES[0]


@dataclass
class Oracle:
    """A translator that knows the truth of random cells and answers in a unit, order and feature set of its own."""

    cells: object
    noise: float = 0.0
    scale: str | None = None
    forget: int = 0

    def __call__(self, adata, *, source, target, fold):
        assert adata.var["feature_types"].nunique() == 1
        assert set(adata.obs.columns) == set(), "the model is told nothing of a cell but its source counts"
        place = {name: row for row, name in enumerate(self.cells.cell_ids)}
        rows = [place[name] for name in adata.obs_names]
        counts = self.cells.counts[target][rows]
        unit = ValueScale(target, 123.0) if target == "rna" else fold.scale
        values = unit.values(counts).toarray() + self.noise
        order = np.random.default_rng(0).permutation(values.shape[1])[self.forget :]
        return SimpleNamespace(
            values=values[:, order],
            feature_ids=self.cells.features[target].ids[order],
            scale=self.scale or unit.name,
            target_sum=123.0,
        )


@pytest.mark.parametrize("target", ["rna", "protein", "atac"])
def test_a_model_that_knows_the_truth_scores_perfectly_whatever_its_order_of_features_and_target_sum(target):
    cells = random_cells()
    source = "atac" if target == "rna" else "rna"
    splits = make_splits(cells, test_batches=["z"])
    models = TrainedModels((Oracle(cells),))
    report = run_translation(cells, splits, [MEAN, models], directions=[(source, target)], settings=FAST)
    direction = f"{source} -> {target}"
    assert report.row("scMBERT", "rmse", direction).value == pytest.approx(0, abs=1e-5)
    assert report.row("train mean", "rmse", direction).value > 0.1
    if target == "atac":
        assert report.row("scMBERT", "auroc_per_peak", direction).value == 1
        assert report.row("train mean", "auroc_per_peak", direction).value == 0.5


def test_several_models_are_the_seeds_of_one_row_and_one_model_has_no_interval():
    cells = random_cells()
    splits = make_splits(cells, test_batches=["z"])
    several = TrainedModels(tuple(Oracle(cells, noise) for noise in (0.1, 0.2, 0.3)), name="three")
    one = TrainedModels((Oracle(cells, 0.1),), name="one")
    report = run_translation(cells, splits, [several, one], directions=[("rna", "protein")], settings=FAST)
    row = report.row("three", "rmse", "rna -> protein")
    assert (row.value, row.mean, row.num_seeds) == (pytest.approx(0.2), pytest.approx(0.2), 3)
    assert row.half_width == pytest.approx(4.303 * 0.1 / np.sqrt(3), rel=1e-3)
    assert np.isnan(report.row("one", "rmse", "rna -> protein").half_width)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["rows"][-1]["half_width"] is None


def test_a_feature_the_model_does_not_know_and_a_cell_it_says_nan_of_get_the_training_mean():
    cells = random_cells()
    fold, _ = make_fold(cells, "rna", "protein", cells.technical_batches != "z", cells.technical_batches == "z")
    models = TrainedModels((Oracle(cells, forget=5),))
    predicted = models.predict(fold, 0)
    assert models.unknown == {"protein": (5, 12)}
    assert (predicted == fold.train_mean).all(0).sum() == 5

    def silent(adata, **_):
        answer = Oracle(cells)(adata, source="rna", target="protein", fold=fold)
        answer.values[3] = np.nan
        return answer

    np.testing.assert_array_equal(TrainedModels((silent,)).predict(fold, 0)[3], fold.train_mean)


def test_proteins_predicted_as_log_counts_are_scored_as_their_clr():
    cells = random_cells()
    fold, truth = make_fold(cells, "rna", "protein", cells.technical_batches != "z", cells.technical_batches == "z")

    def log_counts(adata, **_):
        counts = cells.counts["protein"][cells.technical_batches == "z"].toarray()
        return SimpleNamespace(
            values=np.log1p(counts), feature_ids=cells.features["protein"].ids, scale="log1p", target_sum=99.0
        )

    np.testing.assert_allclose(TrainedModels((log_counts,)).predict(fold, 0), truth, atol=1e-5)


def test_a_model_that_answers_on_another_scale_is_refused():
    cells = random_cells()
    splits = make_splits(cells, test_batches=["z"])
    models = TrainedModels((Oracle(cells, scale="clr"),))
    with pytest.raises(InputError, match="predicts rna as clr"):
        run_translation(cells, splits, [models], directions=[("protein", "rna")], settings=FAST)


def test_the_cells_given_to_a_model_carry_counts_of_the_source_only():
    cells = random_cells()
    test = cells.technical_batches == "z"
    fold, _ = make_fold(cells, "atac", "rna", ~test, test)
    adata = source_cells(fold)
    assert adata.shape == (test.sum(), 120)
    assert (cells.counts["atac"][test] != adata.X).nnz == 0
    assert adata.obs_names.tolist() == cells.cell_ids[test].tolist()


@pytest.mark.parametrize(
    ("changes", "row", "reason"),
    [
        ({"cell_types": np.full(200, "")}, "cell-type oracle", "no test cell is of a known type that training cells"),
        ({"cell_types": np.repeat("T", 200)}, None, ""),
        ({"features": "unlinked"}, "links only", "no rna feature is linked to a protein feature"),
    ],
)
def test_a_baseline_that_has_nothing_to_go_by_has_no_row(changes, row, reason):
    """It would be the training mean under another name."""
    cells = random_cells()
    if "features" in changes:
        rna = replace(cells.features["rna"], genes=((),) * len(cells.features["rna"]))
        changes = {"features": cells.features | {"rna": rna}}
    report = run_translation(
        replace(cells, **changes),
        make_splits(cells, test_batches=["z"]),
        BASELINES,
        directions=[("rna", "protein")],
        settings=FAST,
    )
    missing = {method.name for method in BASELINES} - {found.method for found in report.rows}
    assert missing == ({row} if row else set())
    said = [note for note in report.notes if "no row of" in note]
    assert len(said) == len(missing)
    assert all(f"z held out: no row of {row}, because {reason}" in note for note in said)


def test_the_oracle_of_types_that_no_training_cell_has_has_no_row():
    cells = random_cells()
    splits = make_splits(cells, held_out_types=["T"])
    report = run_translation(cells, splits, BASELINES, directions=[("rna", "protein")], settings=FAST)
    assert "cell-type oracle" not in {found.method for found in report.rows}


def test_deterministic_methods_have_an_interval_from_subsamples_and_a_headline_from_all_cells():
    cells = random_cells()
    report = run_translation(
        cells, make_splits(cells, test_batches=["z"]), [MEAN], directions=[("rna", "protein")], settings=FAST
    )
    row = report.row("train mean", "rmse", "rna -> protein")
    fold, truth = make_fold(cells, "rna", "protein", cells.technical_batches != "z", cells.technical_batches == "z")
    assert row.value == pytest.approx(np.sqrt(np.mean((truth - fold.train_mean) ** 2)))
    assert row.num_seeds == 3
    assert 0 < row.half_width < 0.1
    assert row.num_cells == fold.num_test


def test_errors_by_cell_type_add_up_to_the_whole():
    cells = random_cells()
    report = run_translation(
        cells, make_splits(cells, test_batches=["z"]), [MEAN], directions=[("rna", "protein")], settings=FAST
    )
    squares = sum(row.rmse**2 * row.num_cells for row in report.type_errors)
    number = sum(row.num_cells for row in report.type_errors)
    assert np.sqrt(squares / number) == pytest.approx(report.row("train mean", "rmse", "rna -> protein").value)
    assert {row.cell_type for row in report.type_errors} == {"B", "NK", "T"}


# --- splits ----------------------------------------------------------------------------------------------------------


def test_each_batch_is_held_out_in_turn_without_options():
    cells = random_cells()
    splits = make_splits(cells)
    assert [split.name for split in splits] == ["x held out", "y held out", "z held out"]
    assert all((split.train ^ split.test).all() for split in splits)


def test_cell_types_can_be_held_out():
    cells = random_cells()
    (split,) = make_splits(cells, held_out_types=["T"])
    assert set(cells.cell_types[split.test]) == {"T"}
    assert set(cells.cell_types[split.train]) == {"B", "NK"}
    assert not split.by_batch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_batches": ["q"]}, "--test-batches q: .*x, y, z"),
        ({"test_batches": ["x"], "train_batches": ["x", "y"]}, "a batch in common"),
        ({"train_batches": ["x"]}, "name the --test-batches"),
        ({"held_out_types": ["T"], "test_batches": ["x"]}, "leave --train-batches and --test-batches out"),
        ({"held_out_types": ["Q"]}, "--held-out-types Q: .*B, NK, T"),
    ],
)
def test_a_split_that_cannot_be_made_says_why(options, message):
    with pytest.raises(ConfigError, match=message):
        make_splits(random_cells(), **options)


def test_too_few_pairs_are_refused():
    cells = random_cells()
    few = replace(cells, measured={**cells.measured, "protein": np.arange(200) < 32})
    splits = make_splits(few, test_batches=["z"])
    with pytest.raises(InputError, match="9 test cells with rna and protein; at least 10"):
        run_translation(few, splits, [MEAN], directions=[("rna", "protein")], settings=FAST)


# --- has it seen the answers? ----------------------------------------------------------------------------------------


def test_the_table_says_what_a_model_uses():
    told = {"paired_cells": 0, "pseudo_paired_cells": 9, "links": {"protein": 70}, "labels": False}
    assert uses_in_words(told) == "pseudo-pairs + links"
    assert uses_in_words({"paired_cells": 0, "links": {}}) == "no pairs"
    assert uses_in_words(None) == uses_in_words({"paired_cells": None}) == "unknown"


# --- command line ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_baselines_are_printed_for_the_example_as_table_and_as_json(tmp_path):
    options = ("--train-batches", "p3", "--test-batches", "p4", "--num-seeds", "2", "--directions", "rna>protein")
    skipped = ("--skip", "BABEL-type network,ridge")
    ran = scmbert("evaluate", "translation", *options, *skipped, "--report", tmp_path / "report.html")
    assert ran.code == 0, ran.err
    assert "| cell-type oracle" in ran.out
    assert "| ridge" not in ran.out
    page = (tmp_path / "report.html").read_text()
    assert "RMSE by cell type" in page
    assert "Predicted and measured: rna -&gt; protein" in page
    assert "Error by cell type" in page
    document = json.loads(scmbert("evaluate", "translation", *options, *skipped, "--json").out)
    row = next(r for r in document["rows"] if (r["method"], r["metric"]) == ("SVD50 + ridge", "rmse"))
    assert row["value"] == pytest.approx(0.2763, abs=5e-4)
    assert (row["num_seeds"], row["num_cells"]) == (2, 400)


def test_the_report_draws_the_features_that_were_asked_for_and_the_best_method_that_may_be_used():
    cells = random_cells()
    name = cells.features["protein"].names[3]
    splits = make_splits(cells, test_batches=["z"])
    report = run_translation(cells, splits, BASELINES, directions=[("rna", "protein")], settings=FAST, features=[name])
    (picture,) = report.pictures
    assert picture.names == (name,)
    assert picture.honest == ["ridge", "SVD50 + ridge", "KNN25"]
    whole = np.sqrt((picture.errors["KNN25"] ** 2).mean())
    assert whole == pytest.approx(report.row("KNN25", "rmse", "rna -> protein").value, rel=1e-5)
    headings = [heading for heading, _, _ in picture.drawings()]
    assert headings == [
        f"{kind}: rna -> protein, z held out" for kind in ("Predicted and measured", "Error by cell type")
    ]
    with pytest.raises(ConfigError, match="--features nonsense: the data has no feature"):
        run_translation(cells, splits, [MEAN], features=["nonsense"])


def test_a_feature_that_no_model_can_know_is_not_drawn_while_there_are_others():
    def drawn(cells):
        splits = make_splits(cells, test_batches=["z"])
        (picture,) = run_translation(cells, splits, [MEAN], directions=[("rna", "protein")], settings=FAST).pictures
        return picture.names

    cells = random_cells()
    first, *others = drawn(cells)
    columns = cells.features["protein"]
    unknown = replace(columns, ids=np.where(columns.names == first, "", columns.ids))
    found = drawn(replace(cells, features={**cells.features, "protein": unknown}))
    assert found[: len(others)] == tuple(others)
    assert first not in found


def test_a_baseline_that_does_not_exist_cannot_be_skipped():
    ran = scmbert("evaluate", "translation", "--skip", "lasso")
    assert ran.code == 4
    assert "there are train mean, ridge" in ran.err


def test_a_report_is_written_for_cells_without_types(tmp_path):
    cells = random_cells()
    cells = replace(cells, cell_types=np.full(200, ""))
    splits = make_splits(cells, test_batches=["z"])
    report = run_translation(cells, splits, [MEAN], directions=[("rna", "protein")], settings=FAST)
    assert report.type_errors == ()
    assert write_translation_report(tmp_path / "report.html", report, {}).is_file()
