"""`explain`: an annotator and cells -> what its calls come from, and how far that is to be believed."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from data_pipelines.features.feature_space import FeatureSpace
from scmbert_jax.annotation.annotator import Annotator, load_annotator
from scmbert_jax.annotation.labels import read_labels
from scmbert_jax.annotation.predict import UNSUPPORTED, Annotations, predict
from scmbert_jax.annotation.representation import ModelRepresentation, Reading
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.interpretation.attributions import METHODS, ROLLOUT, Attributed, Direction, Explainer, explainer
from scmbert_jax.interpretation.deletion import DeletionCurves, deletion_curves
from scmbert_jax.interpretation.drawn_cells import DrawnCells, FeatureFigures, feature_figures
from scmbert_jax.interpretation.randomisation import Agreement, agreement, refitted_head, spearman

Array = np.ndarray
Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExplainOptions:
    """How cells are explained. Raises `ConfigError` naming the field that cannot be.

    Attributes:
      methods: of `METHODS`, the first is that of the figures; None: all that the annotator has.
      types: types to explain; None: all of which there are cells.
      label_key: column of obs that says which cells are of a type; None: the annotator does.
      steps: of integrated gradients.
      cells_per_type: cells of each type that are drawn, at most.
      deletion_cells: cells whose features are deleted, at most.
      seed: of the draws, of the untrained model, of permuted labels and of intervals.
    """

    methods: tuple[str, ...] | None = None
    types: tuple[str, ...] | None = None
    label_key: str | None = None
    steps: int = 32
    cells_per_type: int = 100
    deletion_cells: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name, most in (("steps", 1024), ("cells_per_type", 100_000), ("deletion_cells", 100_000)):
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} {getattr(self, name)}: expected 1 to {most:,}.")
        for method in self.methods or ():
            if method not in METHODS:
                raise ConfigError(f"method {method!r}: expected {', '.join(METHODS)}.")
        if self.methods is not None and not self.methods:
            raise ConfigError(f"methods: none is named; expected some of {', '.join(METHODS)}.")


@dataclass(frozen=True)
class Explanation:
    """Of n cells, T types and F features.

    Attributes:
      annotator: what is explained; annotations: what it says of all cells of the file.
      features: table [F] of feature_id, name, modality; measured bool [F], those that the file has.
      types: T names; cells: int64 [T], explained cells of each.
      attributed: method -> of the n explained cells; the type of each is `of_type` int64 [n], a place in `types`.
      means: method -> float64 [T, F], the mean attribution over the type's cells.
      figures: of each type, what needs no model.
      curves: of deletion.
      sanity: method -> control -> how its attributions agree with the method's own.
      options: as asked; methods: those that were used.
    """

    annotator: Annotator
    annotations: Annotations
    features: pd.DataFrame
    measured: Array
    types: tuple[str, ...]
    cells: Array
    of_type: Array
    attributed: dict[str, Attributed]
    means: dict[str, Array]
    figures: tuple[FeatureFigures, ...]
    curves: DeletionCurves
    sanity: dict[str, dict[str, Agreement]]
    options: ExplainOptions

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.attributed)

    def agreement_with_figures(self, method: str) -> pd.DataFrame:
        """type, then Spearman's correlation of its mean attributions with each simple figure and with attributions of
        other methods, over features that a cell of the type expresses."""
        rows = []
        for place, name in enumerate(self.types):
            own, seen = self.means[method][place], self.figures[place].detection > 0
            row: dict[str, Any] = {"type": name, "features": int(seen.sum())}
            for figure, values in self.figures[place]._asdict().items():
                row[figure] = spearman(own[seen], values[seen])
            for other in self.methods:
                if other != method:
                    row[other] = spearman(own[seen], self.means[other][place][seen])
            rows.append(row)
        return pd.DataFrame(rows)

    def markers(self, method: str | None = None) -> pd.DataFrame:
        """A row for each type and each feature that a cell of it expresses, the highest mean attribution first."""
        method = method or self.methods[0]
        tables = []
        for place, name in enumerate(self.types):
            figures = self.figures[place]
            seen = np.flatnonzero(figures.detection > 0)
            table = self.features.iloc[seen].copy()
            table.insert(0, "type", name)
            for other in self.methods:
                table[other] = self.means[other][place][seen]
            for figure, values in figures._asdict().items():
                table[figure] = values[seen]
            by_attribution = (-table[method]).rank(method="first").astype(int)
            by_wilcoxon = (-table["wilcoxon"]).rank(method="first").astype(int)
            table.insert(4, "rank", by_attribution)
            table.insert(5, "wilcoxon_rank", by_wilcoxon)
            tables.append(table.sort_values("rank"))
        return pd.concat(tables, ignore_index=True)


def explain(
    annotator: Annotator | str | Path,
    cells: Any,
    options: ExplainOptions | None = None,
    *,
    reading: Reading | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Explanation:
    """Explains what an annotator says of cells.

    Args:
      annotator: or its folder.
      cells: whatever `open_dataset` takes.
      options: see there.
      reading: how cells are opened and embedded.
      progress: called with (what is done, cells done, cells in all).
      say: told of types without cells, and what `predict` tells.

    Raises:
      InputError: no raw counts, another organism, no feature in common, no such column, a type of which no cell is.
      ConfigError: an unknown type, or a method that the annotator has not.
    """
    annotator = annotator if isinstance(annotator, Annotator) else load_annotator(annotator)
    options, reading = options or ExplainOptions(), reading or Reading()
    _check_types(annotator, options.types)
    opened = annotator.representation.open(cells, reading._replace(allow_low_coverage=True))
    known = explainer(annotator, opened, reading, options.steps)
    methods = _methods(known, annotator, options)
    told = predict(annotator, opened.dataset, reading=reading._replace(progress=_stage(progress, "predict")), say=say)
    drawn_rows, drawn_types = _drawn(annotator, told, options, say)
    types = options.types or tuple(annotator.types[place] for place in np.unique(drawn_types))
    without = [name for name in types if annotator.types.index(name) not in drawn_types]
    if without:
        there = ", ".join(annotator.types[place] for place in np.unique(drawn_types))
        raise InputError(
            f"{told.report.path}: no cell is {', '.join(without)}{_by_whom(options)}; there are cells of {there}."
        )
    space = _space(annotator)
    slices = space.slices
    everyone = DrawnCells.read(opened, drawn_rows, slices, space.num_features)
    wanted = np.array([annotator.types.index(name) for name in types])
    mine = np.flatnonzero(np.isin(drawn_types, wanted))
    drawn, leaf = everyone.of(mine), drawn_types[mine]
    expression = everyone.expression()
    direction = Direction.of(annotator.head)
    attributed = {
        method: known.attributions(drawn, method, direction, leaf, _stage(progress, method)) for method in methods
    }
    of_type = np.argmax(leaf[:, None] == wanted[None], axis=1)
    sanity = _sanity(annotator, known, everyone, drawn_types, mine, attributed, options, progress)
    some = _spread(of_type, options.deletion_cells)
    curves = deletion_curves(
        annotator,
        known,
        drawn.of(some),
        leaf[some],
        {method: own.values[some] for method, own in attributed.items()},
        options.seed,
    )
    return Explanation(
        annotator=annotator,
        annotations=told,
        features=_feature_table(space),
        measured=_measured(opened, slices, space.num_features),
        types=types,
        cells=np.bincount(of_type, minlength=len(types)),
        of_type=of_type,
        attributed=attributed,
        means={
            method: np.stack([_mean_of(own.values, of_type == place) for place in range(len(types))])
            for method, own in attributed.items()
        },
        figures=tuple(feature_figures(expression, drawn_types == place) for place in wanted),
        curves=curves,
        sanity=sanity,
        options=options,
    )


def _stage(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(name.replace("_", " "), done, total)


def _check_types(annotator: Annotator, types: tuple[str, ...] | None) -> None:
    for name in types or ():
        if name not in annotator.types:
            near = difflib.get_close_matches(name, annotator.types, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"--types {name}: the annotator knows no such type; it tells {', '.join(annotator.types)} apart.{hint}"
            )
    if types is not None and len(set(types)) < len(types):
        raise ConfigError(f"--types {' '.join(types)}: a type is named twice.")


def _methods(known: Explainer, annotator: Annotator, options: ExplainOptions) -> tuple[str, ...]:
    if options.methods is None:
        return known.methods
    for method in options.methods:
        if method not in known.methods:
            why = (
                "principal components and a linear head are linear in a cell's values, so each feature's part is "
                "exact and there is nothing to integrate or to roll out. Leave --method away"
                if annotator.method == "pca"
                else "attention rollout is of what [CLS] reads in one encoder, and this model has one for each "
                "modality, or reads the states of all genes"
            )
            raise ConfigError(f"--method {method}: not of this annotator ({annotator.method}): {why}.")
    return tuple(dict.fromkeys(options.methods))


def _by_whom(options: ExplainOptions) -> str:
    return f" by obs[{options.label_key!r}]" if options.label_key else " by the annotator's own calls"


def _drawn(annotator: Annotator, told: Annotations, options: ExplainOptions, say: Say | None) -> tuple[Array, Array]:
    """(rows int64 [n] ascending, leaf int64 [n]): at most `cells_per_type` cells of each type, drawn by the seed."""
    supported = told.status != UNSUPPORTED
    labels = told.labels if options.label_key is None else read_labels(told.dataset, options.label_key, None, say)
    place = {name: number for number, name in enumerate(annotator.types)}
    leaf = np.array([place.get(name, -1) for name in labels.tolist()])
    leaf = np.where(supported, leaf, -1)
    if not (leaf >= 0).any():
        reasons = "; ".join(f"{number:,} {reason}" for reason, number in told.why_unsupported.items())
        raise InputError(
            f"{told.report.path}: no cell that can be explained{_by_whom(options)}"
            + (f" ({reasons})." if reasons else f"; the annotator knows {', '.join(annotator.types)}.")
        )
    rng = np.random.default_rng(options.seed)
    rows = [
        rng.permutation(np.flatnonzero(leaf == own))[: options.cells_per_type] for own in np.unique(leaf[leaf >= 0])
    ]
    found = np.sort(np.concatenate(rows))
    return found, leaf[found]


def _spread(of_type: Array, number: int) -> Array:
    """int64, at most `number` of the cells, as evenly over types as there are cells."""
    turn = np.zeros(len(of_type), np.int64)
    for place in np.unique(of_type):
        turn[of_type == place] = np.arange((of_type == place).sum())
    return np.sort(np.lexsort((of_type, turn))[:number])


def _sanity(
    annotator: Annotator,
    known: Explainer,
    everyone: DrawnCells,
    types: Array,
    mine: Array,
    attributed: dict[str, Attributed],
    options: ExplainOptions,
    progress: Progress | None,
) -> dict[str, dict[str, Agreement]]:
    drawn, leaf, direction = everyone.of(mine), types[mine], Direction.of(annotator.head)
    expression = drawn.expression()
    heads = {}
    if len(np.unique(types)) > 1:
        vectors, number = known.vectors(everyone), len(annotator.types)
        c = float(annotator.info.get("c") or 1.0)  # fine-tuning has none
        heads["head refitted to permuted labels"] = refitted_head(vectors, types, number, c, options.seed)
        heads["head refitted to true labels"] = refitted_head(vectors, types, number, c, None)
    twin = None
    if isinstance(annotator.representation, ModelRepresentation):
        twin = _untrained(known, options.seed)
    found: dict[str, dict[str, Agreement]] = {}
    for method, own in attributed.items():
        others = {}
        if twin is not None:
            stage = _stage(progress, f"{method} of the untrained model")
            others["untrained model"] = twin.attributions(drawn, method, direction, leaf, stage).values
        for name, head in heads.items() if method != ROLLOUT else ():  # which does not know of a head
            stage = _stage(progress, f"{method}, {name}")
            others[name] = known.attributions(drawn, method, Direction.of(head), leaf, stage).values
        others["expression"] = expression
        found[method] = {name: agreement(own.values, other, expression, options.seed) for name, other in others.items()}
    return found


def _untrained(known: Any, seed: int) -> Explainer:
    model = known.model.untrained(seed)
    return replace(known, model=model, cells=replace(known.cells, model=model, _shown={}))


def _mean_of(values: sp.csr_matrix, mine: Array) -> Array:
    return np.asarray(values[np.flatnonzero(mine)].mean(axis=0)).ravel()


def _space(annotator: Annotator) -> FeatureSpace:
    representation = annotator.representation
    if isinstance(representation, ModelRepresentation):
        return representation.model.feature_space
    return representation.pca.space


def _feature_table(space: FeatureSpace) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"feature_id": own.ids.astype(str), "name": own.names.astype(str), "modality": name})
        for name, own in space.modalities.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _measured(opened: Any, slices: dict[str, tuple[int, int]], number: int) -> Array:
    found = np.zeros(number, bool)
    for name, overlap in opened.overlaps.items():
        found[slice(*slices[name])] = overlap.measured
    return found
