"""The `annotation` suite: cell types of cells never seen, predicted by models of ours and by every baseline.

All methods get the same cells, the same left-out parts to choose settings by, and the same calibration.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scmbert_jax.annotation.label_tree import Hierarchy, LabelTree
from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluation.annotation.baselines import ALL_BASELINES
from scmbert_jax.evaluation.annotation.cells import SuiteCells, read_suite_cells
from scmbert_jax.evaluation.annotation.choice import AnnotationChoice
from scmbert_jax.evaluation.annotation.figures import MOST_LINES, CasePicture, by_labels
from scmbert_jax.evaluation.annotation.kept_fits import KeptFits, digest_of_cells
from scmbert_jax.evaluation.annotation.result import (
    MEAN_OF_TYPES,
    AnnotationReport,
    DifferenceRow,
    Failure,
    ScoreRow,
)
from scmbert_jax.evaluation.annotation.run import Fits, fit_all
from scmbert_jax.evaluation.annotation.scores import (
    BINS,
    COVERAGE,
    CaseScores,
    IsRight,
    cell_weights,
    difference,
    of_seed,
)
from scmbert_jax.evaluation.annotation.splits import make_tasks, refuse_identical_cells
from scmbert_jax.evaluation.annotation.task import Method, Task
from scmbert_jax.evaluation.intervals import student_t_interval
from scmbert_jax.evaluation.report.report import Drawing, write_report

Array = np.ndarray
Say = Callable[[str], None]
Case = tuple[str, str]  # (split, case)

# Models and controls for the cells, and notes on them, such as `ours.methods_of_models`; those that the choice does not
# want need not be made.
Ours = Callable[[SuiteCells, KeptFits | None, AnnotationChoice], tuple[Sequence[Method], Sequence[str]]]

_NOVELTY = "novelty AUROC, "


def evaluate_annotation(
    data: Sequence[str],
    choice: AnnotationChoice | None = None,
    *,
    ours: Ours | None = None,
    renamed: Mapping[str, str] | None = None,
    modalities: Sequence[str] = (),
    hierarchy: Hierarchy | None = None,
    organism: str | None = None,
    assembly: str | None = None,
    obs_fields: Mapping[str, str | None] | None = None,
    say: Say = lambda message: None,
    progress: Callable[[int, int], None] | None = None,
) -> AnnotationReport:
    """The suite on one file, or on two to fit on one and predict the other.

    Args:
      ours: gives models and controls; without it the baselines alone.
      renamed, modalities, organism, assembly, obs_fields: as in `read_suite_cells`.
      hierarchy: of types; with one, accuracy is also told by the rule that a label below the true one is right.

    Raises:
      InputError: the data cannot be used, or has identical cells on both sides of a split.
      ConfigError: an option names what does not exist.
    """
    choice = choice or AnnotationChoice()
    cells = read_suite_cells(
        data,
        modalities=modalities,
        renamed=renamed,
        organism=organism,
        assembly=assembly,
        obs_fields=obs_fields,
    )
    tasks = [
        task
        for split in choice.splits
        for task in make_tasks(cells.labelled, split, per_type=choice.per_type, num_seeds=choice.num_seeds)
    ]
    notes = [
        *cells.notes,
        *refuse_identical_cells(cells.path, cells.cell_ids, tasks, cells.keys, choice.allow_identical_cells),
    ]
    kept = None if choice.kept is None else KeptFits(choice.kept, digest_of_cells(cells.values))
    models: Sequence[Method] = ()
    if ours is not None:
        models, said = ours(cells, kept, choice)
        notes += said
    methods = _chosen([*models, *ALL_BASELINES], choice)
    say(f"{cells.path}: {cells.values.num_cells:,} cells; {len(methods)} methods, {len(tasks)} fits of each")
    fits = fit_all(cells.values, tasks, methods, kept=kept, workers=choice.workers, progress=progress)
    if fits.num_kept:
        say(f"{fits.num_kept:,} fits were there from an earlier command")
    found = scored(
        cells, tasks, methods, fits, choice, None if hierarchy is None else _rule(hierarchy, cells.labelled.classes)
    )
    return AnnotationReport(
        cells.path,
        tuple(cells.labelled.classes.tolist()),
        tuple(found.rows),
        tuple(found.differences),
        tuple(_failures(tasks, methods, fits)),
        found.chosen,
        (*_protocol(choice, methods), *notes),
        {
            **{name: value for name, value in asdict(choice).items() if name not in ("kept", "workers")},
            "methods": [method.identity() for method in methods],
        },
        tuple(found.pictures),
    )


def _rule(hierarchy: Hierarchy, classes: Array) -> IsRight:
    tree = LabelTree(tuple(classes.tolist()), hierarchy)
    return lambda predicted, truth: tree.is_right(classes[predicted], classes[truth])


def _chosen(methods: Sequence[Method], choice: AnnotationChoice) -> list[Method]:
    known = [method.name for method in methods]
    for option, names in (("--only", choice.only), ("--skip", choice.skip)):
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(f"{option} {', '.join(map(repr, unknown))}: there are {', '.join(map(repr, known))}.")
    left = [method for method in methods if choice.wants(method.name)]
    if not left:
        raise ConfigError("--skip: no method is left.")
    return left


@dataclass
class Scored:
    """Rows, differences and pictures of all cases."""

    rows: list[ScoreRow] = field(default_factory=list)
    differences: list[DifferenceRow] = field(default_factory=list)
    chosen: dict[tuple[str, str, str], str] = field(default_factory=dict)
    pictures: list[CasePicture] = field(default_factory=list)


def scored(
    cells: SuiteCells,
    tasks: Sequence[Task],
    methods: Sequence[Method],
    fits: Fits,
    choice: AnnotationChoice,
    is_right: IsRight | None = None,
) -> Scored:
    """Figures of every method that has predictions for all tasks of a case."""
    found, labelled = Scored(), cells.labelled
    by_type: dict[str, list[dict[str, Array]]] = {}
    for case in dict.fromkeys((task.split, task.case) for task in tasks):
        mine = [place for place, task in enumerate(tasks) if (task.split, task.case) == case]
        new = int(np.flatnonzero(labelled.classes == case[1])[0]) if case[0] == "type" else -1
        scores: dict[str, CaseScores] = {}
        roles: dict[str, str] = {}
        for m, method in enumerate(methods):
            if any((m, t) not in fits.found for t in mine):
                continue
            for arm in method.arms:
                name = f"{method.name} ({arm})" if len(method.arms) > 1 else method.name
                of_seeds = []
                for seed in sorted({tasks[t].seed for t in mine}):
                    places = [t for t in mine if tasks[t].seed == seed]
                    predictions = [fits.found[m, t][arm] for t in places]
                    of_seeds.append(of_seed([tasks[t] for t in places], predictions, labelled.codes))
                scores[name] = CaseScores(of_seeds, labelled.num_classes, new, is_right)
                roles[name] = method.role
                settings = Counter(json.dumps(dict(fits.found[m, t][arm].setting)) for t in mine)
                found.chosen[*case, name] = settings.most_common(1)[0][0]
        for name, score in scores.items():
            for metric, values in score.of_seeds.items():
                interval = student_t_interval(values)
                number = round(float(np.mean([len(seed.rows) for seed in score.seeds])))
                figures = (interval.mean, interval.half_width, interval.number, number)
                found.rows.append(ScoreRow(case[0], case[1], name, roles[name], metric, *figures))
        if case[0] == "type":
            for name, score in scores.items():
                by_type.setdefault(name, []).append(score.of_seeds)
        else:
            groups = labelled.groups.get(case[0], np.full(labelled.codes.size, ""))
            found.differences += _differences(case, scores, roles, groups, choice)
            found.pictures.append(_picture(case, scores, roles, labelled.classes))
    if by_type:
        roles = {name: next(row.role for row in found.rows if row.method == name) for name in by_type}
        found.rows += _means_of_types(by_type, roles)
        found.differences += _novelty_differences(by_type, roles)
    return found


def _differences(
    case: Case, scores: Mapping[str, CaseScores], roles: Mapping[str, str], groups: Array, choice: AnnotationChoice
) -> list[DifferenceRow]:
    """Each model of ours against every other row."""
    ours = [name for name in scores if roles[name] == "ours"]
    if not ours:
        return []
    weights, over = cell_weights(groups, groups.size, choice.num_resamples, 0)
    resampled = {name: score.resampled(weights) for name, score in scores.items()}
    return [
        DifferenceRow(
            case[0],
            case[1],
            mine,
            other,
            metric,
            **difference(
                scores[mine].of_seeds[metric],
                scores[other].of_seeds[metric],
                resampled[mine][metric],
                resampled[other][metric],
            )._asdict(),
            over=case[0].replace("_", " ") + "s" if over == "groups" else over,
        )
        for mine in ours
        for other in scores
        if other != mine
        for metric in ("accuracy", "macro_f1")
    ]


def _means_of_types(by_type: Mapping[str, list[dict[str, Array]]], roles: Mapping[str, str]) -> list[ScoreRow]:
    rows = []
    for name, types in by_type.items():
        for metric in [metric for metric in types[0] if all(metric in of for of in types)]:
            interval = student_t_interval(np.mean([of[metric] for of in types], axis=0))
            rows.append(ScoreRow("type", MEAN_OF_TYPES, name, roles[name], metric, *interval, num_cells=0))
    return rows


def _novelty_differences(
    by_type: Mapping[str, list[dict[str, Array]]], roles: Mapping[str, str]
) -> list[DifferenceRow]:
    """Mean AUROC of each score of our models against that of the largest probability of every other row."""
    plain = f"{_NOVELTY}max softmax"
    mean = {
        (name, metric): np.mean([of[metric] for of in types], axis=0)
        for name, types in by_type.items()
        for metric in types[0]
        if metric.startswith(_NOVELTY) and all(metric in of for of in types)
    }
    found = []
    for (name, metric), values in mean.items():
        for other in by_type:
            if roles[name] != "ours" or other == name:
                continue
            over = difference(values, mean[other, plain], np.zeros(1), np.zeros(1))
            nothing = {"low": float("nan"), "high": float("nan"), "p_cells": float("nan")}
            found.append(
                DifferenceRow(
                    "type", MEAN_OF_TYPES, name, other, metric, **(over._asdict() | nothing), over="seeds alone"
                )
            )
    return found


def _picture(case: Case, scores: Mapping[str, CaseScores], roles: Mapping[str, str], classes: Array) -> CasePicture:
    """Confusions of the best of ours and of the best baseline; lines of ours, then of the best others."""
    ranked = sorted(scores, key=lambda name: -float(scores[name].of_seeds["macro_f1"].mean()))
    shown = [name for name in ranked if roles[name] == "ours"]
    shown += [name for name in ranked if name not in shown]
    shown = shown[:MOST_LINES]
    drawn = [next((name for name in ranked if roles[name] == role), None) for role in ("ours", "baseline")]
    return CasePicture(
        f"split by {case[0].replace('_', ' ')}, {case[1]}",
        tuple(classes.tolist()),
        {name: scores[name].confusion() for name in drawn if name is not None},
        {name: scores[name].reliability() for name in shown},
        {name: scores[name].rejection() for name in shown},
    )


def _failures(tasks: Sequence[Task], methods: Sequence[Method], fits: Fits) -> list[Failure]:
    found = [Failure(split, case, name, "cannot", reason) for (name, split, case), reason in fits.lacking.items()]
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for (m, t), reason in sorted(fits.failed.items()):
        reasons.setdefault((tasks[t].split, tasks[t].case, methods[m].name), []).append(reason)
    for (split, case, name), of_case in reasons.items():
        number = sum((task.split, task.case) == (split, case) for task in tasks)
        found.append(Failure(split, case, name, "failed", f"{len(of_case)} of {number} fits: {of_case[0]}"))
    return found


def _protocol(choice: AnnotationChoice, methods: Sequence[Method]) -> list[str]:
    notes = [
        f"± is half the 95% Student-t interval over {choice.num_seeds} seeds: other folds, other labelled cells, other "
        "random numbers of a method. Splits by a group of five or fewer have the same folds for every seed; there "
        "only a method's own random numbers change.",
        "All folds of a seed are scored together. Macro-F1 averages over the types that occur among the test cells.",
        "Baselines stand twice: with the settings they come with, and with settings chosen by macro-F1 on training "
        "cells that a fit had not seen. Where settings cannot be chosen (one labelled cell of a type), both are the "
        "same.",
        "Principal components are of all cells of the run, without labels, scaled by one number and not one by one. A "
        "fit that reaches its limit of iterations is taken as it is.",
        f"ECE ({BINS} bins), label sets and Brier are of probabilities after temperature scaling; temperature and the "
        "thresholds of the sets come from left-out training cells. ECE raw is before it. Label sets aim at "
        f"{COVERAGE:.0%} of the cells of each type.",
    ]
    if any(method.name == "CellTypist recipe" for method in methods):
        notes.append(
            "CellTypist recipe: written anew with scikit-learn from what CellTypist's documentation describes; it is "
            "not that package, and none of its models is used."
        )
    if "type" in choice.splits:
        notes.append(
            "Split by type: the cells of one type at a time teach nothing and are all tested, with a fifth of the "
            "others. Union accuracy takes a cell for new when its largest probability is below .5 (scBERT's rule); a "
            "new cell is right when it is called new, a known one when it gets its type and is not called new."
        )
    return notes


def write_annotation_reports(folder: Path, report: AnnotationReport, run_info: Mapping[str, Any]) -> Path:
    """annotation.json, annotation.md and report.html; the path of the last."""
    document = json.dumps({**report.to_dict(), "run": dict(run_info)}, indent=2, allow_nan=False, default=str)
    (folder / "annotation.json").write_text(document + "\n", encoding="utf-8")
    (folder / "annotation.md").write_text(report.markdown(), encoding="utf-8")
    return write_report(
        folder / "report.html",
        title="Cell types of cells never seen",
        run_info={"data": report.data, **run_info, "settings": report.settings},
        tables=report.tables(),
        figures=[drawing for picture in report.pictures for drawing in picture.drawings()],
        notes=report.notes,
        scores=few_label_drawings(report),
    )


def few_label_drawings(report: AnnotationReport) -> list[Drawing]:
    """Macro-F1 against labelled cells of each type, for each split with two numbers or more."""
    found: list[Drawing] = []
    for split in dict.fromkeys(row.split for row in report.rows):
        points: dict[str, list[tuple[int, float, float]]] = {}
        for row in report.rows:
            number, _, rest = row.case.partition(" per type")
            if row.split == split and row.metric == "macro_f1" and number.isdecimal() and not rest:
                points.setdefault(row.method, []).append((int(number), row.mean, row.half_width))
        longest = max((len(of) for of in points.values()), default=0)
        if longest < 2:
            continue
        roles = {row.method: row.role for row in report.rows}
        ranked = sorted(points, key=lambda name: (roles[name] != "ours", -np.mean([y for _, y, _ in points[name]])))
        shown = {name: sorted(points[name]) for name in ranked if len(points[name]) == longest}
        what = f"split by {split.replace('_', ' ')}"
        svg = by_labels(dict(list(shown.items())[:MOST_LINES]), what)
        found.append((f"More labels, {what}", svg, "Marks: mean over draws, with the 95% interval."))
    return found
