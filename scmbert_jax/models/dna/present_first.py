"""Encoder layers over rows some of whose tokens are absent: attention reads the first tokens of a row, so they move."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from scmbert_jax.models.token_sequence import TokenSequence, rows_of_lengths


def encode_present(
    layers: Callable[[jax.Array, TokenSequence], jax.Array], x: jax.Array, present: jax.Array, first: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Args:
      layers: (x [N, 1 + S, D], rows) -> [N, 1 + S, D], an encoder or a block of one.
      x: [N, S, D], in whose order nothing is told: places are in the numbers.
      present: bool [N, S]; absent tokens are attended to by none.
      first: float [D], the token that stands before each row, so that none is empty.

    Returns:
      (the states of the first tokens [N, D], those of x [N, S, D]; of absent ones unspecified but finite).
    """
    number = present.sum(axis=1)
    # Where each token goes: no sort, which takes seconds to compile on CPUs.
    places = jnp.where(present, present.cumsum(axis=1), number[:, None] + (~present).cumsum(axis=1)) - 1
    row, own = jnp.arange(len(x))[:, None], jnp.arange(x.shape[1])[None]
    order = jnp.zeros_like(places).at[row, places].set(jnp.broadcast_to(own, places.shape), unique_indices=True)
    packed = jnp.take_along_axis(x, order[..., None], axis=1)
    begin = jnp.broadcast_to(first.astype(x.dtype)[None, None], (len(x), 1, x.shape[-1]))
    states = layers(jnp.concatenate([begin, packed], axis=1), rows_of_lengths(number, x.shape[1]))
    return states[:, 0], jnp.take_along_axis(states[:, 1:], places[..., None], axis=1)
