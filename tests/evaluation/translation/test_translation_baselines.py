"""The floors of the built-in example, and what each baseline may and may not know."""

from dataclasses import fields, replace

import numpy as np
import pytest
import scipy.sparse as sp
from translation_cells import random_cells

from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluation.data.measured_cells import batches_named, read_measured_cells, types_named
from scmbert_jax.evaluation.metrics import mean_pearson, rmse
from scmbert_jax.evaluation.translation.baselines import BASELINES, cell_type_oracle, depth_only, links_only
from scmbert_jax.evaluation.translation.fold import link_matrix, make_fold

# RMSE and per-feature r of published floors on example:pbmc_mosaic, trained on p3, tested on p4 (measured before us).
FLOORS = {
    ("rna", "protein"): {
        "train mean": (0.3758, 0.0),
        "ridge": (0.2777, 0.358),
        "SVD50 + ridge": (0.2763, 0.362),
        "KNN25": (0.2844, 0.350),
        "cell-type oracle": (0.2752, 0.356),
    },
    ("protein", "rna"): {
        "train mean": (0.3224, 0.0),
        "ridge": (0.2397, 0.265),
        "SVD50 + ridge": (0.2392, 0.269),
        "KNN25": (0.2367, 0.261),
        "cell-type oracle": (0.2457, 0.269),
    },
}


@pytest.fixture(scope="module")
def pbmc():
    return read_measured_cells("example:pbmc_mosaic")


def split(cells, held_out="z"):
    test = batches_named(cells, [held_out], "--test-batches")
    return ~test, test


@pytest.mark.parametrize("direction", FLOORS, ids=lambda names: " to ".join(names))
def test_the_floors_of_the_example_are_reproduced(pbmc, direction):
    both = pbmc.paired(*direction)
    train, test = (both & batches_named(pbmc, [name], "--train-batches") for name in ("p3", "p4"))
    fold, truth = make_fold(pbmc, *direction, train, test)
    for method in BASELINES:
        if method.name in FLOORS[direction]:
            predicted = method.predict(fold, 0)
            found = rmse(truth, predicted), mean_pearson(truth, predicted, per="feature")
            assert found == pytest.approx(FLOORS[direction][method.name], abs=1.1e-3), method.name


def test_no_fold_holds_the_truth_of_its_test_cells():
    cells = random_cells()
    train, test = split(cells)
    fold, truth = make_fold(cells, "rna", "protein", train, test)
    for field in fields(fold):
        value = getattr(fold, field.name)
        assert not sp.issparse(value) or value.shape[0] == fold.num_train or field.name == "test_source", field.name
    assert truth.shape == (test.sum(), 12)


@pytest.mark.parametrize("method", BASELINES, ids=lambda method: method.name)
@pytest.mark.parametrize("target", ["protein", "atac"])
def test_a_baseline_predicts_every_test_cell_and_only_the_trap_and_the_oracle_look_at_them(method, target):
    cells = random_cells()
    fold, truth = make_fold(cells, "rna", target, *split(cells))
    predicted = method.predict(fold, 0)
    assert predicted.shape == truth.shape
    assert predicted.dtype == np.float32
    assert np.isfinite(predicted).all()
    blind = replace(fold, oracle_test_types=fold.oracle_test_types[::-1], trap_test_depth=fold.trap_test_depth[::-1])
    told = not np.array_equal(method.predict(blind, 0), predicted)
    assert told == (method.fit_predict in (cell_type_oracle, depth_only)), method.name


def test_links_alone_find_the_protein_of_a_gene_without_reading_a_pair():
    cells = random_cells(300)
    fold, truth = make_fold(cells, "rna", "protein", *split(cells))
    predicted = links_only(fold)
    assert mean_pearson(truth, predicted, per="feature") > 0.4
    order = np.random.default_rng(0).permutation(fold.num_train)
    shuffled = replace(fold, train_values=fold.train_values[order], train_target=fold.train_target[order])
    np.testing.assert_allclose(links_only(shuffled), predicted, atol=1e-4)


def test_a_feature_without_a_link_gets_the_training_mean():
    cells = random_cells()
    cells.features["protein"] = replace(
        cells.features["protein"], genes=((),) * 6 + cells.features["protein"].genes[6:]
    )
    fold, _ = make_fold(cells, "rna", "protein", *split(cells))
    predicted = links_only(fold)
    np.testing.assert_array_equal(predicted[:, :6], np.tile(fold.train_mean[:6], (fold.num_test, 1)))
    assert (predicted[:, 6:].std(0) > 0).all()


def test_links_go_both_ways_and_through_the_gene():
    features = random_cells().features
    to_peaks = link_matrix(features["rna"], features["atac"])
    assert to_peaks.toarray().sum(1).tolist() == [10.0] * 12
    assert (link_matrix(features["atac"], features["rna"]) != to_peaks.T).nnz == 0


def test_the_oracle_knows_nothing_of_a_type_it_has_no_training_cell_of():
    cells = random_cells()
    test = types_named(cells, ["T"], "--held-out-types")
    fold, _ = make_fold(cells, "rna", "protein", ~test, test)
    np.testing.assert_array_equal(cell_type_oracle(fold), np.tile(fold.train_mean, (fold.num_test, 1)))


def test_a_subsample_keeps_cells_and_values_together():
    cells = random_cells()
    fold, _ = make_fold(cells, "rna", "protein", *split(cells))
    part = fold.subsample(0.5, seed=1)
    assert 0.4 * fold.num_train < part.num_train < 0.7 * fold.num_train
    assert (fold.scale.values(part.train_target) != part.train_values).nnz == 0
    assert part.num_test == fold.num_test
    assert set(part.train_types) == {"B", "NK", "T"}


def test_a_batch_is_found_by_its_name_or_the_beginning_before_an_underscore(pbmc):
    assert (batches_named(pbmc, ["p3"], "--test-batches") == (pbmc.technical_batches == "p3_0")).all()
    with pytest.raises(ConfigError, match="p1_0, p2_0, p3_0, p4_0"):
        batches_named(pbmc, ["p"], "--test-batches")


def test_columns_that_map_to_no_known_gene_stay(pbmc):
    assert pbmc.counts["rna"].shape[1] == 500
    assert (pbmc.features["rna"].ids == "").sum() == 3
    assert pbmc.scales["rna"].target_sum == 506
