"""Which genes a region may regulate: the nearest transcription start sites."""

import numpy as np

from data_pipelines.gene_tables import GeneTable

MAX_GENES = 3
MAX_DISTANCE = 100_000  # base pairs; most enhancer-promoter contacts are closer


def nearest_genes(
    chrom: np.ndarray, start: np.ndarray, end: np.ndarray, genes: GeneTable
) -> tuple[tuple[str, ...], ...]:
    """For each region the ids of up to 3 genes whose TSS is nearest to its middle, within 100 kb; nearest first.

    Args:
      chrom, start, end: [n] regions of the assembly of `genes`, 0-based half-open.
    """
    links: list[tuple[str, ...]] = [()] * len(chrom)
    for name in np.unique(chrom).tolist():
        if name not in genes.tss_by_chromosome:
            continue
        tss, rows = genes.tss_by_chromosome[name]
        regions = np.flatnonzero(chrom == name)
        middle = (start[regions] + end[regions]) // 2
        # The three nearest are among the three before and the three after the middle.
        place = np.searchsorted(tss, middle)[:, None] + np.arange(-MAX_GENES, MAX_GENES)[None, :]  # [n, 6]
        inside = (place >= 0) & (place < len(tss))
        place = np.clip(place, 0, len(tss) - 1)
        distance = np.where(inside, np.abs(tss[place] - middle[:, None]), MAX_DISTANCE + 1)
        order = np.argsort(distance, axis=1, kind="stable")[:, :MAX_GENES]
        near = np.take_along_axis(distance, order, axis=1) <= MAX_DISTANCE
        gene_rows = rows[np.take_along_axis(place, order, axis=1)]
        for region, found, keep in zip(regions.tolist(), gene_rows, near, strict=True):
            links[region] = tuple(dict.fromkeys(genes.ids[found[keep]].tolist()))
    return tuple(links)
