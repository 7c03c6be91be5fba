"""The `pretraining` suite: what the masked values of cells that a model has not seen cost it, in bits per token.

Cells are cut to tokens and masked as in training, once. Model, linear path alone and baselines predict the same masked
tokens of the same cells.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.build.corpus_overlap import KnownCells, cells_known
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.baselines import LINEAR_PATH_ALONE
from scmbert_jax.evaluation.pretraining.masked_baselines import MaskedBaselines
from scmbert_jax.evaluation.pretraining.masked_cells import (
    all_bits,
    cells_of_file,
    fit_baselines,
    scored_cells,
    training_cells,
)
from scmbert_jax.evaluation.pretraining.masked_values import (
    MODEL,
    MODEL_FROM_CLS,
    MODEL_PROFILE,
    model_methods,
)
from scmbert_jax.evaluation.pretraining.pca_ridge import PCA
from scmbert_jax.evaluation.pretraining.result import PretrainingReport, run_drawings
from scmbert_jax.evaluation.report.report import write_report
from scmbert_jax.evaluation.seen_cells import cells_trained_on, identified_cells, what_models_saw
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.modality_cells import obs_labels
from scmbert_jax.tasks.model_cells import ModelCells, open_model_cells
from scmbert_jax.text_table import modality_name
from scmbert_jax.training.goodput import Goodput

Array = np.ndarray
Say = Callable[[str], None]

FEWEST_CELLS = 10
FEWEST_DONORS = 5  # of fewer, a bootstrap over donors says nothing


def evaluate_pretraining(
    model: PretrainedModel,
    data: Any,
    training: Any,
    *,
    num_cells: int = 1000,
    obs_fields: Mapping[str, str | None] | None = None,
    organism: str | None = None,
    assembly: str | None = None,
    seed: int = 0,
    say: Say = lambda message: None,
) -> PretrainingReport:
    """Scores `model` on cells of `data` that neither it nor the baselines were fitted on.

    Args:
      data: whatever `open_dataset` takes.
      training: what baselines are fitted on: the model's corpus, or whatever `open_dataset` takes.
      num_cells: cells that are scored at most, drawn by chance.
      obs_fields: standard field -> column of obs; of `donor`, which intervals resample where there are enough.
      seed: of the tokens and masks.

    Raises:
      ConfigError: the model was trained for nothing that says how likely a masked value is.
      InputError: the data cannot be used, or no cells are left that training has not seen.
    """
    if not model_methods(model.config):
        raise ConfigError(
            "the model was trained neither with masked_modeling nor with whole_profile of counts or of open regions "
            "(their weights are 0): it says nothing of values it does not see. Score it with evaluate probe."
        )
    dataset = open_dataset(data)
    donors = obs_labels(dataset, "donor", obs_fields)
    opened = open_model_cells(model, dataset, organism=organism, assembly=assembly)
    fitted, known = training_cells(model, training, organism, assembly)
    rows, notes = _unseen(model, opened, known, num_cells, organism, assembly)
    cells = cells_of_file(opened, rows)
    say(f"scoring the masked tokens of {len(rows):,} cells")
    scored = scored_cells(model, cells, seed)
    say("fitting baselines on training cells")
    baselines = fit_baselines(model.config, model.definition.layout, fitted, seed)
    beside = baselines.nll({name: tokens for name, (tokens, _) in scored.items()}, len(rows))
    groups, resampled = _groups(None if donors is None else donors[rows], len(rows))
    bits = all_bits(model.config, scored, beside, groups)
    notes = [*notes, *_coverage(opened), *method_notes(model, baselines, resampled)]
    return PretrainingReport(dataset.path, str(training), bits, resampled, tuple(notes))


def _unseen(
    model: PretrainedModel,
    opened: ModelCells,
    known: KnownCells,
    num_cells: int,
    organism: str | None,
    assembly: str | None,
) -> tuple[Array, list[str]]:
    """int64 ascending, the cells to score, and what to say of their choice."""
    dataset = opened.dataset
    identified = identified_cells(dataset, organism=organism, assembly=assembly)
    seen = cells_trained_on(model.trained_cells, identified)
    fitted = cells_known([identified], known)[0] & ~seen
    measured = np.zeros(len(seen), bool)
    for matrix in dataset.matrices:
        if matrix.modality in opened.overlaps:
            measured[dataset.rows_of(matrix)[opened.report.modalities[matrix.modality].keep]] = True
    left = np.flatnonzero(measured & ~seen & ~fitted)
    parts = [
        f"{int(seen.sum()):,} of its {len(seen):,} cells are left out because the model was trained on them",
        f"{int(fitted.sum()):,} because they are among the training cells of the baselines",
    ]
    if len(left) < FEWEST_CELLS:
        raise InputError(
            f"{dataset.path}: {'; '.join(parts)}; {len(left)} are left, at least {FEWEST_CELLS} are needed. Give cells "
            "that training has not seen: another file, or a corpus built without some of these (scmbert corpus build "
            "--exclude donor=..., or --disjoint-from FILE)"
        )
    rows = np.sort(np.random.default_rng(0).permutation(left)[:num_cells])
    notes = [f"{dataset.path}: {'; '.join(parts)}."] if seen.any() or fitted.any() else []
    return rows, [*notes, *what_models_saw([("model", model.trained_cells)], identified, rows)]


def _groups(donors: Array | None, num_cells: int) -> tuple[Array, str]:
    """What a bootstrap resamples: int64 [cells], and its name."""
    if donors is not None and len(np.unique(donors)) >= FEWEST_DONORS:
        return np.unique(donors, return_inverse=True)[1].astype(np.int64), "donors"
    return np.arange(num_cells), "cells"


def _coverage(opened: ModelCells) -> list[str]:
    return [
        f"{modality_name(name)}: {opened.overlaps[name].summary()}, {fraction:.0%} of those a training cell expresses."
        for name, fraction in opened.coverage.items()
    ]


def method_notes(model: Any, baselines: MaskedBaselines, resampled: str) -> list[str]:
    """How the figures were made and how to read them."""
    masked, methods = model.config.objectives.masked_modeling, model_methods(model.config)
    tokens = ", ".join(
        f"{modality.num_tokens} of {modality_name(name)} ({modality.zero_fraction:.0%} zeros)"
        for name, modality in model.config.modalities.in_use().items()
    )
    notes = [
        "Bits are -log2 of the probability that a method gave to what was measured, the mean over masked tokens: one "
        "bit less per token is twice the probability. They depend on what a token is, so bits of different modalities, "
        "likelihoods or token budgets do not compare.",
        "A level is known only after the fact: a method that bets on low values saves there and pays at high ones. "
        "Levels add up to the whole by their numbers of tokens.",
        f"Cells show at most {tokens} tokens, as in training; of them {masked.mask_fraction:.0%} are hidden and "
        "predicted, the same for all methods. All are told the cell's library size.",
    ]
    if MODEL in methods:
        notes.append(f"{MODEL}: each value from its token's state, which sees the rest of the cell.")
    if MODEL_FROM_CLS in methods:
        notes.append(f"{MODEL_FROM_CLS}: the same values from the cell embedding and the feature.")
    if LINEAR_PATH_ALONE in methods:
        notes.append(
            f"{LINEAR_PATH_ALONE}: as before, without the transformer. What reads the embedding was trained with it: "
            f"this says what the transformer adds, not the best that components can do, which is '{PCA}'."
        )
    if MODEL_PROFILE in methods:
        notes.append(
            f"{MODEL_PROFILE}: the decoder of whole_profile, from the cell embedding of the visible tokens. It speaks "
            "of cells, where zeros are more frequent than among tokens; that is allowed for by the fractions of the "
            "cell's zeros and expressed features that became tokens, as in the baselines (but of bins)."
        )
    silent = set(model.config.modalities.in_use()) - {name for names in methods.values() for name in names}
    notes += [
        f"{modality_name(name)} is not scored: the model predicts it by a density, of which a value has no bits."
        for name in sorted(silent)
    ]
    notes += baselines.notes()
    notes.append(f"Intervals: 95%, over {resampled} drawn anew; of one model, trained once.")
    return notes


def write_pretraining_report(
    path: Path,
    report: PretrainingReport,
    run_info: dict[str, Any],
    loss_rows: list[dict[str, Any]],
    goodput: Goodput | None = None,
) -> Path:
    """`report.html` of the suite: tables, figures by level, the run's own validation and loss, provenance."""
    return write_report(
        path,
        title="Masked values of held-out cells",
        run_info={"data": report.data, "training": report.training, **run_info},
        loss_rows=loss_rows,
        goodput=goodput,
        tables=report.tables(),
        figures=[*report.drawings(), *run_drawings(loss_rows)],
        notes=report.notes,
        summary=report.sentences(),
    )
