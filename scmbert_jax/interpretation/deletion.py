"""Deletion curves: the features that an attribution ranks first are set to 0, and the cell is predicted again.

If they are why the cell was called so, its probability falls faster than with as many expressed features at random, or
with those that it expresses most.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from scmbert_jax.annotation.annotator import Annotator
from scmbert_jax.annotation.calibration import probabilities_of
from scmbert_jax.evaluation.intervals import CellInterval, bootstrap_weights, paired_bootstrap, percentile_interval
from scmbert_jax.interpretation.attributions import Explainer
from scmbert_jax.interpretation.drawn_cells import DrawnCells

Array = np.ndarray

NUMBERS = (0, 1, 2, 5, 10, 20, 50, 100, 200)  # features deleted
RANDOM, BY_EXPRESSION = "random", "expression"


class DeletionCurves(NamedTuple):
    """Attributes:
    probabilities: ranking -> float64 [m, len(NUMBERS)], the calibrated probability of the cell's type.
    seed: of the intervals.
    """

    probabilities: dict[str, Array]
    seed: int

    def curve(self, ranking: str) -> list[CellInterval]:
        """The mean over cells at each of `NUMBERS`, with its interval."""
        own = self.probabilities[ranking]
        weights = bootstrap_weights(len(own), 2000, np.random.default_rng(self.seed)) / len(own)
        means = weights @ own  # [R, numbers]
        return [percentile_interval(own[:, place].mean(), means[:, place]) for place in range(own.shape[1])]

    def area_below(self, ranking: str, other: str) -> CellInterval:
        """By how much deletion by `ranking` lowers the probability more than by `other`: mean over `NUMBERS` but 0."""
        areas = {name: self.probabilities[name][:, 1:].mean(axis=1) for name in (ranking, other)}
        return paired_bootstrap(areas[other], areas[ranking], seed=self.seed)


def deletion_curves(
    annotator: Annotator, known: Explainer, drawn: DrawnCells, types: Array, ranked: dict[str, sp.csr_matrix], seed: int
) -> DeletionCurves:
    """Of the drawn cells, m of them.

    Args:
      types: int64 [m], the type of each, whose probability is followed.
      ranked: ranking -> CSR [m, F]; the greatest are deleted first. Random and expression come besides.
      seed: of the random ranking and of intervals.

    Only features with a count are deleted, and never the last one of a cell.
    """
    expression = drawn.expression()
    expressed = expression.astype(bool)
    rng = np.random.default_rng(seed)
    random = sp.csr_matrix((rng.random(expressed.nnz) + 1.0, expressed.indices, expressed.indptr), expressed.shape)
    found = {}
    for name, values in {**ranked, BY_EXPRESSION: expression, RANDOM: random}.items():
        places = _order(values, expressed)
        found[name] = np.stack(
            [_probability(annotator, known, drawn, types, _first(places, number, drawn)) for number in NUMBERS], axis=1
        )
    return DeletionCurves(found, seed)


def _order(values: sp.csr_matrix, expressed: sp.csr_matrix) -> list[Array]:
    """Of each cell, the features that it expresses, those of the greatest value first."""
    found = []
    for row in range(values.shape[0]):
        features = np.sort(expressed.indices[expressed.indptr[row] : expressed.indptr[row + 1]])
        own = np.asarray(values[row].toarray()).ravel()[features]
        found.append(features[np.argsort(-own, kind="stable")])
    return found


def _first(places: list[Array], number: int, drawn: DrawnCells) -> sp.csr_matrix:
    chosen = [own[: min(number, max(len(own) - 1, 0))] for own in places]
    indptr = np.concatenate([[0], np.cumsum([len(own) for own in chosen])])
    columns = np.concatenate([*chosen, np.zeros(0, np.int64)]).astype(np.int64)
    return sp.csr_matrix((np.ones(len(columns), bool), columns, indptr), (drawn.number, drawn.num_features))


def _probability(
    annotator: Annotator, known: Explainer, drawn: DrawnCells, types: Array, deleted: sp.csr_matrix
) -> Array:
    logits = annotator.head.logits(known.vectors(drawn.without(deleted))) / annotator.temperature
    return probabilities_of(logits)[np.arange(drawn.number), types]
