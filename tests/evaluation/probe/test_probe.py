"""The probe suite on embeddings whose answer is known."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.probe import probe as probe_module
from scmbert_jax.evaluation.probe.probe import PROBES, Prediction, run_probe
from scmbert_jax.evaluation.probe.result import DifferenceRow, FitCounts, ProbeResult, ProbeRow, ProbeSettings
from scmbert_jax.evaluation.probe.tables import method_notes, render_differences, render_table, summary_sentences
from scmbert_jax.text_table import modality_name

FAST = ProbeSettings(num_seeds=3, c_grid=(0.1, 1.0), num_resamples=100)


def cells(num_cells=300, num_classes=3, seed=0):
    """labels, technical batches, rng: classes in unequal fractions, the same in each of three batches."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(num_classes, size=num_cells, p=np.array([0.5, 0.3, 0.2]))
    return np.array(["B", "NK", "T"])[codes], np.array(["x", "y", "z"])[np.arange(num_cells) % 3], codes, rng


def separable(codes, rng, dims=8, noise=0.1):
    return np.eye(3)[codes] @ rng.normal(size=(3, dims)) + noise * rng.normal(size=(codes.size, dims))


@pytest.mark.parametrize("probe", ["linear", "knn"])
def test_separable_classes_are_read_and_random_ones_are_not(probe):
    labels, batches, codes, rng = cells()
    noise = [rng.normal(size=(300, 200)) for _ in range(3)]
    result = run_probe(
        {"trained": [separable(codes, rng)], "untrained": noise}, labels, batches, modality="rna", settings=FAST
    )
    assert result.row("trained", probe, "accuracy").mean > 0.99
    assert result.row("trained", probe, "macro_f1").mean > 0.99
    majority = result.row("majority", probe, "accuracy").mean
    assert majority == pytest.approx(np.mean(codes == 0), abs=1e-9)
    assert result.row("untrained", probe, "accuracy").mean < majority + 0.05
    assert result.difference("trained", "untrained", probe, "accuracy").verdict == "better"


def test_a_probe_that_sees_test_labels_is_caught():
    """The control above has teeth: noise in many dimensions is enough for a probe that has seen the answers."""
    labels, batches, codes, rng = cells()
    noise = rng.normal(size=(300, 200))

    def leaky(train, train_codes, train_batches, test, settings, rng):
        rows = [int(np.flatnonzero((noise == cell).all(1))[0]) for cell in test]
        everything = np.concatenate([train, test]), np.concatenate([train_codes, codes[rows]])
        groups = np.concatenate([train_batches, np.full(len(test), "test")])
        return PROBES["linear"](*everything, groups, test, settings, rng)

    result = run_probe(
        {"trained": [noise]},
        labels,
        batches,
        modality="rna",
        settings=FAST,
        probes={"linear": PROBES["linear"], "leaky": leaky},
    )
    majority = result.row("majority", "linear", "accuracy").mean
    assert result.row("trained", "linear", "accuracy").mean < majority + 0.05
    assert result.row("trained", "leaky", "accuracy").mean > majority + 0.3


def test_predictions_do_not_change_with_the_labels_of_the_held_out_batch():
    labels, batches, codes, rng = cells()
    embedding = separable(codes, rng, noise=2.0)
    seen = []

    def recording(name):
        def probe(*arguments):
            found = PROBES[name](*arguments)
            seen.append(found.codes)
            return found

        return probe

    probes = {name: recording(name) for name in PROBES}
    held_out = batches == "y"
    run_probe({"trained": [embedding]}, labels, batches, modality="rna", held_out=["y"], settings=FAST, probes=probes)
    first, seen = seen, []
    shuffled = labels.copy()
    shuffled[held_out] = rng.permutation(labels[held_out])
    assert not np.array_equal(shuffled, labels)
    run_probe({"trained": [embedding]}, shuffled, batches, modality="rna", held_out=["y"], settings=FAST, probes=probes)
    assert len(first) == len(seen) == 6
    for a, b in zip(first, seen, strict=True):
        np.testing.assert_array_equal(a, b)


def test_probes_never_receive_a_cell_of_the_held_out_batch_to_train_on():
    labels, batches, codes, _ = cells()
    embedding = np.stack([np.arange(300.0), codes + 0.0], axis=1)  # the first dimension is the cell's row
    tested = []

    def probe(train, train_codes, train_batches, test, settings, rng):
        train_rows, test_rows = train[:, 0].astype(int), test[:, 0].astype(int)
        assert not set(batches[train_rows]) & set(batches[test_rows])
        np.testing.assert_array_equal(train_batches, batches[train_rows])
        np.testing.assert_array_equal(train_codes, codes[train_rows])
        tested.extend(test_rows)
        return Prediction(np.zeros(len(test), int))

    run_probe({"trained": [embedding]}, labels, batches, modality="rna", settings=FAST, probes={"linear": probe})
    assert sorted(tested) == sorted(list(range(300)) * FAST.num_seeds)


