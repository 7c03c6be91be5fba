"""The `probe` suite: how much of the cell type do simple classifiers read from an embedding, in a batch never seen?

For each held-out technical batch and each seed:
  1. subsample the training cells (80% of each class), the same cells for every method;
  2. fit a probe on the seed's embedding of those cells, its setting chosen inside the training batches;
  3. predict all labelled cells of the held-out batch.

The embedding itself is made without labels. Figures are averaged over held-out batches, each counting equally.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from scmbert_jax.errors import InputError
from scmbert_jax.evaluation import metrics
from scmbert_jax.evaluation.baselines import LINEAR_PATH_ALONE, majority_class
from scmbert_jax.evaluation.data.splits import Fold, inner_parts, leave_one_batch_out, subsample_training_cells
from scmbert_jax.evaluation.intervals import bootstrap_weights, percentile_interval, student_t_interval
from scmbert_jax.evaluation.probe.result import (
    BY_BATCH,
    MEAN_OVER_BATCHES,
    DifferenceRow,
    FitCounts,
    FoldSummary,
    ProbeResult,
    ProbeRow,
    ProbeSettings,
)
from scmbert_jax.tasks.label_transfer import OneScale

Array = np.ndarray

COMPARISONS = (("trained", "untrained"), ("trained", "pca"), ("trained", LINEAR_PATH_ALONE))
METRICS = ("accuracy", "macro_f1")
FEWEST_CELLS = 5  # of a class, for it to be one of the two that a probe needs


class Prediction(NamedTuple):
    """codes int64 [n_test]; the C chosen (None for probes without); the fits it took."""

    codes: Array
    chosen_c: float | None = None
    fits: FitCounts = FitCounts()


def linear_probe(
    train: Array, codes: Array, batches: Array, test: Array, settings: ProbeSettings, rng: np.random.Generator
) -> Prediction:
    """Multinomial logistic regression (L2); every embedding, a PCA too, is scaled by one number (`OneScale`).

    Mean and scale come from the training cells. C is the value of the grid with the best accuracy averaged over
    held-out *training* batches (`inner_parts`); the smaller C on a tie. Then one fit on all training cells.

    Args:
      train: float [n_train, d]; codes: int [n_train]; batches: str [n_train]; test: float [n_test, d].
    """
    parts = inner_parts(batches, codes, rng)
    scores, fits = np.zeros(len(settings.c_grid)), FitCounts()
    for part in np.unique(parts):
        fitted, left_out = parts != part, parts == part
        if np.unique(codes[fitted]).size < 2:
            continue  # every C would predict that one class, so this part has no say
        scaled = OneScale.of(train[fitted])
        model = _logistic_regression(settings)
        for i, c in enumerate(settings.c_grid):  # ascending, each fit starting from the last
            converged = _fit(model.set_params(C=c), scaled(train[fitted]), codes[fitted])
            fits += FitCounts(1, int(not converged), 0)
            scores[i] += np.mean(model.predict(scaled(train[left_out])) == codes[left_out])
    chosen = float(settings.c_grid[int(scores.argmax())])
    scaled = OneScale.of(train)
    model = _logistic_regression(settings).set_params(C=chosen)
    converged = _fit(model, scaled(train), codes)
    return Prediction(model.predict(scaled(test)), chosen, fits + FitCounts(1, 0, int(not converged)))


def knn_probe(
    train: Array, codes: Array, batches: Array, test: Array, settings: ProbeSettings, rng: np.random.Generator
) -> Prediction:
    """Majority vote of the k nearest training cells by cosine similarity about the training mean; k is fixed.

    The mean is taken off because a transformer's embeddings share one large direction that says nothing of the cell.
    """
    mean = train.mean(0)
    model = KNeighborsClassifier(settings.knn_neighbours, metric="cosine", algorithm="brute")
    return Prediction(model.fit(train - mean, codes).predict(test - mean))


Probe = Callable[[Array, Array, Array, Array, ProbeSettings, np.random.Generator], Prediction]
PROBES: dict[str, Probe] = {"linear": linear_probe, "knn": knn_probe}


def run_probe(
    embeddings: Mapping[str, Sequence[Array]],
    labels: Sequence[str] | Array,
    technical_batch: Sequence[str] | Array,
    *,
    modality: str,
    held_out: Sequence[str] | None = None,
    split: str = BY_BATCH,
    settings: ProbeSettings | None = None,
    probes: Mapping[str, Probe] = PROBES,
    progress: Callable[[int, int], None] | None = None,
) -> ProbeResult:
    """Scores embeddings of the cells of one modality, and the majority class beside them.

    Args:
      embeddings: method name ("trained", "untrained", "pca", ...) -> one float array [n, d] per seed, or a single array
        that serves every seed. Untrained: another initialisation per seed; trained: another token sampling.
      labels: str [n]; "" or nan where unknown. Such cells are left out and counted in the result.
      technical_batch: str [n].
      modality: name for the table.
      held_out: batches to hold out, by default each in turn.
      split: what `technical_batch` holds, `BY_BATCH` or `AT_RANDOM`; for the table.
      probes: name -> probe, by default linear and kNN.
      progress: called with (fits done, fits in all).

    Raises:
      InputError: an embedding that is not finite, or of another number of cells or seeds; one batch; one class.
    """
    settings = settings or ProbeSettings()
    batches = np.asarray(technical_batch).astype(str)
    per_seed = {m: _check_embeddings(m, arrays, batches.size, settings) for m, arrays in embeddings.items()}
    if "majority" in per_seed:
        raise ValueError("the majority class needs no embedding; it is added by itself")
    labelled, names = _labelled(labels)
    folds = make_folds(labels, batches, held_out, settings, probes)
    names, batches = names[labelled], batches[labelled]
    classes, codes = np.unique(names, return_inverse=True)

    methods = [*per_seed, "majority"]
    predicted = {(m, p): np.full((settings.num_seeds, codes.size), -1) for m in methods for p in probes}
    chosen_c: dict[str, list[float]] = {m: [] for m in per_seed}
    fits, done, total = FitCounts(), 0, len(folds) * settings.num_seeds * len(per_seed) * len(probes)
    # Small matrices: threads cost more than they give, and one thread makes the sums repeatable.
    with threadpool_limits(1):
        for number, fold in enumerate(folds):
            for seed in range(settings.num_seeds):
                rng = np.random.default_rng([settings.seed, seed, number])
                train = subsample_training_cells(fold, names, settings.train_fraction, rng)
                for probe_name, probe in probes.items():
                    common = majority_class(codes[train], fold.test.size)
                    predicted["majority", probe_name][seed, fold.test] = common
                    for method, arrays in per_seed.items():
                        x = arrays[seed % len(arrays)][labelled]
                        inner = np.random.default_rng([settings.seed, seed, number, 1])  # the same for every method
                        found = probe(x[train], codes[train], batches[train], x[fold.test], settings, inner)
                        predicted[method, probe_name][seed, fold.test] = found.codes
                        fits += found.fits
                        if found.chosen_c is not None:
                            chosen_c[method].append(found.chosen_c)
                        done += 1
                        if progress is not None:
                            progress(done, total)

    scores = _Scores(codes, len(classes), folds, predicted, settings)
    keys = [(probe, metric, held) for probe in probes for metric in METRICS for held in scores.held_out]
    return ProbeResult(
        modality=modality,
        rows=tuple(scores.row(modality, method, *key) for method in methods for key in keys),
        differences=tuple(
            scores.difference(modality, a, b, *key)
            for a, b in COMPARISONS
            if a in per_seed and b in per_seed
            for key in keys
        ),
        folds=tuple(FoldSummary(f.held_out, f.train.size, f.test.size, f.absent_classes) for f in folds),
        classes=tuple(str(c) for c in classes),
        num_unlabelled=int((~labelled).sum()),
        fits=fits,
        settings=settings,
        chosen_c={m: c for m, c in chosen_c.items() if c},
        dimensions={m: int(arrays[0].shape[1]) for m, arrays in per_seed.items()},
        split=split,
    )


def make_folds(
    labels: Sequence[str] | Array,
    technical_batch: Sequence[str] | Array,
    held_out: Sequence[str] | None,
    settings: ProbeSettings,
    probes: Mapping[str, Probe] = PROBES,
) -> list[Fold]:
    """The folds of `run_probe`, rows among the labelled cells; raises what it would, before there is an embedding.

    Raises:
      InputError: no labels, fewer than two classes of `FEWEST_CELLS` cells, one batch, too few cells to train on.
    """
    labelled, names = _labelled(labels)
    batches = np.asarray(technical_batch).astype(str)
    if names.size != batches.size:
        raise ValueError(f"labels and technical_batch are one per cell; found {names.size} and {batches.size}")
    classes, counts = np.unique(names[labelled], return_counts=True)
    if (counts >= FEWEST_CELLS).sum() < 2:
        found = ", ".join(f"{name} {number}" for name, number in zip(classes[:5], counts[:5], strict=True))
        raise InputError(
            f"labels: a probe tells classes apart and needs two of at least {FEWEST_CELLS} cells; found {found}"
            f"{' ...' if len(classes) > 5 else ''}."
        )
    folds = leave_one_batch_out(batches[labelled], names[labelled], held_out)
    smallest = min(int(np.ceil(settings.train_fraction * f.train.size)) for f in folds)
    if "knn" in probes and smallest < settings.knn_neighbours:
        raise InputError(
            f"{smallest} cells to train on are fewer than the {settings.knn_neighbours} neighbours of the kNN probe; "
            "label more cells."
        )
    return folds


class _Scores:
    """Scores of all predictions, per seed and per bootstrap resample of the test cells, fold by fold."""

    def __init__(
        self,
        codes: Array,
        num_classes: int,
        folds: list[Fold],
        predicted: Mapping[tuple[str, str], Array],
        settings: ProbeSettings,
    ):
        rng = np.random.default_rng([settings.seed, 2])
        self._folds = {fold.held_out: fold for fold in folds}
        self.held_out = [MEAN_OVER_BATCHES, *self._folds]
        self._seeds: dict[tuple[str, ...], Array] = {}  # (method, probe, metric, held_out) -> [S]
        self._resampled: dict[tuple[str, ...], Array] = {}  # the same -> [R], mean over seeds
        for name, fold in self._folds.items():
            weights = bootstrap_weights(fold.test.size, settings.num_resamples, rng)
            weights = np.concatenate([np.ones((1, fold.test.size)), weights])  # row 0: every cell once
            truth = codes[fold.test]
            for (method, probe), seeds in predicted.items():
                hits = [metrics.accuracy(truth, p[fold.test], weights) for p in seeds]
                f1 = [metrics.macro_f1(truth, p[fold.test], num_classes, weights) for p in seeds]
                for metric, values in zip(METRICS, (np.stack(hits), np.stack(f1)), strict=True):  # [S, 1 + R]
                    key = (method, probe, metric, name)
                    self._seeds[key], self._resampled[key] = values[:, 0], values[:, 1:].mean(0)
        for method, probe in predicted:
            for metric in METRICS:
                for table in (self._seeds, self._resampled):
                    each = [table[method, probe, metric, name] for name in self._folds]
                    table[method, probe, metric, MEAN_OVER_BATCHES] = np.mean(each, axis=0)

    def _num_cells(self, held_out: str) -> int:
        folds = self._folds.values() if held_out == MEAN_OVER_BATCHES else [self._folds[held_out]]
        return sum(fold.test.size for fold in folds)

    def row(self, modality: str, method: str, probe: str, metric: str, held_out: str) -> ProbeRow:
        interval = student_t_interval(self._seeds[method, probe, metric, held_out])
        return ProbeRow(modality, held_out, method, probe, metric, *interval, self._num_cells(held_out))

    def difference(
        self, modality: str, method: str, other: str, probe: str, metric: str, held_out: str
    ) -> DifferenceRow:
        first, second = (method, probe, metric, held_out), (other, probe, metric, held_out)
        seeds = student_t_interval(self._seeds[first] - self._seeds[second])
        cells = percentile_interval(seeds.mean, self._resampled[first] - self._resampled[second])
        intervals = (seeds.mean, seeds.half_width, cells.low, cells.high, seeds.number)
        return DifferenceRow(
            modality, held_out, method, other, probe, metric, *intervals, num_cells=self._num_cells(held_out)
        )


def _logistic_regression(settings: ProbeSettings) -> LogisticRegression:
    return LogisticRegression(solver="lbfgs", max_iter=settings.max_iter, tol=1e-4, warm_start=True)


def _fit(model: LogisticRegression, x: Array, codes: Array) -> bool:
    """Fits and says whether L-BFGS converged. Warnings of any other kind go on to the caller."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, codes)
    failures = [w for w in caught if issubclass(w.category, ConvergenceWarning)]
    for warning in caught:
        if warning not in failures:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return not failures


