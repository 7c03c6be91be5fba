"""Attention backends behind one interface.

| name          | what it computes             | memory in the tokens S | where                                       |
|---------------|------------------------------|------------------------|---------------------------------------------|
| `xla`         | softmax attention            | S^2                    | anywhere                                    |
| `xla_chunked` | softmax attention            | S                      | anywhere                                    |
| `cudnn`       | softmax attention            | S                      | NVIDIA GPUs of Ampere and later, 16 bits    |
| `splash`      | softmax attention            | S                      | TPUs                                        |
| `favor`       | an estimate of it (FAVOR+)   | S; time S as well      | anywhere                                    |

Nothing falls back: a backend that cannot do a platform, a dtype or a head says which can. Adding a backend is one file
and one line in `BACKENDS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from scmbert_jax.config import ModelConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.models.attention import chunked, favor, kernels
from scmbert_jax.models.attention.shape import AttentionShape, shape_of
from scmbert_jax.models.layers import linear
from scmbert_jax.models.parameters import parameter


class AttentionBackend(NamedTuple):
    """`attend(q, k, v, lengths)`: q [B, Sq, H, Dh]; k, v [B, S, H, Dh]; lengths int32 [B], 1 .. S; -> [B, Sq, H, Dh].

    Row b attends to its first `lengths[b]` keys, scaled by Dh**-0.5, softmax in float32. What a padded query row holds
    is unspecified but finite; a loss that does not read it sends it a gradient of exactly zero, as padded keys get.

    Attributes:
      refusal: of an `AttentionShape`, why it cannot be served ("it needs ..., and this run ..."); None: it can.
      attend: see above.
      num_random_features: of a head width, how many random directions `attend` takes as a fifth argument, float32
        [M, Dh], and gives no gradient; None: it takes none. Those are estimates; the others all compute the same. A
        sixth argument, True, comes with `ModelConfig.favor_stabiliser` "batch" alone.
    """

    refusal: Callable[[AttentionShape], str | None]
    attend: Callable[..., jax.Array]
    num_random_features: Callable[[int], int] | None = None


def _xla_refusal(shape: AttentionShape) -> None:
    """XLA serves everything; its memory grows with the square of the tokens."""


def _xla_attend(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    # A row always holds [CLS], so no softmax is over nothing and no NaN can arise.
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="xla")


BACKENDS: dict[str, AttentionBackend] = {
    "xla": AttentionBackend(_xla_refusal, _xla_attend),
    "xla_chunked": AttentionBackend(chunked.refusal, chunked.attend),
    "cudnn": AttentionBackend(kernels.cudnn_refusal, kernels.cudnn_attend),
    "splash": AttentionBackend(kernels.splash_refusal, kernels.splash_attend),
    "favor": AttentionBackend(favor.refusal, favor.attend, favor.default_num_features),
}


def _backend(name: str) -> AttentionBackend:
    if name not in BACKENDS:
        raise ConfigError(f"model.attention is {name!r}; the backends are {', '.join(BACKENDS)}.")
    return BACKENDS[name]


def attention_backend(name: str, shape: AttentionShape) -> Callable[..., jax.Array]:
    """The `attend` of backend `name`, checked against `shape`. Raises `ConfigError` when it cannot serve it."""
    backend = _backend(name)
    reason = backend.refusal(shape)
    if reason is not None:
        can = {other: BACKENDS[other] for other in BACKENDS if BACKENDS[other].refusal(shape) is None}
        exact = ", ".join(other for other in can if can[other].num_random_features is None)
        estimates = ", ".join(other for other in can if can[other].num_random_features is not None)
        raise ConfigError(
            f"model.attention is {name!r}: {reason}. Those that can here: {exact}, which compute the same as {name}, "
            f"and {estimates}, which estimates it. For a run set --model.attention; for a model: scmbert export "
            "RUN_DIR MODEL_DIR --attention NAME, or scmbert_jax.load(MODEL_DIR, attention=NAME)."
        )
    return backend.attend


class Directions(nnx.Variable):
    """Random directions of a backend that estimates, float32 [M, Dh]. Drawn by (seed, step), not a parameter."""


class Attention(nnx.Module):
    """The backend of `config.attention`, with its random directions if it needs any."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.over_batch = config.favor_stabiliser == "batch"
        self.name, backend = config.attention, _backend(config.attention)
        self.directions: Any = nnx.data(None)
        if backend.num_random_features is not None:
            number = config.favor_features or backend.num_random_features(config.head_dim)
            shape = number, config.head_dim
            if config.favor_directions == "stored":
                directions = favor.random_directions(rngs.params(), shape)
                self.directions = parameter(directions, (None, None), "fixed")  # backends give them no gradient
            else:
                # Numbers come with the model's constants (`ModelDefinition`), which are drawn for a step.
                self.directions = Directions(jnp.zeros(shape))

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
        """As `AttentionBackend.attend`. Raises `ConfigError` when the backend cannot serve these arrays here."""
        attend = attention_backend(self.name, shape_of(q))
        if self.directions is None:
            return attend(q, k, v, lengths)
        return attend(q, k, v, lengths, self.directions[...], *((True,) if self.over_batch else ()))

    def of_one(self, q: jax.Array, x: jax.Array, keys: jax.Array, values: jax.Array, lengths: jax.Array) -> jax.Array:
        """What one query of each row gets of keys x @ keys and values x @ values.

        Exact attention makes neither: q . (x K) is (K q) . x, and the mean of x V is that of x, times V. So it is
        linear in the tokens, with a factor of the heads, not of their width, and needs no kernel. An estimate stays
        the backend's own.

        Args: q [B, 1, H, Dh]; x [B, S, D]; keys, values [D, H, Dh]; lengths int32 [B]. Returns [B, 1, H, Dh]. Raises
        as `__call__`.
        """
        if self.directions is not None:
            return self(q, linear(x, keys), linear(x, values), lengths)
        attention_backend(self.name, shape_of(q))  # refuses what it refuses for all queries
        asked = jnp.einsum("bqhk,dhk->bqhd", q, keys)[:, 0]  # [B, H, D]
        logits = jnp.einsum("bhd,bsd->bhs", asked, x, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        logits = jnp.where(jnp.arange(x.shape[1])[None, None] < lengths[:, None, None], logits, chunked.HIDDEN)
        mean = jnp.einsum("bhs,bsd->bhd", jax.nn.softmax(logits).astype(x.dtype), x)
        return jnp.einsum("bhd,dhk->bhk", mean, values)[:, None]
