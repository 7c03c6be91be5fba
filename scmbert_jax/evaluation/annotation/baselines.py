"""What every annotation is printed beside: simple classifiers, each as it comes and with settings chosen for the task.

The first setting of a grid is the default. Others are chosen by macro-F1 on training cells that a fit has not seen; the
test cells have no say. Principal components are of all cells of the run, without labels; they are scaled by one number.
RNA is log1p of counts per 10,000 in the defaults; `roots` reads square roots of fractions instead (`root_values`).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.special import softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier

from scmbert_jax.evaluation import metrics
from scmbert_jax.evaluation.annotation.novelty import novelty_scores
from scmbert_jax.evaluation.annotation.task import CellValues, Predictions, Task
from scmbert_jax.tasks.label_transfer import OneScale

Array = np.ndarray
Setting = dict[str, Any]
# (cells, training rows [n], their codes [n], rows to predict [m], setting, seed) -> (probabilities [m, K], classes [K])
Fit = Callable[[CellValues, Array, Array, Array, Setting, int], tuple[Array, Array]]
Novelty = Callable[[CellValues, Array, Array, Array, Setting, int], dict[str, Array]]

VERSION = 1  # of what the functions below compute: kept predictions of another version are not used
_ALL_PARTS_UP_TO = 2000  # training cells; of more, one part is enough to choose a setting of a costly baseline
_FEWEST_CELLS_OF_A_GENE = 3
_DEFAULT, _TUNED = "default", "tuned"


@dataclass(frozen=True)
class Classifier:
    """A classifier with its settings, as a `Method`.

    Attributes:
      fit: fits and predicts.
      grid: settings, the default first.
      costly: choose by one left-out part where training cells are many.
      most_of_a_type: cells that some type must have at least.
      arms: "default", "tuned", or both.
      novelty: of a split by type, scores of novelty of the test cells besides the largest probability.
      reads: digest of the vectors that it reads in place of counts.
    """

    name: str
    fit: Fit
    grid: tuple[Setting, ...]
    costly: bool = False
    most_of_a_type: int = 1
    arms: tuple[str, ...] = (_DEFAULT, _TUNED)
    role: str = "baseline"
    novelty: Novelty | None = None
    reads: str = ""
    parallel: bool = True

    def identity(self) -> Setting:
        return {"name": self.name, "grid": list(self.grid), "version": VERSION, "reads": self.reads}

    def lacks(self, task: Task) -> str:
        if np.bincount(task.codes).max() < self.most_of_a_type:
            return f"it needs {self.most_of_a_type} cells of a type"
        return ""

    def fit_predict(self, cells: CellValues, task: Task) -> dict[str, Predictions]:
        """Both arms; without left-out parts nothing can be chosen, and both are the default."""
        # Roots are of RNA; without it, both ways are the same.
        grid = [setting for setting in self.grid if "rna" in cells.counts or not setting.get("roots")]
        left_out, tried = self._left_out(cells, task, grid)
        truth = task.codes[left_out]
        scores = [float(metrics.macro_f1(truth, p.argmax(1), task.num_classes)) if truth.size else 0.0 for p in tried]
        found: dict[str, Predictions] = {}
        for arm in self.arms:
            place = int(np.argmax(scores)) if arm == _TUNED else 0  # the first of the best
            if place == 0 and found:
                found[arm] = found[_DEFAULT]
                continue
            predicted = self._predict(cells, task, np.arange(task.train.size), task.test, grid[place])
            novelty: dict[str, Array] = {}
            if self.novelty is not None and task.split == "type":
                novelty = self.novelty(cells, task.train, task.codes, task.test, grid[place], task.seed)
            found[arm] = Predictions(predicted, left_out, tried[place] if truth.size else None, novelty, grid[place])
        return found

    def _left_out(self, cells: CellValues, task: Task, grid: Sequence[Setting]) -> tuple[Array, list[Array]]:
        """(places in train [v], of each setting float32 [v, C]): predictions for cells that a fit had not seen."""
        if task.parts is None:
            return np.zeros(0, np.int64), [np.zeros((0, task.num_classes), np.float32)] * len(grid)
        parts = np.unique(task.parts)
        if self.costly and task.train.size > _ALL_PARTS_UP_TO:
            parts = parts[:1]
        pairs = [(np.flatnonzero(task.parts != part), np.flatnonzero(task.parts == part)) for part in parts]
        pairs = [(fitted, out) for fitted, out in pairs if self._can_learn(task.codes[fitted])]
        tried = [
            np.concatenate([self._predict(cells, task, fitted, task.train[out], setting) for fitted, out in pairs])
            if pairs
            else np.zeros((0, task.num_classes), np.float32)
            for setting in grid
        ]
        return np.concatenate([out for _, out in pairs]) if pairs else np.zeros(0, np.int64), tried

    def _can_learn(self, codes: Array) -> bool:
        sizes = np.bincount(codes)
        return int((sizes > 0).sum()) > 1 and int(sizes.max()) >= self.most_of_a_type

    def _predict(self, cells: CellValues, task: Task, fitted: Array, rows: Array, setting: Setting) -> Array:
        """float32 [m, C]."""
        found, classes = self.fit(cells, task.train[fitted], task.codes[fitted], rows, setting, task.seed)
        if not np.isfinite(found).all():
            raise FloatingPointError(f"probabilities that are not finite, with {json.dumps(setting)}")
        probabilities = np.zeros((rows.size, task.num_classes), np.float32)
        probabilities[:, classes] = found
        return probabilities


# --- on principal components -----------------------------------------------------------------------------------------


def _scaled(cells: CellValues, train: Array, rows: Array, setting: Setting, seed: int) -> tuple[Array, Array]:
    """float64 [n, d], [m, d]: components of both, or the vectors of a model, scaled by one number of training cells."""
    if "vectors" in setting:
        of_seeds = cells.vectors[setting["vectors"]]
        x = of_seeds[seed % len(of_seeds)].astype(np.float64)
    else:
        x = cells.scores(setting["dimensions"], setting.get("roots", False)).astype(np.float64)
        if "averaged" in setting:
            nearest = cells.nearest(setting["dimensions"], setting["averaged"], setting.get("roots", False))
            x = (x + nearest @ x) / (1 + np.diff(nearest.indptr)[:, None])
    scale = OneScale.of(x[train])
    return scale(x[train]), scale(x[rows])


def logistic_regression(
    cells: CellValues, train: Array, codes: Array, rows: Array, setting: Setting, seed: int
) -> tuple[Array, Array]:
    """On components, or on the vectors that a model gives the cells; scaled alike."""
    x, queries = _scaled(cells, train, rows, setting, seed)
    model = LogisticRegression(C=setting["C"], max_iter=1000).fit(x, codes)
    return model.predict_proba(queries), model.classes_


def linear_novelty(
    cells: CellValues, train: Array, codes: Array, rows: Array, setting: Setting, seed: int
) -> dict[str, Array]:
    """Of the same regression's logits and vectors: energy, Mahalanobis, distance to the nearest training cells."""
    x, queries = _scaled(cells, train, rows, setting, seed)
    model = LogisticRegression(C=setting["C"], max_iter=1000).fit(x, codes)
    logits, of_queries = (_both_columns(model.decision_function(part)) for part in (x, queries))
    return novelty_scores(x, logits, codes[:, None] == model.classes_, queries, of_queries)


