"""Message passing over a network of genes.

Edges are lists of equal length, padded with weight 0; a layer sums over them by segment:

    h'_v = h_v + gelu(W h_v + sum over kinds k of W_k m_kv)      m_kv: of the neighbours of v by edges of kind k, their
                                                               weighted mean, or by attention

An edge is two of these: one along it, of kind k, one against it, of kind k + K. `AGGREGATIONS` says which there are:

    sage        the mean, all kinds and both ways alike     Hamilton et al. 2017 (arXiv 1706.02216)
    gat         attention, all kinds and both ways alike    Velickovic et al. 2018 (arXiv 1710.10903)
    mean        the mean of each kind                       Schlichtkrull et al. 2018 (arXiv 1703.06103)
    attention   attention by head, over the edges of a kind
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scmbert_jax.models.layers import LayerNorm
from scmbert_jax.models.parameters import filled, weight
from scmbert_jax.parallel.edge_sums import num_parts, weighted_sums
from scmbert_jax.parallel.mesh import constrain

_PADDING = -2  # as a reverse


class Aggregation(NamedTuple):
    """by_kind: has each kind of edges, and each way, its own weights? by_attention: or by the edges' own weights?"""

    by_kind: bool
    by_attention: bool


AGGREGATIONS = {
    "sage": Aggregation(False, False),
    "gat": Aggregation(False, True),
    "mean": Aggregation(True, False),
    "attention": Aggregation(True, True),
}


class GraphEdges(NamedTuple):
    """E edges among N nodes, each there once of a kind; int32 [E] but for the weight.

    Attributes:
      source, target: nodes; kind: in 0 .. K-1.
      weight: float32 [E], 0 for padding and for what must not be passed.
      reverse: the place of the edge of the same kind from target to source; -1 where there is none, -2 of padding.
      order: int32 [2E], of all edges along (0 .. E-1) and against (E .. 2E-1), by who hears it, padding last.
    """

    source: jax.Array
    target: jax.Array
    kind: jax.Array
    weight: jax.Array
    reverse: jax.Array
    order: jax.Array


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
    length = max(padded_to, number)
    hears = np.full((2, length), most)  # along, against
    hears[:, :number] = target, source
    kinds = np.pad(np.stack([kind, kind]), ((0, 0), (0, length - number)))
    order_of_hearing = np.lexsort((kinds.ravel(), np.repeat([0, 1], length), hears.ravel()))

    def padded(own: np.ndarray, dtype: type, filling: int = 0) -> jax.Array:
        return jnp.asarray(np.pad(own.astype(dtype), (0, length - number), constant_values=filling))

    return GraphEdges(
        padded(source, np.int32),
        padded(target, np.int32),
        padded(kind, np.int32),
        padded(weight, np.float32),
        padded(reverse, np.int32, _PADDING),
        jnp.asarray(order_of_hearing.astype(np.int32)),
    )


def without(edges: GraphEdges, places: jax.Array) -> GraphEdges:
    """The leak guard: neither the edges at `places` int32 [B] nor their reverses pass messages; -1 is none."""
    there = places >= 0
    reverse = jnp.where(there, edges.reverse[places], -1)
    both = jnp.concatenate([jnp.where(there, places, -1), reverse])
    outside = len(edges.weight)  # dropped, where a -1 would be the last
    return edges._replace(weight=edges.weight.at[jnp.where(both < 0, outside, both)].set(0.0, mode="drop"))


def dropped(edges: GraphEdges, rate: float, key: jax.Array) -> GraphEdges:
    """Each edge passes no messages with a probability of `rate`, always together with its reverse."""
    place = jnp.arange(len(edges.weight))
    pair = jnp.where(edges.reverse >= 0, jnp.minimum(place, edges.reverse), place)
    kept = jax.random.uniform(key, place.shape)[pair] >= rate
    return edges._replace(weight=jnp.where(kept, edges.weight, 0.0))


