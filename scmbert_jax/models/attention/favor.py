"""`favor`: Performer's linear attention (FAVOR+, Choromanski et al. 2021), for rows of tens of thousands of tokens.

The softmax kernel exp(q . k) is the mean over random directions w of phi_w(q) phi_w(k), with the positive features
phi_w(x) = exp(w . x - |x|^2 / 2) (their lemma 1; q and k scaled by Dh**-0.25). The directions are orthogonal within
blocks of Dh, with the lengths of Gaussian vectors (their section 2.4). Time and memory are linear in the tokens: what
all queries read is `summary` [M, Dh + 1], the sum over keys of their features times (value, 1).

For numbers' sake features are exp(w . x - |x|^2 / 2 - c) + 1e-4, as in the authors' code: c is the largest w . x of the
query, or of all keys of the cell and head. It cancels but for the 1e-4. It is taken over the cell's own tokens, never
over padding, and never over the batch, but where `over_batch` asks for it: the published scBERT takes the batch's, so
that a cell's result depends on its neighbours.

Tokens are worked off in blocks, and the backward pass computes features again from the block's tokens: at scBERT's
sizes those of one layer are 360 MB a cell, and arithmetic on blocks that stay in the cache is faster than reading them.
"""

import math
import zlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from scmbert_jax.models.attention.chunked import HIDDEN, join_tokens, split_tokens, valid_tokens
from scmbert_jax.models.attention.shape import AttentionShape, shape_of
from scmbert_jax.random_keys import run_key

EPSILON = 1e-4
# Tokens per block at most. On a CPU the features of a block should stay in the cache (256 x 10 heads x 266: 2.7 MB);
# other devices want large products.
_BLOCK_ON_CPU, _BLOCK = 256, 2048


def refusal(shape: AttentionShape) -> None:
    """It serves everything; what it computes is an estimate of softmax attention."""


def default_num_features(head_dim: int) -> int:
    """M = floor(Dh ln Dh), Performer's choice: 266 for 64."""
    return max(1, int(head_dim * math.log(head_dim)))


