"""A figure for each task of the suite `regulatory`."""

from dataclasses import replace

from scmbert_jax.evaluation.regulatory.result import RegulatoryReport
from scmbert_jax.evaluation.report.regulatory_figures import (
    Bar,
    correlations_of_elements,
    score_bars,
    scores_by_labels,
)
from scmbert_jax.evaluation.report.report import Drawing

_MOST_LINES = 4  # of methods in the figure of elements


def pictures_of(report: RegulatoryReport) -> RegulatoryReport:
    """The report with its figures."""
    return replace(report, figures=(*_of_sequences(report), *_of_pairs(report), *_of_variants(report)))


def _of_sequences(report: RegulatoryReport) -> list[Drawing]:
    found = []
    for task in report.tasks:
        rows = [row for row in report.sequences if row.task == task and row.metric == "mcc"]
        bars = [Bar(row.method, row.mean, row.low, row.high, _group(row.method)) for row in rows if row.fraction == 1]
        if bars:
            alt = f"Matthews correlation of {len(bars)} methods on {task}"
            caption = f"{task}. 95% of bootstraps over test sequences. Blue: baselines; others: models."
            found.append(("Labelled sequences", score_bars(bars, "MCC x 100", alt), caption))
        lines: dict[str, dict[float, tuple[float, float, float]]] = {}
        for row in rows:
            lines.setdefault(row.method, {})[row.fraction] = (row.mean, row.low, row.high)
        if len({row.fraction for row in rows}) > 1:
            alt = f"Matthews correlation by labels of {len(lines)} methods on {task}"
            caption = f"{task}. Labels that learn; test sequences are the same."
            found.append(("Scores by labels", scores_by_labels(lines, "MCC x 100", alt), caption))
    return found


def _of_pairs(report: RegulatoryReport) -> list[Drawing]:
    found = []
    for recipe in dict.fromkeys(row.recipe for row in report.pairs):
        own = [row for row in report.pairs if row.recipe == recipe]
        bars = [Bar(row.method, row.accuracy, row.low, row.high, _group(row.method)) for row in own]
        alt = f"Accuracy of {len(bars)} scores: {recipe}"
        caption = f"{recipe}. 95% of bootstraps over {own[0].number:,} elements or motifs; dashed: chance."
        found.append(("Zero-shot", score_bars(bars, "how often the real one is higher", alt, 0.5), caption))
    return found


def _of_variants(report: RegulatoryReport) -> list[Drawing]:
    if not report.variants:
        return []
    best = sorted(report.variants, key=lambda row: row.mean)[-_MOST_LINES:]
    lines = {f"{row.method}, from {row.learned_from}": row.elements for row in best}
    alt = f"Spearman correlations of {len(lines)} methods for {len(best[0].elements)} elements"
    caption = f"Each element, by the {len(lines)} methods with the highest means."
    return [("Measured variants", correlations_of_elements(lines, alt), caption)]


def _group(method: str) -> int:
    """Baselines 0, arms 2, other models 3."""
    return 2 if method.startswith("arm: ") else 3 if method.startswith(("ours", "model: ")) else 0
