"""A fitted regulatory model: parts whose outputs are weighed and added up, as one function of one-hot sequences.

    f(one_hot [N, L, 4]) = bias + sum_p weight_p x part_p(one_hot)    (of values: times their deviation, plus mean)

Weights are 0 or more and were fitted on dev, so that a part that does not help has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import sha256
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy.optimize import minimize

from data_pipelines.genome.motifs import MotifSet
from scmbert_jax.errors import ConfigError
from scmbert_jax.regulation.labelled import Kind, Task, padded
from scmbert_jax.regulation.linear_part import LinearDefinition, Part
from scmbert_jax.regulation.losses import probabilities, row_losses
from scmbert_jax.regulation.network import NetworkDefinition

Array = np.ndarray

_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Combination:
    """How outputs of P parts become those of the model.

    Attributes:
      weights: float32 [P], 0 or more.
      bias: float32 [K].
      mean, scale: float32 [K], of the values of a task of values; else 0 and 1.
    """

    weights: Array
    bias: Array
    mean: Array
    scale: Array

    @property
    def arrays(self) -> dict[str, Array]:
        return {name: getattr(self, name) for name in ("weights", "bias", "mean", "scale")}


@dataclass(frozen=True)
class RegulatoryModel:
    """What `fit_regulatory` gives.

    Attributes:
      task: what it predicts.
      length: bases, L, of the sequences that it reads; shorter ones are filled up with N.
      parts: at least one.
      combination: of their outputs; linear_combination: of the linear parts alone, or None where there are none.
      motifs: whose scores parts read; None: none do.
      info: how it was fitted, and its scores.
    """

    task: Task
    length: int
    parts: tuple[Part, ...]
    combination: Combination
    linear_combination: Combination | None
    motifs: MotifSet | None
    info: dict[str, Any]

    @cached_property
    def f(self) -> Partial:
        """f(one_hot float [N, L, 4]) -> float32 [N, K], for any operation of `scmbert_jax.sequences`: log-odds, logits
        of mean 0 (classes), or values."""
        definitions = tuple(part.definition for part in self.parts)
        params = {"parts": [part.params for part in self.parts], "combination": self.combination.arrays}
        return Partial(_Sum(definitions, self.task.kind), jax.tree.map(jnp.asarray, params))

    def outputs(self, codes: Array, batch_size: int = _ROWS_AT_ONCE) -> Array:
        """float32 [N, K]: f of codes uint8 [N, L'], L' at most L; padding is N. Raises InputError: longer ones."""
        filled = padded(codes, self.length)
        parts, rows = [], min(batch_size, max(len(codes), 1))
        for first in range(0, len(codes), rows):
            part = filled[first : first + rows]
            found = _of_codes(self.f, np.pad(part, ((0, rows - len(part)), (0, 0)), constant_values=4))
            parts.append(np.asarray(found)[: len(part)])
        return np.concatenate(parts) if parts else np.zeros((0, self.task.num_outputs), np.float32)

    def probabilities(self, codes: Array, batch_size: int = _ROWS_AT_ONCE) -> Array:
        """float32 [N, names]: probabilities of the task's names; of values, the values."""
        return probabilities(self.task, self.outputs(codes, batch_size))

    def linear_alone(self) -> "RegulatoryModel":
        """The linear parts without the network. Raises ConfigError where there is none."""
        if self.linear_combination is None:
            raise ConfigError("the model was fitted without a linear path (--linear none)")
        linear = tuple(part for part in self.parts if isinstance(part.definition, LinearDefinition))
        return replace(self, parts=linear, combination=self.linear_combination)

    @property
    def networks(self) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if isinstance(part.definition, NetworkDefinition))

    def embed(self, codes: Array, batch_size: int = _ROWS_AT_ONCE) -> Array:
        """float32 [N, W]: what the networks' encoders say of sequences, one member beside the other.

        Raises ConfigError where the model has no network.
        """
        if not self.networks:
            raise ConfigError("the model has no network, so it has no embeddings; fit one with --network")
        filled, found = padded(codes, self.length), []
        rows = min(batch_size, max(len(codes), 1))
        for first in range(0, len(codes), rows):
            part = filled[first : first + rows]
            full = np.pad(part, ((0, rows - len(part)), (0, 0)), constant_values=4)
            vectors = [np.asarray(_embedded(own.definition, own.params, full))[: len(part)] for own in self.networks]
            found.append(np.concatenate(vectors, axis=1))
        return np.concatenate(found)

    @property
    def num_parameters(self) -> int:
        """Numbers that were fitted; a frozen encoder was not."""
        fitted = [dict(part.params.get("network", part.params)) for part in self.parts]
        if self.info.get("pretrained") == "frozen":
            for own in fitted:
                own.pop("sequence", None)
        return int(sum(np.size(leaf) for leaf in jax.tree.leaves([fitted, self.combination.arrays])))

    @property
    def name(self) -> str:
        """16 digits by which results name it."""
        digest = sha256("\0".join([self.task.kind, *self.task.names]).encode())
        for leaf in jax.tree.leaves([self.combination.arrays, [part.params for part in self.parts]]):
            digest.update(np.ascontiguousarray(leaf, "<f4").tobytes())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        parts = ", ".join(part.definition.name() for part in self.parts)
        return (
            f"scmbert_jax regulatory model {self.name}: {self.task.kind} ({len(self.task.names)} names), "
            f"{self.length:,} bases, {self.num_parameters:,} parameters\n  {parts}"
        )


