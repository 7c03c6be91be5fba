"""Folders of public benchmarks, dropped in as they are downloaded: `scmbert evaluate translation --data FOLDER`.

OpenProblems v2 and NeurIPS 2021, "predict modality" (one folder per data set and direction)
    *train_mod1.h5ad  *train_mod2.h5ad   training cells, the same in both, in one order
    *test_mod1.h5ad   *test_mod2.h5ad    test cells likewise; mod1 is read, mod2 is predicted and scored
    *prediction*.h5ad                    optional, any number (also in predictions/): scored as rows of their own,
                                         named by uns["method_id"]
    Values: layers["normalized"] (v2) or X (2021). uns["dataset_id"] of solution and prediction must agree.

Kaggle 2022, Open Problems - Multimodal Single-Cell Integration (TECH is cite, multi, or both)
    train_TECH_inputs.h5, train_TECH_targets.h5   pandas frames, cells x features
    test_TECH_inputs.h5, test_TECH_targets.h5     optional: with both, the test cells are scored
    metadata.csv                                  cell_id, day, ...: without test targets the last day of the training
                                                  cells is held out, as the competition's own later day was
    evaluation_ids.csv, submission*.csv           optional, with test targets: row_id, cell_id, gene_id and row_id,
                                                  target; only the cells named there count, as on the leaderboard

What is scored beside predictions: zeros, the training mean, SVD50 + ridge and KNN25, on the folder's own values. A
model of ours reads raw counts and is scored on files of counts instead (`--data FILE`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.decomposition import TruncatedSVD
from sklearn.neighbors import NearestNeighbors

from data_pipelines.files.hdf5_file import require_self_contained
from data_pipelines.readers.stored_names import as_names
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.ridge import ridge_predict
from scmbert_jax.evaluation.translation.benchmark_metrics import kaggle_correlations, kaggle_score, openproblems_scores
from scmbert_jax.evaluation.translation.pandas_frames import Frame, read_frame
from scmbert_jax.text_table import markdown_table

Array = np.ndarray
Say = Callable[[str], None]

_PARTS = ("train_mod1", "train_mod2", "test_mod1", "test_mod2")
_TECHNOLOGIES = ("cite", "multi")


@dataclass(frozen=True)
class FolderScores:
    """`rows`: {"task", "method", "metric", "value", "num_cells"}, of the benchmark `format`."""

    path: str
    format: str
    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()

    def value(self, method: str, metric: str, task: str | None = None) -> float:
        """Raises KeyError when there is no such row."""
        for row in self.rows:
            if (row["method"], row["metric"]) == (method, metric) and task in (None, row["task"]):
                return row["value"]
        raise KeyError(f"no row {(method, metric, task)}")

    def text(self) -> str:
        metrics = list(dict.fromkeys(row["metric"] for row in self.rows))
        of = {(row["task"], row["method"], row["metric"]): row["value"] for row in self.rows}
        body = []
        for task, method in dict.fromkeys((row["task"], row["method"]) for row in self.rows):
            figures = [of.get((task, method, metric)) for metric in metrics]
            body.append([task, method, *("-" if figure is None else f"{figure:.4f}" for figure in figures)])
        table = markdown_table(["task", "method", *metrics], body)
        return "\n\n".join([f"{self.format}: {self.path}", table, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        return {"suite": "translation", "data": self.path, "format": self.format, "rows": list(self.rows)}


def score_folder(folder: Path, say: Say = lambda message: None) -> FolderScores:
    """Recognises the benchmark by its files and scores it.

    Raises `InputError` when no benchmark is recognised, or a file is missing, damaged or does not fit the others.
    """
    if any(folder.glob("*train_mod1.h5ad")):
        return _score_openproblems(folder, say)
    if any((folder / f"train_{name}_inputs.h5").is_file() for name in _TECHNOLOGIES):
        return _score_kaggle(folder, say)
    raise InputError(
        f"{folder}: neither *train_mod1.h5ad (OpenProblems, NeurIPS 2021) nor train_cite_inputs.h5 or "
        f"train_multi_inputs.h5 (Kaggle 2022) is there. Found: {', '.join(_listing(folder)) or 'nothing'}."
    )


# --- OpenProblems ----------------------------------------------------------------------------------------------------


def _score_openproblems(folder: Path, say: Say) -> FolderScores:
    parts = {name: _read_h5ad(_the_one(folder, f"*{name}.h5ad")) for name in _PARTS}
    for side in ("train", "test"):
        _require_equal(parts[f"{side}_mod1"], parts[f"{side}_mod2"], "cells")
    for modality in ("mod1", "mod2"):
        _require_equal(parts[f"train_{modality}"], parts[f"test_{modality}"], "features")
    truth = parts["test_mod2"].values.toarray()
    task = str(parts["test_mod2"].uns.get("dataset_id", folder.name))
    found = []
    values = [parts[name].values for name in _PARTS[:3]]
    for method, predicted in _simple_methods(*values):
        say(f"{task}: {method}")
        found.append((method, predicted))
    for path in sorted({*folder.glob("*prediction*.h5ad"), *folder.glob("predictions/*.h5ad")}):
        prediction = _read_h5ad(path)
        stated = prediction.uns.get("dataset_id")
        if stated is not None and str(stated) != task:
            raise InputError(f"{path}: uns['dataset_id'] is {stated!r}; the solution's is {task!r}.")
        for kind in ("cells", "features"):
            _require_equal(parts["test_mod2"], prediction, kind)
        found.append((str(prediction.uns.get("method_id", path.stem)), prediction.values.toarray()))
    rows = []
    for method, predicted in found:
        scores = _scored(openproblems_scores, truth, predicted, f"{folder}, {method}")
        rows += [_row(task, method, metric, value, len(truth)) for metric, value in scores.items()]
    return FolderScores(str(folder), "OpenProblems, predict modality", tuple(rows))


def _read_h5ad(path: Path) -> Frame:
    import anndata

    try:
        require_self_contained(path)
        adata = anndata.read_h5ad(path)
    except InputError:
        raise
    except Exception as error:  # anndata raises many types on damaged files; all of them mean the same to a user
        raise InputError(f"{path}: no readable .h5ad ({error}); copy or download it again.") from error
    values = adata.layers.get("normalized", adata.X)
    if values is None:
        raise InputError(f"{path}: neither layers['normalized'] nor X; it has {', '.join(adata.layers) or 'no layer'}.")
    names = as_names(adata.obs_names, f"{path}: obs"), as_names(adata.var_names, f"{path}: var")
    return Frame(path, *names, sp.csr_matrix(values, dtype=np.float32), dict(adata.uns))


def _the_one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise InputError(
            f"{folder}: {len(found)} files {pattern} ({', '.join(path.name for path in found) or 'none'}), expected "
            "one; give each data set and direction a folder of its own."
        )
    return found[0]


def _require_equal(first: Frame, second: Frame, kind: str) -> None:
    a, b = (first.cells, second.cells) if kind == "cells" else (first.features, second.features)
    if len(a) == len(b) and (a == b).all():
        return
    place = next((row for row, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    how = "the same, in another order" if sorted(a.tolist()) == sorted(b.tolist()) else "others"
    raise InputError(
        f"{second.path}: its {len(b):,} {kind} are {how} than the {len(a):,} of {first.path.name} (first difference at "
        f"row {place}); rows and columns are compared one by one, so bring them into that order."
    )


# --- Kaggle ----------------------------------------------------------------------------------------------------------


def _score_kaggle(folder: Path, say: Say) -> FolderScores:
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    by_method: dict[str, list[Array]] = {}
    truths: list[Frame] = []
    for name in _TECHNOLOGIES:
        if not (folder / f"train_{name}_inputs.h5").is_file():
            continue
        inputs, targets = (read_frame(folder / f"train_{name}_{part}.h5") for part in ("inputs", "targets"))
        _require_equal(inputs, targets, "cells")
        test = [folder / f"test_{name}_{part}.h5" for part in ("inputs", "targets")]
        if all(path.is_file() for path in test):
            new, truth = (read_frame(path) for path in test)
            _require_equal(new, truth, "cells")
            _require_equal(inputs, new, "features")
            _require_equal(targets, truth, "features")
            truths.append(truth)
        else:
            held_out, day = _last_day(folder / "metadata.csv", inputs)
            notes.append(
                f"{name}: no test targets in the folder; the {held_out.sum():,} cells of day {day} are held out."
            )
            new, truth = inputs.rows(held_out), targets.rows(held_out)
            inputs, targets = inputs.rows(~held_out), targets.rows(~held_out)
        dense = truth.values.toarray()
        for method, predicted in _simple_methods(inputs.values, targets.values, new.values):
            say(f"{name}: {method}")
            correlations = _scored(kaggle_correlations, dense, predicted, f"{folder}, {name}, {method}")
            by_method.setdefault(method, []).append(correlations)
            rows.append(_row(name, method, "pearson", float(correlations.mean()), len(correlations)))
    for path in sorted(folder.glob("submission*.csv")):
        correlations = _submission_correlations(path, folder / "evaluation_ids.csv", truths)
        by_method[path.stem] = [correlations]
    for method, parts in by_method.items():
        rows.append(_row("all cells", method, "pearson", kaggle_score(parts), sum(map(len, parts))))
    notes.append("The competition's score is the one of all cells: each cell counts once, whatever its technology.")
    return FolderScores(str(folder), "Kaggle 2022, multimodal integration", tuple(rows), tuple(notes))


def _last_day(path: Path, cells: Frame) -> tuple[Array, int]:
    """bool [n]: the cells of the last day, and that day."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; without test targets it tells which cells to hold out.")
    table = pd.read_csv(path)
    if not {"cell_id", "day"} <= set(table.columns):
        raise InputError(f"{path}: columns {', '.join(table.columns)}; expected cell_id and day among them.")
    day = table.drop_duplicates("cell_id").set_index("cell_id")["day"].reindex(cells.cells)
    if day.isna().any() or day.nunique() < 2:
        raise InputError(
            f"{path}: {int(day.isna().sum())} of the {len(day):,} cells of {cells.path.name} are missing, and the "
            f"others are of {day.nunique()} day(s); two or more are needed to hold one out."
        )
    return (day == day.max()).to_numpy(), int(day.max())


