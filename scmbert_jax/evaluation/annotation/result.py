"""What the `annotation` suite found: plain rows, markdown tables, JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scmbert_jax.evaluation.annotation.figures import CasePicture
from scmbert_jax.text_table import markdown_table

METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "ontology": "accuracy by ontology",
    "ece": "ECE",
    "ece_raw": "ECE raw",
    "brier": "Brier",
    "coverage": "coverage",
    "set_size": "set size",
    "accuracy_at_80": "accuracy of surest 80%",
    "union_accuracy": "union accuracy",
    "known_accuracy": "of known",
    "novel_accuracy": "of new",
}
MEAN_OF_TYPES = "mean of types"


@dataclass(frozen=True)
class ScoreRow:
    """One figure: the mean over seeds and half of its 95% interval (nan for one seed).

    Attributes:
      split, case: as in `Task`; method: with its arm; role: of the method.
      metric: a key of `METRICS`, or "novelty AUROC, SCORE" and "novelty AUPR, SCORE".
      num_cells: that were predicted, in each seed.
    """

    split: str
    case: str
    method: str
    role: str
    metric: str
    mean: float
    half_width: float
    num_seeds: int
    num_cells: int


@dataclass(frozen=True)
class DifferenceRow:
    """`method` - `other` on the same cells: fields as in `Difference`."""

    split: str
    case: str
    method: str
    other: str
    metric: str
    mean: float
    half_width: float
    p_seeds: float
    low: float
    high: float
    p_cells: float
    num_seeds: int
    over: str

    @property
    def verdict(self) -> str:
        """ "better" or "worse" where every interval that there is leaves zero out; else "no clear difference"."""
        intervals = [(self.low, self.high), (self.mean - self.half_width, self.mean + self.half_width)]
        told = [(low, high) for low, high in intervals if math.isfinite(low) and math.isfinite(high)]
        if told and all(low > 0 for low, _ in told):
            return "better"
        return "worse" if told and all(high < 0 for _, high in told) else "no clear difference"


@dataclass(frozen=True)
class Failure:
    """A method that has no row in a case, and why: "failed" fits that should have worked, or "cannot": it needs more
    cells than the case has."""

    split: str
    case: str
    method: str
    kind: str
    reason: str


@dataclass(frozen=True)
class AnnotationReport:
    """All of one call.

    Attributes:
      data: what was read. classes: the types, sorted.
      rows, differences, failures: as their classes say.
      chosen: (split, case, method) -> the setting that most of its fits chose, as text.
      notes: protocol and what was left out, as sentences.
      pictures: what `report.html` draws; not in the JSON.
    """

    data: str
    classes: tuple[str, ...]
    rows: tuple[ScoreRow, ...]
    differences: tuple[DifferenceRow, ...] = ()
    failures: tuple[Failure, ...] = ()
    chosen: dict[tuple[str, str, str], str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    pictures: tuple[CasePicture, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether a fit failed that should have worked."""
        return any(failure.kind == "failed" for failure in self.failures)

    def row(self, method: str, metric: str, case: str | None = None, split: str | None = None) -> ScoreRow:
        """The first row of that name. Raises KeyError when there is none."""
        for row in self.rows:
            if (row.method, row.metric) == (method, metric) and case in (None, row.case) and split in (None, row.split):
                return row
        raise KeyError(f"no row {(method, metric, case, split)}")

    def tables(self) -> list[tuple[str, str]]:
        """(heading, markdown table): a line per method, for each case; then by labels, by left-out type."""
        found = []
        cases = list(dict.fromkeys((row.split, row.case) for row in self.rows))
        for split, case in cases:
            if split == "type" and case != MEAN_OF_TYPES:
                continue  # a column of the table below
            found.append((f"Split by {_words(split)}, {case}", self._case_table(split, case)))
        if any(split == "type" for split, _ in cases):
            found.append(("AUROC of each left-out type, largest probability", self._types_table()))
        for split in dict.fromkeys(split for split, _ in cases):
            few = [case for of, case in cases if of == split and "per type" in case]
            if len(few) > 1:
                found.append(
                    (f"Macro-F1 by labelled cells, split by {_words(split)}", self._across(split, few, "macro_f1"))
                )
        if self.differences:
            found.append(("Differences on the same cells", self._difference_table()))
        if self.failures:
            body = [[f.kind, f.method, _words(f.split), f.case, f.reason] for f in self.failures]
            found.append(("Rows that are missing", markdown_table(["", "method", "split", "case", "why"], body)))
        return found

    def _case_table(self, split: str, case: str) -> str:
        mine = [row for row in self.rows if (row.split, row.case) == (split, case)]
        columns = [name for name in METRICS if any(row.metric == name for row in mine)]
        columns += list(dict.fromkeys(row.metric for row in mine if row.metric not in METRICS))
        of = {(row.method, row.metric): row for row in mine}
        body = [
            [method, *(_figure(of.get((method, name))) for name in columns)]
            for method in dict.fromkeys(row.method for row in mine)
        ]
        return markdown_table(["method", *(METRICS.get(name, name) for name in columns)], body)

    def _types_table(self) -> str:
        cases = list(dict.fromkeys(row.case for row in self.rows if row.split == "type"))
        return self._across("type", cases, "novelty AUROC, max softmax")

    def _across(self, split: str, cases: Sequence[str], metric: str) -> str:
        of = {(row.method, row.case): row for row in self.rows if (row.split, row.metric) == (split, metric)}
        methods = dict.fromkeys(method for method, _ in of)
        body = [[method, *(_figure(of.get((method, case))) for case in cases)] for method in methods]
        return markdown_table(["method", *cases], body)

    def _difference_table(self) -> str:
        order = ("worse", "no clear difference", "better")
        body = [
            [
                f"{_words(row.split)}, {row.case}",
                f"{row.method} - {row.other}",
                METRICS.get(row.metric, row.metric),
                row.verdict,
                _signed(row.mean, row.half_width),
                _p(row.p_seeds),
                f"[{row.low:+.3f}, {row.high:+.3f}]" if math.isfinite(row.low) else "-",
                _p(row.p_cells),
                row.over,
            ]
            for row in sorted(self.differences, key=lambda row: order.index(row.verdict))
        ]
        header = ["case", "difference", "score", "verdict", "over seeds", "p", "over cells", "p of cells", "resampled"]
        return markdown_table(header, body)

    def text(self) -> str:
        """What `scmbert evaluate annotation` prints."""
        parts = [f"{heading}\n\n{table}" for heading, table in self.tables()]
        return "\n\n".join([*parts, "\n".join(self.notes)])

    def markdown(self) -> str:
        """The tables and notes as a page."""
        parts = [f"## {heading}\n\n{table}" for heading, table in self.tables()]
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join([f"# Cell types predicted: {self.data}", *parts, f"## How to read this\n\n{notes}"]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; nan becomes null."""
        return {
            "suite": "annotation",
            "data": self.data,
            "classes": list(self.classes),
            "settings": self.settings,
            "rows": [_plain(asdict(row)) for row in self.rows],
            "differences": [_plain(asdict(row) | {"verdict": row.verdict}) for row in self.differences],
            "failures": [asdict(failure) for failure in self.failures],
            "chosen": [
                {"split": split, "case": case, "method": method, "setting": setting}
                for (split, case, method), setting in self.chosen.items()
            ],
            "notes": list(self.notes),
        }


def _words(split: str) -> str:
    return split.replace("_", " ")


def _figure(row: ScoreRow | None) -> str:
    if row is None:
        return "-"
    return f"{row.mean:.3f}" if math.isnan(row.half_width) else f"{row.mean:.3f} ± {row.half_width:.3f}"


def _signed(mean: float, half_width: float) -> str:
    return f"{mean:+.3f}" if math.isnan(half_width) else f"{mean:+.3f} ± {half_width:.3f}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else ("< .001" if value < 0.001 else f"{value:.3f}")


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
