"""Sequences and contributions as TF-MoDISco reads them, with what says beforehand whether it can find anything.

    modisco motifs -s ohe.npz -a shap.npz -n 2000 -w 400 -o modisco_results.h5

Both files hold one array, `arr_0`, [N, 4, L]. TF-MoDISco (2.5) multiplies hypothetical contributions by the one-hot
values itself, looks only at the -w bases in the middle, cuts out stretches around cores of 20 bases that stand out, and
sorts them by sign. Of a sign with fewer than 100 it drops all, without a word: no motifs and no message. So the report
counts the cores that stand out, here, before an hour is spent there.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scmbert_jax.errors import InputError, ScmbertWarning
from scmbert_jax.sequences.sequence_function import checked_one_hot

_CORE = 20  # bases, -z of `modisco motifs`
_FLANK = 5  # bases, -f: stretches that reach beyond the window are not taken
_FEWEST = 100  # stretches of a sign, `min_metacluster_size` of TF-MoDISco
_STANDS_OUT = 6.0  # deviations from the median of all cores; of a normal distribution, 1 in 500 million
_OF_NORMAL = 1.4826  # a normal distribution's deviation, by its median absolute deviation


@dataclass(frozen=True)
class ModiscoReport:
    """What was written, and what TF-MoDISco can make of it.

    Attributes:
      sequences, attributions: the files.
      number, length: N and L.
      window: bases in the middle that TF-MoDISco is to look at (-w).
      unknown: fraction of the positions there that are N.
      positive, negative: cores that stand out in the window, by the sign of their sum; none overlaps another.
      with_any: sequences with such a core.
      problems: in words; each of them was warned of, too.
    """

    sequences: Path
    attributions: Path
    number: int
    length: int
    window: int
    unknown: float
    positive: int
    negative: int
    with_any: int
    problems: tuple[str, ...]

    @property
    def command(self) -> str:
        """What to run."""
        return (
            f"modisco motifs -s {self.sequences} -a {self.attributions} -n 20000 -w {self.window} -o modisco_results.h5"
        )

    def in_words(self) -> str:
        """What was written, what stands out, each problem, and the command; a line each."""
        found = [
            f"{self.number:,} sequences of {self.length:,} bases; {self.unknown:.2%} of the middle {self.window} are N",
            f"{self.positive:,} positive and {self.negative:,} negative stretches of {_CORE} bases stand out, in "
            f"{self.with_any:,} sequences; TF-MoDISco needs {_FEWEST} of a sign, or is silent",
            *(f"problem: {problem}" for problem in self.problems),
        ]
        return "\n".join([*found, self.command])


def write_modisco(
    folder: str | Path, one_hot: Any, hypothetical: np.ndarray, window: int | None = None
) -> ModiscoReport:
    """Writes ohe.npz (int8) and shap.npz (float32), each `arr_0` [N, 4, L]; files of these names are replaced.

    Args:
      folder: is made if need be.
      one_hot: float [N, L, 4].
      hypothetical: float [N, L, 4], contributions of all four bases: of `saliency`, `IntegratedGradients.hypothetical`
        or `Mutagenesis.hypothetical()`; of several outputs [N, L, 4, K] give one, [..., k].
      window: bases in the middle to look at; None: all L.

    Returns:
      The report; its problems are warned of (`ScmbertWarning`).

    Raises InputError: shapes that do not fit, values that are not finite, contributions that are all 0, a window that
    is longer than the sequences or too short for a single stretch.
    """
    values, scores = checked_one_hot(one_hot), np.asarray(hypothetical, np.float32)
    number, length, _ = values.shape
    if scores.shape != values.shape:
        several = scores.shape[:3] == values.shape
        raise InputError(
            f"contributions {list(scores.shape)} of one_hot {list(values.shape)}: expected the same shape"
            + ("; choose one of the outputs, hypothetical[..., k]" if several else "")
            + ("; TF-MoDISco needs all four bases, not only the one that is there" if scores.ndim == 2 else "")
        )
    bad = ~np.isfinite(scores)
    if bad.any():
        raise InputError(
            f"contributions: {int(bad.sum()):,} are not finite, the first in sequence {np.argwhere(bad)[0][0]}"
        )
    width = length if window is None else window
    shortest = _CORE + 2 * _FLANK
    if not shortest <= width <= length:
        raise InputError(f"window of {width} bases: expected {shortest} (a single stretch) to {length} (the sequences)")
    first = length // 2 - width // 2
    middle = slice(first, first + width)
    there = (scores * values).sum(2)[:, middle]  # [N, width]
    if not there.any():
        raise InputError(
            "contributions of the bases that are there are 0 everywhere: f does not depend on the sequence, or it is "
            "flat there (a saturated output: explain the logit)"
        )
    signs = _cores_that_stand_out(there)
    positive, negative = (int((signs == sign).sum()) for sign in (1, -1))
    problems = []
    if max(positive, negative) < _FEWEST:
        problems.append(
            f"only {positive:,} positive and {negative:,} negative stretches stand out, fewer than {_FEWEST}: expect "
            "no motifs, and no message. Give more sequences, those for which f is high, or explain a better model"
        )
    if not ((scores != 0) & (values == 0)).any():
        problems.append(
            "contributions of bases that are not there are all 0: these are no hypothetical ones (were they multiplied "
            "by one_hot?), and TF-MoDISco compares stretches by those"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report = ModiscoReport(
        folder / "ohe.npz",
        folder / "shap.npz",
        number,
        length,
        width,
        float(1 - values[:, middle].any(2).mean()),
        positive,
        negative,
        int(signs.any(1).sum()),
        tuple(problems),
    )
    np.savez_compressed(report.sequences, np.ascontiguousarray(values.swapaxes(1, 2).astype(np.int8)))
    np.savez_compressed(report.attributions, np.ascontiguousarray(scores.swapaxes(1, 2)))
    for problem in problems:
        warnings.warn(problem, ScmbertWarning, stacklevel=2)
    return report


def _cores_that_stand_out(contributions: np.ndarray) -> np.ndarray:
    """int8 [N, places]: the sign of each core's sum where it is far from the median of all; 0 elsewhere, and where it
    overlaps a higher one."""
    summed = np.cumsum(np.pad(contributions.astype(np.float64), ((0, 0), (1, 0))), axis=1)
    cores = summed[:, _CORE:] - summed[:, :-_CORE]
    away = cores - np.median(cores)
    # Where more than half of the cores are alike, whatever differs stands out: but not by the last digit of a float.
    deviation = max(_OF_NORMAL * float(np.median(np.abs(away))), 1e-6 * float(np.abs(contributions).max()))
    height = np.abs(away)
    height[:, :_FLANK] = height[:, height.shape[1] - _FLANK :] = 0
    rows = np.arange(len(cores))
    signs = np.zeros(cores.shape, np.int8)
    places = np.arange(cores.shape[1])
    while True:
        best = height.argmax(1)
        high = height[rows, best] > _STANDS_OUT * deviation
        if not high.any():
            return signs
        signs[rows[high], best[high]] = np.sign(cores[rows[high], best[high]])
        height[high] = np.where(np.abs(places - best[high, None]) < _CORE, 0, height[high])
