"""Edges by likeness: the cosine between the states that a model gives to a regulator and to a gene in the same cells.

The state of a gene is the mean of its token's states over the cells that express it, minus the mean over genes, which
all states share. Likeness has no direction and no sign: of two regulators, each is as much the other's.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from scmbert_jax.models.token_sequence import CutBatch, pack_tokens
from scmbert_jax.networks.population import Population
from scmbert_jax.networks.scores import Reader, Resampling, Scores
from scmbert_jax.scmbert import ModelDefinition

Array = np.ndarray


def embedding_scores(population: Population, reader: Reader, resampling: Resampling) -> Iterator[Scores]:
    """Cosines above 0; 0 for other pairs."""
    for states in gene_states(population, reader, resampling.weights(population.cells.number)):
        known = states.any(axis=1, keepdims=True)
        centred = np.where(known, states - states.sum(axis=0) / max(int(known.sum()), 1), 0.0)
        unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
        yield Scores(np.maximum(unit[population.regulators] @ unit.T, 0.0))


def gene_states(population: Population, reader: Reader, weights: Array, with_zeros: bool = False) -> Array:
    """float64 [B, G, D]: mean states of each gene's tokens over the cells that express it; 0 where none does.

    Args:
      weights: int [B, n], how often each cell counts.
      with_zeros: also over cells that show a count of 0 of it.
    """
    width = reader.model.config.model.embed_dim
    total = np.zeros((len(weights), len(population.genes), width), np.float64)
    number = np.zeros((len(weights), len(population.genes), 1), np.float64)
    place = reader.places(population)
    for mine, batch, done in population.batches(reader.opened, reader.num_tokens, reader.batch_size):
        states, ids, counts = (np.asarray(own)[: len(mine)] for own in _states(*reader.given, batch))
        shown = (place[ids] >= 0) & (counts >= (0 if with_zeros else 1))
        row, column = np.nonzero(shown)
        gene, cell, values = place[ids[row, column]], mine[row], states[row, column]
        # Tokens by gene; the order within a gene is that of the batch.
        order = np.argsort(gene, kind="stable")
        starts = np.searchsorted(gene[order], np.arange(len(population.genes) + 1))
        for own, sums, numbers in zip(weights, total, number, strict=True):
            of_tokens = own[cell[order]].astype(np.float32)
            matrix = sp.csr_matrix((of_tokens, order, starts), (len(population.genes), len(gene)))
            sums += matrix @ values
            numbers[:, 0] += np.asarray(matrix.sum(axis=1)).ravel()
        reader.progress(done, population.cells.number)
    return total / np.maximum(number, 1)


# Compiled once per definition and batch shape.
@partial(jax.jit, static_argnums=0)
def _states(
    definition: ModelDefinition, params: Any, constants: Any, table: jax.Array, batch: CutBatch
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(states of tokens float32 [B, S, D]; their features and counts int32 [B, S], -1 for what is no token)."""
    model = definition.merge(params, constants)
    tokens = pack_tokens(batch)
    states = model.encode(table, tokens, covariates=batch.covariates)[:, 1:].astype(jnp.float32)
    return states, tokens.feature_ids, jnp.where(tokens.valid, tokens.counts, -1)
