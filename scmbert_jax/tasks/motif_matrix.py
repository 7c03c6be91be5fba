"""Motifs by region, out of a scan of the regions' sequences: what stands for binding where none was measured."""

import numpy as np
import scipy.sparse as sp

from data_pipelines.genome.interval_table import IntervalTable
from data_pipelines.genome.motif_thresholds import rounded, score_thresholds
from data_pipelines.genome.motifs import PSEUDOCOUNT, UNIFORM, MotifSet
from data_pipelines.genome.region_matrix import RegionMatrix
from data_pipelines.genome.windows import Windows
from scmbert_jax.sequences.motif_scanner import MotifScanner, Summary

_ROWS = 16_384  # regions whose dense scores lie in memory at once


def motif_matrix(
    table: IntervalTable,
    windows: Windows,
    motifs: MotifSet,
    summary: Summary = "hits",
    *,
    p_value: float = 1e-4,
    background: tuple[float, ...] = UNIFORM,
    pseudocount: float = PSEUDOCOUNT,
) -> RegionMatrix:
    """Scans every window for every motif, on both strands.

    Args:
      table: intervals (0-based half-open), whose ids become the regions of the matrix.
      windows: cut for these intervals.
      motifs: their ids become the columns.
      summary: of the scores of a window; hits are stored sparsely.
      p_value: that a hit has to reach, at one place of one strand.
      background: probabilities of A, C, G, T.
      pseudocount: sites.

    Returns:
      R windows by M motifs, in the order of both.

    Raises InputError: a region twice, no motifs, a p-value outside (0, 1].
    """
    log_odds = rounded(motifs.log_odds(pseudocount, background))
    limits = [one.score for one in score_thresholds(log_odds, p_value, background)] if summary == "hits" else None
    scanner = MotifScanner(log_odds, limits)
    parts = []
    for first in range(0, len(windows), _ROWS):
        of_rows = slice(first, first + _ROWS)
        scores = scanner(windows.codes[of_rows], windows.lengths[of_rows], (summary,))[summary]
        parts.append(sp.csr_array(scores))
    values = sp.csr_array(sp.vstack(parts)) if parts else sp.csr_array((0, len(motifs)), dtype=np.float32)
    return RegionMatrix(
        table.ids[windows.rows], np.array(motifs.ids, dtype=str), values, f"{table.where}, {motifs.where}"
    )