def _both_columns(decision: Array) -> Array:
    """float64 [n, K]: of two types, scikit-learn gives one column."""
    return np.stack([np.zeros_like(decision), decision], axis=1) if decision.ndim == 1 else decision


def discriminant_analysis(
    cells: CellValues, train: Array, codes: Array, rows: Array, setting: Setting, seed: int
) -> tuple[Array, Array]:
    x, queries = _scaled(cells, train, rows, setting, seed)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=setting["shrinkage"]).fit(x, codes)
    return model.predict_proba(queries), model.classes_


def nearest_neighbours(
    cells: CellValues, train: Array, codes: Array, rows: Array, setting: Setting, seed: int
) -> tuple[Array, Array]:
    x, queries = _scaled(cells, train, rows, setting, seed)
    number = min(setting["neighbours"], train.size)
    model = KNeighborsClassifier(number, weights=setting["weights"], algorithm="brute").fit(x, codes)
    return model.predict_proba(queries), model.classes_


def nearest_centroid(
    cells: CellValues, train: Array, codes: Array, rows: Array, setting: Setting, seed: int
) -> tuple[Array, Array]:
    """The nearest mean; probabilities are those of balls of one variance, that of training cells about their means."""
    x, queries = _scaled(cells, train, rows, setting, seed)
    classes, of_class = np.unique(codes, return_inverse=True)
    centroids = np.stack([x[of_class == place].mean(0) for place in range(classes.size)])
    variance = max(float(((x - centroids[of_class]) ** 2).mean()), 1e-6)
    distances = ((queries[:, None, :] - centroids) ** 2).sum(2)
    return softmax(-distances / (2 * variance), axis=1), classes


