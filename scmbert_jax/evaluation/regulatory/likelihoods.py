"""Scores of sequences that need no label: what a DNA language model has to beat in a zero-shot recipe.

A score is a function of codes uint8 [N, L] that gives float64 [N]; only which of two sequences has more counts.
"""

from collections.abc import Callable, Mapping

import numpy as np

from data_pipelines.genome.bases import reverse_complement
from data_pipelines.genome.motifs import MotifSet
from scmbert_jax.errors import InputError
from scmbert_jax.sequences.kmer_counts import kmer_places
from scmbert_jax.sequences.motif_scanner import MotifScanner

Array = np.ndarray
Score = Callable[[Array], Array]

ORDERS = (0, 1, 2, 3, 4, 5)
_ADDED = 1.0  # to the count of each word, split over the four bases that may follow


def markov_score(training: Array, order: int) -> Score:
    """Mean log-likelihood per base, nats, of a Markov chain: each base given the `order` bases before it.

    Counted on both strands of the training sequence. Bases with an N among those before them do not count. A
    dinucleotide shuffle has the same score in the orders 0 and 1, up to its first base.

    Args:
      training: uint8 [N, L] or [L] (`bases`).

    Raises InputError: nothing to count.
    """
    sequences = np.atleast_2d(training)
    counts = _counts(sequences, order) + _counts(reverse_complement(sequences), order)
    if not counts.any():
        raise InputError(f"a Markov chain of order {order}: no stretch of {order + 1} bases without N to learn from")
    table = np.log((counts + _ADDED / 4) / (counts.sum(1, keepdims=True) + _ADDED)).ravel()

    def score(codes: Array) -> Array:
        ids, whole = kmer_places(codes, order + 1)
        return np.where(whole, table[ids], 0.0).sum(1) / np.maximum(whole.sum(1), 1)

    return score


def gc_content(codes: Array) -> Array:
    """float64 [N]: the fraction of G and C."""
    return ((codes == 1) | (codes == 2)).mean(1)


def cpg_content(codes: Array) -> Array:
    """float64 [N]: how many pairs of neighbours are CG."""
    return ((codes[:, :-1] == 1) & (codes[:, 1:] == 2)).mean(1)


def motif_score(motifs: MotifSet) -> Score:
    """The mean over motifs of log2 of the mean likelihood ratio, bits; 0 of those longer than the sequence."""
    scanner = MotifScanner(motifs.log_odds())

    def score(codes: Array) -> Array:
        found = scanner(codes, None, ("log_mean_exp",))["log_mean_exp"]
        return np.where(np.isfinite(found), found, 0.0).astype(np.float64).mean(1)

    return score


def simple_scores(training: Array, motifs: MotifSet | None) -> Mapping[str, Score]:
    """Name -> score: composition, Markov chains of all `ORDERS`, and motifs where there are some."""
    found: dict[str, Score] = {"GC content": gc_content, "CpG content": cpg_content}
    found |= {f"Markov chain of order {order}": markov_score(training, order) for order in ORDERS}
    return found if motifs is None else found | {"motifs": motif_score(motifs)}


def _counts(codes: Array, order: int) -> Array:
    """float64 [4^order, 4]: how often each base follows each word."""
    ids, whole = kmer_places(codes, order + 1)
    return np.bincount(ids[whole], minlength=4 ** (order + 1)).reshape(-1, 4).astype(np.float64)
