"""Edges by in-silico perturbation: how much of a gene a model expects less, once a regulator is removed from a cell.

See interpretation/perturbation.py, and there what is read of which models. Where that has a direction, a gene that
falls is one that the regulator activates. It is what the model makes of the cells it was trained on, not of causes.

A regulator is removed from a cell at a time, which is the cost, so bootstraps are of parts of the cells and not of
cells: each part's mean response is computed once, and parts are drawn.
"""

from collections.abc import Iterator

import numpy as np

from scmbert_jax.annotation.representation import Reading
from scmbert_jax.interpretation.perturbation import STATES, CellsToPerturb, read_out_of
from scmbert_jax.networks.population import Population
from scmbert_jax.networks.scores import Reader, Resampling, Scores

Array = np.ndarray

PARTS = 20  # of the cells, where there are bootstraps
CELLS_PER_REGULATOR = 100  # that a regulator is removed from, at most, of those that express it


def perturbation_scores(population: Population, reader: Reader, resampling: Resampling) -> Iterator[Scores]:
    """Sizes of mean responses."""
    parts = PARTS if resampling.number else 1
    # Only the counts of genes: what else the cells have is not read, as by the other methods.
    reading = Reading(num_tokens=reader.num_tokens, batch_size=reader.batch_size)
    cells = CellsToPerturb(reader.model, reader.opened, population.cells, np.arange(population.cells.number), reading)
    genes = population.genes[population.regulators]
    means, numbers = [], []
    for part in range(parts):
        found = cells.responses(
            genes,
            targets=population.genes,
            rows=np.arange(part, population.cells.number, parts),
            cells_per_gene=-(-CELLS_PER_REGULATOR // parts),
        )
        said = np.isfinite(found.mean)
        means.append(np.where(said, found.mean, 0.0))
        numbers.append(np.where(said, found.cells[:, None], 0))
        reader.progress(part + 1, parts)
    signed = read_out_of(reader.model) != STATES
    for own in resampling.weights(parts):
        total, number = np.zeros(means[0].shape), np.zeros(means[0].shape)
        for times, mean, cells_of_part in zip(own.tolist(), means, numbers, strict=True):
            total += times * cells_of_part * mean
            number += times * cells_of_part
        response = total / np.maximum(number, 1)
        yield Scores(np.abs(response), -np.sign(response).astype(np.int8) if signed else None)
