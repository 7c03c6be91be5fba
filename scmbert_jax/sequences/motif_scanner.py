"""How well every motif fits every sequence: all matrices, both strands, every position, summed up per sequence.

A scan is a convolution of one-hot sequences [n, P + W - 1, 4] with kernels [W, 4, 2 m]: the m matrices of a group of
similar widths, filled up with zeros to the widest, and the same for the other strand. What was measured on two CPUs
(755 matrices, 512 sequences of 200 bp, the ways alternately) shapes it: the convolution takes half the time of a matrix
product of unfolded windows and a tenth of that of an FFT; a few groups of widths a third of that of one, and about that
of one per width; and 16 sequences at once a quarter of that of 64 (probably since the scores [n, P, 2 m] then stay in
the cache until they are summed up). So it goes through sequences, and through long ones, in small tiles, which also
bounds the memory. `scmbert bench motifs` compares it with NumPy.

An N adds nothing to a score at its place. Positions at which a motif would reach beyond its sequence do not count.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from scmbert_jax.errors import InputError

# max: the best score, bits. sum: of all scores, bits. log_mean_exp: log2 of the mean of 2^score, bits: of the mean
# likelihood ratio. hits: how many positions and strands reach the motif's threshold.
Summary = Literal["max", "sum", "log_mean_exp", "hits"]

_MOST_GROUPS = 4  # of widths; one per width was not clearly faster
# Of the scores of a tile. CPUs: about what a core's caches hold. Others, where no tile has been measured: enough work
# for one call of a kernel, and little beside their memory.
_TILE_BYTES = {"cpu": 4 << 20}
_OTHER_TILE_BYTES = 256 << 20
_LONGEST_TILE = 4096  # positions
_ROWS_OF_A_CALL = 2048  # sequences that one call of the compiled scan takes


class _Group(NamedTuple):
    """m motifs of similar widths.

    Attributes:
      kernel: float32 [W, 4, 2 m], bits: m matrices, then the same for the other strand.
      widths: int32 [m].
      thresholds: float32 [m], bits.
    """

    kernel: Any
    widths: Any
    thresholds: Any


class MotifScanner:
    """Scores of M motifs. Threads may share it.

    Args:
      log_odds: float [w_m, 4] each, bits: rows are places, columns A, C, G, T (`MotifSet.log_odds`).
      thresholds: [M], bits, for `hits`: the score that a position has to reach (`score_thresholds`). None: no hits.

    Raises InputError: no motif, or one that is no such matrix; another number of thresholds.
    """

    def __init__(self, log_odds: Sequence[np.ndarray], thresholds: Sequence[float] | None = None):
        matrices = [np.asarray(matrix, np.float32) for matrix in log_odds]
        if not matrices:
            raise InputError("a scan of no motifs: the filter that chose them has left none")
        for place, matrix in enumerate(matrices):
            if matrix.ndim != 2 or matrix.shape[1] != 4 or not len(matrix) or not np.isfinite(matrix).all():
                raise InputError(f"motif {place}: {list(matrix.shape)}, expected finite numbers [places, 4]")
        if thresholds is not None and len(thresholds) != len(matrices):
            raise InputError(f"{len(thresholds)} thresholds for {len(matrices)} motifs")
        self._has_thresholds = thresholds is not None
        limits = np.full(len(matrices), np.inf) if thresholds is None else np.asarray(thresholds)
        self.num_motifs = len(matrices)
        self._widest = max(len(matrix) for matrix in matrices)
        groups = grouped_by_width(np.array([len(matrix) for matrix in matrices]), _MOST_GROUPS)
        self._groups = tuple(_group([matrices[row] for row in rows], limits[rows]) for rows in groups)
        self._back = np.argsort(np.concatenate(groups))  # from the order of the groups to that of the caller

    def __call__(
        self, codes: np.ndarray, lengths: np.ndarray | None = None, summaries: Sequence[Summary] = ("max",)
    ) -> dict[str, np.ndarray]:
        """Scans sequences on the host, a fixed number at a time.

        Args:
          codes: uint8 [N, L], 0..3 for A, C, G, T; anything else is no base (`data_pipelines.genome.bases`).
          lengths: int [N], bases of each; None: all L.
          summaries: what is asked for.

        Returns:
          summary -> float32 [N, M], in the order of the motifs. Of a sequence shorter than a motif: -inf for max and
          log_mean_exp, 0 for sum and hits.

        Raises InputError: hits without thresholds, or a summary that does not exist.
        """
        self._check(summaries)
        number, length = codes.shape
        sizes = np.full(number, length, np.int32) if lengths is None else np.asarray(lengths, np.int32)
        found: dict[str, np.ndarray] = {name: np.empty((number, self.num_motifs), np.float32) for name in summaries}
        rows = min(_ROWS_OF_A_CALL, number)
        for first in range(0, number, max(rows, 1)):
            part, own = codes[first : first + rows], sizes[first : first + rows]
            missing = rows - len(part)  # so that the last call is no other program
            part, own = np.pad(part, ((0, missing), (0, 0)), constant_values=4), np.pad(own, (0, missing))
            scores = _scan_codes(self._groups, part, own, tuple(summaries), self._widest)
            for name, values in scores.items():
                found[name][first : first + rows] = np.asarray(values)[: rows - missing, self._back]
        return found

    def scan(
        self, one_hot: jax.Array, lengths: jax.Array | None = None, summaries: Sequence[Summary] = ("max",)
    ) -> dict[str, jax.Array]:
        """The same inside a jitted function, on one-hot (or any) values; its gradient is that of the summaries.

        Args:
          one_hot: float [N, L, 4], channels A, C, G, T.
          lengths: int32 [N]; None: all L.

        Returns:
          summary -> float32 [N, M].
        """
        self._check(summaries)
        sizes = jnp.full(one_hot.shape[0], one_hot.shape[1]) if lengths is None else lengths
        scores = _scan(self._groups, one_hot, sizes, tuple(summaries), self._widest)
        return {name: values[:, self._back] for name, values in scores.items()}

    def _check(self, summaries: Sequence[Summary]) -> None:
        for name in summaries:
            if name not in get_args(Summary):
                raise InputError(f"summary {name!r}: expected some of {', '.join(get_args(Summary))}")
        if "hits" in summaries and not self._has_thresholds:
            raise InputError("hits need thresholds: MotifScanner(log_odds, thresholds)")


def grouped_by_width(widths: np.ndarray, most_groups: int) -> list[np.ndarray]:
    """Rows of motifs, in at most so many groups of neighbouring widths, with the fewest products with zeros.

    The cost of a group is its motifs times its largest width; the best cuts are found by dynamic programming.
    """
    order = np.argsort(widths, kind="stable")
    distinct, first = np.unique(widths[order], return_index=True)
    before = np.append(first, len(widths))  # motifs of smaller widths than each distinct one
    nothing: tuple[float, tuple[int, ...]] = (0.0, ())
    # For each number of distinct widths: the least cost of grouping that many, and where the groups end.
    best = [nothing] + [(float("inf"), ())] * len(distinct)
    for _ in range(most_groups):
        best = [nothing] + [
            min(
                best[stop],
                *(
                    (cost + float((before[stop] - before[start]) * distinct[stop - 1]), (*ends, stop))
                    for start, (cost, ends) in enumerate(best[:stop])
                ),
            )
            for stop in range(1, len(distinct) + 1)
        ]
    return [order[before[start] : before[stop]] for start, stop in pairwise((0, *best[-1][1]))]


def _group(matrices: list[np.ndarray], thresholds: np.ndarray) -> _Group:
    widths = np.array([len(matrix) for matrix in matrices], np.int32)
    kernel = np.zeros((widths.max(), 4, 2, len(matrices)), np.float32)
    for place, matrix in enumerate(matrices):
        kernel[: len(matrix), :, 0, place] = matrix
        kernel[: len(matrix), :, 1, place] = matrix[::-1, ::-1]  # the reverse complement
    return _Group(kernel.reshape(len(kernel), 4, -1), widths, thresholds.astype(np.float32))


@partial(jax.jit, static_argnames=("summaries", "widest"))
def _scan_codes(
    groups: tuple[_Group, ...], codes: jax.Array, lengths: jax.Array, summaries: tuple[str, ...], widest: int
) -> dict[str, jax.Array]:
    return _scan(groups, codes, lengths, summaries, widest)


def _scan(
    groups: tuple[_Group, ...], sequences: jax.Array, lengths: jax.Array, summaries: tuple[str, ...], widest: int
) -> dict[str, jax.Array]:
    """summary -> float32 [N, M], motifs in the order of the groups; `sequences`: codes [N, L], or values [N, L, 4]."""
    number, length = sequences.shape[:2]
    if not number:
        return {name: jnp.zeros((0, sum(len(group.widths) for group in groups))) for name in summaries}
    positions = max(1, min(length, _LONGEST_TILE))  # of a tile
    per_sequence = -(-length // positions)
    columns = max(group.kernel.shape[2] for group in groups)
    most = _TILE_BYTES.get(jax.default_backend(), _OTHER_TILE_BYTES)
    at_once = int(np.clip(most // (4 * positions * columns), 1, number * per_sequence))
    beyond = ((0, 0), (0, per_sequence * positions + widest - 1 - length))
    if sequences.ndim == 2:
        padded = jnp.pad(sequences, beyond, constant_values=4)
    else:
        padded = jnp.pad(sequences, (*beyond, (0, 0)))
    firsts = np.arange(per_sequence) * positions
    tiles = jnp.stack([padded[:, first : first + positions + widest - 1] for first in firsts.tolist()], axis=1)
    tiles = tiles.reshape(number * per_sequence, *tiles.shape[2:])
    left = (lengths[:, None] - firsts[None]).reshape(-1)  # bases of the sequence from the start of each tile on
    missing = -len(left) % at_once
    tiles = jnp.pad(tiles, ((0, missing), *((0, 0) for _ in tiles.shape[1:])))
    tiles = tiles.reshape(-1, at_once, *tiles.shape[1:])  # [S, c, positions + widest - 1 (, 4)]
    left = jnp.pad(left, (0, missing)).reshape(-1, at_once)

    def of_tile(tile: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        values, own = tile
        if values.ndim == 2:
            values = jax.nn.one_hot(values, 4)
        parts = [_scores_of_group(group, values, own, positions, summaries) for group in groups]
        return {name: jnp.concatenate([part[name] for part in parts], axis=1) for name in summaries}

    found = jax.lax.map(of_tile, (tiles, left))
    widths = jnp.concatenate([jnp.asarray(group.widths) for group in groups])
    scored = 2 * jnp.maximum(lengths[:, None] - widths[None] + 1, 0)  # positions and strands, [N, M]
    summed = {}
    for name, values in found.items():
        values = values.reshape(-1, values.shape[-1])[: number * per_sequence].reshape(number, per_sequence, -1)
        if name == "log_mean_exp":
            summed[name] = _log_sum_exp2(values, (1,)) - jnp.where(scored > 0, jnp.log2(jnp.maximum(scored, 1)), 0)
        else:
            summed[name] = values.max(1) if name == "max" else values.sum(1)
    return summed


def _scores_of_group(
    group: _Group, values: jax.Array, left: jax.Array, positions: int, summaries: tuple[str, ...]
) -> dict[str, jax.Array]:
    """summary -> float32 [c, m] of tiles [c, positions + widest - 1, 4] of which `left` bases remain."""
    width = group.kernel.shape[0]
    scores = jax.lax.conv_general_dilated(
        values[:, : positions + width - 1],
        jnp.asarray(group.kernel),
        window_strides=(1,),
        padding="VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=jax.lax.Precision.HIGHEST,  # accelerators would round the kernel to 8 bits
    ).reshape(len(values), positions, 2, -1)
    last = left[:, None] - jnp.asarray(group.widths)[None]  # [c, m], the last position at which a motif fits
    inside = jnp.arange(positions)[None, :, None, None] <= last[:, None, None]  # [c, positions, 1, m]
    found = {}
    for name in summaries:
        if name == "max":
            found[name] = jnp.where(inside, scores, -jnp.inf).max((1, 2))
        elif name == "sum":
            found[name] = jnp.where(inside, scores, 0).sum((1, 2))
        elif name == "hits":
            found[name] = (inside & (scores >= jnp.asarray(group.thresholds)[None, None, None])).sum(
                (1, 2), dtype=jnp.float32
            )
        else:
            found[name] = _log_sum_exp2(jnp.where(inside, scores, -jnp.inf), (1, 2))
    return found


def _log_sum_exp2(scores: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """log2 of the sum of 2^score; -inf of nothing."""
    highest = scores.max(axes, keepdims=True)
    highest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(highest), highest, 0))
    return jnp.log2(jnp.exp2(scores - highest).sum(axes)) + jnp.squeeze(highest, axes)
