"""What scores pairs without a model: node degree, prior networks, co-expression. A baseline: a function and a line."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.stats import rankdata
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingClassifier

from scmbert_jax.evaluation.networks.pairs import NetworkSplit, Pairs
from scmbert_jax.evaluation.networks.prior_graph import PriorGraph
from scmbert_jax.evaluation.networks.training_graph import training_graph_scores

Array = np.ndarray

_BINS = 8  # of mutual information
_BOOSTED_CELLS = 1000
_BOOSTED_PAIRS = 30_000  # without an edge


@dataclass(frozen=True)
class Given:
    """What methods may look at beside the pairs that learn.

    Attributes:
      expression: float32 [n cells, G], log1p of counts over the depth of the cell; None: no cells were given.
      prior: other networks; None: none was given.
    """

    expression: Array | None = None
    prior: PriorGraph | None = None

    @cached_property
    def centred(self) -> Array:
        """float64 [n, G], of mean 0 and length 1; 0 where a gene does not vary."""
        assert self.expression is not None
        return _unit(self.expression.astype(np.float64))

    @cached_property
    def centred_ranks(self) -> Array:
        assert self.expression is not None
        return _unit(rankdata(self.expression, axis=0))


# (pairs, split, given, seed) -> scores float [R, G], the higher the likelier.
Score = Callable[[Pairs, NetworkSplit, Given, int], Array]


@dataclass(frozen=True)
class NetworkMethod:
    """A way to score pairs.

    Attributes:
      name: of its row.
      needs: "", "cells", "prior", "prior or cells" or "list" (of regulators): without it there is no row.
      score: see `Score`.
      learns: whether it looks at labels of pairs, so that another split gives another score.
    """

    name: str
    needs: str
    score: Score
    learns: bool = False


def identity(pairs: Pairs, split: NetworkSplit, given: Given, seed: int) -> Array:
    """The fraction of edges among the regulator's training pairs, and among the gene's; without any, among all."""
    edges, among = pairs.is_edge & split.train, split.train
    mean = edges.sum() / max(among.sum(), 1)
    rates = []
    for axis in (1, 0):
        number = among.sum(axis)
        rates.append(np.where(number > 0, edges.sum(axis) / np.maximum(number, 1), mean))
    return rates[0][:, None] + rates[1][None]


def permuted_identity(pairs: Pairs, split: NetworkSplit, given: Given, seed: int) -> Array:
    """`identity` of labels that were shuffled among the training pairs."""
    is_edge = pairs.is_edge.copy()
    is_edge[split.train] = np.random.default_rng(seed).permutation(is_edge[split.train])
    return identity(replace(pairs, is_edge=is_edge), split, given, seed)


def training_graph(pairs: Pairs, split: NetworkSplit, given: Given, seed: int) -> Array:
    return training_graph_scores(pairs, split, seed)


def is_regulator(pairs: Pairs, split: NetworkSplit, given: Given, seed: int) -> Array:
    """Whether the gene is on the list of regulators that were looked at."""
    return np.broadcast_to(pairs.is_listed[None].astype(np.float64), pairs.is_edge.shape)


def prior_edges(pairs: Pairs, split: NetworkSplit, given: Given, seed: int) -> Array:
    assert given.prior is not None
    return given.prior.is_edge.astype(np.float64)


def prior_degree(pairs: Pairs, split: NetworkSplit, given: Given, seed: int) -> Array:
    """How many regulators the gene has in the prior networks."""
    assert given.prior is not None
    return np.broadcast_to(given.prior.in_degree[None], pairs.is_edge.shape)


def pearson(pairs: Pairs, split: NetworkSplit, given: Given, seed: int) -> Array:
    return np.abs(given.centred[:, pairs.gene_of_regulators].T @ given.centred)


def spearman(pairs: Pairs, split: NetworkSplit, given: Given, seed: int) -> Array:
    return np.abs(given.centred_ranks[:, pairs.gene_of_regulators].T @ given.centred_ranks)


def mutual_information(pairs: Pairs, split: NetworkSplit, given: Given, seed: int) -> Array:
    """In nats, between values in bins: zero, and seven of equally many expressing cells."""
    assert given.expression is not None
    values = given.expression
    number, genes = values.shape
    bins = np.zeros((number, genes), np.int64)
    for gene in range(genes):
        expressed = values[:, gene] > 0
        ranks = rankdata(values[expressed, gene], "min") - 1
        bins[expressed, gene] = 1 + (ranks * (_BINS - 1)) // max(int(expressed.sum()), 1)
    columns = pairs.gene_of_regulators
    alone, joint = np.zeros(genes), np.zeros((len(columns), genes))  # entropies
    for first in range(_BINS):
        of_gene = (bins == first).astype(np.float32)
        alone += _entropy(of_gene.mean(0))
        for second in range(_BINS):
            of_regulator = (bins[:, columns] == second).astype(np.float32)
            joint += _entropy(of_regulator.T @ of_gene / number)
    return alone[columns][:, None] + alone[None] - joint


def boosted(pairs: Pairs, split: NetworkSplit, given: Given, seed: int) -> Array:
    """Importance of each regulator for predicting a gene by gradient boosting (after GRNBoost2; scikit-learn's trees).

    Of at most 1,000 cells; 100 trees of depth 3, a tenth of the regulators at each node.
    """
    assert given.expression is not None
    rng = np.random.default_rng(seed)
    cells = rng.permutation(len(given.expression))[:_BOOSTED_CELLS]
    values, columns = given.expression[cells], pairs.gene_of_regulators
    found = np.zeros(pairs.is_edge.shape)
    for gene in range(values.shape[1]):
        if not values[:, gene].any():
            continue
        others = np.flatnonzero(columns != gene)
        trees = GradientBoostingRegressor(
            n_estimators=100, learning_rate=0.05, max_features=0.1, subsample=0.9, random_state=seed
        ).fit(values[:, columns[others]], values[:, gene])
        found[others, gene] = trees.feature_importances_
    return found


def boosted_pairs(pairs: Pairs, split: NetworkSplit, given: Given, seed: int) -> Array:
    """Gradient boosting of what is known of a pair without its labels, learned from the labels of training pairs.

    Whether the gene is a regulator; of the prior networks, `PriorGraph.features`; of the cells, mean and spread of both
    genes and their correlation. So it knows a gene by its neighbours and its expression, never by name: the floor for
    graph networks.
    """
    features = [pairs.is_listed[None], *([] if given.prior is None else given.prior.features)]
    if given.expression is not None:
        columns = pairs.gene_of_regulators
        correlation = given.centred[:, columns].T @ given.centred
        mean, spread = given.expression.mean(0), given.expression.std(0)
        features += [mean[columns][:, None], spread[columns][:, None], mean[None], spread[None]]
        features += [correlation, np.abs(correlation)]
    x = np.stack([np.broadcast_to(own, pairs.is_edge.shape).ravel() for own in features], axis=1).astype(np.float32)
    is_edge, rows = pairs.is_edge.ravel(), np.flatnonzero(split.train)
    drawn = np.random.default_rng(seed).random(len(rows)) < _BOOSTED_PAIRS / len(rows)
    rows = rows[is_edge[rows] | drawn]
    trees = HistGradientBoostingClassifier(
        learning_rate=0.04, max_leaf_nodes=8, min_samples_leaf=80, l2_regularization=20, random_state=seed
    )
    found = np.zeros(is_edge.shape)
    tested = np.flatnonzero(split.validation | split.test)
    found[tested] = trees.fit(x[rows], is_edge[rows]).decision_function(x[tested])
    return found.reshape(pairs.is_edge.shape)


def boosted_shuffled(pairs: Pairs, split: NetworkSplit, given: Given, seed: int) -> Array:
    """`boosted_pairs` over priors whose edges were shuffled, all degrees kept: without what the wiring says."""
    assert given.prior is not None
    return boosted_pairs(pairs, split, replace(given, prior=given.prior.shuffled(seed)), seed)


BASELINES = [
    NetworkMethod("identity (degree among training pairs)", "", identity, learns=True),
    NetworkMethod("identity, permuted labels", "", permuted_identity, learns=True),
    NetworkMethod("degrees and neighbours among training pairs", "", training_graph, learns=True),
    NetworkMethod("the gene is a regulator, too", "list", is_regulator),
    NetworkMethod("edges of the prior", "prior", prior_edges),
    NetworkMethod("in-degree in the prior", "prior", prior_degree),
    NetworkMethod("boosting of pair features", "prior or cells", boosted_pairs, learns=True),
    NetworkMethod("boosting of pair features, shuffled prior", "prior", boosted_shuffled, learns=True),
    NetworkMethod("|Pearson|", "cells", pearson),
    NetworkMethod("|Spearman|", "cells", spearman),
    NetworkMethod("mutual information", "cells", mutual_information),
    NetworkMethod("gradient boosting (GRNBoost2-type)", "cells", boosted),
]


def _entropy(p: Array) -> Array:
    return -p * np.log(np.maximum(p, 1e-30))


def _unit(values: Array) -> Array:
    values = values - values.mean(0)
    return values / np.maximum(np.linalg.norm(values, axis=0), 1e-12)
