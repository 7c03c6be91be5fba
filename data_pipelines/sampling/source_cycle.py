"""Which source the t-th draw of a stream comes from: fractions that are exact over every cycle, found at any t at once.

Each cycle of P draws holds n_i draws of source i. The k-th of them lies at a random place of the k-th of n_i equal
parts of the cycle, so that a batch, too, has about the fractions of the whole. Every cycle of every stream is
another. Before draw t a stream has drawn (t // P) n_i + (those of the cycle before t mod P) cells of source i.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data_pipelines.counter_hash import Purpose, fold_array, hash_of
from scmbert_jax.errors import ConfigError

MIN_CYCLE = 4096
MAX_SOURCES = 4096
_CYCLES = 512  # that are compared


def draws_per_cycle(fractions: Sequence[float]) -> np.ndarray:
    """Fractions as whole numbers of draws: int64 [sources], each at least 1; P is their sum.

    Of the 512 longest cycles the one with the smallest error is taken, so that whole weights that sum to 512 or less
    are exact. No fraction is off by more than one draw of P > 3584, but where sources would otherwise never be drawn.

    Raises:
      ConfigError: no source, too many, or a fraction that is not a positive number.
    """
    wanted = np.asarray(fractions, np.float64)
    if not 1 <= len(wanted) <= MAX_SOURCES:
        raise ConfigError(f"a mixture of {len(wanted)} sources; expected 1 to {MAX_SOURCES}")
    if not (np.isfinite(wanted).all() and (wanted > 0).all()):
        raise ConfigError(f"fractions {wanted.tolist()}: expected positive numbers")
    wanted = wanted / wanted.sum()
    longest = max(MIN_CYCLE, 16 * len(wanted))

    def counts_of(length: int) -> np.ndarray:
        """Largest remainders: whole numbers that sum to the length (more where a source would get none)."""
        counts = np.floor(wanted * length + 1e-9).astype(np.int64)
        remainders = wanted * length - counts
        missing = length - int(counts.sum())
        counts[np.argsort(-remainders, kind="stable")[:missing]] += 1
        return np.maximum(counts, 1)

    def error_of(length: int) -> float:
        counts = counts_of(length)
        return round(float(np.abs(counts / counts.sum() - wanted).max()), 9)

    return counts_of(min(range(longest, longest - _CYCLES, -1), key=error_of))


class SourceDraws(NamedTuple):
    """`number` consecutive draws of a source by one stream; the first is the stream's `first`-th of that source."""

    source: int
    first: int
    number: int


class _Cycle(NamedTuple):
    sources: np.ndarray  # int32 [P]
    ranks: np.ndarray  # int32 [P], draws of the same source before, in this cycle


class SourceCycle:
    """The sources of all draws under one seed. Threads may share it.

    Args:
      draws: int64 [sources], draws of each source in a cycle (`draws_per_cycle`).
      seed: any integer.
      num_streams: of as many the cycles are kept.
    """

    def __init__(self, draws: np.ndarray, seed: int, num_streams: int):
        self.draws = np.asarray(draws, np.int64)
        self.length = int(self.draws.sum())
        self.seed = int(seed)
        self._cycle = lru_cache(maxsize=2 * num_streams)(self._make_cycle)

    def between(self, stream: int, first: int, stop: int) -> list[SourceDraws]:
        """What the draws first <= t < stop of a stream are, by source; sources without a draw are left out."""
        found: dict[int, SourceDraws] = {}
        while first < stop:
            number, start = divmod(first, self.length)
            end = min(start + stop - first, self.length)
            cycle = self._cycle(stream, number)
            sources, places, counts = np.unique(cycle.sources[start:end], return_index=True, return_counts=True)
            for source, rank, count in zip(sources, cycle.ranks[start:end][places], counts, strict=True):
                source = int(source)
                before = found.get(source)
                found[source] = SourceDraws(
                    source,
                    before.first if before else number * int(self.draws[source]) + int(rank),
                    int(count) + (before.number if before else 0),
                )
            first += end - start
        return [found[source] for source in sorted(found)]

    def _make_cycle(self, stream: int, number: int) -> _Cycle:
        sources = np.repeat(np.arange(len(self.draws), dtype=np.int32), self.draws)
        ranks = np.concatenate([np.arange(count, dtype=np.int64) for count in self.draws])
        # the place of a draw in 2^32-ths of the cycle, in whole numbers: the same on every machine
        state = hash_of(self.seed, Purpose.SOURCES_OF_DRAWS, stream, number)
        jitter = (fold_array(state, np.arange(self.length)) >> np.uint64(32)).astype(np.int64)
        order = np.argsort(((ranks << 32) + jitter) // self.draws[sources], kind="stable")
        return _Cycle(sources[order], ranks[order].astype(np.int32))
