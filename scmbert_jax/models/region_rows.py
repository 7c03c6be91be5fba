"""Rows of regions in the feature table, made from what is known of the regions beside their counts."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scmbert_jax.config import ModelConfig
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.models.embeddings import padded_rows
from scmbert_jax.models.parameters import Constant, parameter, weight
from scmbert_jax.parallel.mesh import constrain


class RegionRows(nnx.Module):
    """Own rows [F, D] of the feature table -> the same with those of regions made from their embeddings, [F, D].

    row = ((vector - centre) / spread / sqrt(W)) @ projection, with `ModelConfig.region_rows` "both" added to the row
    that is learned of the region itself, else in its place. Centre and spread, of the regions of the training, are
    kept with the weights, so that a region that the training has not seen gets its row as those that it has seen. A
    region without an embedding has its learned row alone.
    """

    def __init__(self, config: ModelConfig, layout: FeatureLayout, rngs: nnx.Rngs):
        assert layout.region_vectors is not None
        first, stop = layout.slices["atac"]
        width, dim = layout.region_vectors.shape[1], config.embed_dim
        known = np.isfinite(layout.region_vectors).all(axis=1)
        vectors = np.zeros((padded_rows(layout), width), np.float32)
        vectors[first:stop] = np.where(known[:, None], layout.region_vectors, 0.0)
        has = np.zeros(len(vectors), bool)
        has[first:stop] = known
        self.vectors, self.has = Constant(vectors), Constant(has)
        seen = layout.region_vectors[known].astype(np.float64)
        spread = seen.std(axis=0)
        self.centre = parameter(seen.mean(axis=0).astype(np.float32), (None,), "fixed")
        # A column that says the same of all says nothing, also where a new region has another number in it.
        self.scale = parameter(
            np.where(spread > 0, 1 / np.where(spread > 0, spread, 1), 0) / np.sqrt(width), (None,), "fixed"
        )
        self.projection = weight(rngs, (width, dim), dim, (None, "embed"))
        self.adds = config.region_rows == "both"

    def __call__(self, learned: jax.Array) -> jax.Array:
        centre, scale = (jax.lax.stop_gradient(own[...]) for own in (self.centre, self.scale))
        projection = scale[:, None] * self.projection[...]
        rows = constrain(self.vectors[...] @ projection - (centre @ projection)[None], "features", None)
        has = self.has[...][:, None]
        return jnp.where(has, learned + rows if self.adds else rows, learned)
