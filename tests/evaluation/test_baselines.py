"""The PCA baseline sees counts, never labels, and normalises as it says."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA

from scmbert_jax.errors import InputError
from scmbert_jax.evaluation import baselines


def counts(cells=40, features=30, seed=0):
    dense = np.random.default_rng(seed).poisson(0.8, size=(cells, features))
    dense[3] = 0  # a cell with no counts
    return dense


def test_normalisations_are_their_formulas_on_dense_counts():
    x = counts().astype(float)
    sparse = sp.csr_matrix(x)
    totals = np.maximum(x.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(baselines.log1p_cp10k(sparse).toarray(), np.log1p(1e4 * x / totals))
    geometric = np.exp(np.log1p(x).mean(1, keepdims=True))
    np.testing.assert_allclose(baselines.centred_log_ratio(sparse).toarray(), np.log1p(x / geometric))
    opened = x > 0
    tf = opened / np.maximum(opened.sum(1, keepdims=True), 1)
    idf = np.log(1 + len(x) / opened.sum(0))
    np.testing.assert_allclose(baselines.root_idf(sparse).toarray(), np.sqrt(1e3 * tf) * idf)


@pytest.mark.parametrize("modality", ["rna", "protein", "atac"])
def test_dense_and_sparse_counts_give_the_same_finite_embedding(modality):
    dense = baselines.pca_embedding(counts(), modality, 8)
    sparse = baselines.pca_embedding(sp.csc_matrix(counts()), modality, 8)
    assert dense.shape == (40, 8)
    assert dense.dtype == np.float32
    assert np.isfinite(dense).all()
    np.testing.assert_allclose(dense, sparse, atol=1e-4)


def test_rna_is_the_pca_of_log1p_cp10k_by_either_solver(monkeypatch):
    expected = PCA(6, svd_solver="full").fit_transform(baselines.log1p_cp10k(sp.csr_matrix(counts())).toarray())
    np.testing.assert_allclose(baselines.pca_embedding(counts(), "rna", 6), expected, atol=1e-3)
    monkeypatch.setattr(baselines, "_COVARIANCE_FEATURES", 0)
    np.testing.assert_allclose(baselines.pca_embedding(counts(), "rna", 6), expected, atol=1e-3)


def test_roots_are_of_the_fractions_of_a_cell():
    x = counts().astype(float)
    roots = np.sqrt(1e3 * x / np.maximum(x.sum(1, keepdims=True), 1))
    np.testing.assert_allclose(baselines.WITH_ROOTS["rna"](sp.csr_matrix(x)).toarray(), roots)
    expected = PCA(6, svd_solver="full").fit_transform(roots)
    np.testing.assert_allclose(
        np.abs(baselines.pca_embedding(counts(), "rna", 6, roots=True)), np.abs(expected), atol=1e-3
    )


def test_the_atac_baseline_does_not_hold_depth():
    rng = np.random.default_rng(1)
    depth = rng.uniform(0.05, 0.6, size=(300, 1))
    groups = rng.integers(0, 2, 300)
    regions = np.where(groups[:, None] == (np.arange(400) < 200), 1.4, 0.6)
    x = (rng.random((300, 400)) < depth * regions).astype(int)
    lsi = baselines.pca_embedding(x, "atac", 5)
    # Roots leave a little depth everywhere; the first kept component must be the groups.
    assert abs(np.corrcoef(lsi[:, 0], groups)[0, 1]) > 0.9
    assert abs(np.corrcoef(lsi[:, 0], depth[:, 0])[0, 1]) < 0.3


@pytest.mark.parametrize(("modality", "width"), [("rna", 29), ("protein", 29), ("atac", 28)])
def test_the_width_is_bounded_by_the_features(modality, width):
    assert baselines.pca_embedding(counts(), modality, 512).shape == (40, width)


@pytest.mark.parametrize("bad", [-1.0, 0.5, np.nan, np.inf])
def test_values_that_are_no_counts_are_refused(bad):
    x = counts().astype(float)
    x[5, 5] = bad
    with pytest.raises(InputError, match="1 values that are no counts"):
        baselines.pca_embedding(x, "rna", 5)


def test_an_unknown_modality_is_refused():
    with pytest.raises(InputError, match="'methylation' has no PCA baseline; there is one for rna, protein, atac"):
        baselines.pca_embedding(counts(), "methylation", 5)


def test_the_majority_class_is_that_of_the_training_cells():
    assert baselines.majority_class(np.array([2, 1, 2]), 4).tolist() == [2, 2, 2, 2]
