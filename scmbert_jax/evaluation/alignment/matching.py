"""The `matching` suite: does a model know which profiles of two modalities are one cell, and of which type they are?

For each pair of modalities and each held-out technical batch of measured pairs, the cells of that batch are embedded
from each modality alone and compared by cosine: FOSCTTM, recall@k, the probability of the true partner. Baselines are
fitted to 80% of their training cells for each of five seeds, and once to all of them. Cell types are carried over from
one modality's cells to the other's (`transfer_scores`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.checks.shared_counts import CellSet
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluation import metrics
from scmbert_jax.evaluation.alignment.label_transfer import is_mosaic, transfer_rows
from scmbert_jax.evaluation.alignment.matching_baselines import MATCHING_BASELINES
from scmbert_jax.evaluation.alignment.matching_fold import MatchingFold, matching_folds
from scmbert_jax.evaluation.alignment.result import AlignmentResult, AlignmentRow, MatchingReport, Vectors, score_rows
from scmbert_jax.evaluation.baselines import LINEAR_PATH_ALONE
from scmbert_jax.evaluation.data.model_vectors import embedded_models
from scmbert_jax.evaluation.seen_cells import identified_cells, what_models_saw
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.match import match_probabilities
from scmbert_jax.tasks.modality_cells import read_modalities

Array = np.ndarray
Say = Callable[[str], None]

DEFAULT_DATA = "example:pbmc_mosaic"


def score_matching(a: Array, b: Array, batches: Array) -> dict[str, float]:
    """All figures of n cells seen in two modalities, row i of both the same cell.

    FOSCTTM and recall over all of them; the probability of the true partner (mean of both directions) by transport and
    by cosine alone, within technical batches.
    """
    scores = {"FOSCTTM": metrics.foscttm(a, b, distance="cosine")}
    for k in (1, 10):
        scores[f"recall@{k}"] = metrics.recall_at_k(a, b, k, distance="cosine")
    for method, name in (("sinkhorn", "matching score"), ("cosine", "matching score, cosine")):
        scores[name] = (true_partner(a, b, batches, method) + true_partner(b, a, batches, method)) / 2
    return scores


def true_partner(a: Array, b: Array, batches: Array, method: str) -> float:
    """Mean probability that the matching gives to the true partner (the matching score of NeurIPS 2021)."""
    total = 0.0
    for block in match_probabilities(a, b, batches_a=batches, batches_b=batches, method=method):
        # Rows of a and b are the same cells: the partner stands where the columns name the row.
        total += float(block.probabilities[block.columns[None, :] == block.rows[:, None]].sum())
    return total / len(a)


def evaluate_matching(
    data: str = DEFAULT_DATA,
    *,
    models: Sequence[PretrainedModel] = (),
    train_batches: Sequence[str] = (),
    test_batches: Sequence[str] = (),
    held_out_types: Sequence[str] = (),
    num_seeds: int = 5,
    baselines: bool = True,
    labels_only: bool = False,
    space: str | None = None,
    organism: str | None = None,
    assembly: str | None = None,
    say: Say = lambda message: None,
) -> MatchingReport:
    """Scores baselines, and models where there are some.

    Args:
      models: trained models of one method, one per seed; a single one is embedded with `num_seeds` token draws.
      train_batches, test_batches: technical batches; without them each batch of pairs is held out in turn.
      held_out_types: cell types whose pairs are the test set instead; baselines do not see them.
      baselines: False: the models alone.
      labels_only: leave the matching out, for models that were trained on all pairs: labels go between cells that have
        no partner, so no pair tells of them.
      space: of the models' embeddings; None: the contrastive one where a model has it.

    Raises:
      InputError: data without pairs, or without technical batches to hold out; a model that was trained on pairs of
        the test batches.
      ConfigError: unknown batches or types, or batches on both sides.
    """
    if num_seeds < 1:
        raise ConfigError(f"num_seeds {num_seeds}: expected 1 or more.")
    if not models and not baselines:
        raise ConfigError("no baselines and no model: nothing to score. Name a model, or leave the baselines in.")
    dataset = open_dataset(data)
    cells = read_modalities(dataset, organism=organism, assembly=assembly)
    trained = embedded_models(models, dataset, num_seeds, space, organism=organism, assembly=assembly)
    information = trained["model"].information() if models else {}
    rows: list[AlignmentRow] = []
    pictures: dict[str, Vectors] = {}
    types, names_of = np.zeros(0, str), ("", "")
    folds = list(matching_folds(cells, train_batches, test_batches, held_out_types))
    seen = []
    if labels_only and (held_out_types or not is_mosaic(folds[0].first, folds[0].second)):
        raise ConfigError(
            f"labels alone: {dataset.path} has no technical batches of one modality only, so labels would go between "
            "cells whose pairs a model may have seen. Score the matching, too."
        )
    if not labels_only:
        identified = identified_cells(dataset, organism=organism, assembly=assembly) if models else None
        seen = _what_models_saw(models, identified, folds) if identified is not None else []
    for fold in folds if not labels_only else ():
        for baseline in MATCHING_BASELINES if baselines else ():
            if not baseline.possible(fold):
                continue
            say(f"{fold.direction}: {baseline.name}")
            whole = baseline.fitted(fold, None)
            seeds = [baseline.fitted(fold, seed) for seed in range(num_seeds)]
            rows += _rows(fold, baseline.name, baseline.uses, whole, seeds)
            if fold is folds[0]:
                pictures[baseline.name] = whole
        for method, embedded in trained.items():
            say(f"{fold.direction}: {method}")
            seeds = embedded.vectors(*fold.tested)
            rows += _rows(fold, method, embedded.uses(), None, seeds)
            if fold is folds[0]:
                pictures[method] = seeds[0]
        if fold is folds[0]:
            types, names_of = fold.tested[0].cell_types, (fold.first.modality, fold.second.modality)
    for fold in folds[:1] if not held_out_types else ():
        rows += transfer_rows(fold.first, fold.second, fold.train, fold.test, trained, num_seeds, baselines, say)
    result = AlignmentResult("matching", data, tuple(rows), (*_NOTES, *seen), information)
    return MatchingReport(result, pictures, types, names_of)


def _what_models_saw(models: Sequence[PretrainedModel], cells: CellSet, folds: Sequence[MatchingFold]) -> list[str]:
    """What each model's training had of the test cells, a sentence each; raises `InputError` where it had their pairs.

    Args:
      cells: all of the data set.
    """
    place = {cell: row for row, cell in enumerate(cells.cell_ids.tolist())}
    sentences: list[str] = []
    for fold in folds:
        rows = np.array([place[cell] for cell in fold.tested[0].cell_ids.tolist()], np.int64)
        named = [(f"model {number}, {fold.direction}", model.trained_cells) for number, model in enumerate(models)]
        sentences += what_models_saw(named, cells, rows, (fold.first.modality, fold.second.modality))
    return list(dict.fromkeys(sentences))


def _rows(
    fold: MatchingFold, method: str, uses: str, whole: Vectors | None, seeds: Sequence[Vectors]
) -> list[AlignmentRow]:
    batches = fold.tested[0].technical_batches
    scores = [score_matching(*vectors, batches) for vectors in seeds]
    best = None if whole is None else score_matching(*whole, batches)
    return score_rows(fold.direction, method, uses, best, scores, len(batches))


_NOTES = (
    "FOSCTTM: fraction of cells closer than the true partner, both directions, cosine (0 best, .5 chance). recall@k: "
    "the partner is among the k nearest of all test cells. Matching score: probability given to the true partner "
    "within its technical batch, by entropic transport (epsilon .05) and by the softmax of the cosine.",
    "Each figure is the fit to all training cells; in brackets mean ± half of the 95% Student-t interval over seeds: "
    "80% of the training cells each, other random numbers for chance and cell type; for models, trained seeds or token "
    "draws.",
    "`pseudo-pairs, seeing test cells` and `links only` read the test cells of both modalities as unpaired sets. That "
    "these sets hold the very same cells helps them; `pseudo-pairs` alone has never seen the test batch.",
    f"{LINEAR_PATH_ALONE}: the same models without their transformer, projections of component scores. The difference "
    "to it is what the transformer adds.",
)


def write_matching_report(path: Path, report: MatchingReport, run_info: Mapping[str, Any]) -> Path:
    """`report.html`: tables, joint UMAPs of both modalities for the best methods, per-type error."""
    from scmbert_jax.evaluation.alignment.figures import matching_figures
    from scmbert_jax.evaluation.report.report import write_report

    shown = [name for name in ("model", "pseudo-pairs", "CCA") if name in report.vectors][:2]
    umaps, figures = matching_figures(report, shown) if shown else ([], [])
    return write_report(
        path,
        title="Matching cells across modalities",
        run_info={"data": report.result.data, "information": dict(report.result.information), **run_info},
        tables=report.result.tables(),
        umaps=umaps,
        figures=figures,
        notes=report.result.notes,
    )