class _Heard(NamedTuple):
    """Edges one way each, by who hears them: int32 [E'], float32 [E'], weight 0 for padding."""

    source: jax.Array
    target: jax.Array
    kind: jax.Array
    weight: jax.Array


def _both_ways(edges: GraphEdges, num_nodes: int, num_kinds: int) -> _Heard:
    """[2E]; kind k + K against an edge of kind k of K; of no kinds (0), all are alike."""
    is_padding = edges.reverse == _PADDING
    source, target = (jnp.where(is_padding, num_nodes - 1, own) for own in (edges.source, edges.target))
    zero = jnp.zeros_like(edges.kind)
    kind = (edges.kind, edges.kind + num_kinds) if num_kinds else (zero, zero)
    doubled = ((source, target), (target, source), kind, (edges.weight, edges.weight))
    return _Heard(*(jnp.concatenate(own)[edges.order] for own in doubled))


def _some_neighbours(heard: _Heard, is_real: jax.Array, num_nodes: int, number: int, key: jax.Array) -> _Heard:
    """[num_nodes * number]: of nodes with more, so many of their neighbours, one of each equal part of the list.

    A neighbour is heard `number` / degree times on average, with degree / `number` times its weight, so sums are right
    on average. Who has no more than `number` hears all of them.
    """
    first = jnp.searchsorted(jnp.where(is_real, heard.target, num_nodes), jnp.arange(num_nodes + 1))
    degree = jnp.diff(first)[:, None]  # [N, 1]
    slot = jnp.arange(number)[None]
    drawn = (slot + jax.random.uniform(key, (num_nodes, number))) * (degree / number)
    place = jnp.where(degree > number, jnp.minimum(drawn.astype(jnp.int32), degree - 1), slot)
    there = (place < degree).ravel()
    place = jnp.minimum(first[:-1, None] + place, len(heard.target) - 1).ravel()
    times = jnp.broadcast_to(jnp.maximum(degree / number, 1), (num_nodes, number)).ravel()
    return _Heard(
        heard.source[place],
        jnp.repeat(jnp.arange(num_nodes, dtype=jnp.int32), number),
        heard.kind[place],
        jnp.where(there, heard.weight[place] * times, 0.0),
    )


def _spread(heard: _Heard) -> _Heard:
    """Padded for, and laid on, all devices."""
    pad = (0, -len(heard.target) % num_parts())
    return _Heard(*(constrain(jnp.pad(own, pad), "edges") for own in heard))


