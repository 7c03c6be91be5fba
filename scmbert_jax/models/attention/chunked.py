"""`xla_chunked`: exact attention whose memory grows with the tokens, not with their square; on any platform.

Keys are worked off in blocks with a running maximum and sum (Milakov & Gimelshein 2018), queries likewise; the backward
pass computes the weights of each pair of blocks again from the saved logsumexp (FlashAttention-2, Dao 2023, sections
3.1 and 3.2). A pair of blocks of c tokens holds B * H * c^2 numbers; on a CPU cells and heads are worked off a few at a
time, so that this is what the cache of a core holds.

Glossary: n blocks of c tokens; `q_blocks` [n, B, c, H, D], so that a scan takes one after the other.
"""

import jax
import jax.numpy as jnp

from scmbert_jax.models.attention.shape import AttentionShape, shape_of
from scmbert_jax.parallel.mesh import on_each_device

# Tokens per block at most: a block pair of 64 cells and 8 heads takes 512 MiB in float32.
BLOCK = 512
# Logits that a CPU works on at a time: 1 MB in float32. All cells and heads at once, the passes over their logits wait
# for memory: forward and backward of 16 cells, 4 heads and 256 tokens take 1.6 times as long.
_LOGITS_ON_CPU = 2**18
# Finite, so that no difference of two is nan; far below any logit of finite float32 queries and keys.
HIDDEN = -0.7 * float(jnp.finfo(jnp.float32).max)


def refusal(shape: AttentionShape) -> None:
    """It serves everything."""


