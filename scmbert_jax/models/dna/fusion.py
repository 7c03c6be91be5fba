"""Sequence and regions in one row of tokens, so that each can ask the other."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from scmbert_jax.config import ModelConfig
from scmbert_jax.dna_config import RegionConfig
from scmbert_jax.models.dna.present_first import encode_present
from scmbert_jax.models.encoder import Encoder
from scmbert_jax.models.parameters import parameter


class Fused(NamedTuple):
    """pooled float32 [B, D], of sequence and regions together; sequence [B, S, D]; regions [B, K, D]."""

    pooled: jax.Array
    sequence: jax.Array
    regions: jax.Array


class Fusion(nnx.Module):
    """`fusion_layers` layers of the transformer over the tokens of both."""

    def __init__(self, model: ModelConfig, regions: RegionConfig, rngs: nnx.Rngs):
        shape = (2 + regions.num_regions, model.embed_dim)
        # The token before all, that of sequences, and those of the places of the regions around the sequence's own.
        self.places = parameter(jax.random.normal(rngs.params(), shape) * 0.1, (None, "embed"), "embedding")
        self.encoder = Encoder(replace(model, num_layers=regions.fusion_layers), (), rngs)

    def __call__(self, sequence: jax.Array, lengths: jax.Array, regions: jax.Array, present: jax.Array) -> Fused:
        """Args:
        sequence: [B, S, D], of which int32 [B] `lengths` tokens are real.
        regions: [B, K, D], of which bool [B, K] are `present`.
        """
        places, width = self.places[...].astype(sequence.dtype), sequence.shape[1]
        x = jnp.concatenate([sequence + places[None, 1:2], regions.astype(sequence.dtype) + places[None, 2:]], axis=1)
        real = jnp.arange(width)[None] < lengths[:, None]
        pooled, states = encode_present(self.encoder, x, jnp.concatenate([real, present], axis=1), places[0])
        return Fused(pooled.astype(jnp.float32), states[:, :width], states[:, width:])
