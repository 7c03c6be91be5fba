"""What the operations of this folder ask of a model: f(one_hot [N, L, 4]) -> [N] or [N, K], written in JAX.

    one_hot   float32 [N, L, 4], channels A, C, G, T; N and padding are zeros (`data_pipelines.genome.bases.one_hot`)
    f         a function, or an object that can be called; row n of what it gives depends on row n of its input only
    K         outputs: tasks, cell types, tracks. What is asked per output comes back with K as its last axis

An operation compiles f itself, in batches of one shape, so that neither a second sequence nor a second call compiles
anything. That goes by f's identity: build it once (a lambda written inside a loop is a new function every time). What
f closes over becomes a constant of the program. Parameters of a model are better bound, by jax.tree_util.Partial(apply,
params): then they are arguments, and others of the same shapes compile nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from scmbert_jax.errors import InputError

SequenceFunction = Callable[[jax.Array], jax.Array]
BATCH_SIZE = 256  # sequences that f is given at once


def both_strands(function: SequenceFunction) -> SequenceFunction:
    """The mean of f over a sequence and its reverse complement: a function of the same kind, for any operation."""
    return Partial(_mean_of_strands, bound(function))


def select_outputs(function: SequenceFunction, columns: int | tuple[int, ...]) -> SequenceFunction:
    """Some of f's K outputs: [N] for one column, [N, k] for k of them (a tuple). Gradients cost a pass per output.

    What it gives raises InputError where f has fewer outputs.
    """
    return Partial(_Columns(columns), bound(function))


def bound(function: SequenceFunction) -> Partial:
    """f as compiled functions take it: a tree whose leaves are the arguments of f that were bound by `Partial`."""
    return function if isinstance(function, Partial) else Partial(function)


def outputs(function: SequenceFunction, one_hot: Any, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """float32 [N] or [N, K]: f of every sequence.

    Args:
      function: f.
      one_hot: float [N, L, 4].
      batch_size: sequences at once; bounds the memory.

    Raises InputError: no one-hot sequences, or f gives something else than [N] or [N, K].
    """
    return in_batches(partial(_outputs, bound(function)), (checked_one_hot(one_hot),), batch_size)


def checked_one_hot(one_hot: Any, what: str = "one_hot") -> np.ndarray:
    """float32 [N, L, 4] of anything array-like. Raises InputError unless every base is one 1, or zeros (N)."""
    values = np.asarray(one_hot, np.float32)
    if values.ndim != 3 or values.shape[2] != 4 or not values.size:
        turned = values.ndim == 3 and values.shape[1] == 4
        raise InputError(
            f"{what}: {list(values.shape)}, expected [N, L, 4]"
            + ("; it looks like [N, 4, L]: give one_hot.swapaxes(1, 2)" if turned else "")
            + ("; it holds no base: the filter that chose sequences has left none" if not values.size else "")
        )
    bad = ((values != 0) & (values != 1)).any(2) | (values.sum(2) > 1)
    if bad.any():
        row, place = np.argwhere(bad)[0].tolist()
        raise InputError(
            f"{what}, sequence {row}, position {place} (0-based): {values[row, place].tolist()}; expected one 1 in "
            f"channels A, C, G, T, or zeros for N ({int(bad.sum()):,} positions are neither)"
        )
    return values


def traced(function: SequenceFunction, one_hot: jax.Array) -> jax.Array:
    """f inside a compiled function: float32 [N] or [N, K]. Raises InputError (while compiling) for other shapes."""
    found = function(one_hot)
    shape = getattr(found, "shape", None)
    if shape is None or len(shape) not in (1, 2) or shape[0] != one_hot.shape[0]:
        raise InputError(
            f"f of one_hot {list(one_hot.shape)} gives {type(found).__name__ if shape is None else list(shape)}; "
            f"expected [{one_hot.shape[0]}], or [{one_hot.shape[0]}, K] for K outputs. Tracks [N, bins, K]: sum or "
            "choose bins in f"
        )
    return found.astype(jnp.float32)


def rows_of_a_call(number: int, batch_size: int) -> int:
    """Sequences that one call takes: batch_size, or of fewer the next power of 2, so that few programs are compiled."""
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size}: expected 1 or more sequences")
    return min(batch_size, 1 << (number - 1).bit_length())


def in_batches(call: Callable[..., Any], arrays: tuple[np.ndarray, ...], batch_size: int) -> Any:
    """`call` of arrays [N, ...], some rows at a time: a tree of arrays [N, ...], on the host.

    The last batch is filled up with its last row, so that it is no other program.
    """
    number = len(arrays[0])
    rows = rows_of_a_call(number, batch_size)
    found = []
    for first in range(0, number, rows):
        part = [array[first : first + rows] for array in arrays]
        missing = rows - len(part[0])
        part = [np.pad(array, ((0, missing), *((0, 0),) * (array.ndim - 1)), mode="edge") for array in part]
        found.append(jax.tree.map(lambda value, kept=rows - missing: np.asarray(value)[:kept], call(*part)))
    return jax.tree.map(lambda *values: np.concatenate(values), *found)


@jax.jit
def _outputs(function: SequenceFunction, one_hot: jax.Array) -> jax.Array:
    return traced(function, one_hot)


def _mean_of_strands(function: SequenceFunction, one_hot: jax.Array) -> jax.Array:
    return (function(one_hot) + function(one_hot[:, ::-1, ::-1])) / 2


@dataclass(frozen=True)
class _Columns:
    columns: int | tuple[int, ...]

    def __call__(self, function: SequenceFunction, one_hot: jax.Array) -> jax.Array:
        found = function(one_hot)
        highest = max((self.columns,) if isinstance(self.columns, int) else self.columns)
        if found.ndim != 2 or not highest < found.shape[1]:
            raise InputError(f"outputs {self.columns}: f gives {list(found.shape)}, expected [N, K] with that many")
        return found[:, np.array(self.columns)]
