"""Position weight matrices: what a transcription factor likes to bind, a column of A, C, G, T for each place.

score of a stretch of w bases = sum over its places j of log2(p[j, base] / background[base])       (bits)
p = (count + pseudocount * background) / (sites + pseudocount)

An N adds nothing at its place. A motif's other strand is its matrix back to front, both ways.
"""

from dataclasses import dataclass

import numpy as np

from scmbert_jax.errors import InputError

UNIFORM = (0.25, 0.25, 0.25, 0.25)
PSEUDOCOUNT = 1.0  # sites that look like the background, added to each place: no base is impossible


@dataclass(frozen=True)
class MotifSet:
    """M motifs in the order of their file.

    Attributes:
      ids: their ids, "MA0139.1"; no two are the same.
      names: of what binds, "CTCF"; "" where the file says none.
      counts: float64 [w_m, 4] each, sites with A, C, G, T at each place; of a file with probabilities, these times
        `sites`.
      sites: float64 [M], sites each was made of.
      where: the file.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    counts: tuple[np.ndarray, ...]
    sites: np.ndarray
    where: str = "motifs"

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def widths(self) -> np.ndarray:
        """int64 [M], places of each."""
        return np.array([len(matrix) for matrix in self.counts], np.int64)

    def take(self, rows: np.ndarray) -> "MotifSet":
        """Some motifs: int [m]."""
        own = [int(row) for row in rows]
        ids, names = tuple(self.ids[row] for row in own), tuple(self.names[row] for row in own)
        return MotifSet(ids, names, tuple(self.counts[row] for row in own), self.sites[own], self.where)

    def probabilities(
        self, pseudocount: float = PSEUDOCOUNT, background: tuple[float, ...] = UNIFORM
    ) -> list[np.ndarray]:
        """float64 [w, 4] each, p of the formula above; every row sums to 1."""
        added = pseudocount * np.asarray(background, np.float64)
        found = [matrix + added for matrix in self.counts]
        return [matrix / matrix.sum(1, keepdims=True) for matrix in found]

    def log_odds(self, pseudocount: float = PSEUDOCOUNT, background: tuple[float, ...] = UNIFORM) -> list[np.ndarray]:
        """float64 [w, 4] each: log2(p / background), bits.

        Raises InputError: a background that is no distribution, a pseudocount of 0 where a base never occurs.
        """
        if len(background) != 4 or min(background) <= 0 or abs(sum(background) - 1) > 1e-6:
            raise InputError(
                f"background {background}: expected four probabilities of A, C, G, T above 0 that sum to 1"
            )
        found = self.probabilities(pseudocount, background)
        if pseudocount <= 0 and (rare := [m for m, p in zip(self.ids, found, strict=True) if (p <= 0).any()]):
            raise InputError(f"{self.where}, motif {rare[0]}: a base that never occurs; take a pseudocount above 0")
        return [np.log2(matrix / np.asarray(background)) for matrix in found]
