"""The loss of a task, and what its outputs mean."""

import jax
import jax.numpy as jnp
import numpy as np

from scmbert_jax.regulation.labelled import Kind, LabelledSequences, Task


def row_losses(kind: Kind, outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """float32 [N], nats (of values: half the squared error), the mean over the targets that were measured.

    Args:
      outputs: float32 [N, K]; of values in the units of `targets`.
      targets: float32 [N, T].
    """
    if kind == "classes":
        chosen = jnp.take_along_axis(outputs, targets.astype(jnp.int32), axis=1)[:, 0]
        return jax.nn.logsumexp(outputs, axis=1) - chosen
    known = ~jnp.isnan(targets)
    asked = jnp.where(known, targets, 0)
    if kind == "values":
        each = (outputs - asked) ** 2 / 2
    else:
        each = jax.nn.softplus(outputs) - asked * outputs
    return jnp.where(known, each, 0).sum(1) / jnp.maximum(known.sum(1), 1)


def probabilities(task: Task, outputs: np.ndarray) -> np.ndarray:
    """float32 [N, names] of outputs [N, K]: probabilities; of values the values."""
    if task.kind == "values":
        return outputs
    if task.kind == "classes":
        powers = np.exp(outputs - outputs.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)
    found = 1 / (1 + np.exp(-outputs))
    return np.concatenate([1 - found, found], axis=1) if task.kind == "binary" else found


def weights_as_in(data: LabelledSequences, other: LabelledSequences) -> np.ndarray:
    """float32 [N], of mean 1: with these, the classes of `data` have the proportions that they have in `other`; 1 for
    labels and values."""
    if data.task.kind not in ("binary", "classes"):
        return np.ones(len(data), np.float32)
    number = len(data.task.names)
    own, wanted = (np.bincount(each.targets[:, 0].astype(np.int64), minlength=number) for each in (data, other))
    ratios = (wanted / len(other)) / np.maximum(own / len(data), 1e-9)
    weights = ratios[data.targets[:, 0].astype(np.int64)]
    return (weights / weights.mean()).astype(np.float32)


def row_weights(data: LabelledSequences, balance: float) -> np.ndarray:
    """float32 [N], of mean 1: in proportion to (sequences of the same class) ** -balance; 1 for labels and values."""
    if data.task.kind not in ("binary", "classes") or not balance:
        return np.ones(len(data), np.float32)
    classes = data.targets[:, 0].astype(np.int64)
    weights = np.maximum(np.bincount(classes, minlength=len(data.task.names)), 1)[classes] ** -float(balance)
    return (weights / weights.mean()).astype(np.float32)
