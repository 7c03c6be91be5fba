"""Which regulators occur in a sequence: what its own row of the matrix says, of the sequence alone."""

import jax
import jax.numpy as jnp
from flax import nnx

from scmbert_jax.batch import GenomeBatch
from scmbert_jax.dna_config import DnaExperiment
from scmbert_jax.genome_layout import GenomeLayout
from scmbert_jax.models.dna.heads import Head
from scmbert_jax.objectives.base import LossSum, Model
from scmbert_jax.objectives.sequence_region.base import DnaObjective


class MotifOccurrence(DnaObjective):
    """Binary cross entropy, the mean over regulators; a sequence weighs 1. Regulators with few regions count as those
    with many do."""

    def __init__(self, config: DnaExperiment):
        self.config = config.objectives.motif_occurrence

    @staticmethod
    def heads(config: DnaExperiment, layout: GenomeLayout, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        return {"motif_head": Head(config.model.embed_dim, len(layout.regulators), rngs)}

    def loss(self, model: Model, feature_table: jax.Array, batch: GenomeBatch, key: jax.Array) -> LossSum:
        encoded = model.encode(batch)
        real = jnp.arange(encoded.states.shape[1])[None] < encoded.lengths[:, None]
        # The maximum over tokens beside what is pooled: a motif stands at one place.
        states = jnp.where(real[..., None], encoded.states.astype(jnp.float32), -jnp.inf).max(axis=1)
        logits = model.motif_head(encoded.pooled + jnp.where(jnp.isfinite(states), states, 0.0))
        occurs = model.occurring(batch)  # bool [B, T]
        losses = jax.nn.softplus(jnp.where(occurs, -logits, logits))
        there = (batch.lengths > 0).astype(jnp.float32)
        right = ((logits > 0) == occurs).mean(-1)
        return LossSum((there * losses.mean(-1)).sum(), there.sum(), {"accuracy": ((there * right).sum(), there.sum())})
