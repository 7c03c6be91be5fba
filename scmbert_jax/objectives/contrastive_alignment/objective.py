"""Symmetric InfoNCE between the modalities of a cell (as CLIP), with what single cells need besides.

Each modality is encoded alone; a cell's own partner must be nearer than those of other cells. Those others are, where
technical batches are known, of the cell's own batch (as MatchCLOT): across batches the batch effect
would be the answer. Negatives are global: the code sees the whole batch, and XLA gathers what a mesh has spread. The
same cell twice in a batch is no negative of itself. A cell without any negative has nothing to be told apart from: it
weighs nothing (the metric `anchors` is the fraction of the pairs that have one).

The loss compares cells with each other, so microbatches would change it. Instead, cells are encoded in
`train.num_microbatches` parts whose activations are not kept but computed again in the backward pass (gradient
caching): the memory of a part, the loss and the gradient of the whole.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scmbert_jax.batch import CellBatch
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.models.flops import TokenCounts, added, encoded
from scmbert_jax.models.token_sequence import pack_tokens, subsample_tokens
from scmbert_jax.objectives.base import LossSum, Model, Objective
from scmbert_jax.objectives.contrastive_alignment.head import AlignmentHead
from scmbert_jax.random_keys import KeyPurpose, key_for, row_keys

# Links compared with each other in a step; all of them where there are fewer.
MAX_LINKS = 512


class ContrastiveAlignment(Objective):
    """The objective; see `Objective` for the contract.

    Anchors are rows that were measured in both modalities and have a negative in the other, in each direction.
    """

    needs_whole_batch = True
    shaped_by = ("objectives.contrastive_alignment.projection_dim",)
    used_by = "`scmbert embed --joint`, `scmbert match`, `scmbert label-transfer`: modalities in one space."

    def __init__(self, config: ExperimentConfig):
        self.config = config.objectives.contrastive_alignment
        self.modalities = tuple(config.modalities.in_use())
        self.num_parts = config.train.num_microbatches

    @staticmethod
    def heads(config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        return {"alignment_head": AlignmentHead(config, layout, rngs)}

    @staticmethod
    def flops(config: ExperimentConfig, tokens: TokenCounts) -> dict[str, float]:
        own, dim = config.objectives.contrastive_alignment, config.model.embed_dim
        parts: list[Mapping[str, float]] = []
        for name, lengths in tokens.lengths.items():
            parts.append(encoded(config, {name: np.ceil(lengths * own.source_fraction)}, cell_only=True))
            parts.append({"heads": 2.0 * dim * own.projection_dim * float((lengths > 0).sum())})
        for _ in combinations(tokens.lengths, 2):
            parts.append({"heads": 2.0 * own.projection_dim * tokens.num_cells**2})
        return added(parts)

    def loss(self, model: Model, feature_table: jax.Array, batch: CellBatch, key: jax.Array) -> LossSum:
        keys = row_keys(key, batch.row)
        has = {name: batch.modalities[name].lengths > 0 for name in self.modalities}
        embedded = {name: self._embed(model, feature_table, batch, keys, name) for name in self.modalities}
        comparable = self._comparable(batch)
        temperature = model.alignment_head.temperature()
        total, weight = jnp.zeros(()), jnp.zeros(())
        metrics: dict[str, tuple[jax.Array, jax.Array]] = {}
        for first, second in combinations(self.modalities, 2):
            paired = has[first] & has[second]
            logits = embedded[first] @ embedded[second].T / temperature  # [B, B]
            there = _info_nce(logits, comparable & has[second][None], paired)
            back = _info_nce(logits.T, comparable & has[first][None], paired)
            loss, number = 0.5 * (there.loss + back.loss), 0.5 * (there.anchors + back.anchors)
            total, weight = total + loss, weight + number
            metrics[f"{first}_{second}_info_nce"] = (loss, number)
            metrics[f"{first}_{second}_top1"] = (there.right, there.anchors)
            metrics[f"{first}_{second}_anchors"] = (number, paired.sum().astype(jnp.float32))
        metrics["temperature"] = (temperature, jnp.ones(()))
        if self.config.link_weight > 0:
            for name, links in model.table.links.items():
                told = _link_loss(feature_table, links[...], key_for(key, KeyPurpose.LINKS), temperature)
                total = total + self.config.link_weight * told.loss
                weight = weight + self.config.link_weight * told.anchors
                metrics[f"{name}_links_info_nce"] = (told.loss, told.anchors)
        return LossSum(total, weight, metrics)

    def _embed(self, model: Model, table: jax.Array, batch: CellBatch, keys: jax.Array, name: str) -> jax.Array:
        """float32 [B, P] of length 1, from modality `name` alone."""

        def of_part(part: tuple[CellBatch, jax.Array]) -> jax.Array:
            cells, part_keys = part
            tokens = subsample_tokens(pack_tokens(cells, (name,)), self.config.source_fraction, part_keys)
            return model.aligned(table, tokens, cells.covariates)

        if self.num_parts == 1:
            return of_part((batch, keys))

        # Strided, as microbatches are: every device keeps its own rows.
        def strided(x: jax.Array) -> jax.Array:
            return jnp.swapaxes(x.reshape(x.shape[0] // self.num_parts, self.num_parts, *x.shape[1:]), 0, 1)

        parts = jax.lax.map(jax.checkpoint(of_part), jax.tree.map(strided, (batch, keys)))  # [n, B / n, P]
        return jnp.swapaxes(parts, 0, 1).reshape(-1, parts.shape[-1])

    def _comparable(self, batch: CellBatch) -> jax.Array:
        """bool [B, B]: which cells a cell is told apart from, and itself."""
        number = batch.cell_index.shape[0]
        itself = jnp.eye(number, dtype=bool)
        comparable = batch.cell_index[:, None] != batch.cell_index[None, :]
        if self.config.negatives != "all":
            technical_batch = batch.covariates.get("technical_batch")
            if technical_batch is not None:
                comparable &= technical_batch[:, None] == technical_batch[None, :]
            elif self.config.negatives == "technical_batch":
                raise ConfigError(
                    "objectives.contrastive_alignment.negatives is 'technical_batch', but the corpus has no "
                    "technical_batch. Build it with --obs-field technical_batch=COLUMN, or set negatives to all."
                )
        return comparable | itself


class InfoNce(NamedTuple):
    """Sums over the anchors, float32 []: their losses, how many have their own partner nearest, how many they are."""

    loss: jax.Array
    right: jax.Array
    anchors: jax.Array


def _info_nce(logits: jax.Array, candidates: jax.Array, paired: jax.Array) -> InfoNce:
    """-log softmax at the diagonal of logits [B, B] over `candidates` bool [B, B], which holds the diagonal where
    `paired` bool [B]; of those rows that have a candidate beside their own partner."""
    anchors = paired & (candidates.sum(axis=1) > 1)
    # A row without any candidate must not make NaN, not even one that is masked later (its gradient would be NaN).
    masked = jnp.where(anchors[:, None], jnp.where(candidates, logits, -jnp.inf), 0.0)
    own = jnp.diagonal(masked)
    loss = jnp.where(anchors, jax.nn.logsumexp(masked, axis=1) - own, 0.0)
    right = anchors & (own >= masked.max(axis=1))
    return InfoNce(loss.sum(), right.sum().astype(jnp.float32), anchors.sum().astype(jnp.float32))


def _link_loss(table: jax.Array, links: jax.Array, key: jax.Array, temperature: jax.Array) -> InfoNce:
    """InfoNCE between feature rows and their linked genes' rows. links int32 [2, E]."""
    if links.shape[1] > MAX_LINKS:
        links = links[:, jax.random.permutation(key, links.shape[1])[:MAX_LINKS]]
    rows, genes = links
    unit = table * jax.lax.rsqrt(jnp.sum(table * table, axis=1, keepdims=True) + 1e-12)
    logits = unit[rows] @ unit[genes].T / temperature
    # A feature's other genes are no negatives of it, nor is its own gene where it stands twice.
    same = (rows[:, None] == rows[None, :]) | (genes[:, None] == genes[None, :])
    return _info_nce(logits, ~same | jnp.eye(len(rows), dtype=bool), jnp.ones(len(rows), bool))
