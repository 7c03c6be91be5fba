"""Edges by co-expression, without a model: the floor beside the methods that ask one.

The same functions as the baselines of `scmbert evaluate networks`, of the same cells and genes as the other methods.
"""

from collections.abc import Iterator

import numpy as np

from scmbert_jax.evaluation.networks.baselines import Given, Score, boosted, mutual_information
from scmbert_jax.evaluation.networks.pairs import NetworkSplit, Pairs
from scmbert_jax.networks.population import Population
from scmbert_jax.networks.scores import Reader, Resampling, Scores

Array = np.ndarray


def pearson_scores(population: Population, reader: Reader, resampling: Resampling) -> Iterator[Scores]:
    for given in _given(population, reader, resampling):
        yield _correlation(population, given.centred)


def spearman_scores(population: Population, reader: Reader, resampling: Resampling) -> Iterator[Scores]:
    for given in _given(population, reader, resampling):
        yield _correlation(population, given.centred_ranks)


def mutual_information_scores(population: Population, reader: Reader, resampling: Resampling) -> Iterator[Scores]:
    yield from _of_baseline(mutual_information, population, reader, resampling)


def boosting_scores(population: Population, reader: Reader, resampling: Resampling) -> Iterator[Scores]:
    yield from _of_baseline(boosted, population, reader, resampling)


def _given(population: Population, reader: Reader, resampling: Resampling) -> Iterator[Given]:
    weights, cells = resampling.weights(population.cells.number), np.arange(population.cells.number)
    for done, own in enumerate(weights):
        yield Given(population.expression[np.repeat(cells, own)])
        reader.progress(done + 1, len(weights))


def _correlation(population: Population, unit: Array) -> Scores:
    found = unit[:, population.regulators].T @ unit
    return Scores(np.abs(found), np.sign(found).astype(np.int8))


def _of_baseline(score: Score, population: Population, reader: Reader, resampling: Resampling) -> Iterator[Scores]:
    names = population.genes.astype(str)
    nothing = np.zeros(population.is_pair.shape, bool)
    pairs = Pairs(names[population.regulators], names, nothing, population.is_pair, names[population.regulators])
    split = NetworkSplit(nothing, nothing, nothing)
    for given in _given(population, reader, resampling):
        yield Scores(np.maximum(score(pairs, split, given, resampling.seed), 0.0))
