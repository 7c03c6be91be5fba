"""Cell types known in one modality, carried to cells of another through embeddings in one space."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_fscore_support
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from scmbert_jax.errors import ConfigError, InputError

Array = np.ndarray

METHODS = ("knn", "logistic")


class OneScale(NamedTuple):
    """Takes the mean off embeddings [n, d] and divides them by one number, so that their mean variance is 1.

    Never by one number per dimension: that gives dimensions of noise the say of those that tell cells apart. With ten
    labelled cells per type, a logistic regression on 50 principal components loses a tenth of its macro-F1 by it.
    """

    mean: Array  # [d]
    scale: float

    @classmethod
    def of(cls, x: Array) -> "OneScale":
        """Of float [n, d]; where nothing varies, the scale is 1."""
        return cls(x.mean(0), float(np.sqrt(x.var(0).mean())) or 1.0)

    def __call__(self, x: Array) -> Array:
        return (x - self.mean) / self.scale


@dataclass(frozen=True)
class TransferredLabels:
    """Labels of m cells.

    Attributes:
      labels: str [m].
      confidence: float32 [m], the probability of that label: fraction of neighbours (knn) or of the model (logistic).
      classes: str [C], sorted; probabilities: float32 [m, C].
    """

    labels: Array
    confidence: Array
    classes: Array
    probabilities: Array


def transfer_labels(
    source: Array,
    labels: Array,
    target: Array,
    *,
    method: str = "knn",
    neighbours: int = 15,
    centre: bool = True,
    c: float = 1.0,
) -> TransferredLabels:
    """Labels the cells of `target` after those of `source`.

    Args:
      source: float [n, d] embeddings with labels; target: float [m, d] embeddings in the same space.
      labels: str [n]; cells labelled "" are left out.
      method: "knn" (cosine) or "logistic" (multinomial logistic regression, L2, after `OneScale`).
      neighbours: of knn; fewer where there are fewer labelled cells.
      centre: take each side's mean off first: the offset between modalities says nothing of a cell. Wrong where the two
        sides hold very different fractions of the cell types.
      c: inverse L2 strength of the logistic regression.

    Raises:
      ConfigError: an unknown method, neighbours < 1.
      InputError: shapes that do not fit, values that are not finite, fewer than two classes.
    """
    if method not in METHODS or neighbours < 1 or c <= 0:
        raise ConfigError(
            f"method {method!r}, neighbours {neighbours}, c {c}: expected {' or '.join(METHODS)}, 1 or more, above 0."
        )
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    labels = np.asarray(labels).astype(str)
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1] or len(labels) != len(source):
        raise InputError(
            f"label transfer: embeddings {source.shape} with {len(labels)} labels to {target.shape}; expected [n, d] "
            "with n labels, and [m, d]."
        )
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise InputError("label transfer: embeddings that are not finite; leave out cells without counts.")
    known = labels != ""
    classes = np.unique(labels[known])
    if len(classes) < 2:
        raise InputError(
            f"label transfer: the labelled cells are of {len(classes)} types ({', '.join(classes)}); at least 2 are "
            "needed."
        )
    if centre:
        source, target = source - source.mean(0), target - target.mean(0)
    with threadpool_limits(1):  # small matrices, and sums that repeat
        if method == "knn":
            near = KNeighborsClassifier(min(neighbours, int(known.sum())), metric="cosine", algorithm="brute")
            probabilities = near.fit(_units(source[known]), labels[known]).predict_proba(_units(target))
        else:
            scaled = OneScale.of(source[known])
            model = LogisticRegression(C=c, max_iter=1000).fit(scaled(source[known]), labels[known])
            probabilities = model.predict_proba(scaled(target))
    best = probabilities.argmax(1)
    confidence = probabilities.max(1).astype(np.float32)
    return TransferredLabels(classes[best], confidence, classes, probabilities.astype(np.float32))


@dataclass(frozen=True)
class ClassScore:
    """How the cells of one type fared: precision, recall, F1, and how many there truly are."""

    cell_type: str
    precision: float
    recall: float
    f1: float
    num_cells: int


def class_report(truth: Array, predicted: Array) -> tuple[ClassScore, ...]:
    """One `ClassScore` per type that occurs in `truth` (str [m]); cells whose truth is "" are left out."""
    truth, predicted = np.asarray(truth).astype(str), np.asarray(predicted).astype(str)
    known = truth != ""
    classes = np.unique(truth[known])
    scores = precision_recall_fscore_support(truth[known], predicted[known], labels=classes, zero_division=0)
    return tuple(
        ClassScore(str(name), float(p), float(r), float(f), int(n))
        for name, p, r, f, n in zip(classes, *scores, strict=True)
    )


def _units(vectors: Array) -> Array:
    # A zero vector has no direction; a tiny constant keeps its cosine defined, and the same for every neighbour.
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12) + 1e-15
