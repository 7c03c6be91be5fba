"""What scores pairs without a model: node degree, prior networks, co-expression. A baseline: a function and a line."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import rankdata
from sklearn.ensemble import GradientBoostingRegressor

from scmbert_jax.evaluation.networks.pairs import NetworkSplit, Pairs

Array = np.ndarray

_BINS = 8  # of mutual information
_BOOSTED_CELLS = 1000


@dataclass(frozen=True)
class Given:
    """What methods may look at beside the pairs that learn.

    Attributes:
      expression: float32 [n cells, G], log1p of counts over the depth of the cell; None: no cells were given.
      prior: bool [R, G], edges of other networks; None: none was given.
      prior_degree: float64 [G], regulators of each gene in them, those of no pair included.
    """

    expression: Array | None = None
    prior: Array | None = None
    prior_degree: Array | None = None

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
      needs: "" or "cells" or "prior": without it there is no row.
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
    return identity(Pairs(pairs.regulators, pairs.genes, is_edge, pairs.is_pair, 0), split, given, seed)


def prior_edges(pairs: Pairs, split: NetworkSplit, given: Given, seed: int) -> Array:
    assert given.prior is not None
    return given.prior.astype(np.float64)


def prior_degree(pairs: Pairs, split: NetworkSplit, given: Given, seed: int) -> Array:
    """How many regulators the gene has in the prior networks."""
    assert given.prior_degree is not None
    return np.broadcast_to(given.prior_degree[None], pairs.is_edge.shape)


def pearson(pairs: Pairs, split: NetworkSplit, given: Given, seed: int) -> Array:
    return np.abs(given.centred[:, _columns(pairs)].T @ given.centred)


def spearman(pairs: Pairs, split: NetworkSplit, given: Given, seed: int) -> Array:
    return np.abs(given.centred_ranks[:, _columns(pairs)].T @ given.centred_ranks)


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
    columns = _columns(pairs)
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
    values, columns = given.expression[cells], _columns(pairs)
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


BASELINES = [
    NetworkMethod("identity (degree among training pairs)", "", identity, learns=True),
    NetworkMethod("identity, permuted labels", "", permuted_identity, learns=True),
    NetworkMethod("edges of the prior", "prior", prior_edges),
    NetworkMethod("in-degree in the prior", "prior", prior_degree),
    NetworkMethod("|Pearson|", "cells", pearson),
    NetworkMethod("|Spearman|", "cells", spearman),
    NetworkMethod("mutual information", "cells", mutual_information),
    NetworkMethod("gradient boosting (GRNBoost2-type)", "cells", boosted),
]


def _columns(pairs: Pairs) -> Array:
    """int64 [R], the place of each regulator among the genes."""
    place = {name: number for number, name in enumerate(pairs.genes.tolist())}
    return np.array([place[name] for name in pairs.regulators.tolist()])


def _entropy(p: Array) -> Array:
    return -p * np.log(np.maximum(p, 1e-30))


def _unit(values: Array) -> Array:
    values = values - values.mean(0)
    return values / np.maximum(np.linalg.norm(values, axis=0), 1e-12)
