import numpy as np
import pytest

from data_pipelines.feature_statistics import feature_statistics, load_statistics, save_statistics
from scmbert_jax.batch import CellBatch, FeatureLayout, ModalityTokens
from scmbert_jax.errors import InputError

LAYOUT = FeatureLayout(slices={"rna": (0, 3)})


def batches(theta: float, num_cells: int = 4000):
    """Cells of library 1,000 whose features 0 and 1 take 1% and 5% of it; feature 2 is never a token."""
    rng = np.random.default_rng(0)
    mean = np.array([10.0, 50.0])
    counts = rng.negative_binomial(theta, theta / (theta + mean), (num_cells, 2)).astype(np.int32)
    ids = np.broadcast_to(np.arange(2, dtype=np.int32), counts.shape)
    padded = [np.pad(x, ((0, 0), (0, 1))) for x in (ids, counts)]  # padding must not count
    of_cells = {
        "library_size": np.full(num_cells, 1000.0, np.float32),
        "measured": np.ones(num_cells, bool),
        "num_expressed": (counts > 0).sum(1).astype(np.int32),
        "num_measured": np.full(num_cells, 2, np.int32),
        "mean_log_count": np.log1p(counts).mean(1).astype(np.float32),
    }
    tokens = ModalityTokens(*padded, lengths=np.full(num_cells, 2, np.int32), **of_cells)
    yield CellBatch({"rna": tokens}, {}, np.arange(num_cells), np.arange(num_cells))


@pytest.mark.parametrize("theta", [0.5, 5.0])
def test_share_dispersion_and_detection_are_found_again(theta):
    found = feature_statistics(batches(theta), LAYOUT, {"rna": 1e4})
    np.testing.assert_allclose(found.share[:2], [0.01, 0.05], rtol=0.1)
    # the grid of log theta has steps of 0.5
    assert np.abs(found.log_dispersion[:2] - np.log(theta)).max() < 0.5
    (tokens,) = next(batches(theta)).modalities.values()
    np.testing.assert_allclose(found.detection[:2], (tokens.counts[:, :2] > 0).mean(0), atol=0.001)


def test_values_are_those_the_model_sees():
    found = feature_statistics(batches(5.0), LAYOUT, {"rna": 1e4})
    (tokens,) = next(batches(5.0)).modalities.values()
    values = np.log1p(tokens.counts[:, :2] / 1000 * 1e4)
    np.testing.assert_allclose(found.value_centre[:2], values.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.value_std[:2], values.std(0), rtol=0.01)


def test_a_feature_without_tokens_is_like_the_others_and_finite():
    found = feature_statistics(batches(5.0), LAYOUT, {"rna": 1e4})
    assert all(np.isfinite(array).all() for array in found)
    assert 0 < found.share[2] < found.share[0]
    assert found.value_std[2] == pytest.approx(np.median(found.value_std[:2]))


def test_no_more_batches_are_read_than_are_wanted():
    def endless():
        while True:
            yield from batches(5.0, num_cells=10)

    found = feature_statistics(endless(), LAYOUT, {"rna": 1e4}, max_tokens=100)
    assert found.share.shape == (3,)


def test_statistics_are_saved_and_refused_where_they_do_not_fit(tmp_path):
    found = feature_statistics(batches(5.0), LAYOUT, {"rna": 1e4})
    save_statistics(found, tmp_path / "s.npz")
    for ours, read in zip(found, load_statistics(tmp_path / "s.npz", 3), strict=True):
        np.testing.assert_array_equal(ours, read)
    with pytest.raises(InputError, match="is of 3 features, expected 4"):
        load_statistics(tmp_path / "s.npz", 4)
    (tmp_path / "s.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"s\.npz: cannot be read"):
        load_statistics(tmp_path / "s.npz", 3)