def test_scores_do_not_depend_on_the_unit_of_an_embedding():
    labels, batches, codes, rng = cells()
    embedding = separable(codes, rng, noise=0.5)
    rows = [
        run_probe({"trained": [x]}, labels, batches, modality="rna", settings=FAST).row("trained", "linear", "accuracy")
        for x in (embedding, 1000 * embedding + 7)
    ]
    assert rows[0].mean == pytest.approx(rows[1].mean, abs=0.01)


def test_small_components_of_noise_do_not_drown_the_large_ones():
    """Components as a PCA leaves them, few labelled cells: divided one by one, noise has as much say as the types."""
    labels, batches, codes, rng = cells(60)
    told = np.eye(3)[codes] * 3.0 + rng.normal(size=(60, 3))
    embedding = np.concatenate([told, 0.1 * rng.normal(size=(60, 60))], axis=1)
    probe = {"linear": PROBES["linear"]}
    result = run_probe(
        {"told": [told], "pca": [embedding]}, labels, batches, modality="rna", settings=FAST, probes=probe
    )
    told, pca = (result.row(method, "linear", "accuracy").mean for method in ("told", "pca"))
    assert pca > told - 0.05


def test_each_seed_uses_its_own_embedding_and_a_lone_one_serves_all():
    labels, batches, codes, rng = cells()
    good, noise = separable(codes, rng), rng.normal(size=(300, 8))
    mixed = run_probe({"trained": [good, noise, noise]}, labels, batches, modality="rna", settings=FAST)
    alone = run_probe({"trained": [good]}, labels, batches, modality="rna", settings=FAST)
    row = mixed.row("trained", "linear", "accuracy")
    assert 0.5 < row.mean < 0.8
    assert row.half_width > 0.3
    assert alone.row("trained", "linear", "accuracy").half_width < 0.05
    with pytest.raises(InputError, match="'trained': found 2 arrays, expected 3"):
        run_probe({"trained": [good, noise]}, labels, batches, modality="rna", settings=FAST)


def test_the_same_call_gives_the_same_result():
    labels, batches, codes, rng = cells()
    embeddings = {"trained": [separable(codes, rng, noise=1.0)], "pca": [rng.normal(size=(300, 4))]}
    first, second = (run_probe(embeddings, labels, batches, modality="rna", settings=FAST) for _ in range(2))
    assert first == second


def test_a_class_of_the_held_out_batch_alone_counts_as_error_and_is_named():
    labels, batches, codes, rng = cells()
    labels = labels.astype("U9")
    labels[np.flatnonzero(batches == "x")[:20]] = "platelet"
    result = run_probe({"trained": [separable(codes, rng)]}, labels, batches, modality="rna", settings=FAST)
    fold = result.folds[0]
    assert (fold.held_out, fold.absent_classes) == ("x", {"platelet": 20})
    assert result.row("trained", "linear", "accuracy", "x").mean == pytest.approx(0.8, abs=0.02)
    assert any("platelet (20 cells)" in note for note in method_notes(result))


def test_cells_without_a_label_are_left_out_and_counted():
    labels, batches, codes, rng = cells()
    embedding = separable(codes, rng)
    unknown = labels.astype(object)
    unknown[[0, 7, 31]] = [None, "", float("nan")]
    result = run_probe({"trained": [embedding]}, unknown, batches, modality="rna", settings=FAST)
    assert result.num_unlabelled == 3
    assert result.row("trained", "linear", "accuracy").num_cells == 297
    assert any("3 cells without a label" in note for note in method_notes(result))


def test_a_fit_that_does_not_converge_is_counted_and_reported():
    labels, batches, codes, rng = cells()
    hasty = ProbeSettings(num_seeds=2, c_grid=(1.0,), max_iter=1, num_resamples=10)
    result = run_probe({"trained": [separable(codes, rng)]}, labels, batches, modality="rna", settings=hasty)
    assert result.fits.unconverged_final == 6
    assert result.fits.unconverged_choosing == 12
    assert result.fits.total == 18
    assert any("stopped at 1 iterations unconverged" in note for note in method_notes(result))


def test_regularisation_is_chosen_inside_the_training_batches(monkeypatch):
    labels, batches, codes, rng = cells()
    asked = []

    def parts(groups, *arguments):
        asked.append(set(groups))
        return np.unique(groups, return_inverse=True)[1]

    monkeypatch.setattr(probe_module, "inner_parts", parts)
    result = run_probe({"trained": [separable(codes, rng)]}, labels, batches, modality="rna", settings=FAST)
    assert asked == [{"y", "z"}] * 3 + [{"x", "z"}] * 3 + [{"x", "y"}] * 3
    assert len(result.chosen_c["trained"]) == 9


def test_damaged_embeddings_are_refused_with_their_row():
    labels, batches, codes, rng = cells()
    embedding = separable(codes, rng)
    with pytest.raises(InputError, match=r"shape \(299, 8\), expected \[300, d\]"):
        run_probe({"pca": [embedding[1:]]}, labels, batches, modality="rna", settings=FAST)
    embedding[5, 2] = np.nan
    with pytest.raises(InputError, match=r"'pca', seed 0: 1 cells are not finite \(first at row 5\)"):
        run_probe({"pca": [embedding]}, labels, batches, modality="rna", settings=FAST)


