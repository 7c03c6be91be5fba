"""Floors on SNARE-seq (mouse cortex, RNA + ATAC), technical batches 09B, 09C and 09H held out, measured before us."""

import numpy as np
import pytest

from scmbert_jax.evaluation.data.measured_cells import batches_named, read_measured_cells
from scmbert_jax.evaluation.translation.baselines import cell_type_oracle, depth_only, svd_ridge, train_mean
from scmbert_jax.evaluation.translation.fold import make_fold
from scmbert_jax.evaluation.translation.metrics import (
    mean_pearson_in_blocks,
    root_mean_squared_error,
    score_peaks,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def snareseq(shared_data):
    folder = shared_data / "snareseq_cortex"
    cells = read_measured_cells(f"{folder / 'rna.h5ad'}+{folder / 'atac.h5ad'}", assembly="mm10")
    return cells, batches_named(cells, ["09B", "09C", "09H"], "--test-batches")


def test_the_floors_of_accessibility_to_expression_are_reproduced(snareseq):
    cells, test = snareseq
    fold, truth = make_fold(cells, "atac", "rna", ~test, test)
    assert (fold.num_train, fold.num_test) == (7665, 2644)
    floors = {train_mean: (0.1915, 0.0), svd_ridge: (0.1838, 0.1035), cell_type_oracle: (0.1837, 0.126)}
    for method, floor in floors.items():
        predicted = method(fold)
        found = root_mean_squared_error(truth, predicted), mean_pearson_in_blocks(truth, predicted, per="feature")
        assert found == pytest.approx(floor, abs=1e-3), method.__name__


def test_depth_alone_opens_peaks_better_than_the_cell_type_until_cells_of_one_depth_are_compared(snareseq):
    cells, test = snareseq
    fold, truth = make_fold(cells, "rna", "atac", ~test, test)
    depth, types = (score_peaks(truth, method(fold), fold.trap_test_depth) for method in (depth_only, cell_type_oracle))
    assert depth.num_peaks == types.num_peaks == 3748
    assert depth.auroc == pytest.approx(0.670, abs=1e-3)
    assert types.auroc == pytest.approx(0.572, abs=1e-3)
    assert abs(depth.auroc_same_depth - 0.5) < 0.01
    assert types.auroc_same_depth > 0.55
    assert np.isfinite(depth.auprc)
