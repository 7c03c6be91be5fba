"""Attention backends behind one interface.

A backend is a pair: `check(AttentionShape)` raises `ConfigError` when it cannot serve a run, and `attend` computes it.
Nothing falls back: a backend that cannot do a length, a dtype or a mesh says which one can. Adding a backend is one
function pair and one line in `BACKENDS`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scmbert_jax.errors import ConfigError


class AttentionShape(NamedTuple):
    """What a backend must serve: tokens per row, heads, head width, dtype name, platform name."""

    seq_len: int
    num_heads: int
    head_dim: int
    dtype: str
    platform: str


class AttentionBackend(NamedTuple):
    """`attend(q, k, v, lengths)`: q, k, v [B, S, H, Dh]; lengths int32 [B]; -> [B, S, H, Dh].

    Row b attends to its first `lengths[b]` tokens, scaled by head_dim**-0.5, softmax in float32. What a padded query
    row holds is unspecified but finite; a loss that does not read it sends it a gradient of exactly zero.
    """

    check: Callable[[AttentionShape], None]
    attend: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def _xla_attend(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    # A row always holds [CLS], so no softmax is over nothing and no NaN can arise.
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="xla")


def _xla_check(shape: AttentionShape) -> None:
    """XLA serves every length, dtype and platform; its memory grows with seq_len squared."""


BACKENDS: dict[str, AttentionBackend] = {
    "xla": AttentionBackend(_xla_check, _xla_attend),
}


def attention_backend(name: str, shape: AttentionShape) -> Callable[..., jax.Array]:
    """The `attend` of backend `name`, checked against `shape`. Raises `ConfigError` when it cannot serve it."""
    if name not in BACKENDS:
        raise ConfigError(f"model.attention is {name!r}; the backends are {', '.join(sorted(BACKENDS))}.")
    backend = BACKENDS[name]
    backend.check(shape)
    return backend.attend


def shape_of(q: jax.Array) -> AttentionShape:
    """The `AttentionShape` of queries q [B, S, H, Dh] on the default backend's platform."""
    _, seq_len, num_heads, head_dim = q.shape
    return AttentionShape(seq_len, num_heads, head_dim, jnp.dtype(q.dtype).name, jax.default_backend())
