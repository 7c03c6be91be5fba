"""The fraction of token positions that are padding, and the few row widths that leave least of it.

How long the cells of a corpus are is known before anything is trained, so the widths that microbatches are cut to can
be chosen for them: `best_widths` minimises the positions computed, exactly. Chosen on the tokens of one epoch, scored
on those of another (the cells are the same, their tokens and their company are not).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.batches.batch_reader import BatchReader
from data_pipelines.batches.collate import TokenSampling
from data_pipelines.corpus.corpus import Corpus, open_corpus
from scmbert_jax.text_table import markdown_table


@dataclass(frozen=True)
class CutRows:
    """What rows cut to chosen widths leave.

    Attributes:
      microbatches: of a batch.
      programs: widths that are compiled, the whole row among them.
      row_widths: the others, ascending: `train.row_widths`.
      padding: fraction of all positions computed.
    """

    microbatches: int
    programs: int
    row_widths: tuple[int, ...]
    padding: float

    def settings(self) -> str:
        """Options of `scmbert pretrain`."""
        return f"--train.num-microbatches {self.microbatches} --train.row-widths {' '.join(map(str, self.row_widths))}"


@dataclass(frozen=True)
class PaddingOfTokens:
    """One number of tokens.

    Attributes:
      num_tokens: of a whole row, all modalities together.
      mean_tokens: of a cell.
      whole_rows: padding as a fraction of all positions, nothing cut.
      whole_batches: of batches cut to their longest cell.
      cut: of microbatches of cells of like length.
    """

    num_tokens: int
    mean_tokens: float
    whole_rows: float
    whole_batches: float
    cut: tuple[CutRows, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        numbers = sorted({row.programs for row in self.cut})
        rows = {(row.microbatches, row.programs): row for row in self.cut}
        parts = sorted({row.microbatches for row in self.cut})
        lines = [[str(part), *(f"{100 * rows[part, number].padding:.1f}%" for number in numbers)] for part in parts]
        head = ["microbatches", *(f"{number} widths" for number in numbers)]
        best = [rows[parts[-1], number] for number in numbers if rows[parts[-1], number].row_widths]
        return "\n".join(
            [
                f"{self.num_tokens:,} tokens a row, {self.mean_tokens:,.0f} a cell: padding "
                f"{100 * self.whole_rows:.1f}%, cut to the longest cell of a batch {100 * self.whole_batches:.1f}%",
                markdown_table(head, lines),
                *(row.settings() for row in best),
            ]
        )


def measure_padding(
    folder: Path,
    num_tokens: Sequence[int],
    zero_fraction: float,
    batch_size: int,
    microbatches: Sequence[int],
    programs: Sequence[int],
    most_batches: int,
    multiple_of: int,
) -> list[PaddingOfTokens]:
    """Counts tokens of the batches of an epoch, as `BatchReader` draws them with seed 1; widths are chosen with seed 0.

    Raises:
      ConfigError: fewer cells than a batch.
    """
    found = []
    with open_corpus(folder) as corpus:
        sizes = {name: last - first for name, (first, last) in corpus.feature_space.layout({}).slices.items()}
        for number in num_tokens:
            sampling = {
                name: TokenSampling(min(number, sizes[name]), 0.0 if name == "protein" else zero_fraction)
                for name in corpus.modalities
            }
            full = sum(own.num_tokens for own in sampling.values())
            chosen_on, lengths = (_lengths(corpus, sampling, seed, batch_size, most_batches) for seed in (0, 1))
            rows = []
            for parts in microbatches:
                longest = longest_of_parts(chosen_on, parts)
                for ways in programs:
                    widths = best_widths(longest, full, ways, multiple_of)
                    rows.append(CutRows(parts, ways, widths, padding_fraction(lengths, (*widths, full), parts)))
            mean = float(lengths.mean())
            every = padding_fraction(lengths, range(1, full + 1), 1)
            found.append(PaddingOfTokens(full, mean, 1 - mean / full, every, tuple(rows)))
    return found


def _lengths(
    corpus: Corpus, sampling: dict[str, TokenSampling], seed: int, batch_size: int, most_batches: int
) -> np.ndarray:
    """Tokens of each cell of the batches of an epoch: int [steps, B]."""
    reader = BatchReader(corpus, sampling, seed=seed, global_batch_size=batch_size, num_streams=4, window_blocks=2)
    batches = (reader.batch_at(step) for step in range(min(most_batches, reader.steps_per_epoch)))
    return np.stack([sum(own.lengths for own in batch.modalities.values()) for batch in batches])


def longest_of_parts(lengths: np.ndarray, microbatches: int) -> np.ndarray:
    """Of batches int [steps, B], divided as `length_groups` does on one device: int [steps, microbatches]."""
    return np.sort(lengths, axis=1).reshape(len(lengths), microbatches, -1).max(axis=2)


def padding_fraction(lengths: np.ndarray, widths: Sequence[int], microbatches: int) -> float:
    """Of batches int [steps, B], each part cut to the first of `widths` (ascending) that holds its longest cell."""
    ladder = np.asarray(widths)
    needed = ladder[np.searchsorted(ladder, longest_of_parts(lengths, microbatches))]
    return 1 - float(lengths.sum()) / float(needed.sum() * (lengths.shape[1] // microbatches))


def best_widths(longest: np.ndarray, full: int, programs: int, multiple_of: int = 1) -> tuple[int, ...]:
    """The `programs - 1` widths, besides `full`, with which rows of `longest` tokens need fewest positions.

    Ascending; fewer when more would not help. With `[CLS]` each is a multiple of `multiple_of`. Exact: of the widths
    that some row needs, the best n that end at width j are the best n - 1 that end at some width before it, and j.
    """
    needed = np.minimum(-(-(longest.ravel() + 1) // multiple_of) * multiple_of - 1, full)
    widths, rows = np.unique(np.append(needed, full), return_counts=True)
    rows[-1] -= 1  # `full` was added
    below = np.concatenate([[0], np.cumsum(rows)])  # [W + 1] rows that need less than width j
    # [i, j]: positions of the rows from width i to width j when all have width j.
    positions = np.where(
        np.arange(len(widths))[:, None] <= np.arange(len(widths)), (below[1:] - below[:-1, None]) * widths, np.inf
    )
    cost, starts = positions[0], []
    for _ in range(min(programs, len(widths)) - 1):
        totals = np.concatenate([[np.inf], cost[:-1]])[:, None] + positions
        starts.append(totals.argmin(axis=0))
        cost = totals.min(axis=0)
    chosen, last = [], len(widths) - 1
    for start in reversed(starts):
        last = start[last] - 1
        chosen.append(int(widths[last]))
    return tuple(reversed(chosen))
