"""The transformer encoder: blocks scanned over layers, with a named recompute policy.

How much of it modalities share is a choice (`ModelConfig.encoder_sharing`); all three take and give the same arrays.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scmbert_jax.config import ModelConfig
from scmbert_jax.models.attention.backends import Attention
from scmbert_jax.models.layers import LayerNorm, linear
from scmbert_jax.models.parameters import filled, weight
from scmbert_jax.models.token_sequence import TokenSequence, join_modalities, split_modalities
from scmbert_jax.parallel.mesh import constrain

REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}


def computed_once(x: jax.Array, true: jax.Array) -> jax.Array:
    """x; neither it nor its gradient is computed anew by what reads them.

    On CPUs, XLA fuses the sums of the residual stream, layer after layer, and those of its gradient into all that read
    them, and so adds everything up again in each layer: up to 6% of a step with six layers. It drops an
    `optimization_barrier` before it fuses; over a conditional it cannot fuse.

    Args:
      x: any shape.
      true: bool [], true in a way that the compiler cannot know.
    """

    def on_cpu(x: jax.Array, true: jax.Array) -> jax.Array:
        return jax.lax.cond(true, lambda x: x, jnp.zeros_like, x)

    def elsewhere(x: jax.Array, _: jax.Array) -> jax.Array:
        return jax.lax.optimization_barrier(x)

    return jax.lax.platform_dependent(x, true, cpu=on_cpu, default=elsewhere)


class EncoderBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with `norm_position` "post", norm(x + attention(x)) and so on.

    With several experts (`multiway`, after VLMo, Bao et al. 2022) the attention is shared and the feed-forward layer is
    the modality's own: expert 0 for `[CLS]`, expert 1 + i for the i-th modality of the run.
    """

    def __init__(self, config: ModelConfig, num_experts: int, rngs: nnx.Rngs):
        dim, heads, head_dim, mlp_dim = config.embed_dim, config.num_heads, config.head_dim, config.mlp_dim
        self.attention_norm = LayerNorm(dim, config.norm_epsilon)
        self.qkv = weight(rngs, (dim, 3, heads, head_dim), dim, ("embed", None, "heads", "head_dim"), "layer_matrix")
        self.attention_out = weight(
            rngs, (heads, head_dim, dim), heads * head_dim, ("heads", "head_dim", "embed"), "layer_matrix"
        )
        self.attention_bias = filled(0.0, (dim,), (None,), "bias")
        self.qkv_bias: Any = nnx.data(None)
        if config.qkv_bias:
            self.qkv_bias = filled(0.0, (3, heads, head_dim), (None, "heads", "head_dim"), "bias")
        self.mlp_norm = LayerNorm(dim, config.norm_epsilon)
        self.mlp_in = weight(rngs, (num_experts, dim, mlp_dim), dim, (None, "embed", "mlp"), "layer_matrix")
        self.mlp_in_bias = filled(0.0, (num_experts, mlp_dim), (None, "mlp"), "bias")
        self.mlp_out = weight(rngs, (num_experts, mlp_dim, dim), mlp_dim, (None, "mlp", "embed"), "layer_matrix")
        self.mlp_out_bias = filled(0.0, (num_experts, dim), (None, None), "bias")
        self.attention, self.num_experts = Attention(config, rngs), num_experts
        self.activation, self.norms_first = config.activation, config.norm_position == "pre"

    def queries_keys_values(self, x: jax.Array) -> jax.Array:
        """x [B, S, D] -> [B, S, 3, H, Dh], in the order in which a product of matrices leaves it: another would
        transpose as much as attention reads."""
        y = self.attention_norm(x) if self.norms_first else x
        qkv = linear(y, self.qkv[...].astype(x.dtype))
        return qkv if self.qkv_bias is None else qkv + self.qkv_bias[...][None, None].astype(x.dtype)

    def __call__(
        self, x: jax.Array, tokens: TokenSequence, experts: tuple[int, ...], cell_only: bool = False
    ) -> jax.Array:
        """x [B, 1 + S, D] -> [B, 1 + S, D], or [B, 1, D] if `cell_only`: position 0, of all tokens."""
        dtype = x.dtype
        if cell_only and self.qkv_bias is None:
            y = self.attention_norm(x) if self.norms_first else x
            # Split, not indexed: its gradient is then put together, not added up.
            query, keys, values = (own[:, 0] for own in jax.lax.split(self.qkv[...].astype(dtype), (1, 1, 1), axis=1))
            x, q = x[:, :1], linear(y[:, :1], query)
            y = self.attention.of_one(q, y, keys, values, tokens.lengths + 1)
        else:
            qkv = self.queries_keys_values(x)  # [B, S, 3, H, Dh]
            x = x[:, :1] if cell_only else x
            # [B, S, H, Dh]
            y = self.attention(qkv[:, : x.shape[1], 0], qkv[:, :, 1], qkv[:, :, 2], tokens.lengths + 1)
        y = linear(y, self.attention_out[...].astype(dtype), 2)
        x = constrain(x + y + self.attention_bias[None, None].astype(dtype), "batch", "length", "embed")
        x = x if self.norms_first else self.attention_norm(x)
        y = self.mlp_norm(x) if self.norms_first else x
        if self.num_experts == 1 or cell_only:
            y = self._mlp(y, 0)
        else:
            parts = [
                self._mlp(part, expert)
                for part, expert in zip(split_modalities(y[:, 1:], tokens), experts, strict=True)
            ]
            y = jnp.concatenate([self._mlp(y[:, :1], 0), join_modalities(parts, tokens)], axis=1)
        x = x + y if self.norms_first else self.mlp_norm(x + y)
        return constrain(x, "batch", "length", "embed")

    def _mlp(self, y: jax.Array, expert: int) -> jax.Array:
        dtype = y.dtype
        y = linear(y, self.mlp_in[...][expert].astype(dtype)) + self.mlp_in_bias[expert, None, None].astype(dtype)
        y = linear(ACTIVATIONS[self.activation](y), self.mlp_out[...][expert].astype(dtype))
        return y + self.mlp_out_bias[expert, None, None].astype(dtype)


