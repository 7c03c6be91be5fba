"""Edges by the decoder of `link_prediction`: the probability that a model which was trained on a network gives a pair.

links             of the genes' rows of the feature table: the same in all cells, so there is nothing to resample
contextual_links  of rows that know these cells (`LinkHead.in_context`), of a model that was trained so

Edges of the network that the model was trained on are found because they were seen.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scmbert_jax.models.link_decoders import EDGE, SIGN
from scmbert_jax.networks.embedding import gene_states
from scmbert_jax.networks.population import Population
from scmbert_jax.networks.scores import Reader, Resampling, Scores
from scmbert_jax.objectives.link_prediction.head import GeneStates
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.scmbert import ModelDefinition

Array = np.ndarray


def why_no_links(model: PretrainedModel) -> str:
    """Why a model has no decoder of edges; "" where it has one."""
    if model.config.objectives.link_prediction.weight > 0:
        return ""
    return "the model was not trained with link_prediction, so nothing in it decodes edges; use another method"


def why_no_context(model: PretrainedModel) -> str:
    """Why the decoder of a model cannot know cells; "" where it can."""
    if model.config.objectives.link_prediction.context:
        return why_no_links(model)
    return why_no_links(model) or "its decoder was trained without objectives.link_prediction.context; use links"


def link_scores(population: Population, reader: Reader, resampling: Resampling) -> Iterator[Scores]:
    yield _scores(population, reader, _rows(population, reader), None)


def contextual_link_scores(population: Population, reader: Reader, resampling: Resampling) -> Iterator[Scores]:
    rows = _rows(population, reader)
    for states in gene_states(population, reader, resampling.weights(population.cells.number), with_zeros=True):
        yield _scores(population, reader, rows, states)


def _rows(population: Population, reader: Reader) -> Array:
    """float32 [G, D], of the feature table."""
    first, _ = reader.model.definition.layout.slices["rna"]
    return np.asarray(reader.given[3])[first + population.genes]


def _scores(population: Population, reader: Reader, rows: Array, states: Array | None) -> Scores:
    """`states`: [G, D], means over the cells; None: rows know of no cells."""
    definition, params, constants, _ = reader.given
    context = None
    if states is not None:
        context = GeneStates(jnp.asarray(states, jnp.float32), jnp.asarray(states.any(axis=1), jnp.float32))
    places = jnp.asarray(population.regulators, jnp.int32)
    logits = np.asarray(_logits(definition, params, constants, jnp.asarray(rows), places, context))
    sign = np.where(logits[..., SIGN] > 0, 1, -1).astype(np.int8)
    return Scores(1 / (1 + np.exp(-logits[..., EDGE].astype(np.float64))), sign)


@partial(jax.jit, static_argnums=0)
def _logits(
    definition: ModelDefinition,
    params: Any,
    constants: Any,
    rows: jax.Array,
    regulators: jax.Array,
    context: GeneStates | None,
) -> jax.Array:
    """float32 [R, G, 2] of rows [G, D], of which int32 [R] are regulators."""
    head = definition.merge(params, constants).link_head
    genes = rows if context is None else head.in_context(rows, context)
    return head.of_all_pairs(genes[regulators], genes)
