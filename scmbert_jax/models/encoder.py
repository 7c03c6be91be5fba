"""The transformer encoder: pre-norm blocks, scanned over layers, with a named recompute policy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from scmbert_jax.config import ModelConfig
from scmbert_jax.models.attention import attention_backend, shape_of
from scmbert_jax.parallel.mesh import constrain

REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def weight(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, logical_axes: tuple[str | None, ...]) -> nnx.Param:
    """A float32 matrix, normal with standard deviation fan_in**-0.5."""
    return nnx.Param(jax.random.normal(rngs.params(), shape) * fan_in**-0.5, logical_axes=logical_axes)


def constant(value: float, shape: tuple[int, ...], logical_axes: tuple[str | None, ...]) -> nnx.Param:
    """A float32 parameter that starts at one value everywhere (biases, norm scales)."""
    return nnx.Param(jnp.full(shape, value, jnp.float32), logical_axes=logical_axes)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, computed in float32, returned in the dtype of its input."""

    def __init__(self, dim: int):
        self.scale = constant(1.0, (dim,), (None,))
        self.bias = constant(0.0, (dim,), (None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-6)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class EncoderBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); GELU; query, key and value without bias."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        dim, heads, head_dim, mlp_dim = config.embed_dim, config.num_heads, config.head_dim, config.mlp_dim
        self.attention_norm = LayerNorm(dim)
        self.qkv = weight(rngs, (dim, 3, heads, head_dim), dim, ("embed", None, "heads", "head_dim"))
        self.attention_out = weight(rngs, (heads, head_dim, dim), heads * head_dim, ("heads", "head_dim", "embed"))
        self.attention_bias = constant(0.0, (dim,), (None,))
        self.mlp_norm = LayerNorm(dim)
        self.mlp_in = weight(rngs, (dim, mlp_dim), dim, ("embed", "mlp"))
        self.mlp_in_bias = constant(0.0, (mlp_dim,), ("mlp",))
        self.mlp_out = weight(rngs, (mlp_dim, dim), mlp_dim, ("mlp", "embed"))
        self.mlp_out_bias = constant(0.0, (dim,), (None,))
        self.attention_name = config.attention

    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:  # [B, S, D], int32 [B] -> [B, S, D]
        dtype = x.dtype
        y = self.attention_norm(x)
        qkv = jnp.einsum("bsd,dthk->tbshk", y, self.qkv[...].astype(dtype))  # [3, B, S, H, Dh]
        attend = attention_backend(self.attention_name, shape_of(qkv[0]))
        y = attend(qkv[0], qkv[1], qkv[2], lengths)  # [B, S, H, Dh]
        y = jnp.einsum("bshk,hkd->bsd", y, self.attention_out[...].astype(dtype))
        x = constrain(x + y + self.attention_bias[...].astype(dtype), "batch", "length", "embed")
        y = self.mlp_norm(x)
        y = jax.nn.gelu(y @ self.mlp_in[...].astype(dtype) + self.mlp_in_bias[...].astype(dtype))
        y = y @ self.mlp_out[...].astype(dtype)
        return constrain(x + y + self.mlp_out_bias[...].astype(dtype), "batch", "length", "embed")


class Encoder(nnx.Module):
    """`num_layers` blocks whose parameters are stacked on a leading `layers` axis, then a final norm."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def stacked(rngs: nnx.Rngs) -> EncoderBlock:
            return EncoderBlock(config, rngs)

        self.blocks = stacked(rngs)
        for _, variable in nnx.iter_graph(self.blocks):
            if isinstance(variable, nnx.Param):
                variable.set_metadata(logical_axes=("layers", *variable.get_metadata("logical_axes")))
        self.final_norm = LayerNorm(config.embed_dim)
        self.num_layers, self.scan_layers, self.remat = config.num_layers, config.scan_layers, config.remat

    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        """x [B, S, D]; lengths int32 [B], real tokens come first -> [B, S, D] in x's dtype."""
        graph, stacked = nnx.split(self.blocks)
        x = constrain(x, "batch", "length", "embed")

        def layer(x: jax.Array, params: nnx.State) -> tuple[jax.Array, None]:
            return nnx.merge(graph, params)(x, lengths), None

        policy = REMAT_POLICIES[self.remat]
        if policy is not None:
            # prevent_cse is needed only outside scan; inside it costs fusions.
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=not self.scan_layers)
        if self.scan_layers:
            x, _ = jax.lax.scan(layer, x, stacked)
        else:
            for index in range(self.num_layers):
                x, _ = layer(x, jax.tree.map(lambda leaf, i=index: leaf[i], stacked))
        return self.final_norm(x)
