"""Predicts features of one modality from the encoded tokens of another: queries are the rows of the target features.

Any feature with a row can be asked, also one that was never predicted in training: its row comes from its links.
"""

from typing import Any

import jax
from flax import nnx

from scmbert_jax.config import ModelConfig
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.models.attention.backends import Attention
from scmbert_jax.models.heads import CellDecoder
from scmbert_jax.models.layers import LayerNorm, linear
from scmbert_jax.models.parameters import filled, weight
from scmbert_jax.parallel.mesh import constrain


class CrossAttentionBlock(nnx.Module):
    """x + attention(norm(x) -> states), then x + mlp(norm(x)); queries do not see each other.

    So a feature's prediction does not depend on which others are asked with it, and any number can be asked in parts.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        dim, heads, head_dim, mlp_dim = config.embed_dim, config.num_heads, config.head_dim, config.mlp_dim
        self.attention_norm = LayerNorm(dim)
        self.query = weight(rngs, (dim, heads, head_dim), dim, ("embed", "heads", "head_dim"), "layer_matrix")
        self.key_value = weight(
            rngs, (dim, 2, heads, head_dim), dim, ("embed", None, "heads", "head_dim"), "layer_matrix"
        )
        self.attention_out = weight(
            rngs, (heads, head_dim, dim), heads * head_dim, ("heads", "head_dim", "embed"), "layer_matrix"
        )
        self.mlp_norm = LayerNorm(dim)
        self.mlp_in = weight(rngs, (dim, mlp_dim), dim, ("embed", "mlp"), "layer_matrix")
        self.mlp_in_bias = filled(0.0, (mlp_dim,), ("mlp",), "bias")
        self.mlp_out = weight(rngs, (mlp_dim, dim), mlp_dim, ("mlp", "embed"), "layer_matrix")
        self.mlp_out_bias = filled(0.0, (dim,), (None,), "bias")
        self.attention = Attention(config, rngs)

    def __call__(self, x: jax.Array, states: jax.Array, lengths: jax.Array) -> jax.Array:
        """x [B, M, D]; states [B, S, D], of which the first `lengths` int32 [B] are real -> [B, M, D]."""
        dtype = x.dtype
        query = linear(self.attention_norm(x), self.query[...].astype(dtype))
        key_value = linear(states, self.key_value[...].astype(dtype))  # [B, S, 2, H, Dh]
        y = self.attention(query, key_value[:, :, 0], key_value[:, :, 1], lengths)
        x = x + linear(y, self.attention_out[...].astype(dtype), 2)
        y = linear(self.mlp_norm(x), self.mlp_in[...].astype(dtype)) + self.mlp_in_bias[None, None].astype(dtype)
        return x + linear(jax.nn.gelu(y), self.mlp_out[...].astype(dtype)) + self.mlp_out_bias[None, None].astype(dtype)


class TranslationDecoder(nnx.Module):
    """Feature rows ask the source's token states by cross-attention, and its cell embedding by a bilinear form."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        dim = config.embed_dim
        self.query = weight(rngs, (dim, dim), dim, ("embed", None))
        self.modality = weight(rngs, (len(MODALITIES), dim), dim, (None, None), "embedding")
        self.blocks: Any = nnx.List([CrossAttentionBlock(config, rngs) for _ in range(config.decoder_layers)])
        self.cell_decoder = CellDecoder(config, rngs)

    def __call__(self, rows: jax.Array, target: str, states: jax.Array, lengths: jax.Array) -> jax.Array:
        """What the source says of each feature, [B, M, D] in the dtype of `states`.

        Args:
          rows: float32 [B, M, D], rows of the feature table of modality `target`.
          states: [B, 1 + S, D], the encoded source, `[CLS]` first.
          lengths: int32 [B], real tokens of the source.
        """
        dtype = states.dtype
        x = (linear(rows, self.query[...]) + self.modality[MODALITIES.index(target), None, None]).astype(dtype)
        x = constrain(x, "batch", "length", "embed")
        for block in self.blocks:
            x = block(x, states, lengths + 1)
        return x + self.cell_decoder(states[:, 0], rows)