def test_too_few_cells_for_knn_and_no_labels_at_all_are_refused():
    labels, batches, codes, rng = cells()
    with pytest.raises(InputError, match="fewer than the 15 neighbours of the kNN probe"):
        run_probe({"pca": [separable(codes, rng)[:18]]}, labels[:18], batches[:18], modality="rna", settings=FAST)
    with pytest.raises(InputError, match="none of 300 cells has a label"):
        run_probe({"pca": [separable(codes, rng)]}, [""] * 300, batches, modality="rna", settings=FAST)


def test_a_verdict_needs_both_intervals_to_leave_zero_out():
    def verdict(mean, half_width, low, high):
        return DifferenceRow("rna", "mean", "a", "b", "linear", "accuracy", mean, half_width, low, high, 5, 10).verdict

    assert verdict(0.1, 0.05, 0.02, 0.2) == "better"
    assert verdict(0.1, 0.15, 0.02, 0.2) == "no clear difference"
    assert verdict(0.1, 0.05, -0.02, 0.2) == "no clear difference"
    assert verdict(-0.1, 0.05, -0.2, -0.02) == "worse"
    # One seed has no interval: its cells decide.
    assert verdict(0.526, math.nan, 0.474, 0.583) == "better"
    assert verdict(-0.526, math.nan, -0.583, -0.474) == "worse"
    assert verdict(0.1, math.nan, -0.02, 0.2) == "no clear difference"


@pytest.fixture(scope="module")
def small_result():
    labels, batches, codes, rng = cells()
    embeddings = {
        "trained": [separable(codes, rng)],
        "untrained": [rng.normal(size=(300, 4))],
        "pca": [separable(codes, rng)],
    }
    return run_probe(embeddings, labels, batches, modality="rna", settings=FAST)


def test_a_result_survives_json(small_result):
    document = json.loads(json.dumps(small_result.to_json(), allow_nan=False))
    assert ProbeResult.from_json(document) == small_result


def test_one_seed_is_written_as_null_and_without_an_interval():
    labels, batches, codes, rng = cells()
    one = ProbeSettings(num_seeds=1, c_grid=(1.0,), num_resamples=10)
    result = run_probe({"trained": [separable(codes, rng)]}, labels, batches, modality="rna", settings=one)
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert document["rows"][0]["half_width"] is None
    assert math.isnan(ProbeResult.from_json(document).rows[0].half_width)
    assert "±" not in render_table(result)


def test_a_difference_of_one_seed_says_so():
    row = DifferenceRow("rna", "mean", "trained", "pca", "linear", "accuracy", 0.5, math.nan, 0.4, 0.6, 1, 10)
    rows = (replace(row_of("trained", 0.9), num_seeds=1), replace(row_of("pca", 0.4), num_seeds=1))
    result = ProbeResult("rna", rows, (row,), (), ("a", "b"), 0, FitCounts())
    assert "+0.500 (one seed)" in render_differences(result)
    assert "better" in render_differences(result)


def test_the_table_is_aligned_markdown_with_every_method(small_result):
    lines = render_table([small_result, small_result], by_batch=True).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + 2 * 4 * 4  # header, rule; results x (mean and three batches) x methods
    for method in ("trained", "untrained", "pca", "majority"):
        assert sum(f"| {method} " in line for line in lines) == 8
    assert "±" in lines[2]


@pytest.mark.parametrize(
    ("modality", "written"), [("rna", "RNA"), ("protein", "protein"), ("rna+protein+atac", "RNA+protein+ATAC")]
)
def test_each_modality_of_a_cell_is_written_for_people(modality, written):
    assert modality_name(modality) == written


def row_of(method, mean, probe="linear", metric="accuracy"):
    return ProbeRow("rna", "mean", method, probe, metric, mean, 0.01, 5, 10)


def test_every_verdict_is_said_and_what_is_worse_first(small_result):
    text = render_differences(small_result)
    assert sum("trained - untrained" in line for line in text.splitlines()) == 4
    pca, untrained = summary_sentences(small_result)
    assert "compared with untrained, trained is better by linear accuracy" in untrained
    assert "kNN macro-F1" in untrained
    assert "compared with pca, trained is not clearly different by linear accuracy" in pca

    def difference(other, probe, mean):
        low, high = mean - 0.01, mean + 0.01
        return DifferenceRow("rna", "mean", "trained", other, probe, "accuracy", mean, 0.01, low, high, 5, 10)

    rows = [row_of(method, 0.5, probe) for method in ("trained", "pca", "untrained") for probe in ("linear", "knn")]
    differences = (
        *(difference("untrained", probe, 0.3) for probe in ("linear", "knn")),
        difference("pca", "linear", 0.0),
        difference("pca", "knn", -0.06),
    )
    result = ProbeResult("protein", tuple(rows), differences, (), ("a", "b"), 0, FitCounts())
    assert "| worse " in render_differences(result).splitlines()[2]
    first, second = summary_sentences(result)
    assert first.startswith("Protein cells: compared with pca, trained is worse by kNN accuracy")
    assert "not clearly different by linear accuracy" in first
    assert "better" in second
