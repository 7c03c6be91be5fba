import numpy as np
import pytest

from scmbert_jax.annotation.calibration import (
    ConformalSets,
    accuracy_rejection,
    brier_score,
    expected_calibration_error,
    fewest_cells,
    fit_temperature,
    probabilities_of,
)
from scmbert_jax.errors import ConfigError


def drawn(logits, rng):
    """Types drawn by the probabilities of the logits: int [n], bool [n, L]."""
    p = probabilities_of(logits)
    codes = (p.cumsum(1) > rng.random((len(p), 1))).argmax(1)
    return codes, np.arange(p.shape[1]) == codes[:, None]


def test_the_temperature_by_which_logits_are_too_sure_is_found():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 5)) * 2
    codes, membership = drawn(logits, rng)
    found = fit_temperature(3 * logits, membership)
    assert found == pytest.approx(3, rel=0.05)
    sure, told = probabilities_of(3 * logits), probabilities_of(3 * logits, found)
    errors = [expected_calibration_error(p.max(1), p.argmax(1) == codes) for p in (sure, told)]
    assert errors[0] > 0.1
    assert errors[1] < 0.02  # of 20,000 cells in 15 bins, some .01 is chance
    assert brier_score(told, codes) < brier_score(sure, codes)
    assert fit_temperature(np.zeros((0, 3)), np.zeros((0, 3), bool)) == 1


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_sets_hold_the_truth_of_each_type_as_often_as_they_say_even_where_probabilities_lie(coverage):
    rng = np.random.default_rng(1)
    logits = 3 * rng.normal(size=(40_000, 4)) + np.array([1, 0, 0, 0])
    codes, membership = drawn(logits, rng)
    lying = probabilities_of(logits + np.array([0, 2, 0, -2]), 0.3)
    sets = ConformalSets.of(lying[:20_000], membership[:20_000], coverage, with_the_best=False)
    held = sets(lying[20_000:])
    for code in range(4):
        mine = codes[20_000:] == code
        assert held[mine, code].mean() == pytest.approx(coverage, abs=0.03)  # 4,000 cells each: .01 by chance
    assert not sets.pooled.any()
    assert (held.sum(1) == 0).any() == (coverage == 0.5)


def test_with_the_most_probable_type_always_in_it_sets_are_smaller_and_hold_what_they_should():
    rng = np.random.default_rng(1)
    logits = 4 * rng.normal(size=(40_000, 4)) + np.array([4, 0, 0, 0])
    codes, membership = drawn(logits, rng)
    p = probabilities_of(logits)
    with_best = ConformalSets.of(p[:20_000], membership[:20_000], 0.9)
    without = ConformalSets.of(p[:20_000], membership[:20_000], 0.9, with_the_best=False)
    sets, others = with_best(p[20_000:]), without(p[20_000:])
    others[np.arange(20_000), p[20_000:].argmax(1)] = True
    assert (sets.sum(1) > 0).all()
    assert sets.sum(1).mean() < others.sum(1).mean()
    recall = [(p[20_000:].argmax(1) == code)[codes[20_000:] == code].mean() for code in range(4)]
    assert max(recall) > 0.9 > min(recall)
    for code in range(4):
        mine = codes[20_000:] == code
        assert sets[mine, code].mean() == pytest.approx(max(recall[code], 0.9), abs=0.02)
        assert (with_best.thresholds[code] > 1) == (recall[code] > 0.9)


def test_a_type_of_too_few_cells_has_the_threshold_of_all_and_it_is_said():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(1000, 3))
    codes, membership = drawn(logits, rng)
    p = probabilities_of(logits)
    assert [fewest_cells(coverage) for coverage in (0.5, 0.9, 0.95)] == [1, 9, 19]
    few = np.concatenate([np.flatnonzero(codes != 2), np.flatnonzero(codes == 2)[:8]])
    sets = ConformalSets.of(p[few], membership[few], 0.9, with_the_best=False)
    assert sets.pooled.tolist() == [False, False, True]
    enough = np.append(few, np.flatnonzero(codes == 2)[8])
    assert not ConformalSets.of(p[enough], membership[enough], 0.9).pooled.any()
    own = p[few][membership[few]]
    assert sets.thresholds[2] == np.sort(own)[len(own) - int(np.ceil(0.9 * (len(own) + 1)))]
    nothing = ConformalSets.of(p[:3], membership[:3], 0.9)
    assert nothing.pooled.all()
    assert nothing(p).all()  # whatever has any probability is in the set


def test_a_coarse_label_says_nothing_of_a_threshold():
    p, membership = np.full((30, 2), 0.5), np.zeros((30, 2), bool)
    p[:20], membership[:10, 0], membership[10:20, 1], membership[20:] = [0.9, 0.1], True, True, True
    assert ConformalSets.of(p, membership, 0.5, with_the_best=False).thresholds.tolist() == [0.9, 0.1]


@pytest.mark.parametrize("coverage", [0, 1, 90, -0.1, float("nan")])
def test_a_coverage_out_of_range_is_refused(coverage):
    with pytest.raises(ConfigError, match="coverage"):
        ConformalSets.of(np.ones((1, 1)), np.ones((1, 1), bool), coverage)


def test_the_error_of_calibration_of_known_bins():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    assert expected_calibration_error(confidence, right) == pytest.approx((4 * 0.2 + 2 * 0.05) / 6)
    assert expected_calibration_error(np.ones(3), np.ones(3, bool)) == 0
    assert brier_score(np.eye(2), np.array([0, 1])) == 0
    assert brier_score(np.eye(2), np.array([1, 0])) == 2


def test_accuracy_rises_where_the_unsure_cells_that_are_wrong_are_left_out():
    found = accuracy_rejection(np.array([0.5, 0.9, 0.7, 0.6]), np.array([False, True, True, False]))
    assert found.kept.tolist() == [0.25, 0.5, 0.75, 1]
    assert found.accuracy.tolist() == pytest.approx([1, 1, 2 / 3, 0.5])
