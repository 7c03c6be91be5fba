"""Which score is rare: the exact distribution of a motif's score on random sequence, and thresholds from p-values.

The score of w independent bases is a sum of w independent terms, so its distribution is their convolution (Staden 1989,
"Methods for calculating the probabilities of finding patterns in sequences"). Terms are rounded to multiples of a step,
which makes the sum a whole number and the distribution finite: it is exact for the `rounded` matrix, whose scores
differ from the unrounded ones by at most w * step / 2. Both the threshold and that bound are given.

Scan the rounded matrices for hits. Many stretches have the very same score; where it lies within that bound of the
threshold, unrounded scores put all of them on one side or the other, and a motif may have ten times the hits expected.
"""

from typing import NamedTuple

import numpy as np

from data_pipelines.genome.motifs import UNIFORM
from scmbert_jax.errors import InputError

STEP = 1e-3  # bits; JASPAR's 755 human matrices take 4 s


class ScoreDistribution(NamedTuple):
    """Of a motif's score at one place of one strand of random sequence.

    Attributes:
      lowest: score of the first value, bits.
      step: between values, bits.
      probability: float64 [S], that the (rounded) score is lowest + i * step.
      rounding: by how much a rounded score may differ from the true one, bits.
    """

    lowest: float
    step: float
    probability: np.ndarray
    rounding: float

    def threshold(self, p_value: float) -> "Threshold":
        """The lowest score that random sequence reaches with a probability of at most `p_value`.

        Raises InputError: p_value outside (0, 1].
        """
        if not 0 < p_value <= 1:
            raise InputError(f"p-value {p_value}: expected above 0 and at most 1")
        tails = np.cumsum(self.probability[::-1])[::-1]  # P(score >= value)
        within = np.flatnonzero(tails <= p_value * (1 + 1e-12))
        place = int(within[0]) if len(within) else len(tails)
        reached = float(tails[place]) if len(within) else 0.0
        return Threshold(self.lowest + (place - 0.5) * self.step, reached, self.rounding)


class Threshold(NamedTuple):
    """A score to be reached.

    Attributes:
      score: bits, half a step below the lowest rounded score that reaches it, so that the rounding of float32 decides
        nothing; above the best score of all where even that is too frequent: no sequence reaches it.
      p_value: probability that the rounded score of random sequence reaches it, at one place of one strand.
      rounding: the true score of a sequence differs from the rounded one by at most so many bits.
    """

    score: float
    p_value: float
    rounding: float


def rounded(log_odds: list[np.ndarray], step: float = STEP) -> list[np.ndarray]:
    """float64 [w, 4] each, bits: terms as multiples of a step, of whose scores the p-values are exact."""
    return [np.rint(np.asarray(matrix, np.float64) / step) * step for matrix in log_odds]


def score_distribution(
    log_odds: np.ndarray, background: tuple[float, ...] = UNIFORM, step: float = STEP
) -> ScoreDistribution:
    """The distribution of a motif's score where bases are drawn from a background.

    Args:
      log_odds: [w, 4], bits.
      background: probabilities of A, C, G, T.
      step: bits.
    """
    terms = np.rint(np.asarray(log_odds, np.float64) / step).astype(np.int64)
    lowest = terms.min(1)
    above = terms - lowest[:, None]  # [w, 4], 0 and more
    probability = np.ones(1)
    for place in above:
        grown = np.zeros(len(probability) + int(place.max()))
        for shift, frequency in zip(place.tolist(), background, strict=True):
            grown[shift : shift + len(probability)] += frequency * probability
        probability = grown
    return ScoreDistribution(int(lowest.sum()) * step, step, probability, len(terms) * step / 2)


def score_thresholds(
    log_odds: list[np.ndarray], p_value: float, background: tuple[float, ...] = UNIFORM, step: float = STEP
) -> list[Threshold]:
    """One per motif; see `score_distribution`."""
    return [score_distribution(matrix, background, step).threshold(p_value) for matrix in log_odds]
