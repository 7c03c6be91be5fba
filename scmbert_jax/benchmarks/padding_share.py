"""The share of token positions that are padding, of the rows that a run on a corpus would compute."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.batch_reader import BatchReader
from data_pipelines.collate import TokenSampling
from data_pipelines.corpus import open_corpus
from scmbert_jax.evaluation.probe_table import markdown_table
from scmbert_jax.training.length_groups import equal_widths


@dataclass(frozen=True)
class PaddingShare:
    """One number of tokens.

    Attributes:
      num_tokens: of a whole row, all modalities together.
      mean_tokens: of a cell.
      whole_rows: padding as a share of all positions, nothing cut.
      whole_batches: of batches cut to their longest cell.
      cut: (microbatches, widths, padding) each, of microbatches of cells of like length.
    """

    num_tokens: int
    mean_tokens: float
    whole_rows: float
    whole_batches: float
    cut: tuple[tuple[int, int, float], ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        widths = sorted({width for _, width, _ in self.cut})
        shares = {(number, width): share for number, width, share in self.cut}
        lines = [
            [str(number), *(f"{100 * shares[number, width]:.1f}%" for width in widths)]
            for number in sorted({number for number, _, _ in self.cut})
        ]
        head = ["microbatches", *(f"{width} widths" for width in widths)]
        return (
            f"{self.num_tokens:,} tokens a row, {self.mean_tokens:,.0f} a cell: padding {100 * self.whole_rows:.1f}%, "
            f"cut to the longest cell of a batch {100 * self.whole_batches:.1f}%\n{markdown_table(head, lines)}"
        )


def measure_padding(
    folder: Path,
    num_tokens: tuple[int, ...],
    zero_fraction: float,
    batch_size: int,
    microbatches: tuple[int, ...],
    widths: tuple[int, ...],
    most_batches: int,
) -> list[PaddingShare]:
    """Counts tokens of the batches of an epoch, as `BatchReader` draws them with seed 0.

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
            reader = BatchReader(corpus, sampling, seed=0, global_batch_size=batch_size, num_streams=4, window_blocks=2)
            batches = (reader.batch_at(step) for step in range(min(most_batches, reader.steps_per_epoch)))
            lengths = np.stack([sum(own.lengths for own in batch.modalities.values()) for batch in batches])
            full = sum(own.num_tokens for own in sampling.values())
            found.append(
                PaddingShare(
                    full,
                    float(lengths.mean()),
                    1 - float(lengths.mean()) / full,
                    padding_share(lengths, full, 1, full),
                    tuple(
                        (parts, ways, padding_share(lengths, full, parts, ways))
                        for parts in microbatches
                        for ways in widths
                    ),
                )
            )
    return found


def padding_share(lengths: np.ndarray, full: int, microbatches: int, widths: int) -> float:
    """Of batches int [steps, B], cut as `length_groups` does on one device."""
    parts = np.sort(lengths, axis=1).reshape(len(lengths), microbatches, -1)  # [steps, microbatches, rows]
    ladder = np.asarray(equal_widths(full, widths))
    computed = ladder[np.searchsorted(ladder, parts.max(axis=2))].sum() * parts.shape[2]
    return 1 - float(lengths.sum()) / float(computed)
