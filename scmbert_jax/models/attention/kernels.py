"""`cudnn` and `splash`: exact attention in kernels that other people write, for NVIDIA GPUs and for TPUs.

XLA cannot split such a kernel over a mesh, so each device runs it on its own cells and heads (`on_each_device`). Both
work on blocks of 128 tokens: rows are padded up to a multiple inside, which costs less than one block of each row; none
with num_tokens of 128 n - 1 (`[CLS]` is a token, too).
"""

import re
from functools import partial

import jax
import jax.numpy as jnp

from scmbert_jax.models.attention.shape import AttentionShape
from scmbert_jax.parallel.mesh import on_each_device

BLOCK = 128
_AXES = ("batch", "length", "heads", "head_dim")
_ARGUMENTS = (_AXES, _AXES, _AXES, ("batch",))


def _padded(x: jax.Array) -> jax.Array:
    """[B, S, ...] -> [B, S up to a multiple of BLOCK, ...]."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK), *[(0, 0)] * (x.ndim - 2)))


# --- cudnn -----------------------------------------------------------------------------------------------------------


def cudnn_refusal(shape: AttentionShape) -> str | None:
    """Why cuDNN's flash attention cannot, or None; its limits are those that JAX checks for it."""
    if shape.platform != "gpu":
        return f"it needs an NVIDIA GPU, and this run is on {shape.platform}"
    widest = 256
    if shape.compute_capability:
        if not re.fullmatch(r"\d+\.\d+", shape.compute_capability):
            return f"it needs an NVIDIA GPU, and this one calls itself {shape.compute_capability}"
        if float(shape.compute_capability) < 8:
            return f"it needs compute capability 8.0 (Ampere) or above, and this GPU has {shape.compute_capability}"
        widest = 256 if float(shape.compute_capability) >= 9 else 128
    if shape.dtype not in ("bfloat16", "float16"):
        return f"it computes in bfloat16 or float16, and model.compute_dtype is {shape.dtype}"
    if shape.head_dim % 8 or shape.head_dim > widest:
        return (
            f"it needs a head_dim that is a multiple of 8 and at most {widest}, and model.head_dim is {shape.head_dim}"
        )
    return None


def cudnn_attend(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """See `AttentionBackend`."""

    def on_one(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
        # Lengths, not a mask: a mask tensor is S^2 memory, and its gradients are on record as nan for some lengths.
        return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="cudnn")

    out = on_each_device(on_one, _ARGUMENTS, _AXES)(_padded(q), _padded(k), _padded(v), lengths)
    return out[:, : q.shape[1]]


# --- splash ----------------------------------------------------------------------------------------------------------

# Tokens per block of the kernel, the first that divides the padded length: larger blocks reuse what was read more.
_SPLASH_BLOCKS = (512, 384, 256, 128)


def splash_refusal(shape: AttentionShape) -> str | None:
    """Why splash attention cannot, or None."""
    if shape.platform != "tpu":
        return f"it needs a TPU, and this run is on {shape.platform}"
    return None


def splash_attend(
    q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """See `AttentionBackend`. `interpret`: run the kernel's program on any platform, slowly (for tests)."""
    on_one = partial(_splash_on_one, interpret=interpret)
    out = on_each_device(on_one, _ARGUMENTS, _AXES)(_padded(q), _padded(k), _padded(v), lengths)
    return out[:, : q.shape[1]]


def _splash_on_one(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array, *, interpret: bool) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    queries, keys = q.shape[1], k.shape[1]
    of_queries, of_keys = (next(size for size in _SPLASH_BLOCKS if length % size == 0) for length in (queries, keys))
    kernel = splash.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.FullMask((queries, keys))] * q.shape[2]),
        block_sizes=splash.BlockSizes(
            block_q=of_queries,
            block_kv=of_keys,
            block_q_dkv=of_queries,
            block_kv_dkv=of_keys,
            block_q_dq=of_queries,
            block_kv_dq=of_keys,
        ),
        interpret=interpret,
    )
    # A query reads the keys of its own segment: all queries are of segment 1, padded keys of segment 0.
    segments = splash.SegmentIds(
        jnp.ones((q.shape[0], queries), jnp.int32), (jnp.arange(keys)[None] < lengths[:, None]).astype(jnp.int32)
    )
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))  # the kernel does not scale
    return jnp.swapaxes(jax.vmap(kernel)(*heads_first, segments), 1, 2)
