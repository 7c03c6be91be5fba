"""What the suite `regulatory` found, as tables, text and JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scmbert_jax.evaluation.regulatory.zero_shot import PairScore
from scmbert_jax.evaluation.report.report import Drawing
from scmbert_jax.text_table import markdown_table

METRICS = {"mcc": "MCC x 100", "accuracy": "accuracy %", "auroc": "AUROC x 100", "mcc_unseen": "MCC without repeats"}
NO_CONSERVATION = "no conservation baseline"


@dataclass(frozen=True)
class SequenceRow:
    """A score of a method on the test sequences of a task, times 100.

    Attributes:
      fraction: of the labels that it learned of. metric: of `METRICS`.
      mean: over seeds; half_width: half of the 95% Student-t interval over them (nan for one).
      low, high: the 95% interval of a bootstrap over test sequences, means of those of the seeds.
      num_parameters: numbers that were fitted. chosen: what dev chose, of the first seed.
    """

    task: str
    method: str
    fraction: float
    metric: str
    mean: float
    half_width: float
    low: float
    high: float
    num_seeds: int
    num_parameters: int
    chosen: str


@dataclass(frozen=True)
class VariantRow:
    """Spearman's correlation of predicted and measured effects.

    Attributes:
      learned_from: "nothing" or "other loci".
      elements: name of each experiment -> its correlation.
      mean: over elements; half_width: half of its 95% Student-t interval over loci.
    """

    method: str
    learned_from: str
    elements: dict[str, float]
    mean: float
    half_width: float
    num_loci: int


@dataclass(frozen=True)
class RegulatoryReport:
    """All of one call.

    Attributes:
      sequences, pairs, variants: rows of sets of labelled sequences, of zero-shot recipes, of measured variants.
      tasks: set -> how many sequences learn, choose and test, and how many of the latter also learn or choose.
      named: elements that the table names; all are in the report and in JSON.
      missing: method -> why it has no row. notes: sentences. figures: where they were asked for.
    """

    sequences: tuple[SequenceRow, ...] = ()
    pairs: tuple[PairScore, ...] = ()
    variants: tuple[VariantRow, ...] = ()
    tasks: dict[str, dict[str, int]] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    figures: tuple[Drawing, ...] = field(default=(), repr=False)

    def row(self, task: str, method: str, metric: str = "mcc", fraction: float = 1.0) -> SequenceRow:
        """Raises KeyError when there is none."""
        for row in self.sequences:
            if (row.task, row.method, row.metric, row.fraction) == (task, method, metric, fraction):
                return row
        raise KeyError((task, method, metric, fraction))

    def tables(self) -> list[tuple[str, str]]:
        """(heading, markdown table)."""
        found = [(f"{task}: {_sizes(sizes)}", self._of_task(task)) for task, sizes in self.tasks.items()]
        found += [(f"MCC x 100 by labels: {task}", table) for task in self.tasks if (table := self._by_labels(task))]
        for recipe in dict.fromkeys(row.recipe for row in self.pairs):
            found.append((f"Which is likelier: {recipe}", _pairs([row for row in self.pairs if row.recipe == recipe])))
        for source in dict.fromkeys(row.learned_from for row in self.variants):
            own = [row for row in self.variants if row.learned_from == source]
            found.append((f"Effects of variants, learned from {source}: Spearman", self._of_variants(own)))
        if self.missing:
            found.append(("Rows that are missing", markdown_table(["method", "why"], list(self.missing.items()))))
        return found

    def tables_of_elements(self) -> list[tuple[str, str]]:
        """(heading, markdown table): every element by every method, for the report."""
        if not self.variants:
            return []
        header = ["element", *(f"{row.method}, from {row.learned_from}" for row in self.variants)]
        body = [[name, *(f"{row.elements[name]:.3f}" for row in self.variants)] for name in self.variants[0].elements]
        return [("Spearman by element", markdown_table(header, body))]

    def text(self) -> str:
        """What `scmbert evaluate regulatory` prints."""
        return "\n\n".join([*(f"{heading}\n\n{table}" for heading, table in self.tables()), "\n".join(self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; nan becomes null."""
        return {
            "suite": "regulatory",
            "tasks": self.tasks,
            "sequences": [_plain(asdict(row)) for row in self.sequences],
            "pairs": [_plain(asdict(row)) for row in self.pairs],
            "variants": [_plain(asdict(row)) for row in self.variants],
            "missing": self.missing,
            "notes": list(self.notes),
        }

    def _of_task(self, task: str) -> str:
        rows = [row for row in self.sequences if row.task == task and row.fraction == 1]
        metrics = [metric for metric in METRICS if any(row.metric == metric for row in rows)]
        body = []
        for method in dict.fromkeys(row.method for row in rows):
            own = {row.metric: row for row in rows if row.method == method}
            first = next(iter(own.values()))
            scores = [_figure(own[metric]) if metric in own else "-" for metric in metrics]
            body.append([method, *scores, f"{first.num_parameters:,}", first.chosen])
        return markdown_table(["method", *(METRICS[metric] for metric in metrics), "parameters", "chosen on dev"], body)

    def _by_labels(self, task: str) -> str:
        """Empty where all methods learned of all labels only."""
        rows = [row for row in self.sequences if row.task == task and row.metric == "mcc"]
        fractions = sorted({row.fraction for row in rows})
        if fractions in ([], [1.0]):
            return ""
        body = []
        for method in dict.fromkeys(row.method for row in rows):
            own = {row.fraction: row for row in rows if row.method == method}
            body.append([method, *(_figure(own[part]) if part in own else "-" for part in fractions)])
        return markdown_table(["method", *(f"{fraction:.0%}" for fraction in fractions)], body)

    def _of_variants(self, rows: Sequence[VariantRow]) -> str:
        named = [name for name in self.named if all(name in row.elements for row in rows)]
        body = [
            [
                row.method,
                f"{row.mean:.3f}" + ("" if math.isnan(row.half_width) else f" ± {row.half_width:.3f}"),
                *(f"{row.elements[name]:.3f}" for name in named),
                f"{sum(value > 0 for value in row.elements.values())} of {len(row.elements)}",
            ]
            for row in rows
        ]
        return markdown_table(["method", "mean of elements", *named, "above 0"], body)


def _sizes(sizes: dict[str, int]) -> str:
    return (
        f"{sizes['train']:,} learn, {sizes['dev']:,} choose, {sizes['test']:,} test, of which {sizes['repeated']:,} "
        "also learn or choose"
    )


def _figure(row: SequenceRow) -> str:
    found = f"{row.mean:.1f} [{row.low:.1f}, {row.high:.1f}]"
    return found if math.isnan(row.half_width) else f"{found} ± {row.half_width:.1f}"


def _pairs(rows: Sequence[PairScore]) -> str:
    body = [
        [
            row.method,
            f"{row.accuracy:.3f} [{row.low:.3f}, {row.high:.3f}]",
            f"{row.p_value:.1e}",
            f"{row.number:,}",
            f"{row.pairs:,}",
        ]
        for row in rows
    ]
    return markdown_table(["score", "accuracy", "Wilcoxon p", "independent", "pairs"], body)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
