"""Figures whose value is known."""

import numpy as np
import pytest
from scipy.special import softmax

from scmbert_jax.annotation.calibration import expected_calibration_error
from scmbert_jax.evaluation.annotation.result import DifferenceRow
from scmbert_jax.evaluation.annotation.scores import (
    CaseScores,
    SeedPredictions,
    calibrated,
    cell_weights,
    difference,
    rejection_curve,
)

ALL = np.ones(4, bool)


def drawn(number, rng, temperature=1.0):
    """(probabilities [n, 4] of a model that is `temperature` times too sure, codes drawn from the true ones)."""
    logits = rng.normal(size=(number, 4)) * 2
    codes = (rng.random(number)[:, None] > softmax(logits, axis=1).cumsum(1)).sum(1)
    return softmax(logits * temperature, axis=1), codes


def test_probabilities_that_are_too_sure_are_put_right_by_cells_that_were_left_out():
    rng = np.random.default_rng(0)
    (held_out, codes), (test, truth) = (drawn(4000, rng, temperature=3.0) for _ in range(2))
    right = test.argmax(1) == truth
    after = calibrated(test, held_out, codes, ALL).probabilities
    assert expected_calibration_error(test.max(1), right) > 0.15
    assert expected_calibration_error(after.max(1), right) < 0.03
    np.testing.assert_array_equal(after.argmax(1), test.argmax(1))


def test_label_sets_hold_the_truth_as_often_as_they_promise_in_every_class():
    rng = np.random.default_rng(1)
    held_out, codes = drawn(4000, rng)
    test, truth = drawn(4000, rng)
    sets = calibrated(test, held_out, codes, ALL).sets
    covered = sets[np.arange(truth.size), truth]
    for code in range(4):
        assert covered[truth == code].mean() == pytest.approx(0.9, abs=0.03)
    assert 1 < sets.sum(1).mean() < 4


def test_a_class_that_was_not_learned_is_never_named():
    known = np.array([True, True, True, False])
    p, codes = drawn(400, np.random.default_rng(3))
    seen = codes != 3
    p = np.where(known, p, 0.0) / p[:, known].sum(1, keepdims=True)
    found = calibrated(p, p[seen], codes[seen], known)
    assert (found.probabilities[:, 3] == 0).all()
    assert not found.sets[:, 3].any()
    np.testing.assert_allclose(found.probabilities.sum(1), 1)


def test_refusing_the_unsure_raises_accuracy_where_scores_tell_right_from_wrong():
    right = np.arange(100) >= 40
    curve = rejection_curve(np.arange(100) / 100.0, right)
    assert curve[0] == pytest.approx(0.6)
    assert curve[8] == 1.0
    assert rejection_curve(-np.arange(100.0), right)[8] < 0.6


def seed_of(predicted, truth, score=None, novelty=None):
    number = len(truth)
    score = np.full(number, 0.9) if score is None else score
    return SeedPredictions(
        np.arange(number), truth, predicted, score, np.full(number, np.nan), np.zeros(number), None, None, novelty or {}
    )


def test_new_cells_are_right_when_called_new_and_known_ones_when_not():
    truth = np.array([0, 0, 1, 1, 2, 2])  # 2 is new
    score = np.array([0.9, 0.4, 0.9, 0.9, 0.3, 0.9])
    seed = seed_of(np.array([0, 0, 1, 0, 0, 1]), truth, score, {"max softmax": 1 - score})
    found = CaseScores([seed], 3, new_code=2).of_seeds
    assert found["accuracy"][0] == 0.75, "the ability to name types is of known cells"
    assert found["novel_accuracy"][0] == 0.5
    assert found["known_accuracy"][0] == 0.5, "one refused, one called another type"
    assert found["union_accuracy"][0] == 0.5
    assert found["novelty AUROC, max softmax"][0] == pytest.approx(0.6875)


def test_the_ontology_rule_is_asked_beside_plain_accuracy():
    truth = np.array([0, 0, 1, 1])
    finer = CaseScores(
        [seed_of(np.array([2, 0, 1, 0]), truth)], 3, is_right=lambda p, t: (p == t) | ((p == 2) & (t == 0))
    )
    assert finer.of_seeds["accuracy"][0] == 0.5
    assert finer.of_seeds["ontology"][0] == 0.75


def test_a_difference_is_paired_over_seeds_and_over_cells():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 300)
    good = [seed_of(np.where(rng.random(300) < 0.9, truth, 1 - truth), truth) for _ in range(6)]
    poor = [seed_of(np.where(rng.random(300) < 0.7, truth, 1 - truth), truth) for _ in range(6)]
    weights, over = cell_weights(np.full(300, ""), 300, 300, 0)
    assert over == "cells"
    a, b = CaseScores(good, 2), CaseScores(poor, 2)
    found = difference(
        a.of_seeds["accuracy"],
        b.of_seeds["accuracy"],
        a.resampled(weights)["accuracy"],
        b.resampled(weights)["accuracy"],
    )
    assert found.mean == pytest.approx(0.2, abs=0.05)
    assert found.p_seeds < 0.001
    assert found.p_cells < 0.01
    assert 0.1 < found.low < found.mean < found.high < 0.3
    same = difference(*[a.of_seeds["accuracy"]] * 2, *[a.resampled(weights)["accuracy"]] * 2)
    assert np.isnan(same.p_seeds), "seeds that change nothing say nothing of chance"
    assert same.p_cells == 1.0


def test_donors_are_resampled_whole_where_there_are_enough():
    groups = np.array([f"d{i % 5}" for i in range(50)])
    weights, over = cell_weights(groups, 50, 20, 0)
    assert over == "groups"
    for donor in np.unique(groups):
        assert (np.ptp(weights[:, groups == donor], axis=1) == 0).all()
    assert cell_weights(np.array(["a", "b"] * 25), 50, 20, 0)[1] == "cells"


def test_a_verdict_needs_every_interval_there_is():
    def verdict(mean, half, low, high):
        return DifferenceRow(
            "cell", "all cells", "a", "b", "accuracy", mean, half, 0.01, low, high, 0.01, 5, "cells"
        ).verdict

    assert verdict(0.1, 0.05, 0.02, 0.2) == "better"
    assert verdict(0.1, 0.2, 0.02, 0.2) == "no clear difference"
    assert verdict(-0.1, np.nan, -0.2, -0.02) == "worse"
    assert verdict(0.1, 0.05, np.nan, np.nan) == "better"
    assert verdict(0.1, np.nan, np.nan, np.nan) == "no clear difference"
