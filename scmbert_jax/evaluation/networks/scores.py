"""How well scores of pairs find the edges among them: AUROC, AUPRC, EPR, each defined once."""

import numpy as np
from scipy.stats import rankdata

Array = np.ndarray

NEW_EDGES = "auroc_new"
METRICS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "auprc_ratio": "AUPRC / density",
    "epr": "EPR",
    "regulator_auroc": "AUROC per regulator",
    NEW_EDGES: "AUROC without the prior's edges",
}


def auroc(scores: Array, is_edge: Array) -> float:
    """Probability that an edge scores above a pair that is none, ties counting half; nan without one of both."""
    positive, negative = int(is_edge.sum()), int((~is_edge).sum())
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[is_edge].sum() - positive * (positive + 1) / 2) / (positive * negative))


def auprc(scores: Array, is_edge: Array) -> float:
    """Average precision; pairs of one score are taken together (Davis and Goadrich 2006 without interpolation)."""
    positive = int(is_edge.sum())
    if not positive:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    sorted_scores, hits = scores[order], np.cumsum(is_edge[order])
    last = np.r_[np.flatnonzero(np.diff(sorted_scores)), len(scores) - 1]  # of each group of ties
    precision, recall = hits[last] / (last + 1), hits[last] / positive
    return float((np.diff(np.r_[0, recall]) * precision).sum())


def early_precision_ratio(scores: Array, is_edge: Array) -> float:
    """Precision among the k highest scores by the density of edges, k the number of edges (Pratapa et al. 2020).

    Of pairs that tie at the k-th place, as many as there is room for are drawn at random: their expectation is taken.
    """
    positive = int(is_edge.sum())
    if not positive:
        return float("nan")
    threshold = np.partition(scores, len(scores) - positive)[len(scores) - positive]
    above, at = scores > threshold, scores == threshold
    hits = is_edge[above].sum() + (positive - above.sum()) * is_edge[at].mean()
    return float(hits / positive / is_edge.mean())


def precision_at(scores: Array, is_edge: Array, at: Array) -> Array:
    """float [K], of the k highest scores for each k of int [K]; ties at their expectation, nan without pairs."""
    if not len(scores):
        return np.full(len(at), np.nan)
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(is_edge[order])
    last = np.r_[np.flatnonzero(np.diff(scores[order])), len(scores) - 1]  # of each group of ties
    # Within a group each pair is as likely as another to be among the k: hits grow evenly.
    return np.interp(at, np.r_[0, last + 1], np.r_[0, hits[last]]) / at


def score_pairs(scores: Array, is_edge: Array, among: Array) -> dict[str, float]:
    """Metric -> value, of scores float [R, G] on the pairs bool [R, G] that are looked at."""
    values, truth = scores[among], is_edge[among]
    if not np.isfinite(values).all():
        raise ValueError("scores that are not finite")
    area = auprc(values, truth)
    own = [auroc(row[mine], edges[mine]) for row, edges, mine in zip(scores, is_edge, among, strict=True)]
    return {
        "auroc": auroc(values, truth),
        "auprc": area,
        "auprc_ratio": area / truth.mean() if truth.any() else float("nan"),
        "epr": early_precision_ratio(values, truth),
        "regulator_auroc": float(np.nanmean(own)) if np.isfinite(own).any() else float("nan"),
    }
