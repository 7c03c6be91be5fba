"""Predicting all that was measured of a cell, zeros included, from the embedding of a part of it.

The encoder is shown the cell's tokens, a sample of its features that changes from epoch to epoch. From `[CLS]` alone,
every feature that the cell's data set measures is predicted: what was shown, what was not, and what is not there. So
`[CLS]` must hold the whole cell; masked modelling asks it for a few values, which their own tokens know better.

Counts by negative binomial share the cell's library (softmax over the measured features), accessibility is open or not,
protein as in translation (`target_likelihood`). A modality that was not measured asks for nothing.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scmbert_jax.batch import CellBatch
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.models.flops import TokenCounts, added, encoded
from scmbert_jax.models.token_sequence import pack_tokens, subsample_tokens
from scmbert_jax.objectives.base import LossSum, Model, Objective, drop_covariates
from scmbert_jax.objectives.whole_profile.batch_mixing import batch_discrepancy
from scmbert_jax.objectives.whole_profile.head import ProfileHead, draw_features
from scmbert_jax.random_keys import KeyPurpose, key_for, row_keys


class WholeProfile(Objective):
    """The objective; see `Objective` for the contract. Reads any of the modalities, alone, paired or mosaic.

    The loss is per expressed feature: of the size of masked modelling's, which is per masked token.
    """

    shaped_by = ("objectives.whole_profile.hidden_dim",)

    def __init__(self, config: ExperimentConfig):
        self.config = config.objectives.whole_profile
        self.needs_whole_batch = self.config.batch_mixing_weight > 0
        if self.needs_whole_batch and "technical_batch" not in config.model.covariates:
            raise ConfigError(
                "objectives.whole_profile.batch_mixing_weight is above 0, but technical_batch is not among "
                "model.covariates; name it there: --model.covariates technical_batch."
            )
        self.modalities = config.modalities.in_use()

    @staticmethod
    def heads(config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        return {"profile_head": ProfileHead(config, layout, rngs)}

    @staticmethod
    def flops(config: ExperimentConfig, tokens: TokenCounts) -> dict[str, float]:
        own, dim = config.objectives.whole_profile, config.model.embed_dim
        shown = {name: lengths * own.source_fraction for name, lengths in tokens.lengths.items()}
        parts: list[Mapping[str, float]] = [encoded(config, shown, cell_only=True)]
        for name, likelihood in config.modalities.target_likelihoods().items():
            num_outputs = 3 if likelihood == "negative_binomial_background" else 1
            measured = tokens.measured[name]
            if own.features_per_step and likelihood != "negative_binomial":
                measured = np.minimum(measured, own.features_per_step)
            further = (num_outputs - 1) * own.hidden_dim**2 * (measured > 0)
            parts.append({"heads": 2.0 * float((further + num_outputs * own.hidden_dim * measured).sum())})
        parts.append({"heads": 2.0 * dim * own.hidden_dim * tokens.num_cells})
        return added(parts)

    def loss(self, model: Model, feature_table: jax.Array, batch: CellBatch, key: jax.Array) -> LossSum:
        if batch.profiles is None:
            raise ConfigError(
                "objectives.whole_profile.weight is above 0, but the batch has no profiles: read it with "
                "TokenSampling(..., profile_tokens=config.profile_tokens)."
            )
        keys = row_keys(key, batch.row)
        covariates = drop_covariates(batch.covariates, self.config.covariate_dropout, keys)
        tokens = subsample_tokens(pack_tokens(batch), self.config.source_fraction, keys)
        cell = model.encode(feature_table, tokens, covariates=covariates, cell_only=True)[:, 0]
        shared = key_for(key, KeyPurpose.FEATURES)
        total, weight = jnp.zeros(()), jnp.zeros(())
        metrics: dict[str, tuple[jax.Array, jax.Array]] = {}
        for name, modality in self.modalities.items():
            own, head = batch.modalities[name], model.profile_head
            # The same features for all cells, so that their rows are fetched once.
            most = 0 if head.likelihoods[name].shares_library else self.config.features_per_step
            first, stop = head.slices[name]
            drawn = draw_features(jax.random.fold_in(shared, MODALITIES.index(name)), stop - first, most)
            nll = head.nll(name, cell, own, batch.profiles[name], covariates, drawn).sum()
            number = own.num_expressed.sum().astype(jnp.float32)
            total += modality.loss_weight * nll
            weight += modality.loss_weight * number
            metrics[f"{name}_profile_nll"] = (nll, number)
        if self.needs_whole_batch:
            gap, cells = batch_discrepancy(cell.astype(jnp.float32), batch.covariates["technical_batch"])
            total += self.config.batch_mixing_weight * weight * gap / jnp.maximum(cells, 1.0)
            metrics["batch_discrepancy"] = (gap, cells)
        return LossSum(total, weight, metrics)
