"""The `networks` suite: splits x methods x seeds, each method beside what node degree alone says."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from data_pipelines.networks.named_networks import read_network, read_networks
from data_pipelines.networks.negatives import NEGATIVES
from data_pipelines.networks.parts import SPLITS
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.intervals import student_t_interval
from scmbert_jax.evaluation.networks.baselines import BASELINES, Given, NetworkMethod
from scmbert_jax.evaluation.networks.graph_network import GRAPH_NETWORKS
from scmbert_jax.evaluation.networks.inputs import (
    EXAMPLE,
    Expression,
    among_measured,
    by_id,
    given_for,
    read_example,
    read_expression,
    read_labels,
    row_names,
    scores_of,
    told,
)
from scmbert_jax.evaluation.networks.model_rows import model_rows
from scmbert_jax.evaluation.networks.pairs import Pairs, pairs_of, split_pairs, with_drawn_tests
from scmbert_jax.evaluation.networks.pictures import PictureScores
from scmbert_jax.evaluation.networks.result import NetworkReport, NetworkRow
from scmbert_jax.evaluation.networks.scores import METRICS, NEW_EDGES, auroc, score_pairs
from scmbert_jax.evaluation.networks.split_files import Parts, read_splits, write_splits
from scmbert_jax.evaluation.report.report import write_report
from scmbert_jax.pretrained import PretrainedModel

Array = np.ndarray
Say = Callable[[str], None]

ALL = "all"
_NEEDS = {
    "cells": "--data",
    "prior": "--prior",
    "prior or cells": "--prior or --data",
    "list": "regulators without an edge that were looked at, as a BEELINE folder lists them",
}
_NOTES = (
    "Splits by edge, by regulator and by target measure memory of node degree: read them beside the row of the "
    "identity. Where regulator and gene are both unseen, the identity knows nothing (.5).",
    "Every pair of a regulator that has an edge and a gene that was looked at, but itself, is an edge or is none. All "
    "count, unless it says above that some were drawn. A quarter of the pairs, regulators or genes test, an eighth "
    "chooses, the rest learns.",
    "AUPRC and EPR depend on the density of edges; EPR is the precision among as many pairs as there are edges, by "
    "that density, ties taken at their expectation. EPR of papers is of other pairs.",
    "± is half of the 95% Student-t interval over seeds: other parts of the same network.",
)


def evaluate_networks(
    network: str | Path = EXAMPLE,
    *,
    data: str | None = None,
    priors: Sequence[str | Path] = (),
    brought: Sequence[str | Path] = (),
    splits: Sequence[str] = SPLITS,
    num_seeds: int = 5,
    skip: Sequence[str] = (),
    graph_network: bool = False,
    negatives: str = ALL,
    read_from: str | Path | None = None,
    write_to: str | Path | None = None,
    overwrite: bool = False,
    pictures: bool = False,
    models: Mapping[str, PretrainedModel] = MappingProxyType({}),
    organism: str = "human",
    say: Say = lambda message: None,
) -> NetworkReport:
    """Scores every method on the pairs of a network.

    Args:
      network: taken for true: a BEELINE folder, a table of edges, a network by name; `EXAMPLE` has cells and a prior.
      data: cells with RNA, for co-expression; then only genes that they measure are looked at.
      priors: other networks, whose edges and degrees are scored.
      brought: networks to judge, whose weights score pairs.
      skip: names of methods that are left out.
      graph_network: also train one for each split and seed, and its two controls.
      negatives: which pairs without an edge test: all, or as many as edges, drawn by a rule of `NEGATIVES`.
      read_from: a file of parts that is used instead of `splits`, `num_seeds` and `negatives` (split_files.py).
      write_to: a file that gets the parts, replacing one if `overwrite`.
      pictures: also draw those of the report.
      models: by name, whose gene rows and link decoders score pairs; what one of them has seen tests no method.

    Raises:
      InputError: a file that cannot be used, or no gene in common; ConfigError: an unknown split or method.
    """
    if unknown := [split for split in splits if split not in SPLITS]:
        raise ConfigError(f"--split {' '.join(unknown)}: expected {', '.join(SPLITS)}.")
    known = [*BASELINES, *(GRAPH_NETWORKS if graph_network else ())]
    names = [method.name for method in known]
    if unknown := [name for name in skip if name not in names]:
        raise ConfigError(f"--skip {', '.join(map(repr, unknown))}: there are {', '.join(map(repr, names))}.")
    if negatives not in (ALL, *NEGATIVES):
        raise ConfigError(f"--negatives {negatives}: expected {', '.join((ALL, *NEGATIVES))}.")
    expression: Expression | None
    if str(network) == EXAMPLE:
        labels, expression, tables = read_example(data, priors)
    else:
        labels = read_labels(network, organism)
        expression = None if data is None else read_expression(data, organism)
        tables = [by_id(read_network(path, organism), organism) for path in priors]
    judged = [by_id(table, organism) for path in brought for table in read_networks(path, organism)]
    looked_at = labels if expression is None else among_measured(labels, expression[0], organism)
    pairs = pairs_of(looked_at, str(network))
    given = given_for(pairs, expression, tables, organism)
    notes = [
        f"{network}: {pairs.is_edge.sum():,} edges of {len(pairs.regulators):,} regulators and {len(pairs.genes):,} "
        f"genes, density {pairs.density:.4f}; {pairs.without_edges:,} regulators without an edge are left out"
        + (f"; {len(labels.edges) - len(looked_at.edges):,} edges of genes without RNA, too" if data else "")
        + f"{told(labels.edges)}.",
        *(f"{table.name}: {len(table):,} edges{told(table)}." for table in tables),
    ]
    methods = [method for method in known if method.name not in skip]
    own_rows: list[str] = []
    for table, name in zip(judged, row_names([table.name for table in judged]), strict=True):
        scores, covers = scores_of(table, pairs, organism)
        notes.append(f"{covers}.")
        own_rows.append(f"network: {name}")
        methods.append(NetworkMethod(own_rows[-1], "", lambda *_, own=scores: own))
    of_models = model_rows(models, pairs, organism)
    for own_rows_of in of_models:
        notes.append(own_rows_of.note)
        own_rows += [method.name for method in own_rows_of.methods]
        methods += own_rows_of.methods
    unseen = ~np.any([own.seen for own in of_models], axis=0) if of_models else np.ones_like(pairs.is_pair)
    there = {"": True, "cells": expression is not None, "prior": bool(tables), "list": pairs.is_listed.any()}
    there["prior or cells"] = there["prior"] or there["cells"]
    missing = {method.name: f"needs {_NEEDS[method.needs]}" for method in methods if not there[method.needs]}
    if read_from is not None:
        parts = _tested_on(read_splits(read_from, pairs), pairs, unseen)
        notes.append(f"The parts are those of {read_from}.")
    else:
        parts = {(split, seed): split_pairs(pairs, split, seed) for split in splits for seed in range(num_seeds)}
        parts = _tested_on(parts, pairs, unseen)
        if negatives != ALL:
            parts = {key: with_drawn_tests(pairs, part, negatives, key[1]) for key, part in parts.items()}
            notes.append(f"Of the pairs that test, as many without an edge as edges are left, drawn: {negatives}.")
    if not unseen.all():
        notes.append(f"Edges that test, once those that models have seen are left out: {_edges_left(parts, pairs)}.")
    if write_to is not None:
        write_splits(write_to, pairs, parts, overwrite)
    kept = PictureScores(pairs, parts) if pictures else None
    found = _scored(pairs, given, [method for method in methods if there[method.needs]], parts, kept, say)
    licences = {table.name: table.licence or "not stated" for table in (labels.edges, *tables, *judged)}
    return NetworkReport(
        str(network),
        data or "",
        *_rows(found),
        missing=missing,
        notes=(*notes, *_NOTES),
        licences=licences,
        curves=() if kept is None else tuple(kept.scores(methods[0].name, own_rows)),
        figures=() if kept is None else tuple(kept.neighbourhoods(own_rows, organism)),
    )


def _tested_on(parts: Parts, pairs: Pairs, unseen: Array) -> Parts:
    """Without the test pairs that a model has seen. Raises InputError where no edge is left to test."""
    if unseen.all():
        return parts
    found = {key: replace(part, test=part.test & unseen) for key, part in parts.items()}
    if not any((part.test & pairs.is_edge).any() for part in found.values()):
        raise InputError(
            "the models were trained on all edges that would test: give another true network, or models that were "
            "trained with model.network_split edge, regulator, target or both"
        )
    return found


def _edges_left(parts: Parts, pairs: Pairs) -> str:
    """By split, over seeds: "edge 40 to 52, both 3 to 9"."""
    numbers: dict[str, list[int]] = {}
    for (split, _), part in parts.items():
        numbers.setdefault(split, []).append(int((part.test & pairs.is_edge).sum()))
    return ", ".join(f"{split} {min(own):,} to {max(own):,}" for split, own in numbers.items())


def _scored(
    pairs: Pairs,
    given: Given,
    methods: Sequence[NetworkMethod],
    parts: Parts,
    kept: PictureScores | None,
    say: Say,
) -> dict[tuple[str, str], list[dict[str, float]]]:
    """(split, method) -> a value of each metric for each seed."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {
        (split, method.name): [] for split, _ in parts for method in methods
    }
    for method in methods:
        say(f"{method.name}")
        scores: Array | None = None
        for (split, seed), part in parts.items():
            if scores is None or method.learns:
                scores = method.score(pairs, part, given, seed)
            values = score_pairs(scores, pairs.is_edge, part.test)
            if given.prior is not None:
                new = part.test & ~given.prior.is_edge
                values[NEW_EDGES] = auroc(scores[new], pairs.is_edge[new])
            found[split, method.name].append(values)
            if kept is not None:
                kept.keep(split, seed, method.name, scores)
    return found


