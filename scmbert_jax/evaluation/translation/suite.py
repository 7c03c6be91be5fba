"""The `translation` suite: one modality of held-out cells predicted from another, by every method on the same cells.

A method is fitted once on all training cells (the headline figure) and once per seed on a random 80% of them (the
interval), so that deterministic methods have an interval too. Models trained elsewhere are their own seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluation.baselines import LINEAR_PATH_ALONE
from scmbert_jax.evaluation.data.measured_cells import (
    MeasuredCells,
    batches_named,
    read_measured_cells,
    require_cells,
    types_named,
)
from scmbert_jax.evaluation.intervals import student_t_interval
from scmbert_jax.evaluation.report.report import write_report
from scmbert_jax.evaluation.seen_cells import what_models_saw
from scmbert_jax.evaluation.translation.babel_baseline import BabelBaseline
from scmbert_jax.evaluation.translation.baselines import BASELINES, FittedBaseline
from scmbert_jax.evaluation.translation.figures import Picture, chosen_features, require_features
from scmbert_jax.evaluation.translation.fold import TranslationFold, TranslationMethod, make_fold
from scmbert_jax.evaluation.translation.metrics import mean_pearson_in_blocks, root_mean_squared_error, score_peaks
from scmbert_jax.evaluation.translation.model import (
    TrainedModels,
    scmbert_translator,
    uses_in_words,
)
from scmbert_jax.evaluation.translation.result import CellTypeError, TranslationReport, TranslationRow

Array = np.ndarray
Say = Callable[[str], None]

DEFAULT_DATA = "example:pbmc_mosaic"
_MOST_BATCHES_IN_TURN = 4

ALL_BASELINES: list[TranslationMethod] = [*BASELINES, BabelBaseline()]


@dataclass(frozen=True)
class TranslationSettings:
    """How methods are fitted and scored.

    Attributes:
      num_seeds: fits on subsamples of the training cells.
      train_fraction: fraction of the training cells of each type that a subsample has.
      min_cells: a peak is scored when so many test cells have it open, and as many closed.
    """

    num_seeds: int = 5
    train_fraction: float = 0.8
    min_cells: int = 20


@dataclass(frozen=True)
class Split:
    """Cells to train on and cells to test on; bool [cells] each, not yet restricted to pairs of a direction.

    `by_batch`: whether whole technical batches are held out (else cell types).
    """

    name: str
    train: Array
    test: Array
    by_batch: bool


def make_splits(
    cells: MeasuredCells,
    train_batches: Sequence[str] = (),
    test_batches: Sequence[str] = (),
    held_out_types: Sequence[str] = (),
) -> list[Split]:
    """The split that the options name; without options each technical batch with pairs is held out in turn.

    Raises `ConfigError` for names that do not exist, both kinds of split at once, or too many batches to take in turn.
    """
    if held_out_types:
        if train_batches or test_batches:
            raise ConfigError("--held-out-types: a split by cell type; leave --train-batches and --test-batches out.")
        test = types_named(cells, held_out_types, "--held-out-types")
        return [Split(f"{', '.join(held_out_types)} held out", ~test & (cells.cell_types != ""), test, False)]
    if test_batches:
        test = batches_named(cells, test_batches, "--test-batches")
        train = batches_named(cells, train_batches, "--train-batches") if train_batches else ~test
        if (train & test).any():
            raise ConfigError("--train-batches and --test-batches: they name a batch in common.")
        trained = f" (trained on {', '.join(train_batches)})" if train_batches else ""
        return [Split(f"{', '.join(test_batches)} held out{trained}", train, test, True)]
    if train_batches:
        raise ConfigError("--train-batches: name the --test-batches too.")
    paired = np.any([cells.paired(*names) for names in cells.directions()] or [cells.technical_batches == ""], axis=0)
    names = sorted(set(cells.technical_batches[paired].tolist()) - {""})
    if not 2 <= len(names) <= _MOST_BATCHES_IN_TURN:
        raise ConfigError(
            f"{cells.path}: {len(names)} technical batches with pairs ({', '.join(names) or 'none'}); name those to "
            "hold out with --test-batches, or cell types with --held-out-types."
        )
    return [
        Split(f"{name} held out", cells.technical_batches != name, cells.technical_batches == name, True)
        for name in names
    ]


def run_translation(
    cells: MeasuredCells,
    splits: Sequence[Split],
    methods: Sequence[TranslationMethod] = ALL_BASELINES,
    *,
    directions: Sequence[tuple[str, str]] | None = None,
    settings: TranslationSettings = TranslationSettings(),
    features: Sequence[str] = (),
    say: Say = lambda message: None,
) -> TranslationReport:
    """Scores every method in every direction of every split.

    Raises `InputError` when a direction has too few cells, `ConfigError` when there is no direction.
    """
    directions = list(directions or cells.directions())
    if not directions:
        raise ConfigError(f"{cells.path}: no cell was measured in two modalities; a translation needs pairs to score.")
    rows: list[TranslationRow] = []
    errors: list[CellTypeError] = []
    pictures: list[Picture] = []
    left_out: list[str] = []
    require_features(features, [columns.names for columns in cells.features.values()])
    for split in splits:
        for source, target in directions:
            both = cells.paired(source, target)
            train, test = both & split.train, both & split.test
            require_cells(train, f"training cells with {source} and {target}", cells)
            require_cells(test, f"test cells with {source} and {target}", cells)
            fold, truth = make_fold(cells, source, target, train, test)
            say(f"{source} -> {target}, {split.name}: {fold.num_train:,} training cells, {fold.num_test:,} test cells")
            shown = chosen_features(fold, features)
            heading, names = f"{source} -> {target}, {split.name}", fold.target_features.names[shown].tolist()
            picture = Picture(heading, fold.scale.name, tuple(names), truth[:, shown], fold.oracle_test_types)
            for method in methods:
                lacking = method.lacks(fold) if isinstance(method, FittedBaseline) else ""
                if lacking:
                    left_out.append(f"{heading}: no row of {method.name}, because {lacking}.")
                    continue
                say(f"  {method.name}")
                first = method.predict(fold, 0)
                rows += _score_method(fold, truth, method, first, settings, split.name)
                errors += _errors_by_type(fold, truth, method, first, split.name)
                picture.add(method, shown, truth, first)
            pictures.append(picture)
    notes = (*_protocol(cells, settings), *left_out)
    return TranslationReport(cells.path, tuple(rows), tuple(errors), notes, pictures=tuple(pictures))


def _score_method(
    fold: TranslationFold,
    truth: Array,
    method: TranslationMethod,
    first: Array,
    settings: TranslationSettings,
    split: str,
) -> list[TranslationRow]:
    """A row per metric; `first` is the prediction of the fit on all training cells, or of the first model."""
    headline = scores(fold, truth, first, settings.min_cells)
    if method.num_trained:
        others = [method.predict(fold, seed) for seed in range(1, method.num_trained)]
        seeds = [headline, *(scores(fold, truth, predicted, settings.min_cells) for predicted in others)]
        headline = {name: float(np.mean([found[name] for found in seeds])) for name in headline}
    else:
        seeds = []
        for seed in range(1, settings.num_seeds + 1):
            predicted = method.predict(fold.subsample(settings.train_fraction, seed), seed)
            seeds.append(scores(fold, truth, predicted, settings.min_cells))
    rows = []
    for name, value in headline.items():
        over = student_t_interval(np.array([found[name] for found in seeds]))
        figures = (value, over.mean, over.half_width, over.number, fold.num_test)
        direction = f"{fold.source} -> {fold.target}"
        rows.append(TranslationRow(split, direction, method.name, method.uses, name, *figures))
    return rows


def _errors_by_type(
    fold: TranslationFold, truth: Array, method: TranslationMethod, predicted: Array, split: str
) -> list[CellTypeError]:
    types = fold.oracle_test_types
    found = []
    for name in np.unique(types[types != ""]):
        mine = types == name
        error = root_mean_squared_error(truth[mine], predicted[mine])
        direction = f"{fold.source} -> {fold.target}"
        found.append(CellTypeError(split, direction, method.name, str(name), error, int(mine.sum())))
    return found


def scores(fold: TranslationFold, truth: Array, predicted: Array, min_cells: int) -> dict[str, float]:
    """metric -> figure, for those that the target's scale has.

    Raises ValueError for predictions of another shape, or that are not finite.
    """
    if predicted.shape != truth.shape or not np.isfinite(predicted).all():
        raise ValueError(f"predictions {predicted.shape} of {truth.shape} values, all finite: they are not")
    found = {
        "rmse": root_mean_squared_error(truth, predicted),
        "pearson_per_cell": mean_pearson_in_blocks(truth, predicted, per="cell"),
        "pearson_per_feature": mean_pearson_in_blocks(truth, predicted, per="feature"),
    }
    if fold.target == "atac":
        peaks = score_peaks(truth, predicted, fold.trap_test_depth, min_cells)
        if peaks is not None:
            found |= {"auroc_per_peak": peaks.auroc, "auprc_per_peak": peaks.auprc}
            found["auroc_per_peak_told_depth"] = peaks.auroc_told_depth
            if np.isfinite(peaks.auroc_same_depth):
                found["auroc_per_peak_same_depth"] = peaks.auroc_same_depth
    return found


def _protocol(cells: MeasuredCells, settings: TranslationSettings) -> list[str]:
    notes = [
        "The first figure is of the fit on all training cells; in brackets the mean ± 95% interval over "
        f"{settings.num_seeds} fits on a random {settings.train_fraction:.0%} of them (models trained elsewhere: over "
        "the models).",
    ]
    if "rna" in cells.scales:
        notes.append(
            f"RNA is log1p of counts scaled to {cells.scales['rna'].target_sum:g} per cell, the data's median."
        )
    if "protein" in cells.scales:
        notes.append("Protein is CLR per cell: log1p(count / g), g = exp(mean of log1p(count) over the antibodies).")
    if "atac" in cells.scales:
        notes.append(
            f"Peaks are scored when {settings.min_cells} test cells have them open, and as many closed. 'Same depth' "
            "compares cells of like depth only: a method that knows or guesses nothing but depth gets .5 there. 'Told "
            "depth' tells every method how many peaks of the test cell are open, which no user knows: compare it with "
            "the depth alone."
        )
    for name, columns in cells.features.items():
        unknown = int((columns.ids == "").sum())
        if unknown:
            notes.append(
                f"{unknown} of the {len(columns):,} {name} features have no known id: scored all the same, a model's "
                "prediction for them is the training mean."
            )
    return notes


def write_translation_report(path: Path, report: TranslationReport, run_info: dict[str, Any]) -> Path:
    """`report.html` of the suite: tables, predicted against measured, errors by cell type, provenance."""
    tables: list[tuple[str, Any]] = list(report.tables())
    if report.type_errors:
        tables.append(("RMSE by cell type", report.type_table()))
    return write_report(
        path,
        title="Translation between modalities on held-out cells",
        run_info={"data": report.data, **report.settings, **run_info},
        tables=tables,
        figures=[drawing for picture in report.pictures for drawing in picture.drawings()],
        notes=report.notes,
    )


@dataclass(frozen=True)
class TranslationChoice:
    """What is scored; by default everything that the data allows.

    Attributes:
      train_batches, test_batches, held_out_types: as in `make_splits`.
      directions: such as "rna>protein".
      skip: names of baselines to leave out.
      baselines: False: leave all of them out.
      features: names of the features whose predictions the report draws; those that vary most by default.
    """

    train_batches: Sequence[str] = ()
    test_batches: Sequence[str] = ()
    held_out_types: Sequence[str] = ()
    directions: Sequence[str] = ()
    skip: Sequence[str] = ()
    baselines: bool = True
    features: Sequence[str] = ()


def evaluate_translation(
    models: Sequence[Any] = (),
    data: str = DEFAULT_DATA,
    choice: TranslationChoice = TranslationChoice(),
    *,
    name: str = "scMBERT",
    settings: TranslationSettings = TranslationSettings(),
    organism: str | None = None,
    assembly: str | None = None,
    say: Say = lambda message: None,
) -> TranslationReport:
    """The suite on a file: baselines, and `models` (`PretrainedModel`s: seeds of one method) where given.

    `name` is that of the models' row.

    Raises:
      ConfigError: an option names what does not exist.
      InputError: the data cannot be used, or a model was trained on pairs of the held-out cells.
    """
    cells = read_measured_cells(data, organism=organism, assembly=assembly)
    splits = make_splits(cells, choice.train_batches, choice.test_batches, choice.held_out_types)
    directions = _directions(cells, choice.directions)
    if not models and not choice.baselines:
        raise ConfigError("no baselines and no model: nothing to score. Name a model, or leave the baselines in.")
    methods = _without(ALL_BASELINES, choice.skip) if choice.baselines else []
    of_models, notes = _rows_of_models(models, name) if models else ([], [])
    if models:
        notes = [*_what_models_saw(name, models, cells, splits, directions), *notes]
    report = run_translation(
        cells,
        splits,
        [*methods, *of_models],
        directions=directions,
        settings=settings,
        features=choice.features,
        say=say,
    )
    notes += [
        f"{name} does not know {unknown:,} of the {number:,} {target} features: they get the training mean."
        for trained in of_models[:1]
        for target, (unknown, number) in trained.unknown.items()
        if unknown
    ]
    return replace(report, notes=(*report.notes, *notes), settings=asdict(settings))


def _rows_of_models(models: Sequence[Any], name: str) -> tuple[list[TrainedModels], list[str]]:
    """The models as a method, where they have a linear path that as another, and what is to be said of that."""
    told = [(model.info.get("provenance") or {}).get("information") for model in models]
    uses = " / ".join(dict.fromkeys(uses_in_words(information) for information in told))
    alone = [model.linear_path_alone() for model in models]
    if None in alone:
        return [_trained(models, name, uses)], []
    note = (
        f"{name}, {LINEAR_PATH_ALONE}: the same models without encoder and decoder, from component scores to "
        "component scores by maps and nearest pairs. The difference to it is what the transformer adds."
    )
    return [_trained(models, name, uses), _trained(alone, f"{name}, {LINEAR_PATH_ALONE}", uses)], [note]


def _trained(models: Sequence[Any], name: str, uses: str) -> TrainedModels:
    return TrainedModels(tuple(scmbert_translator(model, seed) for seed, model in enumerate(models)), name, uses)


def _directions(cells: MeasuredCells, wanted: Sequence[str]) -> list[tuple[str, str]]:
    existing = {f"{source}>{target}": (source, target) for source, target in cells.directions()}
    unknown = [text for text in wanted if text not in existing]
    if unknown:
        raise ConfigError(f"--directions {', '.join(unknown)}: {cells.path} has {', '.join(existing) or 'no pairs'}.")
    return [existing[text] for text in wanted or existing]


def _without(methods: Sequence[TranslationMethod], skip: Sequence[str]) -> list[TranslationMethod]:
    names = [method.name for method in methods]
    unknown = [text for text in skip if text not in names]
    if unknown:
        raise ConfigError(f"--skip {', '.join(unknown)}: no such baseline; there are {', '.join(names)}.")
    return [method for method in methods if method.name not in skip]


def _what_models_saw(
    name: str,
    models: Sequence[Any],
    cells: MeasuredCells,
    splits: Sequence[Split],
    directions: Sequence[tuple[str, str]],
) -> list[str]:
    """One sentence per split and finding. Raises `InputError` where a model trained on the pairs it is scored on."""
    assert cells.identity is not None  # of a data set that was read
    sentences = []
    for split in splits:
        named = [(f"{name}, {split.name}", model.trained_cells) for model in models]
        for pair in directions:
            sentences += what_models_saw(named, cells.identity, np.flatnonzero(split.test & cells.paired(*pair)), pair)
    return list(dict.fromkeys(sentences))
