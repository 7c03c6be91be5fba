"""Cells for the input benchmark: as long, as deep and as uneven as those of a droplet experiment, made in seconds.

Calibrated on 892 blood cells of 10x Genomics (36,601 genes of GRCh38-2020-A). There and here: the 100 most abundant
genes hold 45% / 43% of all molecules, 1,000 hold 72% / 76%; 62% / 65% of the counts are 1, 18% / 15% are 2, and one in
three thousand is 255 or more. Those cells express 2,252 genes; these 1,635, what an atlas has. Genes that are expressed
lie at random places, which compresses worse than the order of real references.
"""

from pathlib import Path

import numba
import numpy as np
import pandas as pd
import scipy.sparse

NUM_GENES = 36_601
MEAN_GENES = 1_635  # expressed in a cell, on average

_GENE_SPREAD = 2.7  # sd of the log of a gene's abundance
_TYPE_SPREAD = 0.5  # sd of the log of what a cell type does to a gene
_DEPTH_SPREAD = 0.5  # sd of the log of a cell's depth
_MEDIAN_DEPTH = 4_195  # molecules; with the above it gives MEAN_GENES
_NUM_TYPES = 12


def draw_counts(num_cells: int, seed: int, num_genes: int = NUM_GENES) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """Counts float32 CSR [num_cells, num_genes] (as atlases store integers) and cell types int64 [num_cells].

    Every seed draws other cells of the same types. A smaller panel has shallower cells.
    """
    profile_rng = np.random.default_rng(num_genes)
    log_abundance = profile_rng.normal(0, _GENE_SPREAD, num_genes)
    log_abundance = log_abundance + profile_rng.normal(0, _TYPE_SPREAD, (_NUM_TYPES, num_genes))
    abundance = np.exp(log_abundance)
    cumulative = np.cumsum(abundance / abundance.sum(1, keepdims=True), axis=1)  # [types, genes]
    rng = np.random.default_rng([seed, num_cells])
    types = rng.integers(_NUM_TYPES, size=num_cells)
    median = _MEDIAN_DEPTH * num_genes / NUM_GENES
    depths = np.maximum(rng.lognormal(np.log(median), _DEPTH_SPREAD, num_cells), 20).astype(np.int64)
    starts, ids, counts = _draw(cumulative, types, depths, int(rng.integers(2**31)))
    return scipy.sparse.csr_matrix((counts, ids, starts), shape=(num_cells, num_genes)), types


@numba.njit(cache=True)
def _draw(cumulative, types, depths, seed):
    """`depths[c]` molecules for every cell, each of a gene drawn from the profile of the cell's type."""
    np.random.seed(seed)  # noqa: NPY002 - the only generator that numba compiles with a seed
    num_cells, num_genes = len(types), cumulative.shape[1]
    ids = np.empty(depths.sum(), np.int32)
    counts = np.empty(depths.sum(), np.float32)
    starts = np.zeros(num_cells + 1, np.int64)
    tally = np.zeros(num_genes, np.int32)
    nnz = 0
    for cell in range(num_cells):
        profile = cumulative[types[cell]]
        for _ in range(depths[cell]):
            gene = np.searchsorted(profile, np.random.random() * profile[-1], side="right")  # noqa: NPY002
            tally[min(gene, num_genes - 1)] += 1
        for gene in range(num_genes):
            if tally[gene]:
                ids[nnz] = gene
                counts[nnz] = tally[gene]
                tally[gene] = 0
                nnz += 1
        starts[cell + 1] = nnz
    return starts, ids[:nnz].copy(), counts[:nnz].copy()


def write_datasets(folder: Path, num_cells: int, num_datasets: int) -> list[Path]:
    """Gzip-compressed .h5ad files `dataset0.h5ad` ... with `num_cells` in all; ids are those of the human reference."""
    import anndata

    from data_pipelines.features.gene_tables import load_gene_table

    table = load_gene_table("human")
    genes = pd.DataFrame(index=table.ids[table.reference])
    paths = []
    for number, places in enumerate(np.array_split(np.arange(num_cells), num_datasets)):
        counts, types = draw_counts(len(places), number, len(genes))
        obs = pd.DataFrame({"cell_type": np.char.add("type", types.astype(str))}, index=np.char.mod("cell%d", places))
        paths.append(folder / f"dataset{number}.h5ad")
        anndata.AnnData(counts, obs, genes).write_h5ad(paths[-1], compression="gzip")
    return paths
