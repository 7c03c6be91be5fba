"""Message passing over a network of genes.

Edges are lists of equal length, padded with weight 0; a layer sums over them by segment:

    h'_v = h_v + gelu(W h_v + sum over kinds k of W_k m_kv)      m_kv: of the neighbours of v by edges of kind k, their
                                                               weighted mean (`mean`), or by attention (`attention`)

An edge is two of these: one along it, of kind k, one against it, of kind k + K. Relational graph networks:
Schlichtkrull et al. 2018 (arXiv 1703.06103); mean aggregation: Hamilton et al. 2017 (arXiv 1706.02216); attention:
Velickovic et al. 2018 (arXiv 1710.10903), by head, over the edges of a kind.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scmbert_jax.models.layers import LayerNorm
from scmbert_jax.models.parameters import filled, weight

Aggregation = Literal["mean", "attention"]


class GraphEdges(NamedTuple):
    """E edges among N nodes, each there once of a kind; int32 [E] but for the weight.

    Attributes:
      source, target: nodes; kind: in 0 .. K-1.
      weight: float32 [E], 0 for padding and for what must not be passed.
      reverse: the place of the edge of the same kind from target to source; -1 where there is none.
    """

    source: jax.Array
    target: jax.Array
    kind: jax.Array
    weight: jax.Array
    reverse: jax.Array


def graph_edges(
    source: np.ndarray, target: np.ndarray, kind: np.ndarray, weight: np.ndarray, padded_to: int = 0
) -> GraphEdges:
    """Of int [E], float [E]; padded to at least so many. Raises ValueError where an edge is there twice of a kind."""
    number, most = len(source), int(max(source.max(initial=0), target.max(initial=0))) + 1
    codes, back = (
        (kind.astype(np.int64) * most + first) * most + second for first, second in ((source, target), (target, source))
    )
    order = np.argsort(codes)
    if (np.diff(codes[order]) == 0).any():
        raise ValueError("an edge is there twice: one would pass messages while the other one is predicted")
    place = order[np.clip(np.searchsorted(codes, back, sorter=order), 0, number - 1)] if number else order
    reverse = np.where(codes[place] == back, place, -1)
    pad = max(padded_to - number, 0)

    def padded(own: np.ndarray, dtype: type, filling: int = 0) -> jax.Array:
        return jnp.asarray(np.pad(own.astype(dtype), (0, pad), constant_values=filling))

    return GraphEdges(
        padded(source, np.int32),
        padded(target, np.int32),
        padded(kind, np.int32),
        padded(weight, np.float32),
        padded(reverse, np.int32, -1),
    )


def without(edges: GraphEdges, places: jax.Array) -> GraphEdges:
    """The leak guard: neither the edges at `places` int32 [B] nor their reverses pass messages; -1 is none."""
    there = places >= 0
    reverse = jnp.where(there, edges.reverse[places], -1)
    both = jnp.concatenate([jnp.where(there, places, -1), reverse])
    outside = len(edges.weight)  # dropped, where a -1 would be the last
    return edges._replace(weight=edges.weight.at[jnp.where(both < 0, outside, both)].set(0.0, mode="drop"))


class _Layer(nnx.Module):
    def __init__(self, dim: int, num_kinds: int, num_heads: int, aggregation: Aggregation, rngs: nnx.Rngs):
        self.num_heads, self.aggregation = num_heads, aggregation
        self.norm = LayerNorm(dim)
        self.own = weight(rngs, (dim, dim), dim, (None, None))
        self.of_kinds = weight(rngs, (num_kinds, dim, dim), dim, (None, None, None))
        if aggregation == "attention":
            self.asks = weight(rngs, (num_kinds, num_heads, dim // num_heads), dim // num_heads, (None, None, None))
            self.answers = weight(rngs, (num_kinds, num_heads, dim // num_heads), dim // num_heads, (None, None, None))
        self.bias = filled(0.0, (dim,), (None,), "bias")

    def __call__(self, h: jax.Array, edges: GraphEdges) -> jax.Array:
        x = self.norm(h)
        number, dim = x.shape
        num_kinds = self.of_kinds.shape[0]
        # Of each node, what it would send along an edge of each kind; then one gather per edge.
        sent = jnp.einsum("nd,kde->nke", x, self.of_kinds[...])
        segment = edges.target * num_kinds + edges.kind
        message = sent[edges.source, edges.kind].reshape(-1, self.num_heads, dim // self.num_heads)
        if self.aggregation == "attention":
            received = sent[edges.target, edges.kind].reshape(message.shape)
            score = (message * self.asks[...][edges.kind]).sum(-1) + (received * self.answers[...][edges.kind]).sum(-1)
            score = jnp.where(edges.weight[:, None] > 0, nnx.leaky_relu(score, 0.2), -jnp.inf)
            highest = jax.ops.segment_max(score, segment, number * num_kinds)
            share = jnp.exp(score - jnp.where(jnp.isfinite(highest), highest, 0.0)[segment]) * edges.weight[:, None]
        else:
            share = jnp.broadcast_to(edges.weight[:, None], message.shape[:2])
        total = jax.ops.segment_sum(share, segment, number * num_kinds)
        share = share / jnp.maximum(total, 1e-12)[segment]
        gathered = jax.ops.segment_sum((message * share[..., None]).reshape(-1, dim), edges.target, number)
        return h + jax.nn.gelu(x @ self.own[...] + gathered + self.bias[None])


class RegulatoryGraph(nnx.Module):
    """Rows [N, D] of nodes -> rows [N, D] that know their neighbours.

    Args:
      num_kinds: K, of edges as they are given; each is followed both ways.
    """

    def __init__(
        self,
        dim: int,
        num_kinds: int,
        num_layers: int,
        rngs: nnx.Rngs,
        aggregation: Aggregation = "mean",
        num_heads: int = 4,
    ):
        self.num_kinds = num_kinds
        self.layers = nnx.List([_Layer(dim, 2 * num_kinds, num_heads, aggregation, rngs) for _ in range(num_layers)])
        self.norm = LayerNorm(dim)

    def __call__(self, rows: jax.Array, edges: GraphEdges) -> jax.Array:
        both_ways = GraphEdges(
            jnp.concatenate([edges.source, edges.target]),
            jnp.concatenate([edges.target, edges.source]),
            jnp.concatenate([edges.kind, edges.kind + self.num_kinds]),
            jnp.concatenate([edges.weight, edges.weight]),
            edges.reverse,
        )
        for layer in self.layers:
            rows = layer(rows, both_ways)
        return self.norm(rows)