def random_directions(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Directions float32 [..., M, Dh]: rows orthogonal within blocks of Dh, lengths as those of Gaussian vectors."""
    *leading, number, dim = shape
    for_rows, for_lengths = jax.random.split(key)
    blocks = jax.random.orthogonal(for_rows, dim, (*leading, -(-number // dim)))  # [..., M / Dh, Dh, Dh]
    rows = blocks.reshape(*leading, -1, dim)[..., :number, :]
    return rows * jnp.linalg.norm(jax.random.normal(for_lengths, shape), axis=-1, keepdims=True)


def redraw(constants: Any, seed: int, number: jax.Array | int) -> Any:
    """The constants of a model with every array named `directions` drawn for the `number`-th time, from 0.

    A pure function of (seed, number, the array's place in the model); threefry, so the same on every mesh.
    """

    def drawn(path: tuple, leaf: Any) -> Any:
        if path[-1].key != "directions":
            return leaf
        # A number for each place, so no `KeyPurpose`; and folders of trained models hold no directions, so other keys
        # would change their answers. All places are above 300 million: no step that a run gets to.
        place = zlib.crc32(jax.tree_util.keystr(path).encode())
        key = jax.random.fold_in(run_key(seed), place)
        return random_directions(jax.random.fold_in(key, number), leaf.shape)

    return jax.tree_util.tree_map_with_path(drawn, constants)


def _block(q: jax.Array) -> int:
    return _BLOCK_ON_CPU if shape_of(q).platform == "cpu" else _BLOCK


def _projected(x: jax.Array, directions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x [B, c, H, D] -> (x scaled [B, H, c, D], w . x, float32 [B, H, c, M])."""
    x = jnp.swapaxes(x * x.shape[-1] ** -0.25, 1, 2)
    return x, jnp.einsum("bhcd,md->bhcm", x, directions.astype(x.dtype), preferred_element_type=jnp.float32)


def _exponentials(x: jax.Array, dots: jax.Array, largest: jax.Array) -> jax.Array:
    """The features but for the 1e-4, float32 [B, H, c, M], of what `_projected` gave."""
    return jnp.exp(dots - 0.5 * jnp.sum(jnp.square(x.astype(jnp.float32)), -1, keepdims=True) - largest)


def _projected_bar(x: jax.Array, dots_bar: jax.Array, directions: jax.Array) -> jax.Array:
    """The gradient of `_projected`'s argument [B, c, H, D], from that of the exponents w . x - |x|^2 / 2."""
    along = jnp.einsum("bhcm,md->bhcd", dots_bar.astype(x.dtype), directions.astype(x.dtype))
    x_bar = along - x * dots_bar.sum(-1, keepdims=True).astype(x.dtype)
    return jnp.swapaxes(x_bar, 1, 2) * x.shape[-1] ** -0.25


def _query_features(q: jax.Array, directions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(q scaled [B, H, c, D], exponentials [B, H, c, M])."""
    x, dots = _projected(q, directions)
    return x, _exponentials(x, dots, dots.max(-1, keepdims=True))


def _with_ones(v: jax.Array, valid: jax.Array) -> jax.Array:
    """v [B, c, H, D] -> (v, 1) [B, H, c, D + 1], zero where not valid [B, c]: the last column counts."""
    v = jnp.concatenate([v, jnp.ones((*v.shape[:-1], 1), v.dtype)], axis=-1)
    return jnp.swapaxes(v * valid[:, :, None, None].astype(v.dtype), 1, 2)


def _summarise(k, v, lengths, directions, over_batch):
    """(summary float32 [B, H, M, D + 1], the largest w . k of each cell and head [B, H, 1, 1], or of all)."""
    batch, _, heads, dim = k.shape
    k_blocks = split_tokens(k, _block(k))

    def of_block(carry, block):
        largest, summary, total = carry
        k, v, valid = block
        x, dots = _projected(k, directions)
        dots = jnp.where(valid[:, None, :, None], dots, HIDDEN)
        new = jnp.maximum(largest, dots.max((2, 3), keepdims=True))
        features, values = _exponentials(x, dots, new).astype(v.dtype), _with_ones(v, valid)
        more = jnp.einsum("bhcm,bhcd->bhmd", features, values, preferred_element_type=jnp.float32)
        total += values.sum(2, keepdims=True, dtype=jnp.float32)
        return (new, summary * jnp.exp(largest - new) + more, total), None

    start = (
        jnp.full((batch, heads, 1, 1), HIDDEN),
        jnp.zeros((batch, heads, len(directions), dim + 1)),
        jnp.zeros((batch, heads, 1, dim + 1)),
    )
    blocks = k_blocks, split_tokens(v, _block(v)), valid_tokens(k_blocks, lengths)
    (largest, summary, total), _ = jax.lax.scan(of_block, start, blocks)
    if over_batch:
        of_all = jnp.broadcast_to(largest.max(keepdims=True), largest.shape)
        summary, largest = summary * jnp.exp(largest - of_all), of_all
    return summary + EPSILON * total, largest


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array, directions: jax.Array, over_batch: bool = False
) -> jax.Array:
    """See `AttentionBackend`; directions float32 [M, Dh] get no gradient. `over_batch`: scBERT's stabiliser."""
    return _forward_rule(q, k, v, lengths, directions, over_batch)[0]


def _forward_rule(q, k, v, lengths, directions, over_batch):
    summary, largest = _summarise(k, v, lengths, directions, over_batch)
    readable = summary.astype(q.dtype)

    def of_block(q: jax.Array) -> tuple[jax.Array, jax.Array]:
        features = (_query_features(q, directions)[1] + EPSILON).astype(q.dtype)
        sums = jnp.einsum("bhcm,bhmd->bhcd", features, readable, preferred_element_type=jnp.float32)
        out, weight = sums[..., :-1], sums[..., -1:]
        return jnp.swapaxes(out / weight, 1, 2).astype(q.dtype), weight

    out, weight = jax.lax.map(of_block, split_tokens(q, _block(q)))
    out = join_tokens(out, q.shape[1])
    return out, (q, k, v, lengths, directions, readable, largest, out, weight)


def _backward_rule(_, saved, out_bar):
    q, k, v, lengths, directions, summary, largest, out, weight = saved

    def of_queries(summary_bar, block):
        q, out, out_bar, weight = block
        x, exponentials = _query_features(q, directions)
        out_bar = jnp.swapaxes(out_bar, 1, 2) / weight
        weight_bar = -jnp.sum(out_bar * jnp.swapaxes(out, 1, 2), -1, keepdims=True)
        sums_bar = jnp.concatenate([out_bar, weight_bar], axis=-1).astype(q.dtype)  # [B, H, c, D + 1]
        features = (exponentials + EPSILON).astype(q.dtype)
        summary_bar += jnp.einsum("bhcm,bhcd->bhmd", features, sums_bar, preferred_element_type=jnp.float32)
        features_bar = jnp.einsum("bhcd,bhmd->bhcm", sums_bar, summary, preferred_element_type=jnp.float32)
        return summary_bar, _projected_bar(x, features_bar * exponentials, directions)

    q_blocks = split_tokens(q, _block(q))
    blocks = q_blocks, split_tokens(out, _block(q)), split_tokens(out_bar, _block(q)), weight
    summary_bar, q_bar = jax.lax.scan(of_queries, jnp.zeros(summary.shape, jnp.float32), blocks)
    summary_bar = summary_bar.astype(k.dtype)

    def of_keys(block):
        k, v, valid = block
        x, dots = _projected(k, directions)
        exponentials = _exponentials(x, jnp.where(valid[:, None, :, None], dots, HIDDEN), largest)
        features = (exponentials + EPSILON).astype(v.dtype)
        v_bar = jnp.einsum("bhcm,bhmd->bchd", features, summary_bar[..., :-1])
        features_bar = jnp.einsum(
            "bhcd,bhmd->bhcm", _with_ones(v, valid), summary_bar, preferred_element_type=jnp.float32
        )
        k_bar = _projected_bar(x, features_bar * exponentials, directions)
        return k_bar, v_bar * valid[:, :, None, None].astype(v.dtype)

    k_blocks = split_tokens(k, _block(k))
    keys = k_blocks, split_tokens(v, _block(v)), valid_tokens(k_blocks, lengths)
    k_bar, v_bar = jax.lax.map(of_keys, keys)
    return (*(join_tokens(bar, x.shape[1]) for bar, x in ((q_bar, q), (k_bar, k), (v_bar, v))), None, None)


attend.defvjp(_forward_rule, _backward_rule)
