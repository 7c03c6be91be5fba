"""`predict`: an annotator and cells -> their types, how sure that is, and whether anything can be said at all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from data_pipelines.checks.input_report import InputReport
from data_pipelines.checks.shared_counts import cells_of_dataset
from data_pipelines.features.column_names import known_text
from data_pipelines.readers.dataset import Dataset
from scmbert_jax.annotation.annotator import Annotator
from scmbert_jax.annotation.labels import check_obs_column
from scmbert_jax.annotation.representation import ModelRepresentation, OpenCells, Reading, cell_facts
from scmbert_jax.tasks.model_cells import USUAL_COVERAGE

Array = np.ndarray

ASSIGNED, AMBIGUOUS, NOVEL, UNSUPPORTED = "assigned", "ambiguous", "novel", "unsupported"
STATUSES = (ASSIGNED, AMBIGUOUS, NOVEL, UNSUPPORTED)
# A file that measures less than this of what a labelled cell expresses is not annotated, unless told.
LEAST_COVERAGE = 0.3


@dataclass(frozen=True)
class Annotations:
    """Of n cells, in the order of `dataset.cell_ids`. Nothing in it is missing or not a number.

    Attributes:
      annotator: what said it.
      dataset, report: the cells and their input check.
      coverage: modality -> of the features that a labelled cell expresses, the fraction that the file measures.
      labels: str [n], the most probable type; "" for an unsupported cell. Of a novel cell, the type it is most like.
      scores: float32 [n], its calibrated probability; 0 for an unsupported cell.
      sets: bool [n, L], the types it may be of (conformal); none for an unsupported cell, one or more for others.
      novelty: float32 [n] in [0, 1], above .5 is novel; 1 for an unsupported cell.
      status: str [n], one of `STATUSES`; ambiguous: the set holds more than one type, and the label is less probable
        than the coverage of the sets.
      probabilities: float32 [n, L], calibrated; rows sum to 1, those of unsupported cells are 0.
      why_unsupported: reason -> cells.
      fitted_to: cells that the annotator was fitted to, by barcode and counts.
      majority: str [n], by `majority_labels`; None where no clustering was named.
    """

    annotator: Annotator
    dataset: Dataset
    report: InputReport
    coverage: dict[str, float]
    labels: Array
    scores: Array
    sets: Array
    novelty: Array
    status: Array
    probabilities: Array
    why_unsupported: dict[str, int]
    fitted_to: int
    majority: Array | None = None

    @property
    def set_texts(self) -> Array:
        """str [n]: the types of each set, the most probable first, " | " between them; "" for an unsupported cell."""
        types = np.array(self.annotator.types, object)
        order = np.argsort(-self.probabilities, axis=1, kind="stable")
        return np.array(
            [" | ".join(types[row[held[row]]].tolist()) for row, held in zip(order, self.sets, strict=True)],
            object,
        ).astype(str)

    def counts(self) -> dict[str, int]:
        """Status -> cells."""
        return {status: int((self.status == status).sum()) for status in STATUSES}


def predict(
    annotator: Annotator,
    cells: Any,
    *,
    reading: Reading | None = None,
    majority_voting: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Annotations:
    """Annotates every cell of `cells`.

    Args:
      cells: whatever `open_dataset` takes.
      reading: how they are opened and embedded; `allow_low_coverage`: annotate cells of files that measure few of the
        features, and cells of modalities that the labelled ones had not.
      majority_voting: column of obs with a clustering, whose clusters get one label each.
      say: told how many cells cannot be annotated and why, and of cells that the annotator was fitted to.

    Raises:
      InputError: no raw counts, another organism or genome build, no feature in common, or no such column.

    Warns `ScmbertWarning` of a file that lacks many of the features.
    """
    reading = reading or Reading()
    opened = annotator.representation.open(cells, reading._replace(allow_low_coverage=True))
    dataset = opened.dataset
    clusters = None
    if majority_voting is not None:
        check_obs_column(dataset, majority_voting, "--majority-voting")
        clusters = known_text(dataset.obs[majority_voting])
    supported, why = _supported(annotator, opened, reading.allow_low_coverage)
    number = len(dataset.cell_ids)
    probabilities = np.zeros((number, len(annotator.types)))
    novelty, sets = np.ones(number), np.zeros(probabilities.shape, bool)
    if supported.any():
        vectors = annotator.representation.vectors(opened, reading)[supported]
        probabilities[supported], novelty[supported] = annotator.calibrated(vectors)
        sets[supported] = annotator.sets(probabilities[supported])
    labels = np.where(supported, np.array(annotator.types)[probabilities.argmax(1)], "")
    # The set of a rare or hard type's neighbours holds it for the sake of its own cells, however sure their label is.
    unsure = (sets.sum(1) > 1) & (probabilities.max(1) < annotator.sets.coverage)
    status = np.select([~supported, novelty > 0.5, unsure], [UNSUPPORTED, NOVEL, AMBIGUOUS], default=ASSIGNED)
    fitted_to = _fitted_to(annotator, opened)
    majority = None if clusters is None else majority_labels(labels, probabilities, status, clusters)
    found = Annotations(
        annotator=annotator,
        dataset=dataset,
        report=opened.report,
        coverage={name: opened.coverage.get(name, 0.0) for name in annotator.modalities},
        labels=labels,
        scores=probabilities.max(1).astype(np.float32),
        sets=sets,
        novelty=novelty.astype(np.float32),
        status=status,
        probabilities=probabilities.astype(np.float32),
        why_unsupported=why,
        fitted_to=fitted_to,
        majority=majority,
    )
    if say is not None:
        _say(found, opened, say)
    return found


def majority_labels(labels: Array, probabilities: Array, status: Array, clusters: Array) -> Array:
    """str [n]: of each cell the label that most assigned or ambiguous cells of its cluster have.

    Of labels that equally many have, the one of the higher summed probability is taken. Cells of no cluster ("") and
    cells of clusters in which no cell is assigned or ambiguous keep their own; unsupported cells of a cluster get its
    label, too.
    """
    found = labels.copy()
    voters = (status == ASSIGNED) | (status == AMBIGUOUS)
    for cluster in set(clusters.tolist()) - {""}:
        mine = clusters == cluster
        names, number = np.unique(labels[mine & voters], return_counts=True)
        if len(names):
            sums = [probabilities[mine & voters & (labels == name)].max(1).sum() for name in names]
            found[mine] = names[np.lexsort((sums, number))[-1]]
    return found


def _supported(annotator: Annotator, cells: OpenCells, allow_low_coverage: bool) -> tuple[Array, dict[str, int]]:
    """(bool [n], reason -> cells for which it is not)."""
    facts = cell_facts(cells)
    few = facts.expressed < annotator.least_expressed
    reasons = {
        "no counts of its features": facts.expressed == 0,
        f"fewer than {annotator.least_expressed} of its features expressed": few & (facts.expressed > 0),
    }
    if not allow_low_coverage:
        representation, least = annotator.representation, LEAST_COVERAGE
        if isinstance(representation, ModelRepresentation) and representation.model.config.model.gene_head:
            least = USUAL_COVERAGE  # as where it was fitted
        low = [name for name, fraction in cells.coverage.items() if fraction < least]
        has_low = np.array([any(name in text.split("+") for name in low) for text in facts.measured], bool)
        other = ~np.isin(facts.measured, annotator.measured)
        known = " or ".join(annotator.measured)
        reasons |= {
            f"less than {least:.0%} of its {', '.join(low)} features measured": has_low & ~few,
            f"not measured in {known}, as the labelled cells were": other & ~has_low & ~few,
        }
    unsupported = np.any(list(reasons.values()), axis=0)
    return ~unsupported, {reason: int(rows.sum()) for reason, rows in reasons.items() if rows.any()}


def _fitted_to(annotator: Annotator, cells: OpenCells) -> int:
    keys = cells_of_dataset(cells.dataset.name, cells.dataset, cells.report).keys
    known = [
        (own != 0) & np.isin(own, annotator.labelled.keys[name])
        for name, own in keys.items()
        if name in annotator.labelled.keys
    ]
    return int(np.any(known, axis=0).sum()) if known else 0


def _say(found: Annotations, cells: OpenCells, say: Callable[[str], None]) -> None:
    for name, fraction in found.coverage.items():
        overlap = cells.overlaps.get(name)
        summary = "not in the file" if overlap is None else overlap.summary()
        say(f"{name}: {summary}; {fraction:.0%} of what a labelled cell expresses")
    for reason, number in found.why_unsupported.items():
        say(f"{number:,} cells are {UNSUPPORTED}: {reason}")
    if found.fitted_to:
        say(
            f"{found.fitted_to:,} of the {len(found.labels):,} cells are among those the annotator was fitted to: how "
            "well it does on others, they do not tell"
        )


def annotation_columns(found: Annotations) -> dict[str, Any]:
    """Column of obs -> values, categories without unused ones, float32; docs/annotate.md says what each means."""
    columns: dict[str, Any] = {
        "scmbert_label": pd.Categorical(found.labels.astype(object)),
        "scmbert_label_score": found.scores,
        "scmbert_label_set": pd.Categorical(found.set_texts.astype(object)),
        "scmbert_novelty": found.novelty,
        "scmbert_label_status": pd.Categorical(found.status.astype(object)),
    }
    if found.majority is not None:
        columns["scmbert_majority_voting"] = pd.Categorical(found.majority.astype(object))
    return columns


def probability_table(found: Annotations) -> pd.DataFrame:
    """float32 [n, L], a column per type; "/" in a type's name is "|", since files of HDF5 have no "/" in names."""
    names: list[str] = []
    for name in found.annotator.types:
        column = name.replace("/", "|")
        names.append(column if column not in names else f"{column} ({len(names)})")
    return pd.DataFrame(found.probabilities, index=found.dataset.cell_ids.astype(object), columns=names)


def annotation_provenance(found: Annotations) -> dict[str, Any]:
    """What stands in `uns["scmbert_annotation"]`; docs/annotate.md says what each means."""
    annotator = found.annotator
    hierarchy, info = annotator.tree.hierarchy, annotator.info
    return {
        "annotator": annotator.name,
        "method": annotator.method,
        "scmbert_jax_version": info["versions"]["scmbert_jax"],
        "types": np.array(annotator.types, object),
        "types_in_hierarchy": np.array([hierarchy.type_of(name) or name for name in annotator.types], object),
        "hierarchy": hierarchy.name,
        "temperature": annotator.temperature,
        "coverage_target": annotator.sets.coverage,
        "types_with_pooled_threshold": np.array(
            [name for name, pooled in zip(annotator.types, annotator.sets.pooled, strict=True) if pooled], object
        ),
        "novelty_score": annotator.novelty.name,
        "feature_coverage": dict(found.coverage),
        "cells": found.counts(),
        "unsupported": np.array([f"{n}: {reason}" for reason, n in found.why_unsupported.items()], object),
        "cells_it_was_fitted_to": found.fitted_to,
    }
