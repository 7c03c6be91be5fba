"""Attention rollout (Abnar and Zuidema 2020) of `[CLS]`, without a matrix of all tokens by all tokens.

With A the mean attention of the heads of a layer, and half of each token kept by the residual (A' = (A + I) / 2),
rollout is the row of `[CLS]` of A'_L ... A'_1. From the left, that is a vector times one matrix after the other: a
layer's queries are worked off a block at a time, and only a block by all keys is ever held.

It says what was looked at, not what a type comes from, and it is the same for every type: it is not evidence of
regulation. Of `favor` attention, it is of the softmax which that estimates.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scmbert_jax.models.attention.chunked import HIDDEN, split_tokens
from scmbert_jax.models.encoder import Encoder
from scmbert_jax.models.token_sequence import CutBatch, TokenSequence, pack_tokens
from scmbert_jax.scmbert import ModelDefinition

_QUERIES = 128  # of a block


@partial(jax.jit, static_argnums=0)
def rollout_of_tokens(
    definition: ModelDefinition, params: Any, constants: Any, table: jax.Array, batch: CutBatch
) -> jax.Array:
    """float32 [B, S]: how much of `[CLS]` comes from each token; with what `[CLS]` keeps, rows sum to 1."""
    model = definition.merge(params, constants)
    tokens = pack_tokens(batch)
    rows = model.rows(table, tokens)
    x = model.embedding(rows, tokens, jnp.zeros(tokens.valid.shape, bool), batch.covariates)
    assert isinstance(model.encoder, Encoder)  # `ModelExplainer.methods` has no rollout of others
    queries_and_keys = queries_and_keys_of(model.encoder, x, tokens)
    flow = jnp.zeros(x.shape[:2]).at[:, 0].set(1.0)
    for q, k in reversed(queries_and_keys):
        flow = 0.5 * flow + 0.5 * times_attention(flow, q, k, tokens.lengths + 1)
    return flow[:, 1:]


def queries_and_keys_of(encoder: Encoder, x: jax.Array, tokens: TokenSequence) -> list[tuple[jax.Array, jax.Array]]:
    """Of each layer, float [B, 1 + S, H, Dh] each; x [B, 1 + S, D]."""
    graph, stacked = nnx.split(encoder.blocks)
    experts = tuple(1 + encoder.modalities.index(name) for name, _ in tokens.widths) if encoder.modalities else ()
    found = []
    for number in range(encoder.num_layers):
        block = nnx.merge(graph, jax.tree.map(lambda leaf, n=number: leaf[n], stacked))
        qkv = block.queries_keys_values(x)  # [B, 1 + S, 3, H, Dh]
        found.append((qkv[:, :, 0], qkv[:, :, 1]))
        x = block(x, tokens, experts)
    return found


def times_attention(flow: jax.Array, q: jax.Array, k: jax.Array, lengths: jax.Array) -> jax.Array:
    """flow [B, S] times the attention [B, S, S] of q, k [B, S, H, Dh], the mean of its heads -> float32 [B, S].

    `lengths` int32 [B]: keys that are real. A padded query has no flow.
    """
    real = jnp.arange(k.shape[1])[None] < lengths[:, None]  # [B, S]

    def add(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        own, own_flow = block  # [B, c, H, Dh], [B, c]
        logits = jnp.einsum("bqhd,bkhd->bhqk", own, k, preferred_element_type=jnp.float32) * k.shape[-1] ** -0.5
        attention = jax.nn.softmax(jnp.where(real[:, None, None], logits, HIDDEN))
        return total + jnp.einsum("bq,bhqk->bk", own_flow, attention) / k.shape[2], None

    blocks = split_tokens(q, _QUERIES), split_tokens(jnp.where(real, flow, 0.0), _QUERIES)
    return jax.lax.scan(add, jnp.zeros(flow.shape, jnp.float32), blocks)[0]
