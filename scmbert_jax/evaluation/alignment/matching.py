"""The `matching` suite: does a model know which profiles of two modalities are one cell, and of which type they are?

For each pair of modalities and each held-out technical batch of measured pairs, the cells of that batch are embedded
from each modality alone and compared by cosine: FOSCTTM, recall@k, the probability of the true partner. Baselines are
fitted to 80% of their training cells for each of five seeds, and once to all of them. Cell types are carried over from
one modality's cells to the other's (`transfer_scores`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.checks.shared_counts import CellSet
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation import metrics
from scmbert_jax.evaluation.alignment.baselines import (
    cca_space,
    links_vectors,
    random_vectors,
    ridge_space,
    type_vectors,
)
from scmbert_jax.evaluation.alignment.label_transfer import is_mosaic, transfer_rows
from scmbert_jax.evaluation.alignment.result import AlignmentResult, AlignmentRow, MatchingReport, Vectors, score_rows
from scmbert_jax.evaluation.baselines import LINEAR_PATH_ALONE
from scmbert_jax.evaluation.data.model_vectors import embedded_models
from scmbert_jax.evaluation.seen_cells import identified_cells, what_models_saw
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.match import match_probabilities
from scmbert_jax.tasks.modality_cells import ModalityCells, batch_rows, read_modalities, shared_cells
from scmbert_jax.tasks.pseudo_pairs import match_unpaired

Array = np.ndarray
Say = Callable[[str], None]

DEFAULT_DATA = "example:pbmc_mosaic"
TRAIN_FRACTION = 0.8
MOST_FOLDS = 4
FEWEST_PAIRS = 30


@dataclass(frozen=True)
class MatchingFold:
    """One held-out part of the pairs of two modalities.

    Attributes:
      direction: for the table. first, second: all cells of each modality.
      train, test: pairs (rows of first, rows of second), int64 [p], [p].
      unpaired: rows of first and of second outside the test batches, which a method without pairs may read.
    """

    direction: str
    first: ModalityCells
    second: ModalityCells
    train: Vectors
    test: Vectors
    unpaired: Vectors

    def side(self, number: int, rows: Array) -> ModalityCells:
        return (self.first, self.second)[number].take(rows)

    @property
    def tested(self) -> tuple[ModalityCells, ModalityCells]:
        return self.side(0, self.test[0]), self.side(1, self.test[1])


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
        for method, uses, vectors in _methods(fold) if baselines else ():
            say(f"{fold.direction}: {method}")
            whole = vectors(None)
            seeds = [vectors(seed) for seed in range(num_seeds)]
            rows += _rows(fold, method, uses, whole, seeds)
            if fold is folds[0]:
                pictures[method] = whole
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


def matching_folds(
    cells: Mapping[str, ModalityCells],
    train_batches: Sequence[str] = (),
    test_batches: Sequence[str] = (),
    held_out_types: Sequence[str] = (),
) -> Iterator[MatchingFold]:
    """Folds of every two modalities that some cells have both of."""
    names, found = list(cells), 0
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            first, second = cells[name], cells[other]
            left, right = shared_cells(first, second)
            if len(left) < 2 * FEWEST_PAIRS:
                continue
            for title, train, test in _splits(first.take(left), train_batches, test_batches, held_out_types):
                for part, what in ((train, "training"), (test, "test")):
                    if part.sum() < FEWEST_PAIRS:
                        raise InputError(
                            f"{first.path}: {int(part.sum())} {what} cells have {name} and {other}; at least "
                            f"{FEWEST_PAIRS} are needed. Choose other batches or types."
                        )
                found += 1
                if held_out_types:
                    free = [np.flatnonzero(~np.isin(side.cell_types, held_out_types)) for side in (first, second)]
                else:
                    tested = np.unique(first.technical_batches[left[test]])
                    free = [np.flatnonzero(~np.isin(side.technical_batches, tested)) for side in (first, second)]
                yield MatchingFold(
                    f"{name}-{other}: {title}",
                    first,
                    second,
                    (left[train], right[train]),
                    (left[test], right[test]),
                    (free[0], free[1]),
                )
    if not found:
        path = next(iter(cells.values())).path if cells else "the data"
        raise InputError(
            f"{path}: no two modalities share {2 * FEWEST_PAIRS} cells ({', '.join(cells) or 'nothing was measured'}); "
            "a matching can only be scored where true pairs are known."
        )


def _splits(
    pairs: ModalityCells, train_batches: Sequence[str], test_batches: Sequence[str], held_out_types: Sequence[str]
) -> Iterator[tuple[str, Array, Array]]:
    """(title, training pairs bool [p], test pairs bool [p])."""
    if held_out_types:
        known = np.unique(pairs.cell_types)
        missing = sorted(set(held_out_types) - set(known.tolist()))
        if missing:
            raise ConfigError(f"cell type {', '.join(missing)}: {pairs.path} has {', '.join(known)}.")
        test = np.isin(pairs.cell_types, held_out_types)
        yield f"types {', '.join(held_out_types)} held out", ~test & (pairs.cell_types != ""), test
        return
    if test_batches:
        test = batch_rows(pairs, test_batches)
        train = batch_rows(pairs, train_batches) if train_batches else ~test
        if (train & test).any():
            raise ConfigError(
                f"train batches {', '.join(train_batches)} and test batches {', '.join(test_batches)} have cells in "
                "common; a batch is one or the other."
            )
        yield f"{', '.join(train_batches) or 'the others'} -> {', '.join(test_batches)}", train, test
        return
    if train_batches:
        raise ConfigError("--train-batches without --test-batches: name the batches to be scored, too.")
    batches = np.unique(pairs.technical_batches)
    if len(batches) < 2:
        raise InputError(
            f"{pairs.path}: the paired cells are of {len(batches)} technical batch; at least 2 are needed to hold one "
            "out. Name the column technical_batch, or hold out cell types."
        )
    if len(batches) > MOST_FOLDS:
        raise ConfigError(
            f"{pairs.path}: {len(batches)} technical batches of pairs ({', '.join(batches)}); name those to hold out "
            "with --test-batches."
        )
    for batch in batches:
        test = pairs.technical_batches == batch
        others = ", ".join(name for name in batches if name != batch)
        yield f"{others} -> {batch}", ~test, test


def _methods(fold: MatchingFold) -> Iterator[tuple[str, str, Callable[[int | None], Vectors]]]:
    """(name, what it is told, seed -> vectors of the test cells); seed None: fitted to all it may read."""

    def some(rows: Array, seed: int | None, salt: int) -> Array:
        if seed is None:
            return rows
        rng = np.random.default_rng([seed, salt])
        return np.sort(rng.choice(rows, max(2, round(TRAIN_FRACTION * len(rows))), replace=False))

    def paired(build: Callable) -> Callable[[int | None], Vectors]:
        def vectors(seed: int | None) -> Vectors:
            chosen = some(np.arange(len(fold.train[0])), seed, 0)
            space = build(fold.side(0, fold.train[0][chosen]), fold.side(1, fold.train[1][chosen]))
            return space.embed_first(fold.tested[0]), space.embed_second(fold.tested[1])

        return vectors

    def links(seed: int | None) -> Vectors:
        number = np.arange(len(fold.test[0]))
        return links_vectors(*fold.tested, some(number, seed, 1), some(number, seed, 2))

    def pseudo(with_test: bool) -> Callable[[int | None], Vectors]:
        def vectors(seed: int | None) -> Vectors:
            # Each modality draws its own cells: nothing tells which of them are the same.
            rows = [some(fold.unpaired[side], seed, 3 + side) for side in (0, 1)]
            if with_test:
                rows = [np.sort(np.concatenate([rows[side], fold.test[side]])) for side in (0, 1)]
            space = match_unpaired(fold.side(0, rows[0]), fold.side(1, rows[1])).space
            assert space is not None
            return space.embed_first(fold.tested[0]), space.embed_second(fold.tested[1])

        return vectors

    number = len(fold.test[0])
    types = fold.tested[0].cell_types
    yield "CCA", "pairs", paired(cca_space)
    yield "SVD + ridge", "pairs", paired(ridge_space)
    yield "pseudo-pairs", "links, no pairs", pseudo(False)
    yield "pseudo-pairs, seeing test cells", "links, test cells unpaired", pseudo(True)
    yield "links only", "links, test cells unpaired", links

    def twice(make: Callable[[Any, int], Array], what: Any) -> Callable[[int | None], Vectors]:
        # Two draws: the modalities must not share their noise.
        return lambda seed: (make(what, 2 * (seed or 0)), make(what, 2 * (seed or 0) + 1))

    if (types != "").all():
        yield "cell type only", "the test cells' types", twice(type_vectors, types)
    yield "random", "nothing", twice(random_vectors, number)


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
