"""Effects of variants beside measured ones: what is said without measurements, and what other loci teach.

Zero-shot, a method gives a number per variant whose order is compared with that of the measured effects, by Spearman's
correlation within each element. Learned ones are fitted to the elements of all other loci: an element that shares bases
with the one that is judged is not learned from (`saturation.loci`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.stats import spearmanr
from threadpoolctl import threadpool_limits

from data_pipelines.genome.motif_thresholds import rounded, score_thresholds
from data_pipelines.genome.motifs import MotifSet
from scmbert_jax.evaluation.intervals import student_t_interval
from scmbert_jax.evaluation.regulatory.result import VariantRow
from scmbert_jax.evaluation.regulatory.saturation import DELETED, Element, loci
from scmbert_jax.evaluation.regulatory.words import word_counts
from scmbert_jax.sequences.motif_scanner import MotifScanner

Array = np.ndarray
Effects = Callable[[Array, Array], Array]  # codes uint8 [n, L] with the reference and the alternate -> float [n]

NOTHING, OTHER_LOCI = "nothing", "other loci"
WIDTH = 61  # bases around a variant that motifs and words are looked for in; the widest motif has 35
_P_VALUE = 1e-4  # of a motif's hit
_PENALTIES = (300.0, 3e3, 1e5)  # of ridge regressions; chosen for each locus by the correlations of the others
_LEAST_SCORE = -30.0
FEWEST_LOCI = 3  # one that is judged, and two between which a penalty is chosen


@dataclass
class Variants:
    """All variants of all elements, [n] rows in the order of the elements.

    Attributes:
      elements: E. motifs: or None.
      conservation: float64 [n] of a track at each variant, or None.
    """

    elements: Sequence[Element]
    motifs: MotifSet | None = None
    conservation: Array | None = None

    @cached_property
    def element(self) -> Array:
        """int64 [n]."""
        return np.repeat(np.arange(len(self.elements)), [len(own) for own in self.elements])

    @cached_property
    def locus(self) -> Array:
        """int64 [n]."""
        return loci(self.elements)[self.element]

    @property
    def num_loci(self) -> int:
        return int(self.locus.max()) + 1

    @cached_property
    def windows(self) -> tuple[Array, Array]:
        """uint8 [n, WIDTH] with the reference, and with the alternate."""
        both = [own.windows(WIDTH) for own in self.elements]
        return np.concatenate([own[0] for own in both]), np.concatenate([own[1] for own in both])

    @cached_property
    def standardised(self) -> Array:
        """float64 [n]: effects in units of their deviation within the element, which differ between assays."""
        return np.concatenate(
            [(own.effect - own.effect.mean()) / max(own.effect.std(), 1e-12) for own in self.elements]
        )

    @cached_property
    def motif_changes(self) -> dict[str, Array]:
        """float32 [n, M]: what the alternate changes. `hits`: how many; `score`: the best one, above the threshold."""
        assert self.motifs is not None
        log_odds = rounded(self.motifs.log_odds())
        limits = np.array([found.score for found in score_thresholds(log_odds, p_value=_P_VALUE)])
        scanner = MotifScanner(log_odds, limits.tolist())
        reference, alternate = self.windows
        # The three changes of a base have one reference.
        once, back = np.unique(reference, axis=0, return_inverse=True)
        before, after = (scanner(codes, None, ("max", "hits")) for codes in (once, alternate))
        above = [np.maximum(own["max"], limits).astype(np.float32) for own in (before, after)]
        return {"score": above[1] - above[0][back], "hits": after["hits"] - before["hits"][back]}


def variant_rows(
    variants: Variants, effects: Mapping[str, Effects], width: int, say: Callable[[str], None]
) -> list[VariantRow]:
    """Rows of the zero-shot scores, of `effects` (models), and, of `FEWEST_LOCI` or more, of what is learned from other
    loci.

    Args:
      effects: name -> a function of windows of `width` bases, the variant at width // 2, N beyond the element.
    """
    found: list[VariantRow] = []
    for name, values in zero_shot(variants).items():
        found.append(_row(variants, name, NOTHING, values))
    for name, effect in effects.items():
        say(f"variants: {name}")
        parts = [effect(*own.windows(width)) for own in variants.elements]
        found.append(_row(variants, name, NOTHING, np.concatenate(parts)))
    learned: dict[str, Array] = {}
    inputs = _columns(variants) if variants.num_loci >= FEWEST_LOCI else {}
    for name, columns in inputs.items():
        say(f"variants: {name}, from other loci")
        learned[name] = _from_other_loci(variants, columns)
        found.append(_row(variants, name, OTHER_LOCI, learned[name]))
    if len(learned) > 1:
        mean = np.sum([values / max(float(values.std()), 1e-12) for values in learned.values()], axis=0)
        found.append(_row(variants, "mean of those above", OTHER_LOCI, mean))
    return found


def zero_shot(variants: Variants) -> dict[str, Array]:
    """Name -> float64 [n]: simple scores, higher where the alternate should be more active."""
    reference, alternate = variants.windows
    codes = np.concatenate([own.alternate for own in variants.elements])
    before = reference[:, WIDTH // 2]
    far = [np.abs(own.place + 0.5 - len(own.codes) / 2) / len(own.codes) for own in variants.elements]
    # Purines (A, G) and pyrimidines (C, T) have codes that differ by 2.
    transversion = (codes != DELETED) & (np.abs(codes.astype(int) - before) != 2)
    found = {
        "distance from the middle": np.concatenate(far),
        "transition before transversion": -transversion.astype(float),
        "no deletion before deletion": -(codes == DELETED).astype(float),
        "change of GC content": (_is_gc(alternate).sum(1) - _is_gc(reference).sum(1)).astype(float),
    }
    if variants.motifs is not None:
        changes = variants.motif_changes
        found["motif difference (hits)"] = changes["hits"].astype(np.float64).sum(1)
        found["motif difference (scores)"] = changes["score"].astype(np.float64).sum(1)
    if variants.conservation is not None:
        found["conservation"] = -variants.conservation
    return found


def _columns(variants: Variants) -> dict[str, Any]:
    """Name -> columns [n, F] that a ridge regression learns from."""
    reference, alternate = variants.windows
    words = [word_counts(alternate, k, "counts") - word_counts(reference, k, "counts") for k in (5, 6)]
    found: dict[str, Any] = {"change and place": _simple(variants), "words": sp.hstack(words, format="csr")}
    if variants.motifs is not None:
        changes = variants.motif_changes
        found |= {"motif scores": _scaled(changes["score"]), "motif hits": _scaled(changes["hits"])}
    return found


def _simple(variants: Variants) -> Array:
    """Which base becomes which, how far from the middle, how much of each base around: float64 [n, 34]."""
    reference, _ = variants.windows
    codes = np.concatenate([own.alternate for own in variants.elements])
    change = np.zeros((len(codes), 30))
    change[np.arange(len(codes)), reference[:, WIDTH // 2].astype(int) * 6 + codes] = 1
    around = np.stack([(reference == base).mean(1) for base in range(3)], axis=1)
    far = [np.abs(own.place / len(own.codes) - 0.5) for own in variants.elements]
    return _scaled(np.column_stack([change, around, np.concatenate(far)]))


def _scaled(columns: Array) -> Array:
    return columns / np.maximum(columns.std(0), 1e-6)


def _from_other_loci(variants: Variants, columns: Any) -> Array:
    """float64 [n]: each locus predicted by a ridge regression on the others, without an intercept.

    The penalty of a locus is the one by which the other loci are predicted best.
    """
    loci_of_rows = variants.locus
    there = [np.flatnonzero(loci_of_rows == locus) for locus in range(variants.num_loci)]
    found = np.zeros((len(_PENALTIES), len(loci_of_rows)))
    with threadpool_limits(1):  # threads cost more than they give where other work runs beside
        predict = _by_columns if columns.shape[0] > columns.shape[1] else _by_rows
        predict(columns, variants.standardised, there, found)
    right = np.array([_by_locus(variants, own) for own in found])  # [P, loci]
    chosen = (right.sum(1, keepdims=True) - right).argmax(0)
    return found[chosen[loci_of_rows], np.arange(len(loci_of_rows))]


def _by_columns(columns: Any, effects: Array, there: Sequence[Array], found: Array) -> None:
    """Ridge regressions by the products of columns, which are summed over loci once; fills `found` [P, n]."""
    parts = [columns[rows] for rows in there]
    grams = [_dense(part.T @ part) for part in parts]
    moments = [part.T @ effects[rows] for part, rows in zip(parts, there, strict=True)]
    gram, moment = sum(grams), sum(moments)
    for own, penalty in zip(found, _PENALTIES, strict=True):
        for rows, part, own_gram, own_moment in zip(there, parts, grams, moments, strict=True):
            left = gram - own_gram
            left[np.diag_indices_from(left)] += penalty
            own[rows] = part @ scipy.linalg.solve(left, moment - own_moment, assume_a="pos", overwrite_a=True)


def _by_rows(columns: Any, effects: Array, there: Sequence[Array], found: Array) -> None:
    """The same by the products of rows, where these are fewer."""
    products = _dense(columns @ columns.T)
    for own, penalty in zip(found, _PENALTIES, strict=True):
        for rows in there:
            others = np.setdiff1d(np.arange(len(effects)), rows)
            left = products[np.ix_(others, others)]
            left[np.diag_indices_from(left)] += penalty
            solved = scipy.linalg.solve(left, effects[others], assume_a="pos", overwrite_a=True)
            own[rows] = products[np.ix_(rows, others)] @ solved


def _dense(matrix: Any) -> Array:
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def _correlations(variants: Variants, values: Array) -> list[float]:
    """Spearman's of each element; 0 where a method says nothing."""
    parts = [values[variants.element == number] for number in range(len(variants.elements))]
    return [
        float(spearmanr(own, element.effect)[0]) if np.ptp(own) > 0 and np.ptp(element.effect) > 0 else 0.0
        for own, element in zip(parts, variants.elements, strict=True)
    ]


def _by_locus(variants: Variants, values: Array) -> Array:
    """float64 [loci]: means over the elements of each. Elements of one locus are not independent."""
    locus = loci(variants.elements)
    return np.bincount(locus, _correlations(variants, values)) / np.bincount(locus)


def _row(variants: Variants, method: str, source: str, values: Array) -> VariantRow:
    own = dict(zip([element.name for element in variants.elements], _correlations(variants, values), strict=True))
    _, half_width, number = student_t_interval(_by_locus(variants, values))
    return VariantRow(method, source, own, float(np.mean(list(own.values()))), half_width, number)


def _is_gc(codes: Array) -> Array:
    return (codes == 1) | (codes == 2)
