"""Sequences of a fixed or a variable length out of a genome: the windows that a model reads."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipelines.genome.bases import UNKNOWN, Layout, one_hot, reverse_complement
from data_pipelines.genome.fasta import Fasta
from data_pipelines.genome.interval_table import IntervalTable
from data_pipelines.genome.left_out import MOST_LEFT_OUT, LeftOut
from scmbert_jax.errors import InputError


@dataclass(frozen=True)
class Windows:
    """N sequences.

    Attributes:
      codes: uint8 [N, L], as in `bases`; N behind the end of a shorter one.
      lengths: int32 [N], bases of each; all L for windows of a fixed width.
      rows: int64 [N], of the table of intervals that they were cut for.
      start: int64 [N], of the window on its chromosome, 0-based; negative where it begins before it (`edges="pad"`).
      left_out: reason -> intervals that have no window.
    """

    codes: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray
    start: np.ndarray
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.codes)

    def one_hot(self, layout: Layout = "NLC") -> np.ndarray:
        """float32 [N, L, 4], or [N, 4, L] for layout `NCL`; N and padding are zeros."""
        return one_hot(self.codes, layout)


def cut_windows(
    fasta: Fasta,
    table: IntervalTable,
    width: int | None = None,
    *,
    around: Literal["centre", "summit"] = "centre",
    use_strand: bool = False,
    edges: Literal["drop", "pad"] = "drop",
    most_unknown: float = 1.0,
    most_left_out: float = MOST_LEFT_OUT,
) -> Windows:
    """Cuts the sequence of every interval (0-based half-open) out of a genome.

    Args:
      width: bases; the window is [p - width // 2, + width) around position p, 0-based. None: the interval as it is.
      around: p is the centre, (start + end) // 2, or the summit.
      use_strand: of intervals on "-" the reverse complement; position p is then at width - 1 - width // 2 of it.
      edges: windows that reach beyond their chromosome are left out, or filled with N.
      most_unknown: fraction of a window's bases that may be N; others are left out.
      most_left_out: fraction of the intervals that may have no window.

    Raises InputError: more than that; nothing left; no summits in the table.
    """
    centre = (table.start + table.end) // 2
    if around == "summit":
        if width is None:
            raise InputError("windows around a summit need a width")
        if not len(table) or (table.summit < 0).all():
            raise InputError(
                f"{table.where}: has no summits (narrowPeak's tenth column); take windows around the centre"
            )
        centre = table.summit
    if width is not None and width < 1:
        raise InputError(f"windows of {width} bases: expected 1 or more")
    start = table.start if width is None else centre - width // 2
    end = table.end if width is None else start + width
    left_out = LeftOut(table.where, len(table))
    labels, kept = table.ids, np.ones(len(table), bool)
    lengths = np.array([fasta.lengths.get(name, -1) for name in table.chromosome.tolist()], np.int64)
    kept = left_out.drop(kept, lengths < 0, f"on sequences that {fasta.name} has not", labels)
    if around == "summit":
        kept = left_out.drop(kept, table.summit < 0, "without a summit", labels)
    if edges == "drop":
        kept = left_out.drop(
            kept, (start < 0) | (end > lengths), "whose window reaches beyond their chromosome", labels
        )
    rows = np.flatnonzero(kept)
    codes = np.full((len(rows), width or int((end - start)[rows].max(initial=0))), UNKNOWN, np.uint8)
    for place, row in enumerate(rows.tolist()):
        codes[place, : end[row] - start[row]] = fasta.padded_codes(
            str(table.chromosome[row]), int(start[row]), int(end[row])
        )
    sizes = (end - start)[rows]
    unknown = (codes == UNKNOWN).sum(1) - (codes.shape[1] - sizes)
    clear = left_out.drop(np.ones(len(rows), bool), unknown > most_unknown * sizes, "with too many N", labels[rows])
    beyond = any("beyond" in reason for reason in left_out.counts)
    remedy = 'Take edges="pad" (N beyond the ends), narrower windows, or raise most_left_out (--most-left-out).'
    left_out.refuse(most_left_out, remedy if beyond else "")
    rows, codes, sizes = rows[clear], codes[clear], sizes[clear].astype(np.int32)
    if use_strand:
        turned = table.strand[rows] == "-"
        codes[turned] = reverse_complement(codes[turned], sizes[turned])
    return Windows(codes, sizes, rows, start[rows], left_out.counts)
