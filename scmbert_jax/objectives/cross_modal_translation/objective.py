"""Predicts one modality of a cell from another, with pairs and without.

With pairs: encode the tokens of the source modality alone, ask the decoder for the target's features, compare with what
was measured (after BABEL, for every ordered pair of modalities). Without: predict some features of the other modality,
encode those predictions as if they were a cell, and come back to the measured one (the cycle of scCross). The cycle
reads the measured modality of a row and nothing else of it.

Every predicted token counts as often as its cell has features it stands for, so that predictions are calibrated for
cells although zeros are sampled.
"""

from collections.abc import Mapping
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scmbert_jax.batch import CellBatch
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.feature_layout import FeatureLayout, fold_of
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.models.flops import TokenCounts, added, decoded, encoded
from scmbert_jax.models.heads import ValueHead
from scmbert_jax.models.likelihoods import Truth
from scmbert_jax.models.token_sequence import TokenSequence, pack_tokens, subsample_tokens
from scmbert_jax.objectives.base import LossSum, Model, Objective, drop_covariates
from scmbert_jax.objectives.cross_modal_translation.decoder import TranslationDecoder
from scmbert_jax.random_keys import KeyPurpose, key_for, row_keys


class CrossModalTranslation(Objective):
    """The objective; see `Objective` for the contract. Rows that lack the source or the target weigh nothing."""

    shaped_by = ("model.decoder_layers",)
    used_by = "`scmbert translate MODEL_DIR cells.h5ad --to MODALITY -o out.h5mu`."

    def __init__(self, config: ExperimentConfig):
        self.config = config.objectives.cross_modal_translation
        self.modalities = config.modalities.in_use()
        named = tuple(tuple(direction.split(">")) for direction in self.config.directions)
        self.directions: tuple[tuple[str, str], ...] = named or tuple(permutations(self.modalities, 2))  # type: ignore[assignment]

    @staticmethod
    def heads(config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        likelihoods = config.modalities.target_likelihoods()
        return {
            "translation_decoder": TranslationDecoder(config.model, rngs),
            "translation_head": ValueHead(config, layout, likelihoods, True, rngs),
        }

    @staticmethod
    def flops(config: ExperimentConfig, tokens: TokenCounts) -> dict[str, float]:
        own = config.objectives.cross_modal_translation
        named = [tuple(direction.split(">")) for direction in own.directions]
        directions = named or list(permutations([name for name in MODALITIES if name in tokens.lengths], 2))
        parts: list[Mapping[str, float]] = []
        for source in dict.fromkeys(first for first, _ in directions):
            shown = np.ceil(tokens.lengths[source] * own.source_fraction)
            parts.append(encoded(config, {source: shown}))
            for target in (second for first, second in directions if first == source):
                if own.pair_weight > 0:
                    parts.append(decoded(config, np.where(shown > 0, tokens.lengths[target], 0), shown))
                if own.cycle_weight > 0:
                    imagined = np.where(shown > 0, float(own.cycle_features), 0)
                    parts += [
                        decoded(config, imagined, shown),
                        encoded(config, {target: imagined}),
                        decoded(config, np.where(shown > 0, tokens.lengths[source], 0), imagined),
                    ]
        return added(parts)

    def loss(self, model: Model, feature_table: jax.Array, batch: CellBatch, key: jax.Array) -> LossSum:
        keys = row_keys(key, batch.row)
        covariates = drop_covariates(batch.covariates, self.config.covariate_dropout, keys)
        total, weight = jnp.zeros(()), jnp.zeros(())
        metrics: dict[str, tuple[jax.Array, jax.Array]] = {}
        for source in dict.fromkeys(source for source, _ in self.directions):
            tokens = subsample_tokens(pack_tokens(batch, (source,)), self.config.source_fraction, keys)
            states = model.encode(feature_table, tokens, covariates=covariates)
            for target in (target for first, target in self.directions if first == source):
                for kind, kind_weight, term in (
                    ("", self.config.pair_weight, self._there),
                    ("cycle_", self.config.cycle_weight, self._there_and_back),
                ):
                    if kind_weight == 0:
                        continue
                    predicted = target if not kind else source
                    nll, weights = term(model, feature_table, batch, covariates, source, target, tokens, states, key)
                    scale = kind_weight * self.modalities[predicted].loss_weight
                    sums = (nll * weights).sum(), weights.sum()
                    total, weight = total + scale * sums[0], weight + scale * sums[1]
                    metrics[f"{kind}{source}_to_{target}_nll"] = sums
        return LossSum(total, weight, metrics)

    def _there(self, model, table, batch, covariates, source, target, tokens, states, key):
        """Negative log-likelihoods and weights [B, L] of the target's tokens, where both modalities were measured."""
        nll, weights = self._decode(model, table, batch, covariates, target, states, tokens)
        return nll, weights * (tokens.lengths > 0)[:, None]

    def _there_and_back(self, model, table, batch, covariates, source, target, tokens, states, key):
        """The same of the *source's* tokens, predicted from a prediction of `target`. Reads no token of `target`."""
        first, stop = model.table.slices[target]
        number = min(self.config.cycle_features, stop - first)
        # The same features for all cells of a step: any choice will do that does not look at what the cells measured.
        own_key = jax.random.fold_in(key_for(key, KeyPurpose.FEATURES), MODALITIES.index(target))
        shuffled = jax.random.permutation(own_key, stop - first)
        ids = jnp.broadcast_to(first + shuffled[:number], (tokens.lengths.shape[0], number)).astype(jnp.int32)
        counts = model.expected_counts(table, target, ids, states, tokens, covariates, fold_of(batch.cell_index))
        imagined = _as_tokens(
            target, ids, counts, model.translation_head.likelihoods[target].median_library, stop - first
        )
        back_states = model.encode(table, imagined, covariates=covariates)
        return self._decode(model, table, batch, covariates, source, back_states, imagined)

    def _decode(self, model, table, batch, covariates, target, states, tokens):
        """Negative log-likelihoods of measured tokens of `target`, and their weights (mean 1 over a cell's tokens)."""
        measured = pack_tokens(batch, (target,))
        truth = Truth(measured.counts, measured.library_size, measured.mean_log_count)
        folds = fold_of(batch.cell_index)
        nll = model.translation_nll(table, target, measured.feature_ids, states, tokens, truth, covariates, folds)
        scale = measured.lengths / jnp.maximum(measured.weight.sum(1), 1e-8)
        return nll, measured.weight * scale[:, None]


def _as_tokens(
    modality: str, ids: jax.Array, counts: jax.Array, library_size: float, num_features: int
) -> TokenSequence:
    """Predicted features as the tokens of a cell; ids int32 [B, K], counts float32 [B, K]."""
    batch_size, number = ids.shape
    return TokenSequence(
        feature_ids=ids,
        counts=counts,
        library_size=jnp.full(ids.shape, library_size, jnp.float32),
        mean_log_count=jnp.broadcast_to(jnp.log1p(counts).mean(axis=1, keepdims=True), ids.shape),
        weight=jnp.full(ids.shape, num_features / number, jnp.float32),
        modality=jnp.full(ids.shape, MODALITIES.index(modality), jnp.int32),
        valid=jnp.ones(ids.shape, bool),
        modality_lengths=jnp.full((batch_size, 1), number, jnp.int32),
        widths=((modality, number),),
    )
