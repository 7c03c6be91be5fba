"""The labelled cells of a reference in memory, and the minibatches that fine-tuning takes of them.

A minibatch is a function of (seed, step) and of nothing else: so a fit that is continued sees what it would have seen.
Counts stay sparse. The tokens of a cell are drawn anew each time it is shown, independently of its neighbours.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.sparse as sp

from data_pipelines.batches.model_counts import CountsChunk, model_counts
from data_pipelines.counter_hash import Purpose, fold_array, hash_of, random_permutation
from scmbert_jax.models.token_sequence import CutBatch
from scmbert_jax.tasks.model_cells import ModelCells

Array = np.ndarray


@dataclass(frozen=True)
class HeldCells:
    """Some cells of a data set in memory.

    Attributes:
      cells: the data set.
      counts: modality -> int32 CSR [n, features of the model]; the n cells that are held.
      measured: modality -> bool [n].
    """

    cells: ModelCells
    counts: dict[str, sp.csr_matrix]
    measured: dict[str, Array]

    @classmethod
    def read(cls, cells: ModelCells, rows: Array) -> "HeldCells":
        """The cells `rows` int64 [n] of the data set, in that order; one pass over the file."""
        order = np.sort(rows)
        parts = []
        for chunk in model_counts(cells.dataset, cells.report, cells.overlaps):
            size = len(next(iter(chunk.measured.values())))
            mine = order[(order >= chunk.first) & (order < chunk.first + size)] - chunk.first
            parts.append(_of_rows(chunk.counts, chunk.measured, mine))
        counts = {name: sp.vstack([part.counts[name] for part in parts], format="csr") for name in cells.overlaps}
        measured = {name: np.concatenate([part.measured[name] for part in parts]) for name in cells.overlaps}
        whole = _of_rows(counts, measured, np.searchsorted(order, rows))
        return cls(cells, whole.counts, whole.measured)

    def batches(
        self, rows: Array, num_tokens: int | None, batch_size: int, seed: int, keys: Array | None = None
    ) -> Iterator[tuple[Array, CutBatch]]:
        """(places in `rows` int64 [b], batch whose first b rows are those cells), cells of like length together.

        Args:
          rows: int64 [m], of the cells that are held; a cell may be there twice.
          num_tokens, batch_size, seed: as in `ModelCells.batches`.
          keys: uint64 [m], see `collate_counts`; None: tokens as in an embedding.
        """
        batch = self.cells.batch_of(
            _of_rows(self.counts, self.measured, rows), self.cells.sampling(num_tokens), seed, keys
        )
        yield from self.cells.parts(batch, np.arange(len(rows)), batch_size)

    def digest(self) -> str:
        """Changes with any count."""
        found = hashlib.sha256()
        for name in sorted(self.counts):
            found.update(name.encode())
            matrix = self.counts[name]
            for array in (matrix.indptr, matrix.indices, matrix.data, self.measured[name]):
                found.update(np.ascontiguousarray(array.astype(np.int64)).tobytes())
        return found.hexdigest()


def _of_rows(counts: dict[str, sp.csr_matrix], measured: dict[str, Array], rows: Array) -> CountsChunk:
    return CountsChunk(
        0, {name: own[rows] for name, own in counts.items()}, {name: own[rows] for name, own in measured.items()}
    )


@dataclass(frozen=True)
class CellOrder:
    """Which cells each step shows.

    Attributes:
      number: of cells, n.
      batch_size: cells of a step.
      seed: of the order.
      weights: float [n], a cell is drawn in proportion to it, at each step anew; None: every cell comes once before any
        comes again.
    """

    number: int
    batch_size: int
    seed: int
    weights: Array | None = None

    def at(self, step: int) -> Array:
        """int64 [batch_size]: places among the n cells."""
        if self.weights is not None:
            ends = np.cumsum(self.weights)
            drawn = fold_array(hash_of(self.seed, Purpose.FINE_TUNING_DRAWS, step), np.arange(self.batch_size))
            # 53 bits: the fraction of the way from 0 to 1, and never 1.
            return np.searchsorted(ends, (drawn >> np.uint64(11)) * 2.0**-53 * ends[-1], side="right")
        epochs, places = np.divmod(step * self.batch_size + np.arange(self.batch_size), self.number)
        found = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs).tolist():
            found[epochs == epoch] = _order(self.seed, epoch, self.number)[places[epochs == epoch]]
        return found

    def token_seed(self, step: int) -> int:
        """The seed of the tokens of a step's cells."""
        return hash_of(self.seed, Purpose.FINE_TUNING_TOKENS, step)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, number: int) -> Array:
    return random_permutation(hash_of(seed, Purpose.FINE_TUNING_ORDER, epoch), number)
