"""The model: feature table, token embedding, encoder and heads put together."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scmbert_jax.batch import CellBatch, FeatureLayout
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.models.embeddings import (
    FeatureTable,
    Links,
    TokenEmbedding,
    TokenSequence,
    link_arrays,
    pack_tokens,
)
from scmbert_jax.models.encoder import Encoder, weight
from scmbert_jax.models.heads import ValueHead


class CellDecoder(nnx.Module):
    """(cell embedding [B, D], feature rows [B, M, D]) -> [B, M, D]: what the cell embedding says of each feature."""

    def __init__(self, config: ExperimentConfig, rngs: nnx.Rngs):
        dim = config.model.embed_dim
        self.from_cell = weight(rngs, (dim, dim), dim, ("embed", None))
        self.from_feature = weight(rngs, (dim, dim), dim, ("embed", None))
        self.gate = weight(rngs, (dim, dim), dim, ("embed", None))

    def __call__(self, cell: jax.Array, features: jax.Array) -> jax.Array:
        dtype = cell.dtype
        query = features.astype(dtype) @ self.from_feature[...].astype(dtype)
        # The product lets the embedding act as coordinates on feature directions (a bilinear decoder); the sum keeps
        # what holds of the cell as a whole.
        product = (cell @ self.gate[...].astype(dtype))[:, None] * query
        return product + query + (cell @ self.from_cell[...].astype(dtype))[:, None]


class ScMbert(nnx.Module):
    """A multi-omic cell encoder; `ModelDefinition` builds it and puts parameters in and out."""

    def __init__(self, config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs):
        self.table = FeatureTable(layout, config.model.embed_dim, rngs)
        self.embedding = TokenEmbedding(config, layout, rngs)
        self.encoder = Encoder(config.model, rngs)
        self.token_head = ValueHead(config, layout, rngs)
        self.cell_decoder = CellDecoder(config, rngs)
        self.cell_head = ValueHead(config, layout, rngs)

    def feature_table(self) -> jax.Array:
        """Rows of all features, float32 [F, D]; compute it once per step and hand it to the other methods."""
        return self.table()

    def encode(
        self,
        feature_table: jax.Array,
        tokens: TokenSequence,
        hidden: jax.Array | None = None,
        covariates: dict[str, jax.Array] | None = None,
    ) -> jax.Array:
        """Token states [B, 1 + S, D]; position 0 is `[CLS]`, the cell embedding.

        Args:
          feature_table: float32 [F, D].
          tokens: packed tokens of S positions.
          hidden: bool [B, S], tokens whose value must not be seen; None: all values are seen.
          covariates: name -> int32 [B]; needed when covariates enter with the tokens.
        """
        if hidden is None:
            hidden = jnp.zeros(tokens.valid.shape, bool)
        x = self.embedding(feature_table, tokens, hidden, covariates or {})
        return self.encoder(x, tokens.lengths + 1)

    def cell_embedding(self, feature_table: jax.Array, batch: CellBatch) -> jax.Array:
        """float32 [B, D], nothing hidden."""
        states = self.encode(feature_table, pack_tokens(batch), covariates=batch.covariates)
        return states[:, 0].astype(jnp.float32)


def check_layout(config: ExperimentConfig, layout: FeatureLayout) -> None:
    """Raises `ConfigError` when the run reads a modality or a covariate that the feature layout does not have."""
    for name in config.modalities.in_use():
        first, stop = layout.slices.get(name, (0, 0))
        if stop <= first:
            raise ConfigError(
                f"modalities.{name}.num_tokens is above 0, but the corpus has no {name} feature. It has "
                f"{', '.join(layout.slices) or 'nothing'}. Set --modalities.{name}.num-tokens 0 or use another corpus."
            )
    for name in config.model.covariates:
        if name not in layout.covariate_sizes:
            raise ConfigError(
                f"model.covariates names {name!r}, which the corpus does not have; it has "
                f"{', '.join(layout.covariate_sizes) or 'none'}."
            )


class ModelDefinition:
    """A model without its numbers: parameters live outside, as a plain nested dict of float32 arrays.

    Attributes:
      abstract_params: nested dict of `jax.ShapeDtypeStruct`.
      logical_axes: nested dict of tuples, one name (or None) per dimension of each parameter.
      constants: nested dict of int32 numpy arrays (the feature links): data, not parameters. They are an argument of
        every jitted function, because baking the links of a million regions into a program is slow.
    """

    def __init__(self, config: ExperimentConfig, layout: FeatureLayout):
        check_layout(config, layout)
        self.config, self.layout = config, layout
        with nnx.use_eager_sharding(False):
            abstract = nnx.eval_shape(lambda: self._create(jax.random.key(0)))
        self._graph, params, *rest = nnx.split(abstract, nnx.Param, Links)
        (constants,) = rest
        self._params_tree, self._constants_tree = jax.tree.structure(params), jax.tree.structure(constants)
        axes = jax.tree.map(
            lambda param: param.get_metadata("logical_axes"), params, is_leaf=lambda x: isinstance(x, nnx.Variable)
        )
        self.abstract_params: dict[str, Any] = nnx.to_pure_dict(params)
        self.logical_axes: dict[str, Any] = nnx.to_pure_dict(axes)
        self.constants: dict[str, Any] = {"table": {"links": link_arrays(layout)}}

    def _create(self, key: jax.Array) -> ScMbert:
        return ScMbert(self.config, self.layout, nnx.Rngs(params=key))

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Random parameters; a pure function of (config, layout, key). Jit it with shardings for large models."""
        with nnx.use_eager_sharding(False):
            return nnx.to_pure_dict(nnx.split(self._create(key), nnx.Param, Links)[1])

    def merge(self, params: dict[str, Any], constants: dict[str, Any]) -> ScMbert:
        """The model with these numbers in it; call it inside the jitted function."""
        return nnx.merge(
            self._graph,
            jax.tree.unflatten(self._params_tree, jax.tree.leaves(params)),
            jax.tree.unflatten(self._constants_tree, jax.tree.leaves(constants)),
        )
