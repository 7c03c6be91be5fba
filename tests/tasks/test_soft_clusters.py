"""Batches are mixed within clusters, clusters stay apart, and what a batch alone has is not drawn into the others."""

import numpy as np
import pytest

from scmbert_jax.tasks.soft_clusters import SoftClusters, _moved, correct_clusters


@pytest.fixture(scope="module")
def cells():
    """600 cells in 5 dimensions: three types, two batches; a batch effect of another direction for each type."""
    rng = np.random.default_rng(0)
    types, batches = np.repeat([0, 1, 2], 200), np.tile(["a", "b"], 300)
    centres = 4.0 * np.eye(5)[:3]
    effects = 1.5 * np.array([[0, 0, 0, 1, 0], [0, 0, 0, -1, 0.5], [0, 0, 0, 0, 1.0]])
    x = centres[types] + effects[types] * (batches == "b")[:, None] + 0.3 * rng.normal(size=(600, 5))
    return x, types, batches


def batch_distance(x, types, batches):
    """Largest distance between the batches' means of a type."""
    means = [[x[(types == t) & (batches == b)].mean(0) for b in "ab"] for t in range(3)]
    return max(float(np.linalg.norm(a - b)) for a, b in means)


def test_an_effect_that_differs_between_types_is_taken_off_where_one_mean_per_batch_is_not_enough(cells):
    x, types, batches = cells
    centred = x - np.array([x[batches == b].mean(0) for b in batches])
    corrected = correct_clusters(x, batches)
    assert batch_distance(x, types, batches) > 1.4
    assert batch_distance(centred, types, batches) > 0.5
    # Means of 100 cells differ by 0.3 * sqrt(2 / 100 * 5) = 0.095 by chance.
    assert batch_distance(corrected, types, batches) < 0.2
    # Types are where they were: their centres as far from each other.
    centres = np.array([corrected[types == t].mean(0) for t in range(3)])
    assert np.linalg.norm(centres[0] - centres[1]) == pytest.approx(4 * 2**0.5, rel=0.15)


def test_it_is_deterministic_and_names_of_batches_do_not_matter(cells):
    x, _, batches = cells
    corrected = correct_clusters(x, batches)
    np.testing.assert_array_equal(corrected, correct_clusters(x, batches))
    np.testing.assert_array_equal(corrected, correct_clusters(x, np.where(batches == "a", "first", "second")))


def test_a_type_that_one_batch_alone_has_stays_apart(cells):
    x, types, batches = cells
    kept = (types != 2) | (batches == "b")
    corrected = correct_clusters(x[kept], batches[kept], SoftClusters(diversity=1.0))
    alone = corrected[types[kept] == 2]
    others = corrected[types[kept] != 2]
    gap = np.linalg.norm(alone[:, None] - others[None], axis=2).min(1)
    assert np.median(gap) > 2.0


def test_in_one_hard_cluster_it_is_a_ridge_regression_on_the_batches():
    rng = np.random.default_rng(1)
    z, one_hot = rng.normal(size=(40, 3)), np.eye(2)[rng.integers(0, 2, 40)]
    design = np.concatenate([np.ones((40, 1)), one_hot], axis=1)
    effects = np.linalg.solve(design.T @ design + np.diag([0.0, 1.0, 1.0]), design.T @ z)
    np.testing.assert_allclose(_moved(z, np.ones((40, 1)), one_hot, 1.0), z - one_hot @ effects[1:], rtol=1e-12)


def test_an_effect_as_large_as_types_needs_clusters_that_must_hold_all_batches(cells):
    x, types, batches = cells
    far = x + np.array([0, 0, 0, 0, 5.0]) * (batches == "b")[:, None]
    mixed, alone = (batch_distance(correct_clusters(far, batches, SoftClusters(d)), types, batches) for d in (2.0, 0.0))
    assert mixed < 1.0
    assert alone > 4.0
