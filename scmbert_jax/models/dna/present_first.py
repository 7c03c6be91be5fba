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
    order = jnp.argsort(~present, axis=1, stable=True)
    packed = jnp.take_along_axis(x, order[..., None], axis=1)
    begin = jnp.broadcast_to(first.astype(x.dtype)[None, None], (len(x), 1, x.shape[-1]))
    rows = rows_of_lengths(present.sum(axis=1), x.shape[1])
    states = layers(jnp.concatenate([begin, packed], axis=1), rows)
    back = jnp.argsort(order, axis=1)
    return states[:, 0], jnp.take_along_axis(states[:, 1:], back[..., None], axis=1)