def _submission_correlations(submission: Path, evaluation_ids: Path, truths: list[Frame]) -> Array:
    """float64 [evaluated cells], from the long tables row_id -> target and row_id -> cell_id, gene_id."""
    if not evaluation_ids.is_file() or not truths:
        raise InputError(
            f"{submission}: to score it, {evaluation_ids.name} and test inputs and targets must be in its folder."
        )
    ids = pd.read_csv(evaluation_ids, dtype={"cell_id": str, "gene_id": str})
    answers = pd.read_csv(submission)
    for path, table, columns in (
        (evaluation_ids, ids, {"row_id", "cell_id", "gene_id"}),
        (submission, answers, {"row_id", "target"}),
    ):
        if not columns <= set(table.columns):
            raise InputError(f"{path}: columns {', '.join(table.columns)}; expected {', '.join(sorted(columns))}.")
    target = answers.drop_duplicates("row_id").set_index("row_id")["target"].reindex(ids["row_id"]).to_numpy(float)
    if np.isnan(target).any():
        raise InputError(
            f"{submission}: {int(np.isnan(target).sum()):,} of the {len(ids):,} rows asked for are missing."
        )
    found, scored = [], 0
    for truth in truths:
        row = pd.Index(truth.cells).get_indexer(ids["cell_id"])
        column = pd.Index(truth.features).get_indexer(ids["gene_id"])
        mine = (row >= 0) & (column >= 0)
        cells = np.unique(row[mine])
        predicted = np.full((len(cells), len(truth.features)), np.nan)
        predicted[np.searchsorted(cells, row[mine]), column[mine]] = target[mine]
        scored += int(mine.sum())
        if np.isnan(predicted).any():
            raise InputError(f"{evaluation_ids}: asks for some features of a cell of {truth.path.name}, not for all.")
        if len(cells):
            dense = truth.values[cells].toarray()
            found.append(_scored(kaggle_correlations, dense, predicted, str(submission)))
    if scored < len(ids):
        raise InputError(
            f"{evaluation_ids}: {len(ids) - scored:,} rows are of no cell and feature of the test targets."
        )
    return np.concatenate(found)


