"""What the `translation` suite found: plain rows, a markdown table, JSON."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from scmbert_jax.evaluation.translation.figures import Picture
from scmbert_jax.text_table import markdown_table

METRICS = {
    "rmse": "RMSE",
    "pearson_per_cell": "r per cell",
    "pearson_per_feature": "r per feature",
    "auroc_per_peak": "AUROC per peak",
    "auprc_per_peak": "AUPRC per peak",
    "auroc_per_peak_same_depth": "AUROC, same depth",
    "auroc_per_peak_told_depth": "AUROC, told depth",
}


@dataclass(frozen=True)
class TranslationRow:
    """One figure.

    Attributes:
      split: such as "p4_0 held out".
      direction: "rna -> protein".
      method, uses: its name, and what it is told.
      metric: a key of `METRICS`.
      value: fitted on all training cells; of models trained elsewhere, their mean.
      mean, half_width: 95% Student-t over `num_seeds` seeds (subsamples of the training cells, or trained models); nan
        half_width for one seed.
      num_cells: test cells.
    """

    split: str
    direction: str
    method: str
    uses: str
    metric: str
    value: float
    mean: float
    half_width: float
    num_seeds: int
    num_cells: int


@dataclass(frozen=True)
class CellTypeError:
    """RMSE of one method on the test cells of one cell type, fitted on all training cells."""

    split: str
    direction: str
    method: str
    cell_type: str
    rmse: float
    num_cells: int


@dataclass(frozen=True)
class TranslationReport:
    """All of one call.

    Attributes:
      data: what was scored.
      rows, type_errors: the figures.
      pictures: what `report.html` draws; not in the JSON.
      notes: protocol, coverage and what each model has seen, as sentences.
    """

    data: str
    rows: tuple[TranslationRow, ...]
    type_errors: tuple[CellTypeError, ...] = ()
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()

    def row(self, method: str, metric: str, direction: str, split: str | None = None) -> TranslationRow:
        """The row of that name (the first split by default). Raises KeyError when there is none."""
        for row in self.rows:
            if (row.method, row.metric, row.direction) == (method, metric, direction) and split in (None, row.split):
                return row
        raise KeyError(f"no row {(method, metric, direction, split)}")

    def tables(self) -> list[tuple[str, str]]:
        """(heading, markdown table) of every split and direction: a line per method, a column per metric."""
        found = []
        for split, direction in dict.fromkeys((row.split, row.direction) for row in self.rows):
            mine = [row for row in self.rows if (row.split, row.direction) == (split, direction)]
            metrics = [name for name in METRICS if any(row.metric == name for row in mine)]
            body = []
            for method, uses in dict.fromkeys((row.method, row.uses) for row in mine):
                of = {row.metric: row for row in mine if row.method == method}
                body.append([method, uses, *(_figure(of.get(name)) for name in metrics)])
            heading = f"{direction}, {split} ({mine[0].num_cells:,} test cells)"
            found.append((heading, markdown_table(["method", "uses", *(METRICS[name] for name in metrics)], body)))
        return found

    def type_table(self) -> str:
        """RMSE per cell type: a line per split, direction and type, a column per method."""
        methods = list(dict.fromkeys(row.method for row in self.type_errors))
        places = dict.fromkeys((row.split, row.direction, row.cell_type, row.num_cells) for row in self.type_errors)
        of = {(row.split, row.direction, row.cell_type, row.method): row.rmse for row in self.type_errors}
        body = [
            [direction, split, kind, f"{number:,}", *(f"{of[split, direction, kind, name]:.4f}" for name in methods)]
            for split, direction, kind, number in places
        ]
        return markdown_table(["direction", "split", "cell type", "cells", *methods], body)

    def text(self) -> str:
        """What `scmbert evaluate translation` prints."""
        parts = [f"{heading}\n\n{table}" for heading, table in self.tables()]
        return "\n\n".join([*parts, "\n".join(self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; nan becomes null."""
        return {
            "suite": "translation",
            "data": self.data,
            "settings": self.settings,
            "rows": [_plain(asdict(row)) for row in self.rows],
            "cell_types": [_plain(asdict(row)) for row in self.type_errors],
            "notes": list(self.notes),
        }


def _figure(row: TranslationRow | None) -> str:
    if row is None:
        return "-"
    if math.isnan(row.half_width):
        return f"{row.value:.4f}"
    return f"{row.value:.4f} ({row.mean:.4f} ± {row.half_width:.4f})"


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
