"""Gradients of f at its sequences: saliency, gradient times input, integrated gradients.

All come as *hypothetical* contributions [N, L, 4]: what each base would contribute at each position, of which the base
that is there makes the contribution [N, L]. TF-MoDISco reads the former, logos show the latter.
"""

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.genome.bases import from_one_hot
from data_pipelines.genome.bases import one_hot as one_hot_of
from scmbert_jax.errors import InputError, ScmbertWarning
from scmbert_jax.sequences.dinucleotide_shuffle import dinucleotide_shuffles
from scmbert_jax.sequences.sequence_function import (
    BATCH_SIZE,
    SequenceFunction,
    bound,
    checked_one_hot,
    in_batches,
    traced,
)

Baseline = Literal["zeros", "uniform", "shuffles"]


def saliency(
    function: SequenceFunction, one_hot: Any, *, centred: bool = True, batch_size: int = BATCH_SIZE
) -> np.ndarray:
    """float32 [N, L, 4] or [N, L, 4, K]: the gradient of f (of each output) at each sequence.

    Args:
      function: f of one-hot [N, L, 4] (`sequence_function`).
      one_hot: float [N, L, 4].
      centred: minus its mean over the four bases: its projection on the plane in which the four sum to 1, where all
        sequences lie. What f does off that plane, no data has taught it (Majdandzic et al., Genome Biology 24:109,
        2023, equation 3).
      batch_size: sequences at once; bounds the memory.

    Raises InputError: what `outputs` refuses.
    """
    found = in_batches(partial(_gradients, bound(function)), (checked_one_hot(one_hot),), batch_size)
    return found - found.mean(axis=2, keepdims=True) if centred else found


def contributions(hypothetical: np.ndarray, one_hot: Any) -> np.ndarray:
    """float32 [N, L] or [N, L, K]: of hypothetical contributions [N, L, 4] or [N, L, 4, K] those of the bases that are
    there: of `saliency`, gradient times input; 0 at an N."""
    values = checked_one_hot(one_hot)
    if hypothetical.shape[:3] != values.shape:
        raise InputError(
            f"contributions {list(hypothetical.shape)} of one_hot {list(values.shape)}: of other sequences"
        )
    return np.einsum("nlb...,nlb->nl...", hypothetical, values)


@dataclass(frozen=True)
class IntegratedGradients:
    """Means over S baselines.

    Attributes:
      contributions: float32 [N, L] or [N, L, K]; over the positions they sum up to f minus f of the baseline.
      hypothetical: float32 [N, L, 4] or [N, L, 4, K]: g_b - sum_c g_c x'_c, of the mean gradient g on the way from a
        baseline x' to the sequence; at the base that is there it is the contribution.
      differences: float32 [N, S] or [N, S, K], f minus f of each baseline.
      errors: float32, as `differences`: the sum of the contributions for that baseline minus the difference, which
        would be 0 with infinitely many steps (completeness).
      steps: points on the way.
    """

    contributions: np.ndarray
    hypothetical: np.ndarray
    differences: np.ndarray
    errors: np.ndarray
    steps: int

    def relative_error(self) -> float:
        """The sum of the errors' sizes as a fraction of that of the differences; 0 where both are 0."""
        error, whole = float(np.abs(self.errors).sum()), float(np.abs(self.differences).sum())
        return error / whole if whole else (np.inf if error else 0.0)

    def in_words(self) -> str:
        """One line: how complete they are."""
        worst = float(np.abs(self.errors).max())
        return (
            f"completeness: contributions differ from f minus f of the baselines by {self.relative_error():.2%} (at "
            f"most {worst:.3g}; the mean |difference| is {float(np.abs(self.differences).mean()):.3g}), "
            f"{self.differences.shape[1]} baselines a sequence, {self.steps} steps"
        )


