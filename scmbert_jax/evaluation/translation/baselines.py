"""What every translation is printed beside: simple fits, and what can be had without pairs, by labels or by depth.

Each is a `TranslationMethod`. The oracle and the depth baseline are told something about the test cells that no user
has; their rows say so.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import TruncatedSVD
from sklearn.neighbors import NearestNeighbors

from scmbert_jax.evaluation.ridge import ridge_predict
from scmbert_jax.evaluation.translation.fold import TranslationFold, link_matrix

Array = np.ndarray

NEIGHBOURS = 25
_LINK_DIMENSIONS = 20
_PAIRS = "pairs"


@dataclass(frozen=True)
class FittedBaseline:
    """A function of a fold as a `TranslationMethod`; deterministic, so that the seed only picks the training cells.

    `lacks` says what a fold has nothing of, "" where there is all: without it every cell would get the training mean,
    and a row of that name would say what it is not.
    """

    name: str
    uses: str
    fit_predict: Callable[[TranslationFold], Array]
    lacks: Callable[[TranslationFold], str] = lambda fold: ""
    num_trained: int = 0

    def predict(self, fold: TranslationFold, seed: int) -> Array:
        return self.fit_predict(fold)


def train_mean(fold: TranslationFold) -> Array:
    """float32 [m, F]: every cell gets the mean of the training cells."""
    return np.tile(fold.train_mean, (fold.num_test, 1))


def ridge(fold: TranslationFold) -> Array:
    """Ridge on all normalised source features."""
    train, test = fold.source_inputs
    return ridge_predict(train, fold.train_values, test)[0]


def svd_ridge(fold: TranslationFold) -> Array:
    """Ridge on 50 SVD scores of the source."""
    train, test = fold.source_scores
    return ridge_predict(train, fold.train_values, test)[0]


def nearest_neighbours(fold: TranslationFold) -> Array:
    """Mean target of the 25 training cells nearest in 50 SVD scores of the source."""
    train, test = fold.source_scores
    number = min(NEIGHBOURS, fold.num_train)
    near = NearestNeighbors(n_neighbors=number, algorithm="brute").fit(train).kneighbors(test, return_distance=False)
    rows = np.repeat(np.arange(fold.num_test), number)
    weights = sp.csr_matrix((np.full(near.size, 1 / number), (rows, near.ravel())), (fold.num_test, fold.num_train))
    return np.asarray((weights @ fold.train_values).toarray(), np.float32)


def cell_type_oracle(fold: TranslationFold) -> Array:
    """The mean of the training cells of the test cell's *true* type; the training mean where it is unknown or new."""
    types = np.setdiff1d(fold.train_types, [""])
    members = sp.csr_matrix((fold.train_types[None, :] == types[:, None]).astype(np.float32))
    means = np.asarray((members @ fold.train_values).toarray()) / np.asarray(members.sum(1))
    predicted = train_mean(fold)
    known = np.isin(fold.oracle_test_types, types)
    predicted[known] = means[np.searchsorted(types, fold.oracle_test_types[known])]
    return predicted


def no_types(fold: TranslationFold) -> str:
    shared = np.intersect1d(fold.train_types, fold.oracle_test_types)
    return "" if (shared != "").any() else "no test cell is of a known type that training cells have"


def depth_only(fold: TranslationFold) -> Array:
    """A straight line per target feature on log(1 + the cell's own total target counts): a trap, not a baseline."""
    depth = np.log1p(np.asarray(fold.train_target.sum(1), np.float64).ravel())
    centred = depth - depth.mean()
    slope = np.asarray(fold.train_values.T @ centred).ravel() / max((centred**2).sum(), np.finfo(float).tiny)
    return (fold.train_mean + np.outer(np.log1p(fold.trap_test_depth) - depth.mean(), slope)).astype(np.float32)


def links_only(fold: TranslationFold) -> Array:
    """The linked source features of each target feature, put on the target's own location and spread. No pair is read.

    The linked features are averaged (the gene of a protein; gene activity: the peaks near a gene), smoothed by SVD-20
    over training and test cells and standardised. Mean and spread of the target come from the training cells as a
    population; the spread is that of its own SVD-20, so that noise, which no link predicts, does not count. A feature
    without a link gets the training mean.
    """
    links = link_matrix(fold.source_features, fold.target_features)  # [S, F]
    number = np.asarray(links.sum(0)).ravel()
    linked = np.flatnonzero(number)
    predicted = train_mean(fold)
    if linked.size == 0:
        return predicted
    weights = sp.csr_matrix(links[:, linked] @ sp.diags(1 / number[linked]))
    activity = sp.vstack([part @ weights for part in fold.source_inputs], format="csr")
    scores, components = _smoothing(activity)
    mean, spread = _moments(scores, components)
    smoothed = scores[fold.num_train :] @ components  # [m, linked]
    standard = (smoothed - mean) / np.where(spread > 1e-8, spread, np.inf)
    _, target_spread = _moments(*_smoothing(fold.train_values))
    predicted[:, linked] += standard * target_spread[linked]
    return predicted


def no_links(fold: TranslationFold) -> str:
    linked = link_matrix(fold.source_features, fold.target_features).nnz
    return "" if linked else f"no {fold.source} feature is linked to a {fold.target} feature"


def _smoothing(values: sp.csr_matrix) -> tuple[Array, Array]:
    """Scores [n, 20] and components [20, F] of a truncated SVD."""
    number = max(1, min(_LINK_DIMENSIONS, min(values.shape) - 1))
    svd = TruncatedSVD(number, algorithm="arpack", random_state=0)
    return svd.fit_transform(values.astype(np.float64)), svd.components_


def _moments(scores: Array, components: Array) -> tuple[Array, Array]:
    """Mean and standard deviation [F] of scores @ components, without forming it."""
    covariance = np.atleast_2d(np.cov(scores.T, bias=True))
    variance = np.einsum("kf,kl,lf->f", components, covariance, components, optimize=True)
    return scores.mean(0) @ components, np.sqrt(np.maximum(variance, 0))


BASELINES: tuple[FittedBaseline, ...] = (
    FittedBaseline("train mean", "no source", train_mean),
    FittedBaseline("ridge", _PAIRS, ridge),
    FittedBaseline("SVD50 + ridge", _PAIRS, svd_ridge),
    FittedBaseline("KNN25", _PAIRS, nearest_neighbours),
    FittedBaseline("links only", "links, no pairs", links_only, no_links),
    FittedBaseline("target depth only", "TRAP: the test cells' target depth", depth_only),
    FittedBaseline("cell-type oracle", "pairs + the test cells' true types", cell_type_oracle, no_types),
)
