"""A corpus of a few sequences whose matrices follow from them."""

import numpy as np
import scipy.sparse as sp

from data_pipelines.genome.bases import encode
from data_pipelines.genome.genome_corpus import GenomeCorpus
from data_pipelines.genome.region_matrix import RegionMatrix
from data_pipelines.genome.sealed_chromosomes import SealedChromosomes

LENGTH = 24
MOTIFS = ("ACG", "TTA", "GGC", "CAT", "TGT")
CELL_TYPES = ("B cell", "T cell", "NK cell")
PARTS = SealedChromosomes(validation=("chr7",), test=("chr8",))


def small_genome(number=48, *, regulators=True, accessibility=True, seed=0) -> GenomeCorpus:
    """`number` regions of 24 bases: two thirds on chr1, the others on chr7 and chr8. A regulator's value is how often
    its motif occurs; a cell type is open where its own regulator binds, and by chance."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 4, (number, LENGTH)).astype(np.uint8)
    lengths = np.full(number, LENGTH, np.int32)
    lengths[::5] = 20
    codes[np.arange(LENGTH)[None] >= lengths[:, None]] = 4
    chromosome = np.repeat(["chr1", "chr7", "chr8"], [number - 2 * (number // 6), number // 6, number // 6])
    start = np.arange(number, dtype=np.int64) * 100
    regions = np.array([f"{name}:{at}-{at + size}" for name, at, size in zip(chromosome, start, lengths, strict=True)])
    counts = np.stack([_count(codes, encode(motif)) for motif in MOTIFS], axis=1).astype(np.float32)
    noise = random.poisson(0.4, (number, len(CELL_TYPES)))
    reads = (3 * counts[:, : len(CELL_TYPES)] + noise).astype(np.float32)
    matrices = [
        RegionMatrix(regions, np.array(names), sp.csr_array(values)) if wanted else None
        for wanted, names, values in ((regulators, MOTIFS, counts), (accessibility, CELL_TYPES, reads))
    ]
    return GenomeCorpus(codes, lengths, chromosome, start, regions, PARTS, "hg38", *matrices)


def _count(codes: np.ndarray, motif: np.ndarray) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(codes, len(motif), axis=1)
    return (windows == motif).all(-1).sum(-1)