def integrated_gradients(
    function: SequenceFunction,
    one_hot: Any,
    baseline: Baseline | np.ndarray = "shuffles",
    *,
    num_shuffles: int = 10,
    seed: int = 0,
    steps: int = 32,
    most_incomplete: float = 0.05,
    batch_size: int = BATCH_SIZE,
) -> IntegratedGradients:
    """Contributions whose sum is what f gives beyond a baseline (Sundararajan, Taly, Yan, ICML 2017, equation 1).

    The integral is taken by Gauss-Legendre quadrature. Compare baselines before you believe one.

    Args:
      function: f of one-hot [N, L, 4] (`sequence_function`).
      one_hot: float [N, L, 4].
      baseline: zeros (all N); uniform (1/4 of every base; an N stays an N); shuffles, keeping the dinucleotides
        (`dinucleotide_shuffles`); or your own, float [L, 4], [N, L, 4] or [N, S, L, 4].
      num_shuffles: S of "shuffles".
      seed: of the shuffles.
      steps: points of the quadrature; each costs a gradient.
      most_incomplete: a relative error above it is warned of (`ScmbertWarning`).
      batch_size: sequences at once; bounds the memory.

    Raises InputError: another baseline, no steps, or what `outputs` refuses.
    """
    values = checked_one_hot(one_hot)
    if steps < 1:
        raise InputError(f"steps {steps}: expected 1 or more")
    starts = _baselines(values, baseline, num_shuffles, seed)  # [N, S, L, 4]
    positions, weights = np.polynomial.legendre.leggauss(steps)
    quadrature = ((positions + 1) / 2).astype(np.float32), (weights / 2).astype(np.float32)
    number = starts.shape[1]
    found = None
    differences, errors = [], []
    for own in range(number):
        parts = in_batches(partial(_integrated, bound(function), *quadrature), (values, starts[:, own]), batch_size)
        contributed, hypothetical, difference = parts
        differences.append(difference)
        errors.append(contributed.sum(1, dtype=np.float64) - difference)
        summed = (contributed / number, hypothetical / number)
        found = summed if found is None else (found[0] + summed[0], found[1] + summed[1])
    assert found is not None
    done = IntegratedGradients(*found, np.stack(differences, 1), np.stack(errors, 1).astype(np.float32), steps)
    if not done.relative_error() <= most_incomplete:
        warnings.warn(f"{done.in_words()}. Take more steps (f may have kinks or jumps)", ScmbertWarning, stacklevel=2)
    return done


def _baselines(values: np.ndarray, baseline: Baseline | np.ndarray, num_shuffles: int, seed: int) -> np.ndarray:
    """float32 [N, S, L, 4]."""
    if isinstance(baseline, str):
        if baseline == "zeros":
            return np.zeros_like(values)[:, None]
        if baseline == "uniform":
            return np.repeat(values.any(2, keepdims=True), 4, axis=2).astype(np.float32)[:, None] / 4
        if baseline == "shuffles":
            return one_hot_of(dinucleotide_shuffles(from_one_hot(values), num_shuffles, seed))
        raise InputError(f"baseline {baseline!r}: expected zeros, uniform, shuffles, or an array")
    own = np.asarray(baseline, np.float32)
    number, length, _ = values.shape
    if own.ndim in (2, 3):
        own = own[:, None] if own.ndim == 3 else np.broadcast_to(own, (number, 1, *own.shape))
    if own.ndim != 4 or own.shape[0] != number or own.shape[2:] != (length, 4) or not own.size:
        raise InputError(
            f"baseline {list(np.shape(baseline))}: expected [{length}, 4], [{number}, {length}, 4] or "
            f"[{number}, S, {length}, 4]"
        )
    return own


def _slopes(function: SequenceFunction, one_hot: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(f [B] or [B, K], gradients [B, L, 4] or [B, L, 4, K])."""
    found, pull = jax.vjp(partial(traced, function), one_hot)
    if found.ndim == 1:
        return found, pull(jnp.ones_like(found))[0]
    towards = jnp.eye(found.shape[1], dtype=found.dtype)
    # One output after the other, not at once: memory does not grow with K. And batched, the gradient of our encoder was
    # NaN at XLA's low optimisation level, which tests have.
    slopes = jax.lax.map(lambda row: pull(jnp.broadcast_to(row[None], found.shape))[0], towards)
    return found, jnp.moveaxis(slopes, 0, -1)


@jax.jit
def _gradients(function: SequenceFunction, one_hot: jax.Array) -> jax.Array:
    return _slopes(function, one_hot)[1]


@jax.jit
def _integrated(
    function: SequenceFunction, positions: jax.Array, weights: jax.Array, one_hot: jax.Array, start: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(contributions [B, L(, K)], hypothetical [B, L, 4(, K)], f minus f of the baseline [B(, K)])."""
    first = traced(function, start)

    def add(total: jax.Array, point: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        position, weight = point
        return total + weight * _slopes(function, start + position * (one_hot - start))[1], None

    nothing = jnp.zeros((*one_hot.shape, *first.shape[1:]), jnp.float32)
    mean, _ = jax.lax.scan(add, nothing, (positions, weights))
    contributed = jnp.einsum("nlb...,nlb->nl...", mean, one_hot - start, precision="highest")
    offset = jnp.einsum("nlb...,nlb->nl...", mean, start, precision="highest")
    return contributed, mean - offset[:, :, None], traced(function, one_hot) - first
