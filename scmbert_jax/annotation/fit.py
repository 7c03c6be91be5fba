"""`fit`: labelled cells -> an `Annotator`.

All that is chosen or calibrated (the values of RNA of `pca`, the strength of the penalty, temperature, conformal
thresholds, the threshold of novelty) is, on cells whose labels the classifier has not seen: other donors where donors
are known. A linear head is fitted once without each fold, so that every cell is held out once, and then to all;
fine-tuning holds one fold out.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.batches.trained_cells import TrainedCells
from data_pipelines.checks.shared_counts import cells_of_dataset
from data_pipelines.readers.dataset import Dataset
from scmbert_jax.annotation.annotator import Annotator
from scmbert_jax.annotation.calibration import (
    ConformalSets,
    brier_score,
    check_coverage,
    expected_calibration_error,
    fewest_cells,
    fit_temperature,
    probabilities_of,
)
from scmbert_jax.annotation.folds import folds_of, learned_without_fold
from scmbert_jax.annotation.label_tree import LabelTree, read_hierarchy
from scmbert_jax.annotation.labels import read_donors, read_labels
from scmbert_jax.annotation.linear_head import Imbalance, LinearHead, choose_linear_head, marginal_nll
from scmbert_jax.annotation.novelty import Novelty, check_quantile, score_class
from scmbert_jax.annotation.pca import fit_pca, reference_space
from scmbert_jax.annotation.reference import Reference
from scmbert_jax.annotation.representation import (
    CellFacts,
    ModelRepresentation,
    OpenCells,
    PcaRepresentation,
    Reading,
    Representation,
    cell_facts,
)
from scmbert_jax.annotation.scbert_head import with_gene_head
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.model_cells import ModelCells
from scmbert_jax.version import VERSION

if TYPE_CHECKING:
    from scmbert_jax.annotation.fine_tuning import FineTuningOptions

Array = np.ndarray
Say = Callable[[str], None]

_MOST_COARSE = 10  # cells of a coarse label for each that is labelled as a type below it, without a word
_LEAST_EXPRESSED = 0.1  # of the middle one of the labelled cells' expressed features


@dataclass(frozen=True)
class FitOptions:
    """How an annotator is fitted. Raises `ConfigError` naming the field that cannot be.

    Attributes:
      method: "pca": principal components of the labelled cells, no model; "probe": the frozen model's embedding;
        "full", "last:N", "lora:R": fine-tuning (trained_part.py); "scbert": that of the published scBERT, with a head
        on the states of all genes (scbert_head.py).
      label_key: column of obs; None: what is recognised as cell types.
      labels: a table of cell id and label instead (.csv, .tsv).
      donor_key: column of obs, whose values are held out together; None: what is recognised as donors.
      hierarchy: a table of child and parent, or "cell-ontology"; None: labels are types side by side.
      min_cells: types of fewer cells are left out.
      imbalance: what is done about types of few cells.
      components: of `pca`, for each modality; None: 30, of ATAC 50.
      ranks: `pca` of RNA is of ranks within the cell, not of log counts.
      coverage: the fraction of the cells of a type whose sets are to hold it.
      novelty: a score of `SCORES`; novelty_quantile: the fraction of held-out cells that are not to be called novel.
      fine_tuning: how, where the method is one; None: its defaults. Its method and imbalance are those above.
      seed: of the folds.
    """

    method: str = "probe"
    label_key: str | None = None
    labels: Path | None = None
    donor_key: str | None = None
    hierarchy: str | Path | None = None
    min_cells: int = 5
    imbalance: Imbalance = field(default=Imbalance())
    components: int | None = None
    ranks: bool = False
    coverage: float = 0.9
    novelty: str = "combined"
    novelty_quantile: float = 0.98
    fine_tuning: "FineTuningOptions | None" = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_coverage(self.coverage)
        check_quantile(self.novelty_quantile)
        score_class(self.novelty)
        for name in ("min_cells", "components"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise ConfigError(f"{name} {given}: expected 1 or more.")
        kind, colon, number = self.method.partition(":")
        kinds = ("pca", "probe", "full", "last", "lora", "scbert")
        if kind not in kinds or bool(colon) != (kind in ("last", "lora")):
            raise ConfigError(f"method {self.method!r}: expected pca, probe, full, last:N, lora:R or scbert.")
        if colon and not (number.isdecimal() and int(number) > 0):
            raise ConfigError(f"method {self.method!r}: expected a number above 0 behind the colon, such as {kind}:2.")

        if self.ranks and self.method != "pca":
            raise ConfigError(f"ranks: of method pca alone, not of {self.method}; a model has its own value_encoding.")

    @property
    def is_linear(self) -> bool:
        return self.method in ("pca", "probe")


def fit(
    model: PretrainedModel | None,
    cells: Any,
    options: FitOptions | None = None,
    *,
    reading: Reading | None = None,
    work_folder: Path | None = None,
    steps_progress: Callable[[int, int], None] | None = None,
    say: Say | None = None,
) -> Annotator:
    """Fits an annotator to labelled cells.

    Args:
      model: None for `pca`, which may be given one: then it reads that model's features.
      cells: whatever `open_dataset` takes, with labels.
      options: see there.
      reading: how cells are opened and embedded.
      work_folder: of fine-tuning, so that it can be continued.
      steps_progress: of fine-tuning, called with (steps done, steps in all).
      say: told what people should know: labels and types that were left out, thresholds that are not a type's own.

    Raises:
      InputError: cells that cannot be used, no labels, fewer than two types with enough cells, a hierarchy that
        contradicts itself.
      ConfigError: options that cannot be, or a method that needs a model where there is none.
    """
    options, reading, say = options or FitOptions(), reading or Reading(), say or _say_nothing
    if model is None and options.method != "pca":
        raise ConfigError(f"method {options.method}: needs a model; pca needs none.")
    if model is not None and options.method == "scbert":
        model = with_gene_head(model, options.seed)
    # Asked before the cells are read.
    hierarchy = None if options.hierarchy is None else read_hierarchy(options.hierarchy)
    candidates, opened = _open(model, cells, options, reading)
    dataset = opened.dataset
    labels = read_labels(dataset, options.label_key, options.labels, say)
    donors = read_donors(dataset, options.donor_key)
    facts = cell_facts(opened)
    labels[facts.expressed == 0] = ""
    tree, membership = _types(labels, LabelTree.of(labels, hierarchy), options, dataset.path, say)
    rows = np.flatnonzero(membership.any(1))
    folds, held_by = folds_of(membership[rows], donors[rows], facts.copies[rows], options.seed)
    _say_of_copies(facts, rows, dataset, say)
    judged = learned_without_fold(membership[rows], folds, tree, say)

    history: list[dict[str, Any]] = []
    if options.is_linear:
        tried = []
        for candidate in candidates:
            vectors = candidate.vectors(opened, reading)[rows]
            chosen = choose_linear_head(vectors, membership[rows], folds, options.imbalance, judged=judged)
            loss = marginal_nll(chosen.held_out[judged], membership[rows][judged])
            tried.append((loss, candidate, vectors, chosen))
        _, representation, vectors, chosen = min(tried, key=lambda each: each[0])
        held, of_fold = np.flatnonzero(judged), folds
        head, c, held_out = chosen.head, chosen.c, chosen.held_out[held]
    else:
        from scmbert_jax.annotation.fine_tuning import fine_tune  # with optax, which linear heads need not

        assert model is not None
        assert isinstance(opened, ModelCells)
        fold = folds[judged].min()  # what is stopped and calibrated by
        held = np.flatnonzero((folds == fold) & judged)
        reference = Reference(opened, tree, membership, rows[folds != fold], rows[held], donors)
        tuning = tuning_options(options)
        tuned = fine_tune(model, reference, tuning, work_folder=work_folder, progress=steps_progress)
        note = f"fine-tuned for cell types by {options.method}, {tuned.step} steps"
        representation = ModelRepresentation(replace(model, params=tuned.params, info={**model.info, "note": note}))
        vectors = representation.vectors(opened, reading)[rows]
        head, c, history = tuned.head, None, tuned.history
        held_out, of_fold = head.logits(vectors[held]), np.where(folds == fold, 0, 1)
    temperature = fit_temperature(held_out, membership[rows][held])
    probabilities = probabilities_of(held_out, temperature)
    sets = ConformalSets.of(probabilities, membership[rows][held], options.coverage)
    _say_of_thresholds(sets, tree, membership[rows][held], options.coverage, say)
    novelty = _novelty(options, head, vectors, held_out, temperature, membership[rows], held, of_fold)
    info = {
        "options": _options(options),
        "data": dataset.path,
        "labels": str(options.labels or options.label_key or "cell types of obs"),
        "num_cells": len(rows),
        "cells_per_type": {name: int((labels[rows] == name).sum()) for name in tree.leaves},
        "labels_per_name": {name: int(n) for name, n in zip(*np.unique(labels[rows], return_counts=True), strict=True)},
        "num_donors": len(set(donors[rows].tolist()) - {""}),
        "c": c,
        "history": history,
        "held_out": _scores(probabilities, sets, membership[rows][held], tree, held_by),
        "organism": opened.report.organism,
        "model": None if model is None else {"step": int(model.info["step"]), **_identity(model)},
        "versions": {"scmbert_jax": VERSION},
    }
    return Annotator(
        method=options.method,
        representation=representation,
        tree=tree,
        head=head,
        temperature=temperature,
        sets=sets,
        novelty=novelty,
        measured=tuple(sorted(set(facts.measured[rows].tolist()))),
        labelled=_labelled(opened, rows),
        least_expressed=max(1, int(_LEAST_EXPRESSED * np.median(facts.expressed[rows]))),
        info=info,
    )


def _open(
    model: PretrainedModel | None, cells: Any, options: FitOptions, reading: Reading
) -> tuple[list[Representation], OpenCells]:
    """What is to be chosen from, and the cells."""
    if options.method != "pca":
        assert model is not None
        representation = ModelRepresentation(model)
        return [representation], representation.open(cells, reading)
    space, mapped = reference_space(
        cells, reading.organism, reading.assembly, None if model is None else model.feature_space
    )
    if options.ranks:
        tried = ["ranks"]
    else:
        # Which values tell types apart depends on depth and chemistry: up to .05 of macro-F1, one way or the other.
        tried = ["log1p", "roots"] if "rna" in mapped.overlaps else ["log1p"]
    return [PcaRepresentation(fit_pca(space, mapped, options.components, values)) for values in tried], mapped


def _types(labels: Array, tree: LabelTree, options: FitOptions, path: str, say: Say) -> tuple[LabelTree, Array]:
    """The tree of the types that have enough cells, and its membership of all cells."""
    unplaced = tree.unplaced(labels)
    if unplaced:
        listed = ", ".join(name + (f" (did you mean {near}?)" if near else "") for name, near in unplaced.items())
        say(f"{tree.hierarchy.name} has no {listed}: types of their own, below none")
    kept, few = labels.copy(), list[str]()
    while True:
        tree = LabelTree.of(kept, tree.hierarchy)
        number = {name: int((kept == name).sum()) for name in tree.leaves}
        rare = [name for name in tree.leaves if number[name] < options.min_cells]
        if not rare:
            break
        few += [f"{name} ({number[name]})" for name in rare]
        kept[np.isin(kept, rare)] = ""  # a type above them may be a leaf now
    if len(tree.leaves) < 2:
        raise InputError(
            f"{path}: {len(tree.leaves)} types have {options.min_cells} labelled cells or more with counts"
            + (f"; fewer have {', '.join(few)}" if few else "")
            + ". Two types are needed, each of several cells: some to learn from, others to calibrate by (--min-cells)."
        )
    if few:
        say(f"types of fewer than {options.min_cells} cells are left out: {', '.join(few)} (--min-cells)")
    membership = tree.membership(kept)
    for name in sorted(set(kept.tolist()) - {"", *tree.leaves}):
        below = [
            leaf for leaf, covered in zip(tree.leaves, tree.membership(np.array([name]))[0], strict=True) if covered
        ]
        cells, of_below = int((kept == name).sum()), sum(number[leaf] for leaf in below)
        if len(below) == 1 or cells > _MOST_COARSE * of_below:
            say(
                f"{cells:,} cells labelled {name} are taken to be {' or '.join(below)}, of which only {of_below:,} are "
                "labelled: where there are other kinds of them, leave out the finer labels or the hierarchy"
            )
    return tree, membership


def _novelty(
    options: FitOptions,
    head: LinearHead,
    vectors: Array,
    held_logits: Array,
    temperature: float,
    membership: Array,
    held: Array,
    fold: Array,
) -> Novelty:
    """The score fitted to all cells, its threshold to the scores of held-out cells by one fitted without their fold."""
    scaled = head.scale(np.asarray(vectors, np.float64))
    logits = head.logits(vectors) / temperature
    logits[held] = held_logits / temperature
    kind = score_class(options.novelty)
    scores = np.zeros(len(vectors))
    for number in np.unique(fold[held]):
        mine, others = held[fold[held] == number], np.flatnonzero(fold != number)
        scores[mine] = kind.fit(scaled[others], logits[others], membership[others])(scaled[mine], logits[mine])
    return Novelty.of(options.novelty, kind.fit(scaled, logits, membership), scores[held], options.novelty_quantile)


def _scores(probabilities: Array, sets: ConformalSets, membership: Array, tree: LabelTree, by: str) -> dict[str, Any]:
    """Of held-out cells. Temperature and thresholds were fitted to these: ECE and coverage of other cells are worse."""
    best = probabilities.argmax(1)
    right = membership[np.arange(len(best)), best]
    single = membership.sum(1) == 1
    truth, called = membership[single].argmax(1), best[single]
    recall, f1 = {}, []
    for leaf, name in enumerate(tree.leaves):
        hits, cells = int(((truth == leaf) & (called == leaf)).sum()), int((truth == leaf).sum())
        recall[name] = hits / cells if cells else 0.0
        if cells:
            f1.append(2 * hits / (cells + int((called == leaf).sum())))
    held = sets(probabilities)
    return {
        "by": f"by {by}",
        "cells": len(best),
        "accuracy": float(right.mean()),
        "macro_f1": float(np.mean(f1)) if f1 else 0.0,
        "expected_calibration_error": expected_calibration_error(probabilities.max(1), right),
        "brier": brier_score(probabilities[single], truth) if single.any() else 0.0,
        "set_coverage": float((held & membership).any(1).mean()),
        "mean_set_size": float(held.sum(1).mean()),
        "recall_per_type": recall,
    }


def _say_of_thresholds(sets: ConformalSets, tree: LabelTree, membership: Array, coverage: float, say: Say) -> None:
    if sets.pooled.any():
        number = membership[membership.sum(1) == 1].sum(0)
        few = ", ".join(f"{tree.leaves[leaf]} ({number[leaf]})" for leaf in np.flatnonzero(sets.pooled))
        say(
            f"sets at {coverage:.0%} need {fewest_cells(coverage)} held-out cells of a type; these have fewer, and the "
            f"threshold of all types together: {few}"
        )


def _say_of_copies(facts: CellFacts, rows: Array, dataset: Dataset, say: Say) -> None:
    number = len(rows) - len(np.unique(facts.copies[rows]))
    if number:
        say(
            f"{dataset.path}: {number:,} cells are copies of others (barcode and counts); without donors they are held "
            "out together"
        )


def _labelled(cells: OpenCells, rows: Array) -> TrainedCells:
    found = cells_of_dataset(cells.dataset.name, cells.dataset, cells.report)
    return TrainedCells(
        {name: keys[rows] for name, keys in found.keys.items()}, found.barcodes[rows], np.zeros(len(rows), bool)
    )


def _options(options: FitOptions) -> dict[str, Any]:
    plain = {name: getattr(options, name) for name in FitOptions.__dataclass_fields__}
    plain |= {name: None if plain[name] is None else str(plain[name]) for name in ("labels", "hierarchy")}
    plain["imbalance"] = vars(options.imbalance)
    plain["fine_tuning"] = None if options.is_linear else {**vars(tuning_options(options)), "imbalance": None}
    return plain


def tuning_options(options: FitOptions) -> "FineTuningOptions":
    """How the encoder is fine-tuned."""
    from scmbert_jax.annotation.fine_tuning import FineTuningOptions

    tuning = options.fine_tuning or FineTuningOptions()
    return replace(tuning, method=options.method, imbalance=options.imbalance)


def _identity(model: PretrainedModel) -> dict[str, Any]:
    known = model.info["provenance"]
    names = ("corpus_fingerprint", "feature_space_hash", "git_commit")
    return {name: known.get(name) for name in names}


def _say_nothing(text: str) -> None:
    pass