def label_spreading(
    cells: CellValues, train: Array, codes: Array, rows: Array, setting: Setting, seed: int
) -> tuple[Array, Array]:
    """Labels run along the graph of nearest neighbours of all cells (Zhou et al. 2003): F <- alpha S F + (1 - alpha) Y,
    S the symmetric graph with its degrees divided out."""
    classes, of_class = np.unique(codes, return_inverse=True)
    start = np.zeros((cells.num_cells, classes.size))
    start[train, of_class] = 1.0
    graph = cells.nearest(setting["dimensions"], setting["neighbours"], setting.get("roots", False))
    graph = graph.maximum(graph.T)
    degree = sp.diags(1 / np.sqrt(np.asarray(graph.sum(1)).ravel()))
    graph, labels = degree @ graph @ degree, start
    for _ in range(100):
        spread = setting["alpha"] * (graph @ labels) + (1 - setting["alpha"]) * start
        moved, labels = np.abs(spread - labels).max(), spread
        if moved < 1e-5:
            break
    prior = np.bincount(of_class) / train.size * 1e-9  # for cells that no label reaches
    found = labels[rows] + prior
    return found / found.sum(1, keepdims=True), classes


def gradient_boosting(
    cells: CellValues, train: Array, codes: Array, rows: Array, setting: Setting, seed: int
) -> tuple[Array, Array]:
    """On components, or on the genes whose mean differs most between types, in units of its variance (F statistic)."""
    options = {name: value for name, value in setting.items() if name not in ("dimensions", "genes")}
    if "genes" in setting:
        chosen = _telling_genes(cells.values()[train], codes, setting["genes"])
        x, queries = (cells.values()[part][:, chosen].toarray() for part in (train, rows))
    else:
        scores = cells.scores(setting["dimensions"])
        x, queries = scores[train], scores[rows]
    model = HistGradientBoostingClassifier(random_state=seed, **options).fit(x, codes)
    return model.predict_proba(queries), model.classes_


def _telling_genes(values: sp.csr_matrix, codes: Array, number: int) -> Array:
    """int64 [number]: columns with the largest variance between types against that within, in training cells."""
    classes, of_class = np.unique(codes, return_inverse=True)
    members = sp.csr_matrix((np.ones(codes.size), (of_class, np.arange(codes.size))), (classes.size, codes.size))
    sizes = np.bincount(of_class)
    means = (members @ values).toarray() / sizes[:, None]
    mean = np.asarray(values.mean(0)).ravel()
    total = np.asarray(values.multiply(values).mean(0)).ravel() - mean**2
    between = (sizes[:, None] * (means - mean) ** 2).sum(0) / codes.size
    return np.sort(np.argsort(-between / np.maximum(total - between, 1e-3), kind="stable")[:number])


# --- on genes --------------------------------------------------------------------------------------------------------


