"""Each objective's loss on the held-out cells or sequences, with masks that never change."""

from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from scmbert_jax.models.definition import Definition
from scmbert_jax.objectives.base import LossSum
from scmbert_jax.objectives.mixture import objectives_of
from scmbert_jax.parallel.mesh import batch_to_devices
from scmbert_jax.random_keys import step_key
from scmbert_jax.training.train_step import sum_of_losses

_NO_STEP = 2**31 - 1  # no run gets there, so these masks are those of no training step


def fixed_key(seed: int) -> jax.Array:
    """The key of everything random in an evaluation; to be called inside a jitted function. With the row of a batch,
    which is the number of the cell, it gives each held-out cell the same mask at every step."""
    return step_key(seed, _NO_STEP)


class HeldOutBatches(Protocol):
    """Held-out rows, always the same in the same order (`ValidationData`, `HeldOutSequences`)."""

    @property
    def batches(self) -> Iterable[Any]: ...


class HeldOutLosses:
    """Called with (step, params, constants), gives metric -> value; see `loss.py` for the metrics.

    Sums over all cells, divided once: neither the batch nor the mesh shows but in the order of float32 sums within a
    batch (relative differences of 1e-6).
    """

    def __init__(self, model: Definition, mesh: Mesh, data: HeldOutBatches):
        self._mesh, self._data, self._weights = mesh, data, model.config.objectives.weights()
        self._sums = {
            name: jax.jit(partial(_sums, model, objective)) for name, objective in objectives_of(model.config).items()
        }
        self._newest: tuple[int, dict[str, float]] | None = None

    def __call__(self, step: int, params: Any, constants: Any) -> dict[str, float]:
        if self._newest is None or self._newest[0] != step:
            self._newest = step, self.of(params, constants)
        return dict(self._newest[1])

    def of(self, params: Any, constants: Any) -> dict[str, float]:
        """The same of any parameters."""
        totals: dict[str, list[float]] = {}  # OBJECTIVE/METRIC -> [sum, weight], in float64
        for batch in self._data.batches:
            on_mesh = batch_to_devices(batch, self._mesh)
            for name, sums in self._sums.items():
                found: LossSum = jax.device_get(sums(params, constants, on_mesh))
                for metric, (value, weight) in {"loss": (found.total, found.weight), **found.metrics}.items():
                    total = totals.setdefault(f"{name}/{metric}", [0.0, 0.0])
                    total[0] += float(value)
                    total[1] += float(weight)
        means = {metric: value / weight for metric, (value, weight) in totals.items() if weight > 0}
        known = {name: weight for name, weight in self._weights.items() if f"{name}/loss" in means}
        if known:
            means["loss"] = sum(weight * means[f"{name}/loss"] for name, weight in known.items()) / sum(known.values())
        return means


def _sums(model: Definition, objective: Any, params: Any, constants: Any, batch: Any) -> LossSum:
    config = model.config
    return sum_of_losses(
        model, objective, config.train.num_microbatches, params, constants, batch, fixed_key(config.seed)
    )
