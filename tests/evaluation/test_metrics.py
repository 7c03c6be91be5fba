"""Scores and intervals against brute force and against answers known by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from scmbert_jax.evaluation import metrics
from scmbert_jax.evaluation.intervals import bootstrap_weights, paired_bootstrap, student_t_interval


def labels_and_predictions():
    return st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


@given(labels_and_predictions())
def test_macro_f1_is_the_mean_over_classes_that_have_a_true_cell(pairs):
    truth, predicted = np.array(pairs).T
    present = np.unique(truth)
    expected = f1_score(truth, predicted, labels=present, average="macro", zero_division=0)
    assert metrics.macro_f1(truth, predicted, 5) == pytest.approx(expected)


def test_a_class_only_predicted_does_not_change_the_classes_averaged_over():
    truth, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    # Class 0: precision 1, recall 1/2 -> 2/3; class 1: 1. Class 2 has no true cell and is not averaged.
    assert metrics.macro_f1(truth, predicted, 3) == pytest.approx((2 / 3 + 1) / 2)


def test_a_class_never_predicted_scores_zero():
    assert metrics.macro_f1(np.array([0, 0, 1]), np.array([0, 0, 0]), 2) == pytest.approx((0.8 + 0) / 2)


@settings(max_examples=30)
@given(labels_and_predictions(), st.integers(0, 2**31))
def test_weights_count_cells_as_often_as_a_bootstrap_drew_them(pairs, seed):
    truth, predicted = np.array(pairs).T
    weights = bootstrap_weights(truth.size, 3, np.random.default_rng(seed))
    accuracy, f1 = metrics.accuracy(truth, predicted, weights), metrics.macro_f1(truth, predicted, 5, weights)
    for row, one_accuracy, one_f1 in zip(weights, accuracy, f1, strict=True):
        drawn = np.repeat(np.arange(truth.size), row.astype(int))
        assert one_accuracy == pytest.approx(np.mean(truth[drawn] == predicted[drawn]))
        assert one_f1 == pytest.approx(metrics.macro_f1(truth[drawn], predicted[drawn], 5))


def test_rmse_is_over_cells_and_features():
    assert metrics.rmse(np.zeros((2, 2)), np.array([[3.0, 0], [0, 4]])) == pytest.approx(2.5)


@pytest.mark.parametrize("per", ["cell", "feature"])
def test_pearson_is_the_mean_of_the_correlations_and_a_constant_counts_as_zero(per):
    rng = np.random.default_rng(0)
    truth, predicted = rng.normal(size=(6, 9)), rng.normal(size=(6, 9))
    a, b = (truth, predicted) if per == "cell" else (truth.T, predicted.T)
    a[1], b[2] = 0.1, 0.7  # views: two rows become constant
    expected = [0.0 if i in (1, 2) else np.corrcoef(a[i], b[i])[0, 1] for i in range(len(a))]
    assert metrics.mean_pearson(truth, predicted, per=per) == pytest.approx(np.mean(expected))


def brute_force_closer(a, b, distance):
    def far(x, y):
        if distance == "euclidean":
            return float(np.sqrt(((x - y) ** 2).sum()))
        return 1 - float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    n = len(a)
    forward = [sum(far(a[i], b[j]) < far(a[i], b[i]) for j in range(n) if j != i) for i in range(n)]
    backward = [sum(far(a[j], b[i]) < far(a[i], b[i]) for j in range(n) if j != i) for i in range(n)]
    return np.array(forward), np.array(backward)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_foscttm_and_recall_equal_brute_force(distance):
    rng = np.random.default_rng(1)
    a = rng.normal(size=(37, 5))
    b = a + 0.8 * rng.normal(size=a.shape)
    forward, backward = brute_force_closer(a, b, distance)
    assert metrics.foscttm(a, b, distance=distance) == pytest.approx((forward.mean() + backward.mean()) / 2 / 36)
    for k in (1, 5, 37):
        expected = ((forward < k).mean() + (backward < k).mean()) / 2
        assert metrics.recall_at_k(a, b, k, distance=distance) == pytest.approx(expected)


def test_foscttm_counts_both_directions():
    # Every cell of b is nearest to its partner, but a[0] lies so far out that all of b is closer than b[0].
    a, b = np.array([[0.0], [10.0], [11.0]]), np.array([[-20.0], [10.0], [11.0]])
    forward, backward = brute_force_closer(a, b, "euclidean")
    assert forward.tolist() == [2, 0, 0]
    assert backward.tolist() == [0, 0, 0]
    assert metrics.foscttm(a, b) == metrics.foscttm(b, a) == pytest.approx((2 / 3 + 0) / 2 / 2)


def test_identical_cells_are_ties_and_not_closer():
    same = np.tile(np.random.default_rng(2).normal(size=7), (600, 1))  # more cells than one block of rows
    assert metrics.foscttm(same, same) == 0.0
    assert metrics.recall_at_k(same, same, 1) == 1.0


def test_unrelated_embeddings_score_one_half():
    rng = np.random.default_rng(3)
    score = metrics.foscttm(rng.normal(size=(700, 8)), rng.normal(size=(700, 8)))
    assert score == pytest.approx(0.5, abs=0.03)  # standard error about 0.29 / sqrt(700) = 0.011


def test_scores_of_nothing_are_refused():
    for score in (metrics.accuracy, metrics.rmse):
        with pytest.raises(ValueError, match="not empty"):
            score(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="one shape"):
        metrics.accuracy(np.zeros(3), np.zeros(1))


def test_the_student_interval_of_five_seeds_is_the_textbook_one():
    interval = student_t_interval(np.array([1.0, 2, 3, 4, 5]))
    # s = sqrt(2.5); t(0.975, 4) = 2.776445
    assert interval.mean == 3.0
    assert interval.half_width == pytest.approx(2.776445 * np.sqrt(2.5) / np.sqrt(5), rel=1e-6)


def test_one_seed_has_no_known_interval():
    assert np.isnan(student_t_interval(np.array([0.7])).half_width)


def test_the_student_interval_covers_the_mean_in_95_of_100_repetitions():
    rng = np.random.default_rng(4)
    intervals = [student_t_interval(rng.normal(2.0, 3.0, size=5)) for _ in range(2000)]
    covered = np.mean([abs(i.mean - 2.0) < i.half_width for i in intervals])
    assert covered == pytest.approx(0.95, abs=0.02)  # 4 standard errors of a fraction of 2,000


@pytest.mark.slow
def test_the_paired_bootstrap_covers_the_true_difference():
    rng = np.random.default_rng(5)
    covered = []
    for repetition in range(300):
        hard = rng.random(200)  # shared by both methods
        first, second = rng.random(200) < 0.4 + 0.5 * hard, rng.random(200) < 0.3 + 0.5 * hard
        interval = paired_bootstrap(first, second, seed=repetition, num_resamples=400)
        covered.append(interval.low < 0.1 < interval.high)
    assert 0.90 < np.mean(covered) < 0.99


def test_what_two_methods_share_cancels_in_the_paired_bootstrap():
    shared = np.random.default_rng(6).normal(size=300) * 10
    interval = paired_bootstrap(shared + 0.5, shared, seed=0)
    assert interval.low == pytest.approx(0.5)
    assert interval.high == pytest.approx(0.5)
