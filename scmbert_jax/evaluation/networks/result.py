"""What the `networks` suite found, as tables, text and JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scmbert_jax.evaluation.networks.scores import METRICS
from scmbert_jax.evaluation.report.report import Drawing
from scmbert_jax.text_table import markdown_table


@dataclass(frozen=True)
class NetworkRow:
    """The mean of a metric over seeds, and half of its 95% interval (nan for one seed)."""

    split: str
    method: str
    metric: str
    mean: float
    half_width: float
    num_seeds: int


@dataclass(frozen=True)
class NetworkReport:
    """All of one call.

    Attributes:
      network: the one taken for true; data: the cells, "" without.
      rows: of all splits; `differences`: of each method from the first, on the same splits.
      missing: method -> why it has no row. notes: sentences. licences: network -> its licence.
      curves, figures: of the report, where they were asked for; the former stand above the tables.
    """

    network: str
    data: str
    rows: tuple[NetworkRow, ...]
    differences: tuple[NetworkRow, ...]
    missing: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    licences: dict[str, str] = field(default_factory=dict)
    curves: tuple[Drawing, ...] = field(default=(), repr=False)
    figures: tuple[Drawing, ...] = field(default=(), repr=False)

    def row(self, split: str, method: str, metric: str = "auroc") -> NetworkRow:
        """Raises KeyError when there is none."""
        for row in self.rows:
            if (row.split, row.method, row.metric) == (split, method, metric):
                return row
        raise KeyError((split, method, metric))

    def tables(self) -> list[tuple[str, str]]:
        """(heading, markdown table): a line per method for each split, differences, what is missing."""
        found = []
        for split in dict.fromkeys(row.split for row in self.rows):
            found.append((f"Unseen: {split}", _table(self.rows, split, "{:.3f}")))
            if any(row.split == split for row in self.differences):
                first = next(row.method for row in self.rows if row.split == split)
                found.append((f"Minus {first}, unseen: {split}", _table(self.differences, split, "{:+.3f}")))
        if self.missing:
            found.append(("Rows that are missing", markdown_table(["method", "why"], list(self.missing.items()))))
        return found

    def text(self) -> str:
        """What `scmbert evaluate networks` prints."""
        return "\n\n".join([*(f"{heading}\n\n{table}" for heading, table in self.tables()), "\n".join(self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; nan becomes null."""
        return {
            "suite": "networks",
            "network": self.network,
            "data": self.data,
            "rows": [_plain(row) for row in self.rows],
            "differences": [_plain(row) for row in self.differences],
            "missing": self.missing,
            "notes": list(self.notes),
            "licences": self.licences,
        }


def _table(rows: Sequence[NetworkRow], split: str, form: str) -> str:
    of = {(row.method, row.metric): row for row in rows if row.split == split}
    methods = dict.fromkeys(method for method, _ in of)
    metrics = [metric for metric in METRICS if any(metric == own for _, own in of)]
    body = [[method, *(_figure(of[method, metric], form) for metric in metrics)] for method in methods]
    return markdown_table(["method", *(METRICS[metric] for metric in metrics)], body)


def _figure(row: NetworkRow, form: str) -> str:
    if math.isnan(row.mean):
        return "-"
    return form.format(row.mean) + ("" if math.isnan(row.half_width) else f" ± {row.half_width:.3f}")


def _plain(row: NetworkRow) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(row).items()
    }
