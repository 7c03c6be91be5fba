"""`lift`: how much lower the losses are than those of the model at its start, in the loss's own units.

A model starts at what each feature is like by itself (and at its linear path, if it has one): so this is what training
has added to knowing that. Of a run that begins with a model's weights (--init-from), what those bring is part of the
lift. Metrics are those of `loss` that end in "loss", start minus now.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jax

from scmbert_jax.evaluators.inputs import EvaluatorInputs
from scmbert_jax.parallel.mesh import replicated
from scmbert_jax.training.train_state import initial_params


class _Lift:
    def __init__(self, inputs: EvaluatorInputs):
        self._inputs = inputs

    def __call__(self, step: int, params: Any, constants: Any) -> Mapping[str, float]:
        now = self._inputs.losses(step, params, constants)
        return {metric: self._at_start[metric] - value for metric, value in now.items() if metric.endswith("loss")}

    @cached_property
    def _at_start(self) -> dict[str, float]:
        model, mesh = self._inputs.model, self._inputs.mesh
        return self._inputs.losses.of(initial_params(model, mesh), jax.device_put(model.constants, replicated(mesh)))


def make(inputs: EvaluatorInputs) -> _Lift:
    return _Lift(inputs)
