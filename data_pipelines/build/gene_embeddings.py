"""Gene embeddings of a corpus: which genes its cells express together."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from data_pipelines.corpus.corpus import Corpus
from data_pipelines.features.feature_embeddings import save_feature_embeddings
from data_pipelines.sampling.mixture import Mixture, MixtureOptions
from data_pipelines.statistics.co_expression import co_expression_embeddings
from scmbert_jax.errors import CorpusError


def gene_embeddings(
    corpus: Corpus,
    output: Path,
    *,
    dim: int = 200,
    max_cells: int = 10_000,
    min_cells: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int, int]:
    """Writes a table of embeddings (features/feature_embeddings.py) of the genes that enough cells express.

    Cells that the corpus holds out are not read. Blocks hold cells of the whole corpus in random order, so the first
    ones are a sample of it. A gene that a data set does not measure counts as one that its cells do not express.

    Args: as of `co_expression_embeddings`, and
      max_cells: cells after which no further block is read.

    Returns cells read, genes written, genes of the corpus.

    Raises `CorpusError` for a corpus without RNA, `InputError` as `co_expression_embeddings`.
    """
    genes = corpus.feature_space.modalities.get("rna")
    if genes is None:
        raise CorpusError(f"{corpus.path}: holds {', '.join(corpus.modalities)} and no RNA; genes cannot be embedded.")
    rows = Mixture([corpus], MixtureOptions(), ["rna"]).drawn_rows(0)
    drawn = np.ones(corpus.num_cells, bool) if rows is None else np.isin(np.arange(corpus.num_cells), rows)
    wanted = min(max_cells, int(drawn.sum()))
    parts, number = [sp.csr_matrix((0, len(genes)), dtype=bool)], 0
    for block_number in range(corpus.num_blocks):
        if number >= wanted:
            break
        block = corpus.read_block(block_number, ("rna",))
        columns = block.modalities.get("rna")
        if columns is None:
            continue
        starts = np.concatenate([[0], np.cumsum(columns.lengths, dtype=np.int64)])
        ones = np.ones(len(columns.feature_ids), bool)
        cells = sp.csr_matrix((ones, columns.feature_ids, starts), (block.num_cells, len(genes)))
        parts.append(cells[columns.measured & drawn[block.cell_index]])
        number += parts[-1].shape[0]
        if progress is not None:
            progress(min(number, wanted), wanted)
    vectors = co_expression_embeddings(sp.vstack(parts, format="csr")[:max_cells], dim, min_cells=min_cells)
    known = np.isfinite(vectors).all(axis=1)
    save_feature_embeddings(output, genes.ids[known], vectors[known])
    return min(number, max_cells), int(known.sum()), len(genes)
