"""The pairs of a regulator and a gene that are looked at, and which of them learn, choose and test.

    edge        pairs at random
    regulator   all pairs of some regulators
    target      all pairs of some genes
    both        pairs of which neither the regulator nor the gene is in a pair that learns or chooses

Splits by edge measure memory of node degree: who has many targets among the pairs that learn, has many among those that
test. Only where both are unseen does degree say nothing.

No pair chooses or tests whose reverse learns: in a network without directions, as STRING's, it has the same label.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from data_pipelines.counter_hash import Purpose, fold_array, hash_of
from data_pipelines.networks.beeline import LabelNetwork
from data_pipelines.networks.negatives import KnownEdges, balanced_pairs, draw_negatives
from data_pipelines.networks.parts import TEST, VALIDATION, name_hashes
from scmbert_jax.errors import InputError

Array = np.ndarray

_FEWEST = 8  # regulators and genes, and edges


@dataclass(frozen=True)
class Pairs:
    """R regulators x G genes.

    Attributes:
      regulators: str [R], names of those with at least one edge; genes: str [G].
      is_edge: bool [R, G].
      is_pair: bool [R, G], all but a gene with itself.
      listed: str [R'], regulators that were looked at, with an edge or without.
    """

    regulators: Array
    genes: Array
    is_edge: Array
    is_pair: Array
    listed: Array

    @property
    def without_edges(self) -> int:
        """Regulators that were looked at and have none, which are left out."""
        return len(self.listed) - len(self.regulators)

    @cached_property
    def is_listed(self) -> Array:
        """bool [G], genes on a list of regulators. All False where the list is no more than who has an edge."""
        return np.isin(self.genes, self.listed) & (self.without_edges > 0)

    @cached_property
    def gene_of_regulators(self) -> Array:
        """int64 [R], the place of each regulator among the genes."""
        place = {name: number for number, name in enumerate(self.genes.tolist())}
        return np.array([place[name] for name in self.regulators.tolist()])

    @property
    def density(self) -> float:
        return float(self.is_edge.sum() / self.is_pair.sum())


@dataclass(frozen=True)
class NetworkSplit:
    """Which pairs are for what: bool [R, G] each, no pair in two of them."""

    train: Array
    validation: Array
    test: Array


def pairs_of(labels: LabelNetwork, name: str) -> Pairs:
    """Raises InputError where there are too few regulators, genes or edges for a split."""
    regulators = labels.regulators[np.isin(labels.regulators, labels.edges.source)]
    genes = labels.genes
    if min(len(regulators), len(genes), len(labels.edges)) < _FEWEST:
        raise InputError(
            f"{name}: {len(regulators):,} regulators with targets, {len(genes):,} genes, {len(labels.edges):,} edges; "
            f"at least {_FEWEST} of each are needed for a split."
        )
    of_regulator, of_gene = ({key: place for place, key in enumerate(names.tolist())} for names in (regulators, genes))
    is_edge = np.zeros((len(regulators), len(genes)), bool)
    is_edge[
        [of_regulator[key] for key in labels.edges.source.tolist()],
        [of_gene[key] for key in labels.edges.target.tolist()],
    ] = True
    return Pairs(regulators, genes, is_edge, regulators[:, None] != genes[None], labels.regulators)


def split_pairs(pairs: Pairs, split: str, seed: int) -> NetworkSplit:
    """The parts of a seed. They depend on the names alone, so not on the order of regulators and genes."""
    state = hash_of(seed, Purpose.NETWORK_PARTS)
    regulators, genes = (name_hashes(names, state) for names in (pairs.regulators, pairs.genes))
    if split == "edge":
        of_pairs = fold_array(regulators[:, None], genes[None])  # symmetric: an edge and its reverse are in one part
        part = np.zeros(of_pairs.shape, np.int8)
        part[pairs.is_pair] = _parts(of_pairs[pairs.is_pair])
    else:
        of_regulators, of_genes = _parts(regulators)[:, None], _parts(genes)[None]
        if split == "regulator":
            of_genes = of_regulators
        elif split == "target":
            of_regulators = of_genes
        part = np.where(of_regulators == of_genes, of_regulators, -1)
    train, validation, test = ((part == own) & pairs.is_pair for own in range(3))
    unknown = ~_reversed(pairs, train)
    return NetworkSplit(train, validation & unknown, test & unknown)


def _reversed(pairs: Pairs, among: Array) -> Array:
    """bool [R, G]: whether the pair from the gene to the regulator is among others, bool [R, G]."""
    found, of = np.zeros_like(among), pairs.gene_of_regulators
    found[:, of] = among[:, of].T
    return found


def with_drawn_tests(pairs: Pairs, split: NetworkSplit, kind: str, seed: int) -> NetworkSplit:
    """Of the pairs that test, edges and as many of the others, drawn by a rule of `NEGATIVES`.

    Of `degree_aware`, only edges that have their match (`balanced_pairs`). Raises InputError where there are not so
    many.
    """
    rows, columns = np.nonzero(pairs.is_edge)
    of = pairs.gene_of_regulators
    edges = KnownEdges(pairs.genes, of[rows], columns, of, np.arange(len(pairs.genes)), split.test)
    tested = pairs.is_edge & split.test
    if kind == "degree_aware":
        matched, negatives = balanced_pairs(edges, seed)
        tested = np.zeros_like(tested)
        tested[rows[matched], columns[matched]] = True
    else:
        negatives = draw_negatives(edges, kind, int(tested.sum()), seed)
    row_of = np.zeros(len(pairs.genes), np.int64)
    row_of[of] = np.arange(len(of))
    tested[row_of[negatives[:, 0]], negatives[:, 1]] = True
    return replace(split, test=tested)


def _parts(hashes: Array) -> Array:
    """int8 [n]: 2 (test), 1 (validation) or 0 (train), by the rank of the hashes."""
    rank = np.argsort(np.argsort(hashes, kind="stable"), kind="stable") / len(hashes)
    return np.where(rank < TEST, 2, np.where(rank < TEST + VALIDATION, 1, 0)).astype(np.int8)