def _seen_genes(
    cells: CellValues, train: Array, rows: Array, roots: bool = False
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Values of training cells and of others, for features that some training cells have."""
    fewest = min(_FEWEST_CELLS_OF_A_GENE, max(1, train.size // 100))
    values = cells.values(roots)
    x = values[train]
    chosen = np.flatnonzero(x.getnnz(axis=0) >= fewest)
    return x[:, chosen], values[rows][:, chosen]


def l2_on_genes(
    cells: CellValues, train: Array, codes: Array, rows: Array, setting: Setting, seed: int
) -> tuple[Array, Array]:
    x, queries = _seen_genes(cells, train, rows, setting.get("roots", False))
    model = LogisticRegression(C=setting["C"], max_iter=300, tol=1e-3).fit(x, codes)
    return model.predict_proba(queries), model.classes_


def l1_on_genes(
    cells: CellValues, train: Array, codes: Array, rows: Array, setting: Setting, seed: int
) -> tuple[Array, Array]:
    """One regression per type against all others, by liblinear: few genes have a weight."""
    x, queries = _seen_genes(cells, train, rows)
    one = LogisticRegression(C=setting["C"], l1_ratio=1.0, solver="liblinear", max_iter=200, random_state=seed)
    model = OneVsRestClassifier(one).fit(x.astype(np.float64), codes)
    return model.predict_proba(queries.astype(np.float64)), model.classes_


def celltypist_recipe(
    cells: CellValues, train: Array, codes: Array, rows: Array, setting: Setting, seed: int
) -> tuple[Array, Array]:
    """What CellTypist's documentation describes, written anew with scikit-learn: log1p CP10k, each gene standardised on
    the training cells and cut off at 10, logistic regression with L2 by stochastic gradient descent, type against rest;
    the cell gets the type of the highest score. Scores become probabilities by a softmax."""
    x, queries = (part.toarray() for part in _seen_genes(cells, train, rows))
    mean, spread = x.mean(0), x.std(0)
    spread[spread == 0] = 1.0
    for part in (x, queries):
        part -= mean
        part /= spread
        np.minimum(part, 10.0, out=part)
    model = SGDClassifier(loss="log_loss", alpha=setting["alpha"], max_iter=setting["epochs"], random_state=seed)
    decision = model.fit(x, codes).decision_function(queries)
    return softmax(_both_columns(decision), axis=1), model.classes_


def majority(
    cells: CellValues, train: Array, codes: Array, rows: Array, setting: Setting, seed: int
) -> tuple[Array, Array]:
    """Every cell gets the fractions of the training cells."""
    classes, counts = np.unique(codes, return_counts=True)
    return np.tile(counts / counts.sum(), (rows.size, 1)), classes


def _grid(default: Setting, **choices: tuple[Any, ...]) -> tuple[Setting, ...]:
    """The default, then every combination of the choices."""
    found: list[Setting] = [{}]
    for name, values in choices.items():
        found = [{**setting, name: value} for setting in found for value in values]
    return (default, *(setting for setting in found if setting != default))


def _with_roots(grid: tuple[Setting, ...]) -> tuple[Setting, ...]:
    """The grid, then its choices with RNA as square roots."""
    return (*grid, *({**setting, "roots": True} for setting in grid[1:]))


def probe(name: str, role: str, digest: str) -> Classifier:
    """A linear probe of the vectors of this name in `CellValues.vectors` (their digest), fitted as SVD + LR is."""
    grid = _grid({"vectors": name, "C": 1.0}, vectors=(name,), C=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0))
    return Classifier(name, logistic_regression, grid, arms=(_TUNED,), novelty=linear_novelty, role=role, reads=digest)


_FEW = (15, 20, 30, 50)  # dimensions
ALL_BASELINES: tuple[Classifier, ...] = (
    Classifier("majority", majority, ({},), arms=(_DEFAULT,)),
    Classifier("nearest centroid", nearest_centroid, _grid({"dimensions": 50}, dimensions=_FEW)),
    Classifier(
        "kNN",
        nearest_neighbours,
        _grid(
            {"dimensions": 50, "neighbours": 5, "weights": "uniform"},
            dimensions=(15, 20, 30),
            neighbours=(5, 15, 30),
            weights=("uniform", "distance"),
        ),
    ),
    Classifier(
        "label spreading",
        label_spreading,
        _with_roots(
            _grid(
                {"dimensions": 50, "neighbours": 7, "alpha": 0.2},
                dimensions=(15, 20, 30),
                neighbours=(10, 20),
                alpha=(0.5, 0.9, 0.97),
            )
        ),
    ),
    Classifier(
        "SVD + LR",
        logistic_regression,
        _with_roots(_grid({"dimensions": 50, "C": 1.0}, dimensions=_FEW, C=(0.1, 0.3, 1.0, 3.0))),
        novelty=linear_novelty,
    ),
    Classifier(
        "SVD + shrinkage LDA",
        discriminant_analysis,
        _with_roots(
            _grid(
                {"dimensions": 50, "shrinkage": "auto"},
                dimensions=_FEW,
                shrinkage=("auto", 0.1, 0.5),
            )
        ),
        most_of_a_type=2,
    ),
    # Unlabelled cells help where labels are few: a cell's components become the mean of its own and its neighbours'.
    Classifier(
        "neighbour means + LDA",
        discriminant_analysis,
        _with_roots(
            _grid(
                {"dimensions": 50, "averaged": 20, "shrinkage": "auto"},
                dimensions=(20, 30, 50),
                averaged=(5, 20, 40),
                shrinkage=("auto",),
            )
        ),
        most_of_a_type=2,
    ),
    Classifier(
        "gradient boosting",
        gradient_boosting,
        (
            {"dimensions": 50},
            {"dimensions": 20, "learning_rate": 0.05, "max_leaf_nodes": 7, "min_samples_leaf": 3},
            {"genes": 300, "learning_rate": 0.1, "max_leaf_nodes": 7, "min_samples_leaf": 3},
        ),
        costly=True,
    ),
    Classifier(
        "L2 LR on genes",
        l2_on_genes,
        _with_roots(_grid({"C": 1.0}, C=(0.003, 0.01, 0.03, 0.1))),
        costly=True,
    ),
    Classifier("L1 LR on genes", l1_on_genes, _grid({"C": 1.0}, C=(0.1, 0.3)), costly=True),
    Classifier(
        "CellTypist recipe",
        celltypist_recipe,
        ({"alpha": 1e-4, "epochs": 1000}, {"alpha": 0.01, "epochs": 20}, {"alpha": 0.1, "epochs": 20}),
        costly=True,
    ),
)
