import numpy as np
import pytest

from scmbert_jax.annotation.linear_head import fit_linear_head
from scmbert_jax.annotation.novelty import (
    SCORES,
    Novelty,
    check_quantile,
    novelty_aupr,
    novelty_auroc,
    score_class,
    union_accuracy,
)
from scmbert_jax.errors import ConfigError


@pytest.fixture(scope="module")
def cells():
    """Vectors and logits of known cells of three types, of more of these, and of cells of a fourth, far off."""
    rng = np.random.default_rng(0)
    codes = np.arange(600) % 3
    means = np.array([[3, 0, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0], [0, 0, 0, 6]])
    membership = np.arange(3) == codes[:, None]
    known, more = (rng.normal(size=(600, 4)) + means[codes] for _ in range(2))
    novel = rng.normal(size=(200, 4)) + means[3]
    head = fit_linear_head(known, membership)
    return {
        name: (head.scale(x), head.logits(x)) for name, x in (("known", known), ("more", more), ("novel", novel))
    }, (membership)


@pytest.mark.parametrize("name", SCORES)
def test_each_score_is_higher_for_a_type_it_has_not_seen(cells, name):
    of, membership = cells
    score = score_class(name).fit(*of["known"], membership)
    novelty = Novelty.of(name, score, score(*of["more"]), 0.98)
    values = np.concatenate([novelty(*of["more"]), novelty(*of["novel"])])
    is_novel = np.arange(800) >= 600
    assert novelty_auroc(values, is_novel) > {"mahalanobis": 0.99, "knn": 0.99, "combined": 0.95}.get(name, 0.8)
    assert novelty_aupr(values, is_novel) > 0.25
    assert values.min() >= 0
    assert values.max() <= 1
    if novelty.score.threshold is None:
        assert (values[:600] > 0.5).mean() == pytest.approx(0.02, abs=0.002)
        assert np.median(values[:600]) == pytest.approx(0.1, abs=0.01)
    else:
        own = np.concatenate([score(*of["more"]), score(*of["novel"])])
        np.testing.assert_array_equal(values > 0.5, own > 0.5)


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_the_same_after_a_file(cells, name, tmp_path):
    of, membership = cells
    score = score_class(name).fit(*of["known"], membership)
    novelty = Novelty.of(name, score, score(*of["more"]), 0.9)
    np.savez(tmp_path / "a.npz", **novelty.arrays())
    again = Novelty.from_arrays(name, dict(np.load(tmp_path / "a.npz")), novelty.threshold, novelty.spread)
    np.testing.assert_array_equal(again(*of["novel"]), novelty(*of["novel"]))


def test_of_many_cells_rare_types_are_remembered_whole():
    codes = np.repeat([0, 1], [9_000, 100])
    vectors = np.stack([codes, np.arange(9_100)], 1).astype(float)
    remembered = SCORES["knn"].fit(vectors, vectors, np.arange(2) == codes[:, None]).remembered
    assert len(remembered) == 5000
    assert (remembered[:, 0] == 1).sum() == 100


def test_cells_that_are_all_alike_have_a_novelty():
    score = SCORES["knn"].fit(np.ones((20, 2)), np.zeros((20, 2)), np.ones((20, 2), bool))
    novelty = Novelty.of("knn", score, np.zeros(5), 0.98)
    assert novelty(np.ones((1, 2)), np.zeros((1, 2))).tolist() == [0.5]
    one = SCORES["mahalanobis"].fit(np.ones((20, 2)), np.zeros((20, 2)), np.eye(2, dtype=bool)[[0] * 20])
    assert np.isfinite(one(np.zeros((3, 2)), np.zeros((3, 2)))).all()


def test_union_accuracy_counts_novel_as_one_more_type():
    right = np.array([True, True, False, False, False])
    called = np.array([False, True, False, True, False])
    novel = np.array([False, False, False, True, True])
    assert union_accuracy(right, called, novel) == pytest.approx(2 / 5)


@pytest.mark.parametrize("quantile", [0, 1, 98, float("nan")])
def test_a_quantile_out_of_range_is_refused(quantile):
    with pytest.raises(ConfigError, match="novelty_quantile"):
        check_quantile(quantile)
    with pytest.raises(ConfigError, match="energy, max_softmax, mahalanobis, knn, combined"):
        score_class("entropy")
