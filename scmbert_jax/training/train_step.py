"""One optimizer step of one objective, as a jitted function of (state, constants, batch).

The step number and the seed give the key; nothing else is random. Losses and gradients are sums over microbatches,
divided once by the sum of weights, so that 1 and 4 microbatches of unequal masks give the same update.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from scmbert_jax.models.definition import Definition
from scmbert_jax.objectives.base import AnyObjective, LossSum
from scmbert_jax.parallel.table_rows import whole
from scmbert_jax.random_keys import KeyPurpose, key_for, step_key
from scmbert_jax.training.length_groups import at_needed_width, by_length, row_widths
from scmbert_jax.training.optimizer import learning_rate_schedule
from scmbert_jax.training.train_state import TrainState

StepFunction = Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]


def split_microbatches(batch: Any, number: int) -> Any:
    """[B, ...] -> [number, B / number, ...]; microbatch i takes rows i, i + number, ...

    Strided, not consecutive: so every device keeps its own rows and no data moves between devices.
    """
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // number, number, *x.shape[1:]), 0, 1), batch)


def sum_of_gradients(
    model: Definition,
    objective: AnyObjective,
    num_microbatches: int,
    params: Any,
    constants: Any,
    batch: Any,
    key: Any,
) -> tuple[LossSum, Any]:
    """(sums over the batch, gradient of the summed loss), one microbatch after the other."""

    # Once for all microbatches, forward and backward: the table costs as much however many cells look rows up in it.
    heard = key_for(key, KeyPurpose.NEIGHBOURS)
    table, table_gradient_to_params = jax.vjp(lambda own: model.merge(own, constants).feature_table(key=heard), params)

    def total(params: Any, table: jax.Array, microbatch: Any) -> tuple[jax.Array, LossSum]:
        sums = objective.loss(model.merge(params, constants), whole(table), microbatch, key)
        return sums.total, sums

    def one(microbatch: Any) -> tuple[LossSum, Any]:
        (_, sums), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, table, microbatch)
        return sums, gradients

    def over_all() -> tuple[LossSum, Any]:
        if objective.needs_whole_batch:
            return one(batch)
        widths = row_widths(model.config)
        of_part = one if len(widths) == 1 else at_needed_width(one, widths)
        if num_microbatches == 1:
            return of_part(batch)
        microbatches = split_microbatches(
            batch if len(widths) == 1 else by_length(batch, num_microbatches), num_microbatches
        )

        def accumulate(sums: Any, microbatch: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, of_part(microbatch)), None

        first = jax.tree.map(lambda x: x[0], microbatches)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_part, first))
        return jax.lax.scan(accumulate, zeros, microbatches)[0]

    sums, (gradients, of_table) = over_all()
    if not objective.reads_table:
        return sums, gradients
    (from_table,) = table_gradient_to_params(of_table)
    return sums, jax.tree.map(jnp.add, gradients, from_table)


def sum_of_losses(
    model: Definition,
    objective: AnyObjective,
    num_microbatches: int,
    params: Any,
    constants: Any,
    batch: Any,
    key: Any,
) -> LossSum:
    """Sums over the batch without a gradient, in the microbatches of a training step: so it fits where that fits."""
    table = whole(model.merge(params, constants).feature_table())

    def one(microbatch: Any) -> LossSum:
        return objective.loss(model.merge(params, constants), table, microbatch, key)

    if objective.needs_whole_batch or num_microbatches == 1:
        return one(batch)
    parts = jax.lax.map(one, split_microbatches(batch, num_microbatches))
    return jax.tree.map(lambda x: x.sum(0), parts)


def make_train_step(
    model: Definition, objective: AnyObjective, optimizer: optax.GradientTransformation
) -> StepFunction:
    """The pure step; the loop jits it with the state donated.

    Metrics: `loss`, `grad_norm`, `loss_weight` (sum of weights, e.g. masked tokens), `learning_rate`, and those of the
    objective.
    """
    config = model.config
    learning_rate = learning_rate_schedule(config)

    def train_step(state: TrainState, constants: Any, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        key, constants = step_key(config.seed, state.step), model.constants_at(constants, state.step)
        sums, gradients = sum_of_gradients(
            model, objective, config.train.num_microbatches, state.params, constants, batch, key
        )
        scale = 1.0 / jnp.maximum(sums.weight, 1e-8)
        gradients = jax.tree.map(lambda g: g * scale, gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics = {
            "loss": sums.total * scale,
            "grad_norm": optax.global_norm(gradients),
            "loss_weight": sums.weight,
            "learning_rate": learning_rate(state.step),
        }
        for name, (value, weight) in sums.metrics.items():
            metrics[name] = value / jnp.maximum(weight, 1e-8)
            metrics[f"{name}_weight"] = weight
        return TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1), metrics

    return train_step
