"""Translation scores against scikit-learn and brute force; what depth alone can gain."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from scmbert_jax.evaluation.metrics import mean_pearson, rmse
from scmbert_jax.evaluation.translation import metrics as tm


@pytest.fixture(scope="module")
def peaks():
    """Truth and scores with many ties, more peaks than one block."""
    rng = np.random.default_rng(0)
    truth = rng.random((120, 1500)) < 0.3
    return truth, np.round(truth * 0.4 + rng.random(truth.shape), 1)


def test_auroc_and_average_precision_equal_scikit_learn_with_ties(peaks):
    truth, scores = peaks[0][:, :40], peaks[1][:, :40]
    expected = [roc_auc_score(truth[:, i], scores[:, i]) for i in range(40)]
    np.testing.assert_allclose(tm.auroc(truth, scores), expected, rtol=1e-12)
    expected = [average_precision_score(truth[:, i], scores[:, i]) for i in range(40)]
    np.testing.assert_allclose(tm.average_precision(truth, scores), expected, rtol=1e-12)


def test_within_strata_only_pairs_of_one_stratum_count(peaks):
    truth, scores = peaks[0][:, :5], peaks[1][:, :5]
    strata = np.arange(120) % 3
    for column in range(5):
        won = pairs = 0.0
        for i in range(120):
            for j in range(120):
                if truth[i, column] and not truth[j, column] and strata[i] == strata[j]:
                    pairs += 1
                    won += (scores[i, column] > scores[j, column]) + 0.5 * (scores[i, column] == scores[j, column])
        assert tm.auroc(truth, scores, strata)[column] == pytest.approx(won / pairs)


def test_a_peak_without_a_pair_has_no_auroc():
    assert np.isnan(tm.auroc(np.ones((4, 1), bool), np.zeros((4, 1))))


def test_blocks_change_no_score(peaks):
    truth, scores = peaks[0].astype(np.float32), peaks[1].astype(np.float32)
    assert tm.root_mean_squared_error(truth, scores) == pytest.approx(rmse(truth, scores), rel=1e-9)
    for per in ("cell", "feature"):
        whole = mean_pearson(truth, scores, per=per)
        assert tm.mean_pearson_in_blocks(truth, scores, per=per) == pytest.approx(whole, rel=1e-9)


def test_only_peaks_with_enough_cells_of_both_classes_are_scored(peaks):
    truth, scores = peaks[0].copy(), peaks[1]
    truth[:, :700] = False
    truth[:3, 0] = True
    found = tm.score_peaks(truth, scores, truth.sum(1), min_cells=20)
    enough = (truth.sum(0) >= 20) & ((~truth).sum(0) >= 20)
    assert found.num_peaks == enough.sum() == 800
    assert found.open_rate == pytest.approx(truth[:, enough].mean())
    assert tm.score_peaks(truth, scores, truth.sum(1), min_cells=1).num_peaks == 801
    assert tm.score_peaks(truth, scores, truth.sum(1), min_cells=61) is None


def test_knowing_only_the_depth_scores_well_until_cells_of_one_depth_are_compared():
    rng = np.random.default_rng(1)
    depth = rng.lognormal(0, 0.8, size=2000)
    truth = rng.random((2000, 60)) < np.minimum(0.15 * depth, 0.9)[:, None]
    signal = rng.random((2000, 60))  # a second method: knows one real thing and nothing of depth
    truth |= signal > 0.95
    told = tm.score_peaks(truth, np.tile(depth[:, None], 60), depth)
    real = tm.score_peaks(truth, signal, depth)
    assert told.auroc > 0.65
    assert abs(told.auroc_same_depth - 0.5) < 0.02
    assert real.auroc_same_depth > 0.55


def test_told_its_depth_a_cell_gets_as_many_open_peaks_and_peaks_keep_their_order():
    rng = np.random.default_rng(3)
    predicted = rng.uniform(-0.1, 0.6, (70, 400))  # a linear model may leave [0, 1]
    num_open = rng.integers(0, 401, 70)
    told = tm.told_depth(predicted, num_open)
    np.testing.assert_allclose(told.sum(1), np.clip(num_open, 0.5, 399.5), rtol=0.01, atol=0.1)
    inside = (predicted > 1e-3) & (predicted < 1)
    for cell in range(70):
        order = np.argsort(predicted[cell, inside[cell]])
        assert (np.diff(told[cell, inside[cell]][order]) >= 0).all()


def test_told_depth_lifts_a_method_that_knows_nothing_to_what_depth_alone_gives():
    rng = np.random.default_rng(4)
    depth = rng.uniform(0.05, 0.6, 300)
    truth = rng.random((300, 200)) < depth[:, None]
    found = tm.score_peaks(truth, np.full(truth.shape, 0.3), truth.sum(1))
    assert found.auroc == 0.5
    assert found.auroc_told_depth == pytest.approx(tm.auroc(truth, np.repeat(depth[:, None], 200, 1)).mean(), abs=0.02)
