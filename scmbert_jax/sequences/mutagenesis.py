"""In-silico mutagenesis: what every single substitution in a window does to f."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scmbert_jax.errors import InputError
from scmbert_jax.sequences.sequence_function import (
    BATCH_SIZE,
    SequenceFunction,
    bound,
    checked_one_hot,
    in_batches,
    outputs,
    traced,
)


@dataclass(frozen=True)
class Mutagenesis:
    """Effects of the 3 W substitutions of each sequence.

    Attributes:
      effects: float32 [N, W, 4] or [N, W, 4, K], f with that base at that position minus f of the sequence; 0 for the
        base that is there, and for all four where the sequence has an N.
      reference: float32 [N] or [N, K], f of the sequences.
      start: 0-based position of the window's first base.
    """

    effects: np.ndarray
    reference: np.ndarray
    start: int

    def hypothetical(self) -> np.ndarray:
        """float32, as `effects`: the effect of a base minus the mean over the four, what TF-MoDISco reads."""
        return self.effects - self.effects.mean(axis=2, keepdims=True)

    def importance(self) -> np.ndarray:
        """float32 [N, W] or [N, W, K]: f of the sequence minus the mean over the three other bases at a position."""
        return -self.effects.sum(axis=2) / 3


def mutagenesis(
    function: SequenceFunction,
    one_hot: Any,
    start: int = 0,
    end: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Mutagenesis:
    """Substitutes every base of a window by each of the three others, one at a time.

    Args:
      function: f of one-hot [N, L, 4] (`sequence_function`).
      one_hot: float [N, L, 4].
      start, end: the window [start, end), 0-based half-open; None: to the end of the sequence.
      batch_size: changed sequences that f is given at once; they are made on the device, and bound the memory.

    Raises InputError: a window outside the sequences, or what `outputs` refuses.
    """
    values = checked_one_hot(one_hot)
    number, length = values.shape[:2]
    end = length if end is None else end
    if not 0 <= start < end <= length:
        raise InputError(f"window [{start}, {end}), 0-based half-open: not inside sequences of {length} bases")
    reference = outputs(function, values, batch_size)
    positions, turns = np.repeat(np.arange(start, end), 3), np.tile(np.arange(1, 4), end - start)
    changes = len(positions)
    at_once = min(changes, batch_size)
    missing = -changes % at_once
    positions, turns = (np.pad(array, (0, missing), mode="edge") for array in (positions, turns))

    compiled = bound(function)

    def of_part(part: np.ndarray) -> np.ndarray:
        there = jnp.asarray(part)
        slices = [slice(first, first + at_once) for first in range(0, changes, at_once)]
        parts = [np.asarray(_of_changes(compiled, there, positions[own], turns[own])) for own in slices]
        return np.concatenate(parts, axis=1)[:, :changes]

    found = in_batches(of_part, (values,), max(1, batch_size // changes))  # [N, 3 W(, K)]
    width = end - start
    window = values[:, start:end]  # [N, W, 4]
    known = window.any(2)
    bases = (window.argmax(2)[..., None] + np.arange(1, 4)) % 4  # [N, W, 3]
    changed = (found - reference[:, None]).reshape(number, width, 3, *reference.shape[1:])
    changed[~known] = 0  # in batches of two sizes, f of the same sequence may differ in its last digit
    effects = np.zeros((number, width, 4, *reference.shape[1:]), np.float32)
    effects[np.arange(number)[:, None, None], np.arange(width)[None, :, None], bases] = changed
    return Mutagenesis(effects, reference, start)


@jax.jit
def _of_changes(function: SequenceFunction, one_hot: jax.Array, positions: jax.Array, turns: jax.Array) -> jax.Array:
    """[G, P] or [G, P, K]: f of sequences [G, L, 4], each with the base at one of the positions [P] moved on by that
    many letters; of an N, nothing moves."""
    number, length = one_hot.shape[:2]
    channels = (jnp.arange(4)[None] - turns[:, None]) % 4  # [P, 4]
    new = jnp.take_along_axis(one_hot[:, positions], channels[None], axis=2)  # [G, P, 4]
    here = jnp.arange(length)[None] == positions[:, None]  # [P, L]
    changed = jnp.where(here[None, :, :, None], new[:, :, None], one_hot[:, None])  # [G, P, L, 4]
    found = traced(function, changed.reshape(-1, length, 4))
    return found.reshape(number, len(positions), *found.shape[1:])
