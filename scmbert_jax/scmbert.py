"""The model: feature table, token embedding, encoder and heads put together."""

import copy
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scmbert_jax.batch import CellBatch
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.feature_layout import FeatureLayout, digest_of
from scmbert_jax.models.definition import Definition
from scmbert_jax.models.embeddings import FeatureTable, TokenEmbedding
from scmbert_jax.models.encoder import make_encoder
from scmbert_jax.models.gene_head import GeneHead
from scmbert_jax.models.likelihoods import Likelihood, Prediction, Truth, make_likelihood
from scmbert_jax.models.linear_path import LinearPath
from scmbert_jax.models.network_rows import NetworkRows
from scmbert_jax.models.region_rows import RegionRows
from scmbert_jax.models.token_sequence import CutBatch, TokenSequence, pack_tokens
from scmbert_jax.objectives.link_prediction.head import GeneStates
from scmbert_jax.objectives.mixture import OBJECTIVES
from scmbert_jax.parallel.mesh import constrain
from scmbert_jax.parallel.table_rows import pick_rows


class ScMbert(nnx.Module):
    """A multi-omic cell encoder; `ModelDefinition` builds it and puts parameters in and out.

    What only one objective needs exists only in the models that were trained for it (`Objective.heads`); the methods
    below that ask for a head say which.
    """

    translation_decoder: Any
    translation_head: Any
    alignment_head: Any
    profile_head: Any
    link_head: Any

    def __init__(self, config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs):
        modalities = config.modalities.in_use()
        self.table = FeatureTable(config.model, layout, rngs)
        self.embedding = TokenEmbedding(config, layout, rngs)
        self.encoder = make_encoder(config.model, tuple(modalities), rngs)
        self.linear: Any = nnx.data(LinearPath(config, layout, rngs) if config.model.linear_path else None)
        self.transformer = True  # False: nothing but the linear path speaks (`ModelDefinition.linear_path_alone`)
        for name in config.objectives.weights():
            for attribute, head in OBJECTIVES[name].heads(config, layout, rngs).items():
                setattr(self, attribute, head)
        # Last, so that all else starts as it does without them.
        self.gene_head: Any = nnx.data(GeneHead(config, layout, rngs) if config.model.gene_head else None)
        self.network: Any = nnx.data(None if layout.messages is None else NetworkRows(config.model, layout, rngs))
        self.region_rows: Any = nnx.data(
            None if layout.region_vectors is None else RegionRows(config.model, layout, rngs)
        )

    def feature_table(self, unseen: jax.Array | None = None, key: jax.Array | None = None) -> jax.Array:
        """Rows of all features, float32 [F, D]; compute it once per step and hand it to the other methods.

        `unseen`: int32 [n], places among `FeatureLayout.messages` of edges that are to be predicted: no row hears along
        them, nor along their reverses; -1 is none. `key`: of a training step (`KeyPurpose.NEIGHBOURS`), for
        `ModelConfig.graph_neighbours` and `graph_edge_dropout`; without it rows hear all.
        """
        heard = None if self.network is None else partial(self.network, unseen=unseen, key=key)
        return self.table(heard, self.region_rows)

    def rows(self, feature_table: jax.Array, tokens: TokenSequence) -> jax.Array:
        """The feature of each token, float32 [B, S, D]."""
        return constrain(pick_rows(feature_table, tokens.feature_ids), "batch", "length", "embed")

    def encode(
        self,
        feature_table: jax.Array,
        tokens: TokenSequence,
        hidden: jax.Array | None = None,
        covariates: dict[str, jax.Array] | None = None,
        rows: jax.Array | None = None,
        cell_only: bool = False,
    ) -> jax.Array:
        """Token states [B, 1 + S, D]; position 0 is `[CLS]`, the cell embedding.

        Args:
          feature_table: float32 [F, D].
          tokens: packed tokens of S positions.
          hidden: bool [B, S], tokens whose value must not be seen; None: all values are seen.
          covariates: name -> int32 [B]; needed when covariates enter with the tokens.
          rows: `self.rows(feature_table, tokens)`, from a caller that needs them, too: each time that rows are picked,
            a gradient of the whole table has to be added up over all devices.
          cell_only: the same `[CLS]` alone, [B, 1, D], with most of the last layer saved.
        """
        rows = self.rows(feature_table, tokens) if rows is None else rows
        unseen = jnp.zeros(tokens.valid.shape, bool) if hidden is None else hidden
        x = self.embedding(rows, tokens, unseen, covariates or {})
        if self.transformer:
            states = self.encoder(x, tokens, cell_only)
        else:
            states = jnp.zeros_like(x[:, :1] if cell_only else x)
        if self.linear is None:
            return states
        cell = states[:, 0] + self.linear(tokens, hidden).astype(states.dtype)
        return jnp.concatenate([cell[:, None], states[:, 1:]], axis=1)

    def cell_embedding(self, feature_table: jax.Array, batch: CellBatch | CutBatch) -> jax.Array:
        """float32 [B, D], nothing hidden; with a gene head, what its last layer gives."""
        tokens = pack_tokens(batch)
        if self.gene_head is not None:
            return self.gene_head(self.encode(feature_table, tokens, covariates=batch.covariates), tokens)
        states = self.encode(feature_table, tokens, covariates=batch.covariates, cell_only=True)
        return states[:, 0].astype(jnp.float32)

    def gene_states(self, feature_table: jax.Array, batch: CellBatch | CutBatch) -> GeneStates:
        """What the encoder makes of the genes of these cells, for `link_head.in_context`; sums, to be added up."""
        tokens = pack_tokens(batch, ("rna",))
        states = self.encode(feature_table, tokens, covariates=batch.covariates)[:, 1:].astype(jnp.float32)
        ids = jnp.where(tokens.valid, tokens.feature_ids, len(feature_table))
        total = jnp.zeros_like(feature_table).at[ids].add(states, mode="drop")
        return GeneStates(total, jnp.zeros(len(feature_table)).at[ids].add(1.0, mode="drop"))

    def aligned(self, feature_table: jax.Array, tokens: TokenSequence, covariates: dict[str, jax.Array]) -> jax.Array:
        """float32 [B, P] of length 1: tokens of one modality, encoded alone, in the contrastive space.

        Only models that were trained with `contrastive_alignment` have it.
        """
        ((name, _),) = tokens.widths
        states = self.encode(feature_table, tokens, covariates=covariates, cell_only=True)
        scores = None if self.linear is None else self.linear.scores(tokens)[name]
        return self.alignment_head.project(name, states[:, 0], scores)

    def aligned_embedding(self, feature_table: jax.Array, batch: CellBatch | CutBatch) -> jax.Array:
        """float32 [B, P] of length 1: the mean of `aligned` over the cell's modalities."""
        total = jnp.zeros(())
        for name, own in batch.modalities.items():
            has = (own.lengths > 0).astype(jnp.float32)[:, None]
            total = total + has * self.aligned(feature_table, pack_tokens(batch, (name,)), batch.covariates)
        return total * jax.lax.rsqrt(jnp.sum(total * total, axis=1, keepdims=True) + 1e-12)

    def translate(
        self, feature_table: jax.Array, batch: CellBatch | CutBatch, source: str, target: str, feature_ids: jax.Array
    ) -> Prediction:
        """What modality `source` of the cells predicts for features of `target`; the cells are encoded once.

        Args:
          feature_table: float32 [F, D].
          batch: B cells.
          source, target: modalities.
          feature_ids: int32 [C, M], table rows in C parts that are decoded one after the other: what bounds memory.

        Returns:
          Values float32 [B, C * M]. Only models that were trained with `cross_modal_translation` can.
        """
        tokens = pack_tokens(batch, (source,))
        states = self.encode(feature_table, tokens, covariates=batch.covariates)
        number_of_cells = tokens.lengths.shape[0]

        def decoded(part: jax.Array) -> Prediction:
            ids = jnp.broadcast_to(part, (number_of_cells, len(part)))
            outputs = self._translation_outputs(feature_table, target, ids, states, tokens, batch.covariates)
            return self.translation_head.likelihoods[target].predict(*outputs)

        parts = jax.lax.map(decoded, feature_ids)  # [C, B, M] each
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(number_of_cells, -1), parts)

    def translation_nll(
        self,
        feature_table: jax.Array,
        target: str,
        feature_ids: jax.Array,
        states: jax.Array,
        tokens: TokenSequence,
        truth: Truth,
        covariates: dict[str, jax.Array],
        folds: jax.Array,
    ) -> jax.Array:
        """Negative log-likelihoods float32 [B, M] of `truth` for features int32 [B, M] of `target`.

        `states` [B, 1 + S, D] is the encoded source, `tokens` [B, S], of one modality; `folds` int32 [B] (`fold_of`).
        """
        outputs = self._translation_outputs(feature_table, target, feature_ids, states, tokens, covariates, folds)
        return self.translation_head.likelihoods[target].nll(*outputs, truth)

    def expected_counts(
        self,
        feature_table: jax.Array,
        target: str,
        feature_ids: jax.Array,
        states: jax.Array,
        tokens: TokenSequence,
        covariates: dict[str, jax.Array],
        folds: jax.Array,
    ) -> jax.Array:
        """Counts float32 [B, M] that the source predicts, for a cell of the median library size; differentiable."""
        outputs = self._translation_outputs(feature_table, target, feature_ids, states, tokens, covariates, folds)
        return self.translation_head.likelihoods[target].expected_counts(*outputs)

    def _translation_outputs(self, feature_table, target, feature_ids, states, tokens, covariates, folds=None):
        """Outputs [B, M, K] of the translation head and log dispersions [B, M]."""
        if self.transformer:
            x = self.translation_decoder(pick_rows(feature_table, feature_ids), target, states, tokens.lengths)
            outputs, log_dispersion = self.translation_head(target, x, feature_ids, covariates)
        else:
            outputs, log_dispersion = self.translation_head.of_features(target, feature_ids)
        if self.linear is not None:
            outputs = outputs.at[..., 0].add(self.linear.outputs(tokens, target, feature_ids, folds))
        return outputs, log_dispersion


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
    if bool(config.model.region_embeddings) != (layout.region_vectors is not None):
        there = "without" if layout.region_vectors is None else "with"
        raise ConfigError(
            f"model.region_embeddings is {config.model.region_embeddings!r}, but the features come {there} embeddings "
            "of regions."
        )
    graph, asks = config.model.graph, config.objectives.link_prediction.weight > 0
    if (graph != "off") != (layout.messages is not None) or (asks and layout.negatives is None):
        there = "without a network" if layout.network is None else "with one that was not made for this"
        raise ConfigError(
            f"model.graph is {graph!r} and link_prediction {'trains' if asks else 'does not train'}, but the features "
            f"come {there}. Name a network in model.networks."
        )


