"""The edges that a step asks about, and the decoder that answers from rows of the feature table."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scmbert_jax.config import ExperimentConfig
from scmbert_jax.feature_layout import EDGE_KINDS, FeatureLayout
from scmbert_jax.models.layers import LayerNorm
from scmbert_jax.models.link_decoders import LINK_DECODERS
from scmbert_jax.models.network_rows import places_of
from scmbert_jax.models.parameters import Constant, filled


class DrawnPairs(NamedTuple):
    """n edges, then n pairs that are none.

    Attributes:
      source, target: int32 [2n], rows of the feature table.
      sign: int32 [2n]; 1, -1, or 0 where it is unknown.
      places: int32 [2n, 2], of the pair and its reverse among `FeatureLayout.messages`; -1: it is none of them.
    """

    source: jax.Array
    target: jax.Array
    sign: jax.Array
    places: jax.Array


class GeneStates(NamedTuple):
    """What the encoder makes of each feature in some cells: sums float32 [F, D] over tokens, and their number [F]."""

    total: jax.Array
    number: jax.Array


class LinkHead(nnx.Module):
    """Rows of the feature table of sources and of targets, float [..., D] each -> logits [..., 2]: that there is an
    edge, and that it activates if there is one (models/link_decoders.py)."""

    def __init__(self, config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs):
        assert layout.network is not None
        assert layout.negatives is not None
        dim, own = config.model.embed_dim, layout.network
        self.norm = LayerNorm(dim)
        self.decoder = LINK_DECODERS[config.objectives.link_prediction.decoder](dim, rngs)
        trains = (own.part == 0) & (own.kind == EDGE_KINDS.index("regulates"))
        edges = np.stack([own.source[trains], own.target[trains]], axis=1)
        cumulative = np.cumsum(own.confidence[trains], dtype=np.float64)
        # Zero: rows start as they are without cells.
        own_context = config.objectives.link_prediction.context
        self.context: Any = nnx.data(filled(0.0, (dim, dim), (None, None), "matrix") if own_context else None)
        self.context_norm: Any = nnx.data(LayerNorm(dim) if own_context else None)
        self.edges, self.negatives = Constant(edges), Constant(layout.negatives)
        self.signs = Constant(own.sign[trains].astype(np.int32))
        self.cumulative = Constant((cumulative / cumulative[-1]).astype(np.float32))
        self.edge_places = Constant(places_of(layout.messages, *edges.T))
        self.negative_places = Constant(places_of(layout.messages, *layout.negatives.T))

    def draw(self, key: jax.Array, number: int) -> DrawnPairs:
        """`number` edges that train, each as often as it is confident, and as many of the stored negatives."""
        of_edges, of_negatives = jax.random.split(key)
        place = jnp.searchsorted(self.cumulative[...], jax.random.uniform(of_edges, (number,)), side="right")
        place = jnp.minimum(place, len(self.cumulative[...]) - 1)
        none = jax.random.randint(of_negatives, (number,), 0, len(self.negatives[...]))
        source, target = jnp.concatenate([self.edges[...][place], self.negatives[...][none]]).T
        sign = jnp.pad(self.signs[...][place], (0, number))
        places = jnp.concatenate([self.edge_places[...][place], self.negative_places[...][none]])
        return DrawnPairs(source, target, sign, places)

    def in_context(self, table: jax.Array, of_cells: GeneStates) -> jax.Array:
        """Rows float32 [F, D] of genes that know some cells; only of a model that was trained with `context`."""
        mean = of_cells.total / jnp.maximum(of_cells.number, 1.0)[:, None]
        return table + (of_cells.number > 0)[:, None] * (self.context_norm(mean) @ self.context[...])

    def __call__(self, source: jax.Array, target: jax.Array) -> jax.Array:
        return self.decoder(self.norm(source), self.norm(target))

    def of_all_pairs(self, sources: jax.Array, targets: jax.Array) -> jax.Array:
        """Rows float [R, D] and [G, D] -> logits float32 [R, G, 2]; a source at a time, which bounds memory."""
        return jax.lax.map(lambda row: self(jnp.broadcast_to(row, targets.shape), targets), sources)
