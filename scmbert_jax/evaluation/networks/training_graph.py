"""What the training pairs say of another pair: both degrees, and who has the same edges beyond what degrees explain.

A logistic regression of six numbers of a pair. They are learned on training pairs that are held out in turn, a quarter
each, just as the pairs that test are: of unseen regulators, say. So degrees are weighed by what they are worth there.
"""

from collections.abc import Iterator

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scmbert_jax.evaluation.networks.pairs import NetworkSplit, Pairs

Array = np.ndarray

_FOLDS = 4
_PRIOR_PAIRS = 5.0  # by which a rate of edges is drawn to that of all pairs
_PRIOR_LENGTH = 3.0  # by which a similarity of few pairs is drawn to 0
_STRENGTH = 0.01  # C of the regression: features are few, folds are small


def training_graph_scores(pairs: Pairs, split: NetworkSplit, seed: int) -> Array:
    """Log-odds float [R, G]."""
    features, labels = [], []
    for known, held in _folds(split, seed):
        features.append(_features(pairs, known)[held])
        labels.append(pairs.is_edge[held])
    x, is_edge = np.concatenate(features), np.concatenate(labels)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=_STRENGTH, max_iter=300)).fit(x, is_edge)
    found: Array = model.decision_function(_features(pairs, split.train).reshape(-1, x.shape[1]))
    return found.reshape(pairs.is_edge.shape)


def _folds(split: NetworkSplit, seed: int) -> Iterator[tuple[Array, Array]]:
    """(pairs that are known, pairs that are held out) bool [R, G]; unseen sides of the test are unseen here, too."""
    rng = np.random.default_rng(seed)
    regulators, genes = (rng.permutation(length)[:, None] % _FOLDS for length in split.train.shape)
    unseen = [not (split.train.any(axis) & split.test.any(axis)).any() for axis in (1, 0)]
    sides = [own for own, apart in zip((regulators, genes.T), unseen, strict=True) if apart]
    of_pairs = sides or [rng.integers(0, _FOLDS, split.train.shape)]
    for fold in range(_FOLDS):
        known, held = split.train, split.train
        for own in of_pairs:
            known, held = known & (own != fold), held & (own == fold)
        yield known, held


def _features(pairs: Pairs, known: Array) -> Array:
    """float64 [R, G, 6] of the edges among `known` bool [R, G]."""
    is_edge, of = (pairs.is_edge & known).astype(np.float64), pairs.gene_of_regulators
    mean = is_edge.sum() / max(known.sum(), 1)
    rates = [(is_edge.sum(axis) + _PRIOR_PAIRS * mean) / (known.sum(axis) + _PRIOR_PAIRS) for axis in (1, 0)]
    expected = np.clip(rates[0][:, None] * rates[1][None] / mean, 0, 1 - 1e-3)
    beyond = np.where(known, (is_edge - expected) / np.sqrt(expected * (1 - expected) + 1e-3), 0)
    of_regulators, of_genes = _similarity(beyond), _similarity(beyond.T)
    degrees = [np.log(rate / (1 - rate)) for rate in rates]
    numbers = (
        degrees[0][:, None],
        degrees[1][None],
        of_regulators @ beyond / (np.abs(of_regulators).sum(1)[:, None] + 0.1),
        beyond @ of_genes / (np.abs(of_genes).sum(0)[None] + 0.1),
        of_genes[of],  # the regulator, as a gene, is regulated like the gene
        degrees[1][of][:, None],  # how many regulate the regulator
    )
    return np.stack([np.broadcast_to(own, known.shape) for own in numbers], axis=-1)


def _similarity(rows: Array) -> Array:
    """float64 [n, n], cosines of rows; 0 with itself."""
    length = np.linalg.norm(rows, axis=1) + _PRIOR_LENGTH
    found: Array = (rows @ rows.T) / length[:, None] / length[None]
    np.fill_diagonal(found, 0)
    return found