# --- both ------------------------------------------------------------------------------------------------------------


def _simple_methods(x: sp.csr_matrix, y: sp.csr_matrix, new: sp.csr_matrix) -> Iterator[tuple[str, Array]]:
    """(name, float32 [m, F]) predicted from the values as they are."""
    yield "zeros", np.zeros((new.shape[0], y.shape[1]), np.float32)
    yield "train mean", np.tile(np.asarray(y.mean(0), np.float32), (new.shape[0], 1))
    both = sp.vstack([x, new], format="csr").astype(np.float64)
    components = max(1, min(50, min(both.shape) - 1))
    scores = TruncatedSVD(components, algorithm="arpack", random_state=0).fit_transform(both)
    train, test = scores[: x.shape[0]], scores[x.shape[0] :]
    yield f"SVD{components} + ridge", ridge_predict(train, y, test)[0]
    number = min(25, len(train))
    near = NearestNeighbors(n_neighbors=number, algorithm="brute").fit(train).kneighbors(test, return_distance=False)
    weights = np.full(near.size, 1 / number)
    mean_of = sp.csr_matrix((weights, (np.repeat(np.arange(len(test)), number), near.ravel())), (len(test), len(train)))
    yield f"KNN{number}", np.asarray((mean_of @ y).toarray(), np.float32)


def _scored(score: Callable[[Array, Array], Any], truth: Array, predicted: Array, where: str) -> Any:
    try:
        return score(truth, predicted)
    except ValueError as error:
        raise InputError(f"{where}: {error}.") from error


def _row(task: str, method: str, metric: str, value: float, num_cells: int) -> dict[str, Any]:
    return {"task": task, "method": method, "metric": metric, "value": value, "num_cells": num_cells}


def _listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())[:10]
