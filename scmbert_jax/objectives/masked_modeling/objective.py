"""Masked modelling of values: hide some tokens' values, predict them from the rest and from the cell embedding.

The identity of a masked feature stays visible (hiding it too collapses training on accessibility); what is hidden is
its value. Every value is predicted twice: from its token's state (context of the cell) and from the `[CLS]` state and
the feature's row alone, which is what makes `[CLS]` a cell embedding (after scGPT's gene expression prediction for
cell modelling, Cui et al. 2024).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from scmbert_jax.batch import CellBatch
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.models.flops import TokenCounts, added, encoded
from scmbert_jax.models.heads import CellDecoder, ValueHead
from scmbert_jax.models.likelihoods import Truth
from scmbert_jax.models.token_sequence import TokenSequence, pack_tokens, token_bits
from scmbert_jax.objectives.base import LossSum, Model, Objective, drop_covariates
from scmbert_jax.objectives.masked_modeling.config import MaskedModelingConfig
from scmbert_jax.objectives.masked_modeling.head import LinearHead
from scmbert_jax.parallel.mesh import constrain
from scmbert_jax.random_keys import row_keys


class MaskedPositions(NamedTuple):
    """Which tokens are masked: positions int32 [B, M] into the token sequence, chosen bool [B, M] (False: no token),
    hidden bool [B, S]: tokens whose value the encoder must not see."""

    positions: jax.Array
    chosen: jax.Array
    hidden: jax.Array


class MaskedValues(NamedTuple):
    """Negative log-likelihoods of the masked values of a batch, in nats.

    Attributes:
      tokens, masked: S tokens of each of B cells, and the M of them that are predicted.
      modality: int32 [B, M], index into `MODALITIES`.
      nll, cell_nll: float32 [B, M], predicted from the token's state, and from the `[CLS]` state alone.
    """

    tokens: TokenSequence
    masked: MaskedPositions
    modality: jax.Array
    nll: jax.Array
    cell_nll: jax.Array


def choose_masked(tokens: TokenSequence, config: MaskedModelingConfig, keys: jax.Array) -> MaskedPositions:
    """A fixed fraction of each cell's eligible tokens, at least one where there is one; uniform, without replacement.

    A token's draw depends on (row key, feature id) only: neither on padding nor on the order of tokens.
    """
    batch_size, num_slots = tokens.valid.shape
    eligible = tokens.valid if config.mask_zeros else tokens.valid & (tokens.counts > 0)
    bits = token_bits(tokens, keys)  # [B, S]
    # 31 bits of rank, so that the largest number is left for tokens that are not eligible; the low bit decides keeping.
    rank = jnp.argsort(jnp.where(eligible, bits >> 1, jnp.uint32(2**32 - 1)), axis=1, stable=True)
    num_masked = jnp.floor(config.mask_fraction * eligible.sum(1) + 0.5).astype(jnp.int32)
    num_masked = jnp.where(eligible.any(1), jnp.maximum(num_masked, 1), 0)  # [B]
    most = max(1, int(config.mask_fraction * num_slots + 0.5))
    positions = rank[:, :most]
    chosen = jnp.arange(most)[None] < num_masked[:, None]
    kept = jnp.zeros_like(chosen)
    if config.keep_fraction > 0:
        number_kept = jnp.floor(config.keep_fraction * num_masked).astype(jnp.int32)
        kept = jnp.arange(most)[None] < number_kept[:, None]
    rows = jnp.arange(batch_size)[:, None]
    hidden = jnp.zeros((batch_size, num_slots), bool).at[rows, positions].set(chosen & ~kept)
    return MaskedPositions(positions, chosen, hidden)


class MaskedModeling(Objective):
    """The objective; see `Objective` for the contract. Reads any of the modalities, alone, paired or mosaic."""

    shaped_by = ("objectives.masked_modeling.token_head",)

    def __init__(self, config: ExperimentConfig):
        self.config = config.objectives.masked_modeling
        self.modalities = config.modalities.in_use()

    @staticmethod
    def heads(config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        likelihoods = {name: modality.likelihood for name, modality in config.modalities.in_use().items()}
        is_linear = config.objectives.masked_modeling.token_head == "linear"
        return {
            "token_head": LinearHead(config, layout, likelihoods, rngs)
            if is_linear
            else ValueHead(config, layout, likelihoods, False, rngs),
            "cell_decoder": CellDecoder(config.model, rngs),
            "cell_head": ValueHead(config, layout, likelihoods, False, rngs),
        }

    @staticmethod
    def flops(config: ExperimentConfig, tokens: TokenCounts) -> dict[str, float]:
        own, dim = config.objectives.masked_modeling, config.model.embed_dim
        eligible = tokens.lengths if own.mask_zeros else tokens.expressed
        masked = own.mask_fraction * float(sum(of_one.sum() for of_one in eligible.values()))
        # At each masked position: the token head's [D, D], the cell decoder's of the feature row, and the cell head's.
        heads = 2.0 * 3 * dim**2 * masked + 2.0 * 2 * dim**2 * tokens.num_cells
        return added([encoded(config, tokens.lengths), {"heads": heads}])

    def values(self, model: Model, feature_table: jax.Array, batch: CellBatch, key: jax.Array) -> MaskedValues:
        """What the model says of every masked token; args as those of `loss`."""
        keys = row_keys(key, batch.row)
        tokens = pack_tokens(batch)
        masked = choose_masked(tokens, self.config, keys)
        covariates = drop_covariates(batch.covariates, self.config.covariate_dropout, keys)
        rows = model.rows(feature_table, tokens)  # [B, S, D]
        states = model.encode(feature_table, tokens, masked.hidden, covariates, rows)  # [B, 1 + S, D]

        def at_masked(values: jax.Array) -> jax.Array:  # [B, S] -> [B, M]
            return jnp.take_along_axis(values, masked.positions, axis=1)

        def vectors_at(values: jax.Array, positions: jax.Array) -> jax.Array:  # [B, S, D] -> [B, M, D]
            return constrain(jnp.take_along_axis(values, positions[..., None], axis=1), "batch", "length", "embed")

        feature_ids, modality = at_masked(tokens.feature_ids), at_masked(tokens.modality)
        truth = Truth(at_masked(tokens.counts), at_masked(tokens.library_size), at_masked(tokens.mean_log_count))
        token_states = vectors_at(states, masked.positions + 1)  # [B, M, D]
        nll = model.token_head.nll(token_states, feature_ids, modality, truth, covariates)
        cell_states = model.cell_decoder(states[:, 0], vectors_at(rows, masked.positions))
        cell_nll = model.cell_head.nll(cell_states, feature_ids, modality, truth, covariates)
        return MaskedValues(tokens, masked, modality, nll, cell_nll)

    def loss(self, model: Model, feature_table: jax.Array, batch: CellBatch, key: jax.Array) -> LossSum:
        _, masked, modality, nll, cell_nll = self.values(model, feature_table, batch, key)
        total, weight = jnp.zeros(()), jnp.zeros(())
        metrics: dict[str, tuple[jax.Array, jax.Array]] = {}
        for name, modality_config in self.modalities.items():
            mine = (masked.chosen & (modality == MODALITIES.index(name))).astype(jnp.float32)
            number, token_sum, cell_sum = mine.sum(), (nll * mine).sum(), (cell_nll * mine).sum()
            total += modality_config.loss_weight * (token_sum + self.config.cell_weight * cell_sum)
            weight += modality_config.loss_weight * number
            metrics[f"{name}_nll"] = (token_sum, number)
            metrics[f"{name}_cell_nll"] = (cell_sum, number)
        return LossSum(total, weight, metrics)