def _rows(
    found: dict[tuple[str, str], list[dict[str, float]]],
) -> tuple[tuple[NetworkRow, ...], tuple[NetworkRow, ...]]:
    rows, differences = [], []
    first: dict[str, str] = {}
    for (split, method), values in found.items():
        other = found[split, first.setdefault(split, method)]
        for metric in METRICS if NEW_EDGES in other[0] else [name for name in METRICS if name != NEW_EDGES]:
            own = np.array([value[metric] for value in values])
            rows.append(_row(split, method, metric, own))
            if method != first[split]:
                differences.append(_row(split, method, metric, own - np.array([value[metric] for value in other])))
    return tuple(rows), tuple(differences)


def _row(split: str, method: str, metric: str, values: Array) -> NetworkRow:
    """Seeds without a value (a test without an edge) are passed over."""
    values = values[np.isfinite(values)]
    if not len(values):
        return NetworkRow(split, method, metric, math.nan, math.nan, 0)
    mean, half_width, number = student_t_interval(values)
    return NetworkRow(split, method, metric, mean, half_width, number)


def write_network_report(path: Path, report: NetworkReport, run_info: dict[str, Any]) -> None:
    """report.html."""
    write_report(
        path,
        title=f"Networks: {report.network}",
        run_info=run_info | {"licences": report.licences},
        tables=report.tables(),
        scores=report.curves,
        figures=report.figures,
        notes=report.notes,
    )
