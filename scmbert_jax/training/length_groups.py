"""Padding is not computed: microbatches of cells of like length, each cut to the width that its longest cell needs.

Cells have as many tokens as they express features (and a fraction of zeros), up to `num_tokens`; half of a row of 2,048
may be padding. Here the cells of a batch are sorted by length before they are divided into microbatches, and each
microbatch is cut to the narrowest of a few widths that holds it. Every width is a program of its own (`lax.switch`),
and which one runs is decided on the devices, from lengths that all of them know. So the batch of a step, its masks and
its loss stay what they were, on any mesh and any number of hosts; only the order of the sums changes.

Each device sorts its own cells: no cell moves. With more microbatches and more widths less padding is left, and more is
compiled; `scmbert bench padding` finds the widths that suit a corpus, and says how much of its rows is padding then.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scmbert_jax.batch import CellBatch
from scmbert_jax.dna_config import Experiment
from scmbert_jax.models.token_sequence import CutBatch
from scmbert_jax.objectives.base import LossSum
from scmbert_jax.parallel.mesh import RULES, constrain


def row_widths(config: Experiment) -> tuple[int, ...]:
    """The widths in tokens, ascending, of all modalities together; the last is a whole row."""
    return tuple(sorted({*config.train.row_widths, config.most_tokens}))


def total_lengths(batch: CellBatch) -> jax.Array:
    """int32 [B]: tokens of each cell, of all modalities."""
    return sum(tokens.lengths for tokens in batch.modalities.values())


def by_length(batch: CellBatch, number: int) -> CellBatch:
    """The batch with its rows in another order: `split_microbatches` into `number` parts finds cells of like length.

    Microbatch i has the rows i, i + number, ...; so within the rows of each device these are made the i-th part of
    them by length.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))
    lengths = total_lengths(batch).reshape(devices, -1)  # [devices, rows of each]
    order = jnp.argsort(lengths, axis=1, stable=True)
    order = jnp.swapaxes(order.reshape(devices, number, -1), 1, 2).reshape(devices, -1)

    def ordered(x: jax.Array) -> jax.Array:
        own = x.reshape(devices, -1, *x.shape[1:])
        index = order.reshape(*order.shape, *(1,) * (x.ndim - 1))
        moved = jnp.take_along_axis(own, index, axis=1).reshape(x.shape)
        return constrain(moved, "batch", *(None,) * (x.ndim - 1))

    return jax.tree.map(ordered, batch)


def cut(batch: CellBatch, width: int) -> CutBatch:
    """The batch without the positions that no cell fills, if no cell has more than `width` tokens."""
    modalities = {
        name: tokens._replace(feature_ids=tokens.feature_ids[:, :width], counts=tokens.counts[:, :width])
        for name, tokens in batch.modalities.items()
    }
    return CutBatch(modalities, batch.covariates, batch.cell_index, batch.row, width, batch.scores, batch.profiles)


def at_needed_width(
    one: Callable[[Any], tuple[LossSum, Any]], widths: tuple[int, ...]
) -> Callable[[CellBatch], tuple[LossSum, Any]]:
    """`one` of a batch, called with the batch cut to the first of `widths` that holds its longest cell.

    The sums get a metric more: `padding`, the fraction of token positions computed that were padding.
    """

    def at(width: int, batch: CellBatch) -> tuple[LossSum, Any]:
        sums, gradients = one(cut(batch, width))
        positions = jnp.asarray(float(width * batch.row.shape[0]))
        padding = positions - total_lengths(batch).sum()
        return sums._replace(metrics={**sums.metrics, "padding": (padding, positions)}), gradients

    def call(batch: CellBatch) -> tuple[LossSum, Any]:
        which = jnp.searchsorted(jnp.asarray(widths), total_lengths(batch).max())
        return jax.lax.switch(which, [partial(at, width) for width in widths], batch)

    return call