class _Layer(nnx.Module):
    def __init__(self, dim: int, num_kinds: int, num_heads: int, by_attention: bool, rngs: nnx.Rngs):
        self.num_heads, self.by_attention = num_heads, by_attention
        self.norm = LayerNorm(dim)
        self.own = weight(rngs, (dim, dim), dim, (None, None))
        self.of_kinds = weight(rngs, (num_kinds, dim, dim), dim, (None, None, None))
        if by_attention:
            self.asks = weight(rngs, (num_kinds, num_heads, dim // num_heads), dim // num_heads, (None, None, None))
            self.answers = weight(rngs, (num_kinds, num_heads, dim // num_heads), dim // num_heads, (None, None, None))
        self.bias = filled(0.0, (dim,), (None,), "bias")

    def __call__(self, h: jax.Array, heard: _Heard) -> jax.Array:
        x = self.norm(h)
        gathered = self._attended(x, heard) if self.by_attention else self._means(x, heard)
        return h + jax.nn.gelu(x @ self.own[...] + gathered + self.bias[None])

    def _means(self, x: jax.Array, heard: _Heard) -> jax.Array:
        """Neighbours first, then the matrix of their kind: what is looked up for an edge is a row of [N, D]."""
        (number, dim), num_kinds = x.shape, self.of_kinds.shape[0]
        segment = heard.target * num_kinds + heard.kind
        share = _shares(heard.weight[:, None], segment, number * num_kinds)
        means = weighted_sums(x, share, heard.source, segment, number * num_kinds)
        return jnp.einsum("nkd,kde->ne", means.reshape(number, num_kinds, dim), self.of_kinds[...])

    def _attended(self, x: jax.Array, heard: _Heard) -> jax.Array:
        (number, dim), num_kinds = x.shape, self.of_kinds.shape[0]
        # Of each node, what it would send along an edge of each kind; and the two halves of a score.
        sent = jnp.einsum("nd,kde->nke", x, self.of_kinds[...])
        by_head = sent.reshape(number, num_kinds, self.num_heads, -1)
        asks, answers = (
            (by_head * own[...][None]).sum(-1).reshape(-1, self.num_heads) for own in (self.asks, self.answers)
        )
        origin, segment = heard.source * num_kinds + heard.kind, heard.target * num_kinds + heard.kind
        score = nnx.leaky_relu(asks[origin] + answers[segment], 0.2)  # [E', H]
        score = constrain(jnp.where(heard.weight[:, None] > 0, score, -jnp.inf), "edges", None)
        highest = jax.ops.segment_max(jax.lax.stop_gradient(score), segment, number * num_kinds)
        score = score - jnp.where(jnp.isfinite(highest), highest, 0.0)[segment]
        share = _shares(jnp.exp(score) * heard.weight[:, None], segment, number * num_kinds)
        return weighted_sums(sent.reshape(-1, dim), share, origin, heard.target, number)


def _shares(sizes: jax.Array, segment: jax.Array, num_segments: int) -> jax.Array:
    """[E', H] as fractions of the sum over the edges of a segment."""
    total = jax.ops.segment_sum(sizes, segment, num_segments)
    return constrain(sizes / jnp.maximum(total, 1e-12)[segment], "edges", None)


class RegulatoryGraph(nnx.Module):
    """Rows [N, D] of nodes -> rows [N, D] that know their neighbours.

    Args:
      num_kinds: K, of edges as they are given; each is followed both ways.
      aggregation: of `AGGREGATIONS`.
      num_neighbours: at most so many are heard by a node in a layer of a training step, drawn anew each time; 0: all.
      edge_dropout: fraction of the edges that pass no messages in a training step.
    """

    def __init__(
        self,
        dim: int,
        num_kinds: int,
        num_layers: int,
        rngs: nnx.Rngs,
        aggregation: str = "mean",
        num_heads: int = 4,
        num_neighbours: int = 0,
        edge_dropout: float = 0.0,
    ):
        by_kind, by_attention = AGGREGATIONS[aggregation]
        self.num_kinds = num_kinds if by_kind else 0
        self.num_neighbours, self.edge_dropout = num_neighbours, edge_dropout
        matrices = max(2 * self.num_kinds, 1)
        self.layers = nnx.List([_Layer(dim, matrices, num_heads, by_attention, rngs) for _ in range(num_layers)])
        self.norm = LayerNorm(dim)

    def __call__(self, rows: jax.Array, edges: GraphEdges, key: jax.Array | None = None) -> jax.Array:
        """`key`: of a training step; without it all neighbours are heard and no edge is dropped."""
        if key is not None and self.edge_dropout:
            edges = dropped(edges, self.edge_dropout, jax.random.fold_in(key, len(self.layers)))
        heard = _both_ways(edges, len(rows), self.num_kinds)
        is_real = jnp.arange(len(heard.target)) < 2 * (edges.reverse != _PADDING).sum()
        everybody = _spread(heard)
        for number, layer in enumerate(self.layers):
            own = everybody
            if key is not None and self.num_neighbours:
                drawn = jax.random.fold_in(key, number)
                own = _spread(_some_neighbours(heard, is_real, len(rows), self.num_neighbours, drawn))
            rows = layer(rows, own)
        return self.norm(rows)
