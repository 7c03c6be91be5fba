"""Scores of the suites `matching` and `integration`: rows, tables, JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from scmbert_jax.evaluation.intervals import student_t_interval
from scmbert_jax.text_table import markdown_table

Array = np.ndarray
Vectors = tuple[Array, Array]


@dataclass(frozen=True)
class AlignmentRow:
    """One score of one method.

    Attributes:
      direction: what was learned from and what was scored, "rna-protein: p3 -> p4".
      method: its name; uses: what it was told (pairs, links, labels, nothing).
      metric: "FOSCTTM", "recall@10", "accuracy (knn)", ...
      whole: the score of the one fit to all training cells; nan where there is none (several trained models).
      mean, half_width, num_seeds: over seeds, the 95% Student-t interval; half_width nan for one seed.
      num_cells: cells scored.
    """

    direction: str
    method: str
    uses: str
    metric: str
    whole: float
    mean: float
    half_width: float
    num_seeds: int
    num_cells: int


def score_rows(
    direction: str,
    method: str,
    uses: str,
    whole: Mapping[str, float] | None,
    per_seed: Sequence[Mapping[str, float]],
    num_cells: int,
) -> list[AlignmentRow]:
    """One row per metric. `per_seed`: the scores of each seed; empty where only the whole fit was made."""
    seeds = list(per_seed) or [whole or {}]
    rows = []
    for metric in seeds[0]:
        interval = student_t_interval(np.array([scores[metric] for scores in seeds]))
        value = float("nan") if whole is None else float(whole[metric])
        rows.append(AlignmentRow(direction, method, uses, metric, value, *interval, num_cells))
    return rows


@dataclass(frozen=True)
class AlignmentResult:
    """All rows of a suite, and sentences that say how they were made.

    Attributes:
      suite: "matching" or "integration"; data: the file; notes: protocol and caveats; information: model -> what its
        training used, as its provenance says (or that it says nothing).
    """

    suite: str
    data: str
    rows: tuple[AlignmentRow, ...]
    notes: tuple[str, ...]
    information: Mapping[str, Any]

    def row(self, direction: str, method: str, metric: str) -> AlignmentRow:
        return next(r for r in self.rows if (r.direction, r.method, r.metric) == (direction, method, metric))

    def tables(self) -> list[tuple[str, str]]:
        """(heading, markdown table) per set of metrics: one line per direction and method."""
        groups: dict[tuple[str, ...], dict[tuple[str, str, str], list[AlignmentRow]]] = {}
        lines: dict[tuple[str, str, str], list[AlignmentRow]] = {}
        for row in self.rows:
            lines.setdefault((row.direction, row.method, row.uses), []).append(row)
        for key, found in lines.items():
            groups.setdefault(tuple(row.metric for row in found), {})[key] = found
        tables = []
        for metrics, members in groups.items():
            header = ["direction", "method", "uses", *metrics, "cells"]
            body = [[*key, *map(_figure, found), f"{found[0].num_cells:,}"] for key, found in members.items()]
            heading = f"{self.suite}: {', '.join(metrics[:3])}{' ...' if len(metrics) > 3 else ''}"
            tables.append((heading, markdown_table(header, body)))
        return tables

    def text(self) -> str:
        parts = [table for _, table in self.tables()]
        return "\n\n".join([*parts, "\n".join(f"- {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        rows = [{k: _json_number(v) for k, v in asdict(row).items()} for row in self.rows]
        return {
            "suite": self.suite,
            "data": self.data,
            "rows": rows,
            "notes": list(self.notes),
            "information": dict(self.information),
        }


def _figure(row: AlignmentRow) -> str:
    """`.0857 (.0871 ± .0012)`: the fit to all training cells, and mean and half-width over seeds."""
    spread = "" if math.isnan(row.half_width) else f" ± {row.half_width:.4f}"
    if math.isnan(row.whole):
        return f"{row.mean:.4f}{spread}"
    return f"{row.whole:.4f} ({row.mean:.4f}{spread})" if row.num_seeds > 1 else f"{row.whole:.4f}"


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class MatchingReport:
    """The result, and vectors of the first fold for pictures: method -> (first [n, d], second [n, d])."""

    result: AlignmentResult
    vectors: Mapping[str, Vectors] = field(default_factory=dict)
    cell_types: Array = field(default_factory=lambda: np.zeros(0, str))
    modalities: tuple[str, str] = ("", "")
