"""From predictions to figures: per seed, over seeds, and over resampled test cells; differences with p-values.

All folds of one seed are one set of predictions, in which every cell counts once. Probabilities are calibrated with
those of training cells that a fit had not seen (one temperature; one threshold per class for label sets), never with
test cells.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import stats

from scmbert_jax.annotation.calibration import (
    ConformalSets,
    accuracy_rejection,
    expected_calibration_error,
    fit_temperature,
    probabilities_of,
)
from scmbert_jax.annotation.novelty import novelty_aupr, novelty_auroc, union_accuracy
from scmbert_jax.evaluation import metrics
from scmbert_jax.evaluation.annotation.task import Predictions, Task
from scmbert_jax.evaluation.intervals import bootstrap_weights, percentile_interval, student_t_interval

Array = np.ndarray

COVERAGE = 0.9  # of label sets
BINS = 15  # of the calibration error
NOVEL_BELOW = 0.5  # scBERT's rule: a cell is of a new type when its largest probability is below this
REJECTED = np.linspace(0, 0.9, 19)  # fractions of the cells, the least certain first
_FEWEST_GROUPS = 5  # for test cells to be resampled by group
_SMALLEST = 1e-6  # a probability of 0 is a probability of this, when its logarithm is taken

IsRight = Callable[[Array, Array], Array]  # (predicted codes [m], true codes [m]) -> bool [m]


class SeedPredictions(NamedTuple):
    """All folds of a seed together, m cells.

    Attributes:
      rows: int64 [m]; truth, predicted: int64 [m], codes.
      score: float [m], the largest probability; calibrated: the same after temperature scaling, nan where there was
        nothing to calibrate with.
      brier: float [m], calibrated where that can be.
      in_set: bool [m], the label set has the true type; set_size: int [m]; both None where there is no set.
      novelty: name -> float [m].
    """

    rows: Array
    truth: Array
    predicted: Array
    score: Array
    calibrated: Array
    brier: Array
    in_set: Array | None
    set_size: Array | None
    novelty: Mapping[str, Array]


def of_seed(tasks: Sequence[Task], found: Sequence[Predictions], truth: Array) -> SeedPredictions:
    """Joins the folds of one seed. `truth`: int64 [cells of the run], their classes."""
    parts = [_of_task(task, predictions, truth[task.test]) for task, predictions in zip(tasks, found, strict=True)]
    if len(parts) == 1:
        return parts[0]
    names = set.intersection(*(set(part.novelty) for part in parts))
    has_sets = all(part.in_set is not None for part in parts)
    rows, truths, predicted, score, certainty, brier = (
        np.concatenate(column) for column in zip(*(part[:6] for part in parts), strict=True)
    )
    return SeedPredictions(
        rows,
        truths,
        predicted,
        score,
        certainty,
        brier,
        np.concatenate([part.in_set for part in parts if part.in_set is not None]) if has_sets else None,
        np.concatenate([part.set_size for part in parts if part.set_size is not None]) if has_sets else None,
        {name: np.concatenate([part.novelty[name] for part in parts]) for name in sorted(names)},
    )


def _of_task(task: Task, predictions: Predictions, truth: Array) -> SeedPredictions:
    p = predictions.probabilities.astype(np.float64)
    known = np.isin(np.arange(task.num_classes), task.codes)
    held_out, codes = predictions.left_out_probabilities, task.codes[predictions.left_out]
    best = p.argmax(1)
    certainty, in_set, set_size, q = np.full(len(p), np.nan), None, None, p
    if held_out is not None and len(held_out):
        q, sets = calibrated(p, held_out.astype(np.float64), codes, known)
        certainty, in_set, set_size = q.max(1), sets[np.arange(len(p)), truth], sets.sum(1)
    brier = ((q - np.eye(task.num_classes)[truth]) ** 2).sum(1)
    novelty = {"max softmax": 1 - p.max(1), **{name: np.asarray(of, float) for name, of in predictions.novelty.items()}}
    return SeedPredictions(task.test, truth, best, p.max(1), certainty, brier, in_set, set_size, novelty)


# --- calibration -----------------------------------------------------------------------------------------------------


class Calibrated(NamedTuple):
    """probabilities: float64 [m, C] after temperature scaling; sets: bool [m, C], conformal, perhaps empty; 0 and False
    for types that no training cell has."""

    probabilities: Array
    sets: Array


def calibrated(probabilities: Array, held_out: Array, codes: Array, known: Array) -> Calibrated:
    """Probabilities float [m, C] of test cells, with those of cells left out of the fit (float [v, C], their codes).

    known: bool [C], types that training cells have.
    """
    logits, logits_held_out = (np.log(np.maximum(p[:, known], _SMALLEST)) for p in (probabilities, held_out))
    membership = codes[:, None] == np.flatnonzero(known)
    temperature = fit_temperature(logits_held_out, membership)
    scaled = probabilities_of(logits, temperature)
    # Without the likeliest type where its threshold leaves it out: with it, sets hold the truth at least as often as
    # labels are right, and whether the thresholds keep their promise could not be told.
    held_out_scaled = probabilities_of(logits_held_out, temperature)
    sets = ConformalSets.of(held_out_scaled, membership, COVERAGE, with_the_best=False)(scaled)
    found = Calibrated(np.zeros(probabilities.shape), np.zeros(probabilities.shape, bool))
    found.probabilities[:, known], found.sets[:, known] = scaled, sets
    return found


def reliability(score: Array, right: Array) -> list[tuple[float, float, int]]:
    """(mean score, accuracy, cells) of each of 15 bins that has any."""
    place = np.minimum((score * BINS).astype(int), BINS - 1)
    return [
        (float(score[place == b].mean()), float(right[place == b].mean()), int((place == b).sum()))
        for b in range(BINS)
        if (place == b).any()
    ]


def rejection_curve(score: Array, right: Array) -> Array:
    """float [len(REJECTED)]: accuracy of the cells left when such a fraction, the least certain, is refused."""
    left = np.maximum(np.round((1 - REJECTED) * right.size).astype(int), 1)
    return accuracy_rejection(score, right).accuracy[left - 1]


# --- one method in one case ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CaseScores:
    """Figures of one method in one case.

    Attributes:
      seeds: predictions of each seed.
      num_classes: C. new_code: the type that was left out, -1 where none was. is_right: the ontology rule, where asked.
    """

    seeds: Sequence[SeedPredictions]
    num_classes: int
    new_code: int = -1
    is_right: IsRight | None = None

    def _known(self, seed: SeedPredictions) -> Array:
        return seed.truth != self.new_code

    @cached_property
    def of_seeds(self) -> dict[str, Array]:
        """metric -> float [S]; those that cannot be told are left out."""
        rows = [self._metrics(seed) for seed in self.seeds]
        shared = [name for name in rows[0] if all(name in row for row in rows)]
        return {name: np.array([row[name] for row in rows]) for name in shared}

    def _metrics(self, seed: SeedPredictions) -> dict[str, float]:
        known = self._known(seed)
        truth, predicted = seed.truth[known], seed.predicted[known]
        right = truth == predicted
        found = {
            "accuracy": float(right.mean()),
            "macro_f1": float(metrics.macro_f1(truth, predicted, self.num_classes)),
            "ece_raw": expected_calibration_error(seed.score[known], right),
            "brier": float(seed.brier[known].mean()),
            "accuracy_at_80": float(rejection_curve(_certainty(seed)[known], right)[4]),
        }
        if self.is_right is not None:
            found["ontology"] = float(self.is_right(predicted, truth).mean())
        if np.isfinite(seed.calibrated).all():
            found["ece"] = expected_calibration_error(seed.calibrated[known], right)
        if seed.in_set is not None and seed.set_size is not None:
            found["coverage"], found["set_size"] = float(seed.in_set[known].mean()), float(seed.set_size[known].mean())
        if self.new_code >= 0:
            found |= self._novelty(seed, ~known)
        return found

    def _novelty(self, seed: SeedPredictions, new: Array) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, score in seed.novelty.items():
            found[f"novelty AUROC, {name}"] = novelty_auroc(score, new)
            found[f"novelty AUPR, {name}"] = novelty_aupr(score, new)
        called_new, right = seed.score < NOVEL_BELOW, seed.predicted == seed.truth
        for name, rows in (("union", np.ones(new.size, bool)), ("novel", new), ("known", ~new)):
            found[f"{name}_accuracy"] = union_accuracy(right[rows], called_new[rows], new[rows])
        return found

    def resampled(self, weights: Array) -> dict[str, Array]:
        """metric -> float [R], mean over seeds; `weights`: float [R, cells of the run]."""
        found: dict[str, list[Array]] = {"accuracy": [], "macro_f1": []}
        for seed in self.seeds:
            known = self._known(seed)
            rows, truth, predicted = seed.rows[known], seed.truth[known], seed.predicted[known]
            of_seed = weights[:, rows]
            found["accuracy"].append(metrics.accuracy(truth, predicted, of_seed))
            found["macro_f1"].append(metrics.macro_f1(truth, predicted, self.num_classes, of_seed))
        return {name: np.mean(values, axis=0) for name, values in found.items()}

    def confusion(self) -> Array:
        """float [C, C]: cells of a true type (row) called a type (column), mean over seeds."""
        total = np.zeros((self.num_classes, self.num_classes))
        for seed in self.seeds:
            np.add.at(total, (seed.truth, seed.predicted), 1.0)
        return total / len(self.seeds)

    def rejection(self) -> Array:
        """float [len(REJECTED)], mean over seeds."""
        curves = []
        for seed in self.seeds:
            known = self._known(seed)
            curves.append(rejection_curve(_certainty(seed)[known], (seed.truth == seed.predicted)[known]))
        return np.mean(curves, axis=0)

    def reliability(self) -> list[tuple[float, float, int]]:
        """Bins of all seeds together."""
        score = np.concatenate([_certainty(seed)[self._known(seed)] for seed in self.seeds])
        right = np.concatenate([(seed.truth == seed.predicted)[self._known(seed)] for seed in self.seeds])
        return reliability(score, right)


def _certainty(seed: SeedPredictions) -> Array:
    return seed.calibrated if np.isfinite(seed.calibrated).all() else seed.score


# --- differences -----------------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """first - second: over seeds (mean, half of the 95% interval, p of a paired t test) and over test cells (interval
    and p of a paired bootstrap). nan: cannot be told (one seed, or seeds that all differ by the same)."""

    mean: float
    half_width: float
    p_seeds: float
    low: float
    high: float
    p_cells: float
    num_seeds: int


def cell_weights(groups: Array, num_cells: int, num_resamples: int, seed: int) -> tuple[Array, str]:
    """(float32 [R, n], what is resampled): groups where there are enough of them, else single cells."""
    rng = np.random.default_rng([seed, 3])
    names, of_cell = np.unique(groups, return_inverse=True)
    if names.size >= _FEWEST_GROUPS:
        return bootstrap_weights(names.size, num_resamples, rng)[:, of_cell].astype(np.float32), "groups"
    return bootstrap_weights(num_cells, num_resamples, rng).astype(np.float32), "cells"


def difference(first: Array, second: Array, resampled_first: Array, resampled_second: Array) -> Difference:
    """Args: float [S] of each seed, float [R] of each resample; both pairs on the same cells."""
    by_seed = first - second
    seeds = student_t_interval(by_seed)
    spread = float(np.std(by_seed, ddof=1)) if by_seed.size > 1 else 0.0
    # Seeds that change nothing say nothing of chance.
    told = spread > 1e-12
    p_seeds = float(stats.ttest_1samp(by_seed, 0.0).pvalue) if told else float("nan")
    by_cell = resampled_first - resampled_second
    cells = percentile_interval(seeds.mean, by_cell)
    tail = min(np.mean(by_cell <= 0), np.mean(by_cell >= 0))
    p_cells = float(min(1.0, 2 * max(tail, 1 / (by_cell.size + 1))))
    half = seeds.half_width if told else float("nan")
    return Difference(seeds.mean, half, p_seeds, cells.low, cells.high, p_cells, seeds.number)
