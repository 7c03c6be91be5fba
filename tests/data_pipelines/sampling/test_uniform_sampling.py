"""Tokens are a uniform sample without replacement: statistics over many cells, with stated chances of a false alarm.

Seeds are fixed, so each test always passes or always fails; ALARM is the chance that a statistic would fail for a new
seed though the sampling were perfect (there are about sixty here; the worst of many pairs is one, after Bonferroni).
"""

import numpy as np
import pytest
import scipy.sparse
from scipy import stats

from data_pipelines.batches.collate import (
    TokenSampling,
    collate_counts,
    empty_tokens,
    fill_tokens,
    token_key,
)
from data_pipelines.batches.draw_tokens import MeasuredFeatures, StoredCells, TokenDraw
from data_pipelines.corpus.packed_counts import index_of, pack

ALARM = 1e-6
NUM_FEATURES = 300_000
FEATURES = {
    "neighbours": np.arange(60),
    "same low bits": np.arange(60) * 4096,
    "anywhere": np.sort(np.random.default_rng(0).choice(NUM_FEATURES, 60, replace=False)),
}
KEYS = {
    "counted": lambda n: np.arange(n),
    "from another corpus": lambda n: (np.arange(n) << 20) + 12345,
}


def drawn(expressed, panel, keys, num_tokens, zero_fraction=0.0, modality="rna", epoch=0):
    """bool [cells, panel]: which features became tokens of cells that all express the same features."""
    copies = len(keys)
    size = len(expressed)
    packed = pack(np.full(copies, size, np.int32), np.tile(expressed, copies), np.ones(copies * size, np.uint32))
    mask = np.zeros(NUM_FEATURES, bool)
    mask[panel] = True
    tokens = empty_tokens(copies, num_tokens)
    fill_tokens(
        tokens,
        slice(0, copies),
        np.arange(copies),
        StoredCells(
            packed, index_of(packed), keys.astype(np.uint64), np.zeros(copies, np.int32), np.ones(copies, bool)
        ),
        MeasuredFeatures.from_masks([mask]),
        TokenDraw(token_key(0, epoch, modality), zero_fraction),
    )
    assert (tokens.lengths == num_tokens).all()
    chosen = np.zeros((copies, len(panel)), bool)
    np.put_along_axis(chosen, np.searchsorted(panel, tokens.feature_ids), True, axis=1)
    return chosen


def assert_uniform(chosen: np.ndarray) -> None:
    """Each of n features in k / n of the cells. Their tallies add up to N k, so that the sum of squared deviations over
    N k/n (1 - k/n) n/(n - 1) is chi-square with n - 1 degrees of freedom; too even is as wrong as too uneven."""
    copies, n = chosen.shape
    fraction = chosen.sum() / chosen.size
    deviations = chosen.sum(0) - copies * fraction
    statistic = (deviations**2).sum() / (copies * fraction * (1 - fraction) * n / (n - 1))
    assert stats.chi2.ppf(ALARM / 2, n - 1) < statistic < stats.chi2.isf(ALARM / 2, n - 1)


def assert_pairs_uniform(chosen: np.ndarray) -> None:
    """Each two features together in k (k - 1) / (n (n - 1)) of the cells: the worst of all pairs, Bonferroni."""
    copies, n = chosen.shape
    k = chosen[0].sum()
    expected = k * (k - 1) / (n * (n - 1))
    together = (chosen.T.astype(np.int64) @ chosen.astype(np.int64))[np.triu_indices(n, 1)]
    low, high = stats.binom.interval(1 - ALARM / len(together), copies, expected)
    assert low <= together.min()
    assert together.max() <= high


def assert_independent(first: np.ndarray, second: np.ndarray) -> None:
    """Features that two draws share are hypergeometric: their mean over the cells is within its z-score."""
    copies, n = first.shape
    k, l = first[0].sum(), second[0].sum()
    law = stats.hypergeom(n, k, l)
    z = ((first & second).sum(1).mean() - law.mean()) / (law.std() / np.sqrt(copies))
    assert abs(z) < stats.norm.isf(ALARM / 2)


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("num_tokens", [5, 20, 57])
def test_every_expressed_feature_is_drawn_equally_often_and_with_every_other(features, keys, num_tokens):
    ids = FEATURES[features]
    chosen = drawn(ids, ids, KEYS[keys](10_000), num_tokens)
    assert_uniform(chosen)
    assert_pairs_uniform(chosen)


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("features", FEATURES)
def test_every_zero_is_drawn_equally_often_and_with_every_other(features, keys):
    panel = FEATURES[features]
    expressed = panel[::3]  # 20 of 60
    chosen = drawn(expressed, panel, KEYS[keys](10_000), 16, zero_fraction=0.5)
    is_zero = ~np.isin(panel, expressed)
    assert (chosen[:, is_zero].sum(1) == 8).all()
    for kind in (is_zero, ~is_zero):
        assert_uniform(chosen[:, kind])
        assert_pairs_uniform(chosen[:, kind])


def test_cells_epochs_and_modalities_draw_independently():
    ids = FEATURES["neighbours"]
    keys = np.arange(10_000)
    chosen = drawn(ids, ids, keys, 20)
    assert_independent(chosen[:-1], chosen[1:])
    assert_independent(chosen[:5000], chosen[5000:])
    assert_independent(chosen, drawn(ids, ids, keys, 20, epoch=1))
    assert_independent(chosen, drawn(ids, ids, keys, 20, modality="protein"))


def test_the_statistics_would_notice_a_slight_preference():
    """A feature drawn a seventh more often than the others is found; so the tests above can fail."""
    rng = np.random.default_rng(0)
    weight = np.ones(60)
    weight[7] = 1.2
    scores = rng.random((20_000, 60)) ** (1 / weight)  # Efraimidis & Spirakis 2006: the largest are a weighted sample
    chosen = np.zeros((20_000, 60), bool)
    np.put_along_axis(chosen, np.argsort(scores, axis=1)[:, -20:], True, axis=1)
    assert 1.1 < chosen[:, 7].mean() / chosen.mean() < 1.2
    with pytest.raises(AssertionError):
        assert_uniform(chosen)


def test_a_modality_does_not_change_what_is_drawn_of_another():
    counts = np.random.default_rng(0).poisson(0.7, (8, 400))
    matrices = {"rna": scipy.sparse.csr_matrix(counts), "protein": scipy.sparse.csr_matrix(counts[:, :30])}
    slices = {"rna": (0, 400), "protein": (400, 430)}
    sampling = {"rna": TokenSampling(64, 0.25), "protein": TokenSampling(12)}
    masks = {"rna": np.ones(400, bool), "protein": np.ones(30, bool)}
    both = collate_counts(matrices, sampling, slices, masks)
    for modality in matrices:
        alone = collate_counts({modality: matrices[modality]}, {modality: sampling[modality]}, slices, masks)
        for field, values in alone.modalities[modality]._asdict().items():
            np.testing.assert_array_equal(values, getattr(both.modalities[modality], field), err_msg=field)
