"""Is this the matrix of the regions around this sequence: InfoNCE, and a yes or no about hard negatives.

Sequence and regions, read alone, are compared with those of all rows of the batch (as CLIP). A hard negative is drawn
of the rows in proportion to the similarity found (as ALBEF, Li et al. 2021): for each sequence the regions of another
row, for each row's regions another sequence; then what both together give says yes or no. Rows whose windows overlap
are no negatives of each other, nor is the same region twice.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from scmbert_jax.batch import GenomeBatch
from scmbert_jax.dna_config import DnaExperiment
from scmbert_jax.genome_layout import GenomeLayout
from scmbert_jax.models.dna.heads import MatchingHead
from scmbert_jax.objectives.base import LossSum, Model
from scmbert_jax.objectives.sequence_region.base import DnaObjective
from scmbert_jax.random_keys import KeyPurpose, key_for, row_keys


class Matching(DnaObjective):
    """Compares rows of the whole batch; encodes them at once, so its memory is that of the batch."""

    needs_whole_batch = True

    def __init__(self, config: DnaExperiment):
        self.config = config.objectives.matching

    @staticmethod
    def heads(config: DnaExperiment, layout: GenomeLayout, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        own = config.objectives.matching
        temperatures = own.initial_temperature, own.min_temperature, own.max_temperature
        return {"matching_head": MatchingHead(config.model.embed_dim, own.projection_dim, temperatures, rngs)}

    def loss(self, model: Model, feature_table: jax.Array, batch: GenomeBatch, key: jax.Array) -> LossSum:
        keys = row_keys(key, batch.row)
        encoded, found = model.encode(batch), model.read_regions(batch, keys)
        similarity = model.matching_head.similarity(encoded.pooled, found.own)
        negatives = comparable(batch)
        total, weight = jnp.zeros(()), jnp.zeros(())
        metrics: dict[str, tuple[jax.Array, jax.Array]] = {}
        if self.config.info_nce_weight > 0:
            there, back = _info_nce(similarity, negatives), _info_nce(similarity.T, negatives.T)
            loss, rows = 0.5 * (there.loss + back.loss), there.rows
            total, weight = total + self.config.info_nce_weight * loss, weight + self.config.info_nce_weight * rows
            metrics["info_nce"], metrics["top1"] = (loss, rows), (0.5 * (there.right + back.right), rows)
        if self.config.match_weight > 0:
            other_regions, other_sequences = hard_negatives(similarity, negatives, keys)
            has = negatives.any(axis=1), negatives.any(axis=0)
            asked = jnp.concatenate([has[0] | has[1], *has])
            rows = jnp.arange(len(keys))
            sequences = jnp.concatenate([rows, rows, other_sequences])
            regions = jnp.concatenate([rows, other_regions, rows])
            fused = model.fused(
                jax.tree.map(lambda x: x[sequences], encoded), jax.tree.map(lambda x: x[regions], found)
            )
            logits = model.matching_head.match(fused.pooled)[:, 0]
            true = jnp.arange(len(logits)) < len(rows)
            losses = jax.nn.softplus(jnp.where(true, -logits, logits))
            loss, number = jnp.where(asked, losses, 0.0).sum(), asked.sum().astype(jnp.float32)
            total, weight = total + self.config.match_weight * loss, weight + self.config.match_weight * number
            right = (asked & ((logits > 0) == true)).sum().astype(jnp.float32)
            metrics["match"], metrics["match_accuracy"] = (loss, number), (right, number)
        return LossSum(total, weight, metrics)


def comparable(batch: GenomeBatch) -> jax.Array:
    """bool [B, B]: the regions of column j are no regions of the window of row i's sequence, nor the other way; and
    neither is padding."""
    there = (batch.neighbours[None, :, :] == batch.region[:, None, None]).any(-1)  # [i, j]: i's region in j's window
    real = batch.lengths > 0
    return ~(there | there.T) & real[:, None] & real[None, :]


def hard_negatives(similarity: jax.Array, negatives: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(int32 [B], for each sequence a row whose regions are others; int32 [B], for each row's regions a sequence).

    Drawn in proportion to exp(similarity); of rows without a negative, nothing to speak of. The draw is of the row's
    key and of the other's place in the batch, and learns nothing.
    """
    logits = jax.lax.stop_gradient(jnp.where(negatives, similarity, -jnp.inf))

    def gumbels(key: jax.Array) -> jax.Array:
        return jax.random.gumbel(key_for(key, KeyPurpose.NEGATIVE), (2, len(keys)))

    noise = jax.vmap(gumbels)(keys)  # [B, 2, B]
    return (logits + noise[:, 0]).argmax(axis=1), (logits.T + noise[:, 1]).argmax(axis=1)


class _InfoNce(NamedTuple):
    """Sums over the rows that have a negative, float32 []: of losses, of those whose own is nearest, and of 1."""

    loss: jax.Array
    right: jax.Array
    rows: jax.Array


def _info_nce(similarity: jax.Array, negatives: jax.Array) -> _InfoNce:
    """-log softmax at the diagonal of [B, B], over the diagonal and the negatives of each row."""
    candidates = negatives | jnp.eye(len(similarity), dtype=bool)
    has = negatives.any(axis=1)
    masked = jnp.where(candidates, similarity, -jnp.inf)
    own = jnp.diagonal(similarity)
    loss = jnp.where(has, jax.nn.logsumexp(masked, axis=1) - own, 0.0)
    right = has & (own >= masked.max(axis=1))
    return _InfoNce(loss.sum(), right.sum().astype(jnp.float32), has.sum().astype(jnp.float32))
