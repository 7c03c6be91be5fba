"""Genes that cells express together get vectors of one direction, by the closed form of skip-gram."""

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import scmbert, scmbert_ok

from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.features.feature_embeddings import load_feature_embeddings
from data_pipelines.statistics.co_expression import co_expression_embeddings
from scmbert_jax.errors import InputError


def programs(depths=(0.3, 0.5), seed=0):
    """bool [600, 30]: three programs of ten genes, a cell expresses mostly one; half of the cells are deeper."""
    rng = np.random.default_rng(seed)
    chance = np.where(np.arange(600)[:, None] % 3 == np.arange(30)[None] // 10, 1.0, 0.2)
    return sp.csr_matrix(rng.random((600, 30)) < chance * np.repeat(depths, 300)[:, None])


def test_the_product_of_rows_is_the_matrix_of_information_by_its_definition():
    expressed = programs().toarray()[:60]
    together = np.zeros((30, 30))
    for cell in expressed:
        genes = np.flatnonzero(cell)
        for i in genes:
            for j in genes:
                together[i, j] += (i != j) / max(len(genes) - 1, 1)
    assert together.sum(axis=1) == pytest.approx(
        expressed[expressed.sum(axis=1) > 1].sum(axis=0)
    )  # 1 per gene and cell
    expected = np.outer(together.sum(axis=1), together.sum(axis=0)) / together.sum()
    with np.errstate(divide="ignore"):
        information = np.maximum(np.log(together / expected), 0.0)
    values, vectors = np.linalg.eigh(information)
    largest = np.argsort(-np.abs(values))[:20]
    wanted = vectors[:, largest] * np.abs(values[largest]) @ vectors[:, largest].T
    rows = co_expression_embeddings(sp.csr_matrix(expressed), 20, min_cells=1).astype(np.float64)
    assert np.mean(rows**2) == pytest.approx(1 / 20)
    np.testing.assert_allclose(rows @ rows.T / np.trace(rows @ rows.T), wanted / np.trace(wanted), atol=1e-5)


def test_genes_of_one_program_are_near_and_others_are_not_whatever_the_depth():
    rows = co_expression_embeddings(programs(), 3)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    same = np.arange(30)[:, None] // 10 == np.arange(30)[None] // 10
    cosine = unit @ unit.T
    assert cosine[same].min() > 0.9
    assert cosine[~same].max() < 0.5
    np.testing.assert_array_equal(rows, co_expression_embeddings(programs(), 3))


def test_genes_of_few_cells_have_no_row_and_too_few_genes_are_refused():
    expressed = programs().tolil()
    expressed[:, 4] = False
    expressed[:3, 4] = True
    rows = co_expression_embeddings(expressed.tocsr(), 3, min_cells=4)
    assert np.flatnonzero(np.isnan(rows).any(axis=1)).tolist() == [4]
    with pytest.raises(InputError, match=r"29 genes are expressed in 4 cells or more, too few for embeddings of 28"):
        co_expression_embeddings(expressed.tocsr(), 28, min_cells=4)


@pytest.mark.slow
def test_a_table_of_a_corpus_is_written_and_read_by_ids_symbols_and_lines_of_text(pbmc_corpus, tmp_path):
    table = tmp_path / "genes.npz"
    told = scmbert_ok("corpus", "gene-embeddings", pbmc_corpus, "-o", table, "--dim", "16")
    assert "16 numbers each, of" in told
    with open_corpus(pbmc_corpus) as corpus:
        space = corpus.feature_space
    rows = load_feature_embeddings(table, space, 16)
    first, stop = space.slices["rna"]
    known = np.isfinite(rows).all(axis=1)
    assert known[first:stop].mean() > 0.5
    assert not known[stop:].any()
    genes = np.flatnonzero(known)[:5]
    lines = [f"{space.modalities['rna'].names[gene]} {' '.join(map(str, rows[gene]))}" for gene in genes]
    (tmp_path / "genes.txt").write_text("\n".join(["5 16", *lines]) + "\n")
    as_text = load_feature_embeddings(tmp_path / "genes.txt", space, 16)
    np.testing.assert_array_equal(as_text[genes], rows[genes])
    assert np.isfinite(as_text).all(axis=1).sum() == 5

    for text, words in (
        (f"{lines[0]}\n{lines[0]}", "are one feature"),
        ("NOT-A-GENE" + " 1" * 16, "none of its 1 names, such as 'NOT-A-GENE'"),
        (lines[0] + " 3", "vectors of 17 numbers, but model.embed_dim is 16"),
        (lines[0].rpartition(" ")[0] + " nan", "is not finite"),
        (lines[0] + "x", "cannot be read as a table"),
    ):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(InputError, match=words):
            load_feature_embeddings(tmp_path / "bad.txt", space, 16)
    assert "is there already" in scmbert("corpus", "gene-embeddings", pbmc_corpus, "-o", table).err
    assert "expected 1 or more" in scmbert("corpus", "gene-embeddings", pbmc_corpus, "-o", table, "--dim", "0").err
