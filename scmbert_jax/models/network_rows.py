"""What the rows of the feature table hear of their neighbours in a network (`FeatureLayout.messages`)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scmbert_jax.config import ModelConfig
from scmbert_jax.feature_layout import FeatureLayout, NetworkEdges
from scmbert_jax.models.parameters import Constant, filled
from scmbert_jax.models.regulatory_graph import GraphEdges, RegulatoryGraph, graph_edges, without
from scmbert_jax.parallel.table_rows import whole

_SIGNS = 3  # represses, unknown, activates: each is a kind of its own


def relations(messages: NetworkEdges) -> tuple[np.ndarray, int]:
    """(int32 [E], how many): the kind and the sign of each edge, as a number among those that there are."""
    found, numbers = np.unique(messages.kind.astype(np.int32) * _SIGNS + messages.sign + 1, return_inverse=True)
    return numbers.astype(np.int32), len(found)


def places_of(messages: NetworkEdges | None, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """int32 [n, 2]: where among the messages the pairs int [n] are, and their reverses; -1: they are not."""
    if messages is None or not len(messages.source):
        return np.full((len(source), 2), -1, np.int32)
    codes = messages.source.astype(np.int64) << 32 | messages.target
    order = np.argsort(codes, kind="stable")

    def places(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        wanted = one.astype(np.int64) << 32 | other
        place = order[np.clip(np.searchsorted(codes, wanted, sorter=order), 0, len(codes) - 1)]
        return np.where(codes[place] == wanted, place, -1)

    return np.stack([places(source, target), places(target, source)], axis=1).astype(np.int32)


class NetworkRows(nnx.Module):
    """Rows [F, D] of the feature table -> what to add to them, float32 [F, D]; a projection of what they hear.

    `RegulatoryGraph` over the rows that are in the network, edges weighted by their confidence; to all others nothing
    is added. Edges are spread over the devices, each of which computes all rows. With `ModelConfig.graph` "frozen" the
    graph's weights stay what they were at the start, and the projection alone is trained.
    """

    def __init__(self, config: ModelConfig, layout: FeatureLayout, rngs: nnx.Rngs):
        assert layout.messages is not None
        messages, dim = layout.messages, config.embed_dim
        assert layout.network is not None
        # Also rows all of whose edges are held out: the decoder reads them as it reads the others.
        nodes = np.unique(np.concatenate([*layout.network[:2], *messages[:2]]))
        kind, num_kinds = relations(messages)
        source, target = (np.searchsorted(nodes, rows).astype(np.int32) for rows in messages[:2])
        with jax.ensure_compile_time_eval():
            edges = graph_edges(source, target, kind, messages.confidence)
        self.nodes = Constant(nodes.astype(np.int32))
        self.edges: Any = nnx.Dict({name: Constant(np.asarray(own)) for name, own in edges._asdict().items()})
        self.graph = RegulatoryGraph(
            dim,
            num_kinds,
            config.graph_layers,
            rngs,
            config.graph_aggregation,
            num_neighbours=config.graph_neighbours,
            edge_dropout=config.graph_edge_dropout,
        )
        # Zero: rows start as they are without a network.
        self.out = filled(0.0, (dim, dim), (None, None), "matrix")
        self.frozen = config.graph == "frozen"
        if self.frozen:
            for _, own in nnx.iter_graph(self.graph):
                if isinstance(own, nnx.Param):
                    own.set_metadata(role="fixed")

    def __call__(self, learned: jax.Array, unseen: jax.Array | None = None, key: jax.Array | None = None) -> jax.Array:
        """`unseen`: int32 [n], places of messages that nobody hears, nor their reverses; -1 is none. `key`: of a
        training step, in which edges are dropped and neighbours drawn."""
        edges = GraphEdges(**{name: own[...] for name, own in self.edges.items()})
        if unseen is not None:
            edges = without(edges, unseen)
        graph = self.graph
        if self.frozen:
            definition, state = nnx.split(graph)
            graph = nnx.merge(definition, jax.lax.stop_gradient(state))
        nodes = self.nodes[...]
        return jnp.zeros_like(learned).at[nodes].set(graph(whole(learned)[nodes], edges, key) @ self.out[...])