class ModelDefinition(Definition):
    """A model of cells without its numbers.

    Attributes: those of `Definition`, and
      layout: the features of its table.
      constants: the feature links and networks, what the linear path has of the corpus, and random directions.
    """

    unit = "cells"

    def __init__(self, config: ExperimentConfig, layout: FeatureLayout):
        check_layout(config, layout)
        self.layout, self._transformer = layout, True
        super().__init__(config)

    def _create(self, key: jax.Array) -> ScMbert:
        return ScMbert(self.config, self.layout, nnx.Rngs(params=key))

    def merge(self, params: dict[str, Any], constants: dict[str, Any]) -> ScMbert:
        """The model with these numbers in it; call it inside the jitted function."""
        model = super().merge(params, constants)
        model.transformer = self._transformer
        return model

    @property
    def agreed(self) -> dict[str, str | None]:
        """What all processes of a run must have found alike, once the layout was made."""
        network, vectors = self.layout.network, self.layout.region_vectors
        return {
            "model.networks": None if network is None else network.digest,
            "model.region_embeddings": digest_of(vectors),
        }

    def reads_in_words(self) -> str:
        """What it reads, for the first line of a run."""
        sizes = {name: self.layout.slices[name] for name in self.config.modalities.in_use()}
        return "features: " + ", ".join(f"{stop - first:,} {name}" for name, (first, stop) in sizes.items())

    @cached_property
    def linear_path_alone(self) -> "ModelDefinition":
        """The same parameters without encoder and decoder: what the transformer adds is the difference to this.

        A cell embedding is the projection of its component scores; a translation each feature's own bias, the maps
        between component scores and the nearest pairs; an alignment a projection of the scores.

        Raises `ConfigError` for a model without a linear path.
        """
        if not self.config.model.linear_path:
            raise ConfigError("model.linear_path is off: this model is a transformer alone and has no linear path.")
        alone = copy.copy(self)
        alone._transformer = False
        return alone

    def translation_likelihood(self, target: str) -> Likelihood:
        """The likelihood by which modality `target` is predicted from others."""
        modalities, rows = self.config.modalities, self.layout.slices[target]
        name = modalities.target_likelihoods()[target]
        return make_likelihood(name, target, modalities.in_use()[target], self.layout.statistics, rows)