class Encoder(nnx.Module):
    """`num_layers` blocks whose parameters are stacked on a leading `layers` axis; then a final norm, unless blocks end
    with one.

    Args:
      modalities: those of the run, if each has a feed-forward expert of its own; (): one for all.
    """

    def __init__(self, config: ModelConfig, modalities: tuple[str, ...], rngs: nnx.Rngs):
        num_experts = 1 + len(modalities)

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def stacked(rngs: nnx.Rngs) -> EncoderBlock:
            return EncoderBlock(config, num_experts, rngs)

        self.blocks = stacked(rngs)
        for _, variable in nnx.iter_graph(self.blocks):
            if isinstance(variable, nnx.Param):
                variable.set_metadata(logical_axes=("layers", *variable.get_metadata("logical_axes")))
        self.final_norm: Any = nnx.data(None)
        if config.norm_position == "pre":
            self.final_norm = LayerNorm(config.embed_dim, config.norm_epsilon)
        self.num_layers, self.scan_layers, self.remat = config.num_layers, config.scan_layers, config.remat
        self.modalities = modalities

    def __call__(self, x: jax.Array, tokens: TokenSequence, cell_only: bool = False) -> jax.Array:
        """x [B, 1 + S, D], `[CLS]` and then the vectors of `tokens` -> [B, 1 + S, D] in x's dtype.

        `cell_only`: [B, 1, D], the same `[CLS]`; the last layer computes nothing else.
        """
        graph, stacked = nnx.split(self.blocks)
        x = constrain(x, "batch", "length", "embed")
        experts = tuple(1 + self.modalities.index(name) for name, _ in tokens.widths) if self.modalities else ()

        def layer(cell_only: bool, scanned: bool) -> Callable[..., tuple[jax.Array, None]]:
            def apply(x: jax.Array, params: nnx.State) -> tuple[jax.Array, None]:
                return nnx.merge(graph, params)(x, tokens, experts, cell_only), None

            policy = REMAT_POLICIES[self.remat]
            # prevent_cse is needed only outside scan; inside it costs fusions.
            return apply if policy is None else jax.checkpoint(apply, policy=policy, prevent_cse=not scanned)

        # Split, not indexed: the gradient of each index would be one of all layers, zero but for its own.
        leaves, structure = jax.tree.flatten(stacked)
        number_scanned = self.num_layers - cell_only if self.scan_layers else 0
        sizes = (number_scanned, *(1,) * (self.num_layers - number_scanned))
        scanned, *each = zip(*(jax.lax.split(leaf, sizes) for leaf in leaves), strict=True)
        if number_scanned:
            x, _ = jax.lax.scan(layer(False, True), x, jax.tree.unflatten(structure, scanned))
        for number, own in enumerate(each, 1):
            params = jax.tree.unflatten(structure, [leaf.squeeze(0) for leaf in own])
            x, _ = layer(cell_only and number == len(each), False)(computed_once(x, tokens.lengths[0] >= 0), params)
        return x if self.final_norm is None else self.final_norm(x)


class PerModalityEncoder(nnx.Module):
    """An encoder of its own for each modality; `[CLS]` of a cell is the mean over those that the cell has."""

    def __init__(self, config: ModelConfig, modalities: tuple[str, ...], rngs: nnx.Rngs):
        self.encoders: Any = nnx.Dict({name: Encoder(config, (), rngs) for name in modalities})

    def __call__(self, x: jax.Array, tokens: TokenSequence, cell_only: bool = False) -> jax.Array:
        """As `Encoder`; tokens see those of their own modality only."""
        parts, cells = [], []
        for number, part in enumerate(split_modalities(x[:, 1:], tokens)):
            name, width = tokens.widths[number]
            lengths = tokens.modality_lengths[:, number : number + 1]
            own = replace(tokens, modality_lengths=lengths, widths=((name, width),))
            states = self.encoders[name](jnp.concatenate([x[:, :1], part], axis=1), own, cell_only)
            has = (lengths > 0).astype(x.dtype)  # [B, 1]
            cells.append(states[:, 0] * has)
            parts.append(states[:, 1:])
        number_of = jnp.maximum((tokens.modality_lengths > 0).sum(axis=1), 1).astype(x.dtype)
        cell = (sum(cells) / number_of[:, None])[:, None]
        return cell if cell_only else jnp.concatenate([cell, join_modalities(parts, tokens)], axis=1)


def make_encoder(config: ModelConfig, modalities: tuple[str, ...], rngs: nnx.Rngs) -> Encoder | PerModalityEncoder:
    """The encoder that `config.encoder_sharing` asks for, of the run's `modalities`."""
    if config.encoder_sharing == "per_modality":
        return PerModalityEncoder(config, modalities, rngs)
    return Encoder(config, modalities if config.encoder_sharing == "multiway" else (), rngs)
