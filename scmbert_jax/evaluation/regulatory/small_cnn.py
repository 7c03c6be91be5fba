"""A small convolutional network, the floor of every network.

128 filters of 12 bases, the highest activity in windows of 6, 64 filters of 5 windows, then one hidden layer that reads
them at each place and their highest activity anywhere. Trained by AdamW with the learning rate lowered to 0; dev
chooses the epoch.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scmbert_jax.regulation.labelled import LabelledSequences

Array = np.ndarray

_FILTERS, _WIDTH, _WINDOW, _FURTHER, _FURTHER_WIDTH, _HIDDEN = 128, 12, 6, 64, 5, 64
_BATCH, _STEPS, _RATE, _DECAY, _DROPPED = 64, 2000, 1e-3, 1e-3, 0.3
_MOST_EPOCHS = 20
_ROWS_AT_ONCE = 1024


def fit_small_cnn(
    train: LabelledSequences, dev: LabelledSequences, test: LabelledSequences, seed: int
) -> tuple[Array, Array, int]:
    """float64 [n, C] probabilities of the classes for dev and for test, and how many numbers were fitted."""
    classes = len(train.task.names)
    labels = train.targets[:, 0].astype(np.int32)
    steps_per_epoch = max(1, len(train) // _BATCH)
    epochs = min(_MOST_EPOCHS, max(1, round(_STEPS / steps_per_epoch)))
    optimizer = optax.adamw(optax.cosine_decay_schedule(_RATE, epochs * steps_per_epoch), weight_decay=_DECAY)
    params = _initial(np.random.default_rng(seed), classes, train.codes.shape[1])
    state = optimizer.init(params)
    rng, key = np.random.default_rng((seed, 1)), jax.random.key(seed)
    best, least = params, np.inf
    dev_labels = dev.targets[:, 0].astype(np.int64)
    for epoch in range(epochs):
        order = rng.permutation(len(train))
        for step in range(steps_per_epoch):
            rows = np.resize(order[step * _BATCH : (step + 1) * _BATCH], _BATCH)
            own = jax.random.fold_in(key, epoch * steps_per_epoch + step)
            params, state = _step(optimizer.update, params, state, train.codes[rows], labels[rows], own)
        found = _probabilities(params, dev.codes)
        loss = -np.log(np.maximum(found[np.arange(len(found)), dev_labels], 1e-12)).mean()
        if loss < least:
            best, least = params, loss
    number = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))
    return _probabilities(best, dev.codes), _probabilities(best, test.codes), number


def _initial(rng: np.random.Generator, classes: int, length: int) -> dict[str, Array]:
    read = (-(-length // _WINDOW) + 1) * _FURTHER
    shapes: dict[str, tuple[tuple[int, ...], int]] = {  # and how many inputs of 1 add up
        "filters": ((_WIDTH, 4, _FILTERS), _WIDTH),
        "further": ((_FURTHER_WIDTH, _FILTERS, _FURTHER), _FURTHER_WIDTH * _FILTERS),
        "hidden": ((read, _HIDDEN), read),
        "output": ((_HIDDEN, classes), _HIDDEN),
    }
    params = {name: rng.normal(0, (2 / own) ** 0.5, shape) for name, (shape, own) in shapes.items()}
    params |= {f"{name}_bias": np.zeros(shape[-1]) for name, (shape, _) in shapes.items()}
    return {name: value.astype(np.float32) for name, value in params.items()}


def _logits(params: Any, codes: Any, key: jax.Array | None = None) -> jax.Array:
    """float32 [N, C] of codes uint8 [N, L]."""

    def layer(values: jax.Array, name: str) -> jax.Array:  # [N, L, F]
        found = jax.lax.conv_general_dilated(
            values, params[name], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return jax.nn.relu(found + params[f"{name}_bias"][None, None])

    x = layer(jax.nn.one_hot(codes, 4), "filters")
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % _WINDOW), (0, 0)))
    x = layer(x.reshape(len(x), -1, _WINDOW, x.shape[2]).max(2), "further")
    read = jnp.concatenate([x.reshape(len(x), -1), x.max(1)], axis=1)
    if key is not None:
        read = read * jax.random.bernoulli(key, 1 - _DROPPED, read.shape) / (1 - _DROPPED)
    hidden = jax.nn.relu(read @ params["hidden"] + params["hidden_bias"][None])
    return hidden @ params["output"] + params["output_bias"][None]


@partial(jax.jit, static_argnums=0)
def _step(update: Any, params: Any, state: Any, codes: Array, labels: Array, key: jax.Array) -> tuple[Any, Any]:
    def loss(params: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(_logits(params, codes, key), labels).mean()

    updates, state = update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


@jax.jit
def _softmax(params: Any, codes: Array) -> jax.Array:
    return jax.nn.softmax(_logits(params, codes))


def _probabilities(params: Any, codes: Array) -> Array:
    rows = min(_ROWS_AT_ONCE, len(codes))
    found = []
    for first in range(0, len(codes), rows):
        part = codes[first : first + rows]
        filled = np.pad(part, ((0, rows - len(part)), (0, 0)), constant_values=4)
        found.append(np.asarray(_softmax(params, filled), np.float64)[: len(part)])
    return np.concatenate(found)