def split_tokens(x: jax.Array, most: int) -> jax.Array:
    """[B, S, ...] -> [n, B, c, ...] with c <= `most` (up to 8), zeros after the last token.

    Blocks are of one size, so that a length just above a multiple of `most` is not padded by nearly a whole block.
    """
    batch, length = x.shape[:2]
    number = -(-length // most)
    size = -(-length // (8 * number)) * 8
    x = jnp.pad(x, ((0, 0), (0, number * size - length), *[(0, 0)] * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(batch, number, size, *x.shape[2:]), 1, 0)


def join_tokens(blocks: jax.Array, length: int) -> jax.Array:
    """The inverse of `split_tokens`."""
    x = jnp.moveaxis(blocks, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def valid_tokens(blocks: jax.Array, lengths: jax.Array) -> jax.Array:
    """bool [n, B, c]: which tokens of the blocks [n, B, c, ...] are among the first `lengths` [B] of their row."""
    number, _, size = blocks.shape[:3]
    return jnp.arange(number * size).reshape(number, 1, size) < lengths[None, :, None]


def _logits(q: jax.Array, k: jax.Array, valid: jax.Array) -> jax.Array:
    """q, k [B, c, H, D], valid bool [B, c] of the keys -> float32 [B, H, c, c]."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    return jnp.where(valid[:, None, None], logits, HIDDEN)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """See `AttentionBackend`."""
    if shape_of(q).platform != "cpu":
        return _attend(q, k, v, lengths)
    axes = ("batch", "length", "heads", "head_dim")
    return on_each_device(_attend_in_cache, (axes, axes, axes, ("batch",)), axes)(q, k, v, lengths)


def _attend_in_cache(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """`_attend`, a few of the n = B * H pairs of cell and head at a time, each as a cell of one head."""
    batch, queries, heads, dim = q.shape
    number = batch * heads
    most = max(1, _LOGITS_ON_CPU // (min(queries, BLOCK) * min(k.shape[1], BLOCK)))
    size = next(size for size in range(min(most, number), 0, -1) if number % size == 0)

    def groups(x: jax.Array) -> jax.Array:  # [B, S, H, D] -> [n / size, size, S, 1, D]
        return jnp.swapaxes(x, 1, 2).reshape(number // size, size, x.shape[1], 1, dim)

    of_pairs = jnp.repeat(lengths, heads).reshape(-1, size)
    out = jax.lax.map(lambda own: _attend(*own), (groups(q), groups(k), groups(v), of_pairs))
    return jnp.swapaxes(out.reshape(batch, heads, queries, dim), 1, 2)


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    return _forward(q, k, v, lengths)[0]


def _forward(q, k, v, lengths):
    """(output [B, Sq, H, D], logsumexp of each query's logits in blocks, float32 [n, B, H, c])."""
    k_blocks = split_tokens(k, BLOCK)
    keys = k_blocks, split_tokens(v, BLOCK), valid_tokens(k_blocks, lengths)

    def of_queries(q: jax.Array) -> tuple[jax.Array, jax.Array]:  # [B, c, H, D] -> [B, c, H, D], [B, H, c]
        batch, size, heads, dim = q.shape

        def of_keys(carry, key_block):
            largest, total, out = carry  # [B, H, c], [B, H, c], [B, H, c, D]
            k, v, valid = key_block
            logits = _logits(q, k, valid)
            new = jnp.maximum(largest, logits.max(-1))
            weights, shrink = jnp.exp(logits - new[..., None]), jnp.exp(largest - new)
            sums = jnp.einsum("bhqk,bkhd->bhqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return (new, total * shrink + weights.sum(-1), out * shrink[..., None] + sums), None

        row = (batch, heads, size)
        start = jnp.full(row, HIDDEN), jnp.zeros(row), jnp.zeros((*row, dim))
        (largest, total, out), _ = jax.lax.scan(of_keys, start, keys)
        return jnp.swapaxes(out / total[..., None], 1, 2).astype(q.dtype), largest + jnp.log(total)

    out, logsumexp = jax.lax.map(of_queries, split_tokens(q, BLOCK))
    return join_tokens(out, q.shape[1]), logsumexp


def _forward_rule(q, k, v, lengths):
    out, logsumexp = _forward(q, k, v, lengths)
    return out, (q, k, v, lengths, out, logsumexp)


def _backward_rule(saved, out_bar):
    """Gradients of q, k, v. Every weight is a function of the saved logsumexp, so it is computed again, block by block.

    With P the weights, G = out_bar V^T and d = sum(out_bar * out): logits_bar = P * (G - d), which is exactly zero for
    a hidden key (P = 0) and for a query whose out_bar is zero.
    """
    q, k, v, lengths, out, logsumexp = saved
    scale = q.shape[-1] ** -0.5
    q_blocks, k_blocks = split_tokens(q, BLOCK), split_tokens(k, BLOCK)
    dots = jnp.sum(out_bar.astype(jnp.float32) * out.astype(jnp.float32), -1)  # [B, Sq, H]
    dots = jnp.swapaxes(split_tokens(dots, BLOCK), 2, 3)  # [n, B, H, c]
    queries = q_blocks, split_tokens(out_bar, BLOCK), dots, logsumexp

    def of_keys(q_bar, key_block):
        k, v, valid = key_block

        def of_queries(carry, query_block):
            k_bar, v_bar = carry
            q, out_bar, dots, logsumexp = query_block
            weights = jnp.exp(_logits(q, k, valid) - logsumexp[..., None])  # [B, H, c, c]
            v_bar += jnp.einsum("bhqk,bqhd->bkhd", weights.astype(v.dtype), out_bar, preferred_element_type=jnp.float32)
            gains = jnp.einsum("bqhd,bkhd->bhqk", out_bar, v, preferred_element_type=jnp.float32)
            logits_bar = (weights * (gains - dots[..., None]) * scale).astype(q.dtype)
            k_bar += jnp.einsum("bhqk,bqhd->bkhd", logits_bar, q, preferred_element_type=jnp.float32)
            return (k_bar, v_bar), jnp.einsum("bhqk,bkhd->bqhd", logits_bar, k, preferred_element_type=jnp.float32)

        nothing = jnp.zeros(k.shape, jnp.float32)
        (k_bar, v_bar), more = jax.lax.scan(of_queries, (nothing, nothing), queries)
        return q_bar + more, (k_bar, v_bar)

    keys = k_blocks, split_tokens(v, BLOCK), valid_tokens(k_blocks, lengths)
    q_bar, (k_bar, v_bar) = jax.lax.scan(of_keys, jnp.zeros(q_blocks.shape, jnp.float32), keys)
    gradients = (join_tokens(bar, x.shape[1]).astype(x.dtype) for bar, x in ((q_bar, q), (k_bar, k), (v_bar, v)))
    return (*gradients, None)


_attend.defvjp(_forward_rule, _backward_rule)
