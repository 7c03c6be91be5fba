"""Edges by attention: how much of a gene's last state comes from the token of a regulator. NOT EVIDENCE OF REGULATION.

Attention rollout (Abnar and Zuidema 2020; as interpretation/rollout.py, there of `[CLS]`): with A the mean attention of
a layer's heads, A' = (A + I) / 2, and the column of a regulator in A'_L ... A'_1 is what flows from it into each token.
From the right, that is one matrix times a few columns after the other. An edge's weight is the mean over the cells
that express both. What a model looks at says nothing of what causes what.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scmbert_jax.interpretation.rollout import queries_and_keys_of
from scmbert_jax.models.attention.chunked import HIDDEN, join_tokens, split_tokens
from scmbert_jax.models.encoder import Encoder
from scmbert_jax.models.token_sequence import CutBatch, pack_tokens
from scmbert_jax.networks.population import FEWEST_EXPRESSING, Population
from scmbert_jax.networks.scores import Reader, Resampling, Scores
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.scmbert import ModelDefinition

Array = np.ndarray

_QUERIES = 128  # of a block
_COLUMNS = 32  # regulators of a cell are filled up to a multiple of it: few programs


def why_no_rollout(model: PretrainedModel) -> str:
    """Why there is no rollout of a model; "" where there is."""
    if model.config.model.encoder_sharing == "per_modality":
        return "the model has an encoder for each modality, of which there is no rollout; use another method"
    return ""


def attention_scores(population: Population, reader: Reader, resampling: Resampling) -> Iterator[Scores]:
    """Mean rollout over the cells that express both genes; 0 for pairs of few cells."""
    shape = len(population.regulators), len(population.genes)
    weights = resampling.weights(population.cells.number)
    total = np.zeros((len(weights), *shape), np.float32)
    seen = np.zeros((population.cells.number, shape[1]), np.float32)
    place = reader.places(population)
    column_of = np.full(shape[1], -1)
    column_of[population.regulators] = np.arange(shape[0])
    for mine, batch, done in population.batches(reader.opened, reader.num_tokens, reader.batch_size):
        ids, shown = (np.asarray(own) for own in _tokens(batch))
        genes = np.where(shown, place[ids], -1)
        is_regulator = (genes >= 0) & (column_of[genes] >= 0)
        width = -(-max(int(is_regulator.sum(axis=1).max()), 1) // _COLUMNS) * _COLUMNS
        # The places of a cell's regulators come first among those of all its tokens.
        tokens = np.argsort(~is_regulator, axis=1, kind="stable")[:, :width].astype(np.int32)
        flows = np.asarray(_flows(*reader.given, batch, jnp.asarray(tokens)))
        for row, cell in enumerate(mine.tolist()):
            targets = np.flatnonzero(genes[row] >= 0)
            number = int(is_regulator[row].sum())
            seen[cell, genes[row, targets]] = 1
            of_cell = column_of[genes[row, tokens[row, :number]]], genes[row, targets]
            for own, sums in zip(weights[:, cell], total, strict=True):
                if own:
                    sums[np.ix_(*of_cell)] += np.float32(own) * flows[row, targets, :number].T
        reader.progress(done, population.cells.number)
    for own, sums in zip(weights, total, strict=True):
        number_of_cells = (seen[:, population.regulators] * own[:, None].astype(np.float32)).T @ seen
        yield Scores(np.where(number_of_cells >= FEWEST_EXPRESSING, sums / np.maximum(number_of_cells, 1), 0.0))


@jax.jit
def _tokens(batch: CutBatch) -> tuple[jax.Array, jax.Array]:
    """(features int32 [B, S], which tokens are expressed bool [B, S])."""
    tokens = pack_tokens(batch)
    return tokens.feature_ids, tokens.valid & (tokens.counts > 0)


# Compiled once per definition and batch shape.
@partial(jax.jit, static_argnums=0)
def _flows(
    definition: ModelDefinition, params: Any, constants: Any, table: jax.Array, batch: CutBatch, places: jax.Array
) -> jax.Array:
    """float32 [B, S, C]: what flows into each token from those at `places` int32 [B, C] of the S."""
    model = definition.merge(params, constants)
    tokens = pack_tokens(batch)
    rows = model.rows(table, tokens)
    x = model.embedding(rows, tokens, jnp.zeros(tokens.valid.shape, bool), batch.covariates)
    assert isinstance(model.encoder, Encoder)
    flow = jax.nn.one_hot(places + 1, x.shape[1], axis=1, dtype=jnp.float32)  # [B, 1 + S, C]
    for q, k in queries_and_keys_of(model.encoder, x, tokens):
        flow = 0.5 * flow + 0.5 * attention_times(q, k, flow, tokens.lengths + 1)
    return flow[:, 1:]


def attention_times(q: jax.Array, k: jax.Array, flow: jax.Array, lengths: jax.Array) -> jax.Array:
    """The attention [B, S, S] of q, k [B, S, H, Dh], the mean of its heads, times flow [B, S, C] -> float32 [B, S, C].

    `lengths` int32 [B]: keys that are real.
    """
    real = jnp.arange(k.shape[1])[None] < lengths[:, None]  # [B, S]

    def of_block(own: jax.Array) -> jax.Array:  # [B, c, H, Dh]
        logits = jnp.einsum("bqhd,bkhd->bhqk", own, k, preferred_element_type=jnp.float32) * k.shape[-1] ** -0.5
        attention = jax.nn.softmax(jnp.where(real[:, None, None], logits, HIDDEN)).mean(axis=1)
        return jnp.einsum("bqk,bkc->bqc", attention, flow)

    return join_tokens(jax.lax.map(of_block, split_tokens(q, _QUERIES)), flow.shape[1])
