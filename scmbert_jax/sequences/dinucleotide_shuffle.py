"""Several dinucleotide shuffles of each sequence: the background that keeps CpG and base content."""

import numpy as np

from data_pipelines.genome.bases import UNKNOWN
from data_pipelines.genome.shuffled import shuffle_dinucleotides
from scmbert_jax.errors import InputError


def dinucleotide_shuffles(codes: np.ndarray, num_shuffles: int = 1, seed: int = 0) -> np.ndarray:
    """uint8 [N, S, L]: of each sequence S shuffles, drawn uniformly among the sequences with its dinucleotides.

    Each has the first and the last base, the bases and the dinucleotides of its sequence; N counts as a fifth letter.
    A shuffle is a function of the seed, S, its place and the sequence. Sequences with few orders of their dinucleotides
    (runs, short ones) may come back as they are.

    Args:
      codes: uint8 [N, L], 0..3 for A, C, G, T, 4 for N (`data_pipelines.genome.bases.encode`).
      num_shuffles: S.
      seed: of the random numbers.

    Raises InputError: other shapes or codes.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.dtype.kind not in "ui":
        raise InputError(f"codes: {codes.dtype} {list(codes.shape)}, expected whole numbers [N, L], 0..4 for ACGTN")
    if codes.size and not 0 <= codes.min() <= codes.max() <= UNKNOWN:
        raise InputError(f"codes from {codes.min()} to {codes.max()}; expected 0..4 for A, C, G, T, N")
    if num_shuffles < 1:
        raise InputError(f"num_shuffles {num_shuffles}: expected 1 or more")
    repeated = np.repeat(codes.astype(np.uint8), num_shuffles, axis=0)
    return shuffle_dinucleotides(repeated, seed).reshape(len(codes), num_shuffles, codes.shape[1])
