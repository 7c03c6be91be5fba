"""The motif scan beside two of NumPy: the same scores? how fast?

    numpy            position by position, for every matrix and strand: what anybody would write first
    numpy, products  a matrix product of unfolded one-hot windows, for all matrices of a width: NumPy at its best

Real matrices where a file is given, else made up, with JASPAR's widths; sequences are random. The programs run
alternately, in this process, on the same CPUs. A size that is too long for NumPy's is scanned by ours alone.
"""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from data_pipelines.genome.motif_files import read_motifs
from scmbert_jax.sequences.motif_scanner import MotifScanner, Summary
from scmbert_jax.text_table import markdown_table

_ROWS_OF_PRODUCTS = 128  # sequences whose unfolded windows and scores lie in memory at once


@dataclass(frozen=True)
class ScanCost:
    """Of one number of sequences.

    Attributes:
      sequences: of them.
      summary: what was asked for; the products of NumPy are of `max` alone.
      seconds: medians over the rounds.
      numpy_seconds, products_seconds: likewise; None where they were not run.
      speed, speed_products: theirs over ours, median of the ratios within each round; above 1, ours is faster.
      difference: the largest between our scores and either of NumPy's.
    """

    sequences: int
    summary: str
    seconds: float
    numpy_seconds: float | None = None
    products_seconds: float | None = None
    speed: float | None = None
    speed_products: float | None = None
    difference: float | None = None


@dataclass(frozen=True)
class ScanCosts:
    """All sizes; `settings`: what was measured."""

    rows: tuple[ScanCost, ...]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [asdict(row) for row in self.rows], "settings": self.settings}

    def text(self) -> str:
        def shown(value: float | None, form: str) -> str:
            return "-" if value is None else format(value, form)

        lines = [
            [
                f"{row.sequences:,}",
                row.summary,
                f"{row.seconds:.2f}",
                shown(row.numpy_seconds, ".2f"),
                shown(row.products_seconds, ".2f"),
                shown(row.speed, ".1f") + "x" * (row.speed is not None),
                shown(row.speed_products, ".1f") + "x" * (row.speed_products is not None),
                shown(row.difference, ".1e"),
            ]
            for row in self.rows
        ]
        head = ["sequences", "summary", "ours (s)", "NumPy (s)", "products (s)", "speed", "to products", "difference"]
        return markdown_table(head, lines)


def measure_scan(
    motifs: Path | None = None,
    numbers: Sequence[int] = (512, 2048),
    length: int = 200,
    rounds: int = 3,
    most_numpy: int = 4096,
    say: Callable[[str], None] = lambda message: None,
) -> ScanCosts:
    """Times our scan and NumPy's, alternately.

    Args:
      motifs: a file (`read_motifs`); None: 755 made up, as wide as JASPAR's human ones.
      numbers: of sequences; the last is also scanned for every other summary, by ours alone.
      length: bases of each.
      rounds: each after one call to warm up.
      most_numpy: sequences; more are scanned by ours alone.
    """
    rng = np.random.default_rng(0)
    log_odds = _made_up(rng) if motifs is None else read_motifs(motifs).log_odds()
    scanner = MotifScanner(log_odds, [float(matrix.max(1).sum()) * 0.8 for matrix in log_odds])
    rows = []
    for number in numbers:
        codes = rng.integers(0, 4, (number, length)).astype(np.uint8)
        say(f"{number:,} sequences: compiling")
        scanner(codes)
        with_numpy = number <= most_numpy
        ours, plain, products, difference = [], [], [], None
        for turn in range(rounds):
            say(f"{number:,} sequences: round {turn + 1} of {rounds}")
            start = time.perf_counter()
            found = scanner(codes)["max"]
            ours.append(time.perf_counter() - start)
            if with_numpy:
                start = time.perf_counter()
                expected = numpy_scan(log_odds, codes)["max"]
                plain.append(time.perf_counter() - start)
                start = time.perf_counter()
                also = numpy_products(log_odds, codes)
                products.append(time.perf_counter() - start)
                difference = float(max(np.abs(found - other).max() for other in (expected, also)))
        row = ScanCost(number, "max", float(np.median(ours)))
        if with_numpy:
            row = ScanCost(
                number,
                "max",
                row.seconds,
                float(np.median(plain)),
                float(np.median(products)),
                float(np.median(np.array(plain) / ours)),
                float(np.median(np.array(products) / ours)),
                difference,
            )
        rows.append(row)
    for name in get_args(Summary)[1:]:
        scanner(codes, summaries=(name,))
        start = time.perf_counter()
        scanner(codes, summaries=(name,))
        rows.append(ScanCost(len(codes), name, time.perf_counter() - start))
    settings = {
        "motifs": len(log_odds) if motifs is None else f"{len(log_odds)} of {motifs.name}",
        "length": length,
        "rounds": rounds,
        "devices": jax.devices()[0].device_kind,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "jax": jax.__version__,
        "numpy": np.__version__,
    }
    return ScanCosts(tuple(rows), settings)


