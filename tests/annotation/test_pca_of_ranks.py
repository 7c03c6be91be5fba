"""Principal components of ranks within the cell, whose zeros are not stored, beside the same of whole matrices."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import rankdata, spearmanr

from data_pipelines.batches.model_counts import model_counts
from data_pipelines.readers.example_reader import example_path
from scmbert_jax.annotation.fit import FitOptions
from scmbert_jax.annotation.pca import Pca, fit_pca, rank_values, reference_space
from scmbert_jax.errors import ConfigError


def whole_ranks(counts):
    ranks = rankdata(counts, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    return ranks / np.linalg.norm(ranks, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def cells():
    """200 x 120, in the order of a feature space."""
    import mudata

    found = mudata.read_h5mu(example_path("pbmc_mosaic"))["rna"]
    names = [name for name in found.var_names if not name.startswith(("AC0", "AL3", "LINC"))][:120]
    space, _ = reference_space(found[:, names].copy(), None, None)
    genes = found[:, names].var_names
    assert len(space.modalities["rna"].ids) == len(genes)
    some = found[:200, names].copy()
    return anndata.AnnData(some.X, pd.DataFrame(index=some.obs_names), pd.DataFrame(index=genes))


def test_values_less_their_mean_multiply_to_the_correlation_of_spearman():
    counts = np.random.default_rng(0).poisson(0.7, (2, 50)).astype(np.float32)
    values = rank_values(sp.csr_matrix(counts), 50).toarray()
    values -= values.mean(1, keepdims=True)
    np.testing.assert_allclose(values[0] @ values[1], spearmanr(*counts).statistic, rtol=1e-12)
    assert np.isfinite(rank_values(sp.csr_matrix(np.ones((1, 50), np.float32)), 50).data).all()


def test_components_are_those_of_whole_ranks(cells):
    space, mapped = reference_space(cells, None, None)
    pca = fit_pca(space, mapped, 5, "ranks")
    found = pca.vectors(mapped)
    ranks = whole_ranks(np.asarray(sp.csr_matrix(cells.X).todense()))
    left, singular, _ = np.linalg.svd(ranks - ranks.mean(0), full_matrices=False)
    scores = left[:, :5] * singular[:5]
    scores /= np.sqrt(scores.var(0).mean())
    np.testing.assert_allclose(np.abs(found), np.abs(scores), atol=2e-3)
    again = Pca.from_arrays(pca.space, pca.arrays())
    np.testing.assert_array_equal(again.vectors(mapped), found)


def test_a_file_with_a_part_of_the_genes_has_ranks_among_these(cells):
    space, mapped = reference_space(cells, None, None)
    pca = fit_pca(space, mapped, 5, "ranks")
    half = pca.open(cells[:, ::2].copy(), allow_low_coverage=True)
    part, measured = pca.parts["rna"], half.overlaps["rna"].measured
    assert measured.sum() == 60
    counts = sp.vstack([chunk.counts["rna"] for chunk in model_counts(half.dataset, half.report, half.overlaps)])
    known = counts.getnnz(1) > 0
    ranks = whole_ranks(counts.toarray()[known][:, measured])
    wanted = (ranks - part.mean[measured]) @ part.loadings[measured] / part.scale
    np.testing.assert_allclose(pca.vectors(half)[known], wanted, atol=1e-4)


def test_ranks_are_of_pca_alone():
    with pytest.raises(ConfigError, match="ranks: of method pca alone, not of probe"):
        FitOptions(method="probe", ranks=True)
