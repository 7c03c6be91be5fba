"""Masked modelling of the sequence: spans of bases are hidden and predicted, from the rest and from the regions."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipelines.genome.kmer_tokens import hidden_bases, masked_kmers
from data_pipelines.genome.tokens import SPECIAL
from scmbert_jax.batch import GenomeBatch
from scmbert_jax.dna_config import DnaExperiment
from scmbert_jax.genome_layout import GenomeLayout
from scmbert_jax.models.dna.heads import Head
from scmbert_jax.models.dna.sequence_encoder import base_logits, kmer_ids
from scmbert_jax.objectives.base import LossSum, Model
from scmbert_jax.objectives.sequence_region.base import DnaObjective, draw_rows
from scmbert_jax.random_keys import KeyPurpose, row_keys


class MaskedSequence(DnaObjective):
    """Cross entropy of the hidden bases, or of the masked k-mers; those with an N are no target."""

    used_by = "`scmbert regulate`: a sequence encoder to start from, and how likely a base is where it stands."

    def __init__(self, config: DnaExperiment):
        self.config, self.sequence = config.objectives.masked_sequence, config.sequence

    @staticmethod
    def heads(config: DnaExperiment, layout: GenomeLayout, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        kmers = config.sequence.tokens == "kmers"
        outputs = 4**config.sequence.kmer if kmers else 4 * config.sequence.stem_pool
        return {"sequence_head": Head(config.model.embed_dim, outputs, rngs)}

    def loss(self, model: Model, feature_table: jax.Array, batch: GenomeBatch, key: jax.Array) -> LossSum:
        keys, length, span = row_keys(key, batch.row), batch.codes.shape[1], self.config.span
        uniform = draw_rows(keys, KeyPurpose.BASES, length + span - 1)
        real = jnp.arange(length)[None] < batch.lengths[:, None]
        hidden = hidden_bases(uniform, self.config.mask_fraction, span) & real
        encoded = model.encode(batch, hidden)
        if self.config.with_regions:
            encoded = model.fused(encoded, model.read_regions(batch, keys)).encoded
        if self.sequence.tokens == "bases":
            logits = base_logits(encoded, batch.lengths, length, model.sequence_head)
            targets, asked = batch.codes.astype(jnp.int32), hidden & (batch.codes < 4)
        else:
            k = self.sequence.kmer
            logits = model.sequence_head(encoded.states)
            targets = kmer_ids(batch.codes, k) - len(SPECIAL)
            there = jnp.arange(targets.shape[1])[None] < encoded.lengths[:, None]
            asked = masked_kmers(hidden, k) & there & (targets >= 0)
        return _cross_entropy(logits, targets, asked)


def _cross_entropy(logits: jax.Array, targets: jax.Array, asked: jax.Array) -> LossSum:
    """logits [B, S, V], targets int32 [B, S], asked bool [B, S]."""
    own = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    loss = jnp.where(asked, jax.nn.logsumexp(logits, axis=-1) - own, 0.0).sum()
    weight = asked.sum().astype(jnp.float32)
    right = (asked & (logits.argmax(-1) == targets)).sum().astype(jnp.float32)
    metrics: dict[str, Any] = {"accuracy": (right, weight)}
    return LossSum(loss, weight, metrics)