def _made_up(rng: np.random.Generator) -> list[np.ndarray]:
    widths = np.clip(rng.gamma(6.0, 1.75, 755).round(), 5, 33).astype(int)  # JASPAR 2024 human: mean 10.4, 5 to 33
    return [np.log2(rng.dirichlet([0.3] * 4, width) + 0.01) + 2 for width in widths.tolist()]


def numpy_scan(
    log_odds: Sequence[np.ndarray],
    codes: np.ndarray,
    lengths: np.ndarray | None = None,
    summaries: Sequence[Summary] = ("max",),
    thresholds: Sequence[float] | None = None,
) -> dict[str, np.ndarray]:
    """The reference of `MotifScanner.__call__`, which takes and gives the same."""
    number, length = codes.shape
    found: dict[str, np.ndarray] = {name: np.zeros((number, len(log_odds)), np.float32) for name in summaries}
    for column, matrix in enumerate(log_odds):
        width = len(matrix)
        places = max(length - width + 1, 0)
        scores = np.zeros((2, number, places), np.float32)
        for own, strand in zip(scores, (matrix, matrix[::-1, ::-1]), strict=True):
            rows = np.concatenate([strand, np.zeros((width, 1))], axis=1).astype(np.float32)  # N scores 0
            for place in range(width):
                own += rows[place][codes[:, place : place + places]]
        if lengths is not None:
            scores[:, np.arange(places) > np.asarray(lengths)[:, None] - width] = -np.inf
        for name in summaries:
            found[name][:, column] = _summary(name, scores, -np.inf if thresholds is None else thresholds[column])
    return found


def _summary(name: str, scores: np.ndarray, threshold: float) -> np.ndarray:
    """[N] of scores [2, N, P], of which -inf do not count."""
    counted = np.isfinite(scores)
    if name == "max":
        return scores.max((0, 2), initial=-np.inf)
    if name == "sum":
        return np.where(counted, scores, 0).sum((0, 2))
    if name == "hits":
        return (scores >= threshold).sum((0, 2))
    with np.errstate(divide="ignore"):
        return np.log2(np.exp2(scores).sum((0, 2))) - np.log2(np.maximum(counted.sum((0, 2)), 1))


def numpy_products(log_odds: Sequence[np.ndarray], codes: np.ndarray) -> np.ndarray:
    """float32 [N, M]: the best score of sequences that are all whole, without N."""
    number, length = codes.shape
    if number > _ROWS_OF_PRODUCTS:
        parts = range(0, number, _ROWS_OF_PRODUCTS)
        return np.concatenate([numpy_products(log_odds, codes[first : first + _ROWS_OF_PRODUCTS]) for first in parts])
    one_hot = np.eye(4, dtype=np.float32)[codes].reshape(number, 4 * length)
    found = np.empty((number, len(log_odds)), np.float32)
    widths = np.array([len(matrix) for matrix in log_odds])
    for width in np.unique(widths).tolist():
        columns = np.flatnonzero(widths == width)
        windows = np.lib.stride_tricks.sliding_window_view(one_hot, 4 * width, axis=1)[:, ::4].reshape(-1, 4 * width)
        matrices = np.stack([log_odds[column] for column in columns.tolist()]).astype(np.float32)
        strands = np.stack([matrices, matrices[:, ::-1, ::-1]]).reshape(-1, 4 * width)  # [2 m, 4 w]
        scores = (windows @ strands.T).reshape(number, -1, 2, len(columns))
        found[:, columns] = scores.max((1, 2))
    return found
