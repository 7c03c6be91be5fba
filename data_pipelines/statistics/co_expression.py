"""Embeddings of genes by which cells express them together, in closed form.

Skip-gram with negative sampling, of which gene2vec is made, factorises in its optimum the matrix of shifted pointwise
mutual information (Levy & Goldberg 2014, "Neural word embedding as implicit matrix factorization"). So the matrix is
made and factorised: no epochs, no learning rate, the same numbers each time. A cell is a sentence, the genes that it
expresses its words, all in any order each other's context. The pairs of a gene in a cell weigh 1 together, whether the
cell expresses few genes or many: else deep cells, which express a bit of everything, would decide.

    W_ij = sum over cells with i and j of 1 / (expressed genes - 1)              i != j
    M_ij = max(0, log(W_ij sum(W) / (sum_j W_ij sum_i W_ij)) - log(num_negatives))
    rows = U sqrt(|lambda|), of the eigenvalues of M that are largest by their size

(ibid., section 3.3, symmetric). Words within a window of five are far more selective than genes within a cell, where a
shift of log 5 would leave little, so `num_negatives` is 1.
"""

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg

from scmbert_jax.errors import InputError

_CELLS_AT_A_TIME = 512  # dense
_ROWS_AT_A_TIME = 1024


def co_expression_embeddings(
    expressed: sp.csr_matrix, dim: int, *, min_cells: int = 10, num_negatives: float = 1.0
) -> np.ndarray:
    """float32 [genes, dim]; a row of nan for a gene that fewer than `min_cells` cells express.

    The rows have a mean square of 1 / dim, as those with which a feature table starts. Memory is that of a few float32
    matrices of genes by genes.

    Args:
      expressed: [cells, genes]; what is not zero is expressed.

    Raises `InputError` where fewer than dim + 2 genes are expressed in enough cells, or nothing is co-expressed.
    """
    kept = np.flatnonzero(np.bincount(expressed.indices, minlength=expressed.shape[1]) >= min_cells)
    if len(kept) < dim + 2:
        raise InputError(
            f"{len(kept):,} genes are expressed in {min_cells:,} cells or more, too few for embeddings of {dim} "
            "numbers: read more cells, or ask for fewer numbers."
        )
    matrix = _information(expressed[:, kept], num_negatives)
    if not matrix.any():
        raise InputError("no two genes are expressed together more often than by chance.")
    start = np.ones(len(kept), np.float32)  # of the iteration, so that it takes the same course each time
    values, vectors = scipy.sparse.linalg.eigsh(matrix, k=dim, which="LM", v0=start)
    order = np.argsort(-np.abs(values), kind="stable")
    found = vectors[:, order] * np.sqrt(np.abs(values[order]))
    found *= np.sign(found[np.abs(found).argmax(axis=0), np.arange(dim)])
    rows = np.full((expressed.shape[1], dim), np.nan, np.float32)
    rows[kept] = found / np.sqrt(np.mean(found**2) * dim)
    return rows


def _information(expressed: sp.csr_matrix, num_negatives: float) -> np.ndarray:
    """M, float32 [genes, genes]."""
    number = np.diff(expressed.indptr)
    expressed = expressed[number > 1]
    weights = np.repeat(1.0 / (number[number > 1] - 1.0), number[number > 1])
    weighted = sp.csr_matrix((weights.astype(np.float32), expressed.indices, expressed.indptr), expressed.shape)
    together = np.zeros((expressed.shape[1], expressed.shape[1]), np.float32)
    for first in range(0, expressed.shape[0], _CELLS_AT_A_TIME):
        own = weighted[first : first + _CELLS_AT_A_TIME].toarray()
        together += (own > 0).astype(np.float32).T @ own
    np.fill_diagonal(together, 0.0)
    of_gene = together.sum(axis=1, dtype=np.float64)
    scale = np.sqrt(of_gene.sum() / num_negatives) / np.maximum(of_gene, 1e-30)  # twice: M_ij = log(W_ij s_i s_j)
    for first in range(0, len(together), _ROWS_AT_A_TIME):
        mine = slice(first, first + _ROWS_AT_A_TIME)
        ratio = together[mine] * scale[mine, None].astype(np.float32) * scale.astype(np.float32)
        together[mine] = np.log(np.maximum(ratio, 1.0))
    return together