def _labelled(labels: Any) -> tuple[Array, Array]:
    """(bool [n] has a label, str [n])."""
    values = np.asarray(labels, dtype=object)
    missing = np.array([v is None or v != v or str(v) in ("", "nan") for v in values], dtype=bool)
    if missing.all():
        raise InputError(f"labels: none of {values.size} cells has a label, so there is nothing to score.")
    return ~missing, np.array(["" if m else str(v) for v, m in zip(values, missing, strict=True)])


def _check_embeddings(method: str, arrays: Sequence[Array], num_cells: int, settings: ProbeSettings) -> list[Array]:
    checked = [np.asarray(a, dtype=np.float64) for a in arrays]
    if len(checked) not in (1, settings.num_seeds):
        raise InputError(
            f"embeddings of {method!r}: found {len(checked)} arrays, expected {settings.num_seeds} (one per seed) or 1."
        )
    for seed, x in enumerate(checked):
        if x.ndim != 2 or len(x) != num_cells:
            raise InputError(f"embedding of {method!r}, seed {seed}: shape {x.shape}, expected [{num_cells}, d].")
        bad = ~np.isfinite(x).all(1)
        if bad.any():
            raise InputError(
                f"embedding of {method!r}, seed {seed}: {int(bad.sum())} cells are not finite (first at row "
                f"{int(bad.argmax())}); the model that made it has diverged or its input was damaged."
            )
    return checked