@dataclass(frozen=True)
class _Sum:
    """The function of sequences, without its numbers; compared by value."""

    definitions: tuple[Any, ...]
    kind: Kind

    def __call__(self, params: Any, one_hot: jax.Array) -> jax.Array:
        each = [own(numbers, one_hot) for own, numbers in zip(self.definitions, params["parts"], strict=True)]
        return combined(self.kind, jnp.stack(each), params["combination"])


def combined(kind: Kind, each: jax.Array, numbers: Any) -> jax.Array:
    """float32 [N, K] of the outputs of P parts, [P, N, K]."""
    found = jnp.einsum("p,pnk->nk", numbers["weights"], each) + numbers["bias"][None]
    if kind == "classes":
        found = found - found.mean(1, keepdims=True)
    return numbers["mean"][None] + numbers["scale"][None] * found


@jax.jit
def _of_codes(function: Partial, codes: jax.Array) -> jax.Array:
    return function(jax.nn.one_hot(codes, 4))


@partial(jax.jit, static_argnums=0)
def _embedded(definition: NetworkDefinition, params: Any, codes: jax.Array) -> jax.Array:
    return definition.embedding(params, jax.nn.one_hot(codes, 4))


def combine(
    kind: Kind,
    outputs: Sequence[Array],
    targets: Array,
    mean: Array,
    scale: Array,
    groups: Sequence[int],
    row_weights: Array | None = None,
) -> Combination:
    """Weights of parts and a bias that have the least loss on dev, pulled to equal weights by one sequence's worth.

    Args:
      outputs: P of float32 [m, K], on dev.
      targets: float32 [m, T]; of values standardised.
      mean, scale: float32 [K], of the values.
      row_weights: float32 [m], of mean 1: dev may have other proportions of classes than train, which the bias must not
        learn; None: all equal.
      groups: [P], parts of one group have the same weight: members of a network differ by their seed alone.
    """
    each, names = jnp.asarray(np.stack(outputs)), np.unique(groups)
    member = (np.asarray(groups)[:, None] == names).astype(np.float32)  # [P, G]
    member /= member.sum(0, keepdims=True)
    bare = {"mean": jnp.zeros(len(mean)), "scale": jnp.ones(len(mean))}
    equal = np.full(len(names), 1 / len(names), np.float32)
    of_rows = jnp.ones(len(targets)) if row_weights is None else jnp.asarray(row_weights, jnp.float32)

    @jax.jit
    def loss(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        def value(theta: jax.Array) -> jax.Array:
            numbers = {"weights": member @ theta[: len(names)], "bias": theta[len(names) :], **bare}
            losses = of_rows * row_losses(kind, combined(kind, each, numbers), jnp.asarray(targets))
            pull = ((theta[: len(names)] - equal) ** 2).sum() + (theta[len(names) :] ** 2).sum()
            return losses.mean() + pull / len(targets)

        return jax.value_and_grad(value)(theta)

    def on_host(theta: Array) -> tuple[float, Array]:
        value, slope = loss(jnp.asarray(theta, jnp.float32))
        return float(value), np.asarray(slope, np.float64)

    first = np.concatenate([equal, np.zeros(len(mean))]).astype(np.float64)
    bounds = [(0, None)] * len(names) + [(None, None)] * len(mean)
    found = minimize(on_host, first, jac=True, method="L-BFGS-B", bounds=bounds).x.astype(np.float32)
    return Combination(member @ found[: len(names)], found[len(names) :], mean, scale)
