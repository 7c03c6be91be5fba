"""Two questions to any score of sequences, without a label (after DART-Eval's tasks 1 and 2, made anew here).

elements   is an element likelier than its own dinucleotide shuffle?
motifs     is a motif in the middle of shuffled elements likelier than the same letters in another order there?

A stretch of 6 bases comes back unchanged from 41% of its dinucleotide shuffles, so the letters of a motif are shuffled,
and a shuffle that is the motif or its reverse complement is drawn again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import wilcoxon

from data_pipelines.genome.bases import reverse_complement
from data_pipelines.genome.motifs import MotifSet
from data_pipelines.genome.shuffled import shuffle_dinucleotides
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.intervals import bootstrap_weights, percentile_interval
from scmbert_jax.evaluation.regulatory.likelihoods import Score

Array = np.ndarray

ELEMENTS, MOTIFS_IN_SHUFFLES = "element or its shuffle", "motif or its shuffle"
BACKGROUNDS = 10  # shuffled elements that each motif is put into
_RESAMPLES = 1000
_DRAWS = 100  # of a motif's letters, before it counts as one that has no other order
_TIE = 1e-9  # relative: scores that are mathematically equal differ by their sums' rounding


@dataclass(frozen=True)
class Pairs:
    """The same question n times.

    Attributes:
      recipe: which.
      real, shuffled: uint8 [n, L].
      group: int64 [n]; pairs of one group (motif) are not independent, and count as one in the interval.
    """

    recipe: str
    real: Array
    shuffled: Array
    group: Array


@dataclass(frozen=True)
class PairScore:
    """How often the real one is higher, ties counting half.

    Attributes:
      recipe, method: the row.
      accuracy, low, high: mean over groups, with a 95% bootstrap interval over groups.
      p_value: Wilcoxon's signed-rank test of the groups' mean differences, two-sided; 1 where all are 0.
      number: groups; `pairs`: pairs.
    """

    recipe: str
    method: str
    accuracy: float
    low: float
    high: float
    p_value: float
    number: int
    pairs: int


def element_pairs(codes: Array, seed: int = 0, shuffles: int = 1) -> Pairs:
    """Each element beside dinucleotide shuffles of its own.

    Args:
      codes: uint8 [N, L], windows of elements on sealed sequence.

    Raises InputError: no element.
    """
    if not len(codes):
        raise InputError("no element on the sealed sequence: nothing to compare with its shuffle")
    real = np.repeat(codes, shuffles, axis=0)
    return Pairs(ELEMENTS, real, shuffle_dinucleotides(real, seed), np.repeat(np.arange(len(codes)), shuffles))


def motif_pairs(motifs: MotifSet, codes: Array, seed: int = 0, backgrounds: int = BACKGROUNDS) -> tuple[Pairs, int]:
    """Each motif's likeliest sequence in the middle of shuffled elements, and its letters in another order there.

    Args:
      codes: uint8 [N, L], elements, whose dinucleotide shuffles are the backgrounds.

    Returns:
      The pairs, and how many motifs are left out, since their letters have no other order or they do not fit.

    Raises InputError: no motif is left.
    """
    shuffled = shuffle_dinucleotides(codes, seed + 1)
    rng = np.random.default_rng(seed)
    real, other, group = [], [], []
    for number, matrix in enumerate(motifs.counts):
        consensus = matrix.argmax(1).astype(np.uint8)
        if len(consensus) > codes.shape[1]:
            continue
        same = (consensus, reverse_complement(consensus))
        for _ in range(backgrounds):
            turned = _other_order(consensus, same, rng)
            if turned is None:
                break
            background = shuffled[rng.integers(len(shuffled))]
            real.append(_inserted(background, consensus))
            other.append(_inserted(background, turned))
            group.append(number)
    if not group:
        raise InputError(f"{motifs.where}: no motif that fits into {codes.shape[1]} bases and has another order")
    return Pairs(MOTIFS_IN_SHUFFLES, np.stack(real), np.stack(other), np.array(group)), len(motifs) - len(set(group))


def score_pairs(pairs: Pairs, scores: Mapping[str, Score], seed: int = 0) -> list[PairScore]:
    """A row per score."""
    return [_scored(pairs, name, score(pairs.real), score(pairs.shuffled), seed) for name, score in scores.items()]


def _scored(pairs: Pairs, method: str, real: Array, shuffled: Array, seed: int) -> PairScore:
    if not (np.isfinite(real).all() and np.isfinite(shuffled).all()):
        raise InputError(f"{method}: scores that are no finite numbers, for {pairs.recipe}")
    difference = np.asarray(real, np.float64) - shuffled
    difference[np.abs(difference) <= _TIE * (np.abs(real) + np.abs(shuffled))] = 0.0
    _, group = np.unique(pairs.group, return_inverse=True)
    sizes = np.bincount(group)
    right = np.bincount(group, (difference > 0) + (difference == 0) / 2) / sizes
    mean = np.bincount(group, difference) / sizes
    weights = bootstrap_weights(len(right), _RESAMPLES, np.random.default_rng(seed))
    accuracy, low, high = percentile_interval(right.mean(), weights @ right / len(right))
    p_value = float(wilcoxon(mean).pvalue) if (mean != 0).any() else 1.0
    return PairScore(pairs.recipe, method, accuracy, low, high, p_value, len(right), len(difference))


def _other_order(letters: Array, same: Sequence[Array], rng: np.random.Generator) -> Array | None:
    for _ in range(_DRAWS):
        drawn = rng.permutation(letters)
        if not any(np.array_equal(drawn, one) for one in same):
            return drawn
    return None


def _inserted(background: Array, letters: Array) -> Array:
    found, start = background.copy(), (len(background) - len(letters)) // 2
    found[start : start + len(letters)] = letters
    return found
