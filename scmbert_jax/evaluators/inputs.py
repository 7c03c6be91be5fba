"""What every evaluator is made of, and the key of its masks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.batches.validation_data import ValidationData
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.evaluators.held_out_losses import HeldOutLosses
from scmbert_jax.evaluators.whole_cells import WholeCellBatches
from scmbert_jax.models.token_sequence import CutBatch
from scmbert_jax.parallel.mesh import batch_to_devices, replicated
from scmbert_jax.scmbert import ModelDefinition, ScMbert

ALONE = "_linear_path_alone"


class CannotEvaluate(Exception):
    """Raised by an evaluator when it is made: this run has not what it takes, such as pairs or labels. The message ends
    the sentence "NAME is not evaluated: ...", which is said once."""


@dataclass(frozen=True, eq=False)
class EvaluatorInputs:
    """What an evaluator is made of.

    Attributes:
      model: without its numbers; `model.config` is the run's configuration, `model.layout` its features.
      mesh: of the run.
      data: the held-out cells.
    """

    model: ModelDefinition
    mesh: Mesh
    data: ValidationData

    @property
    def config(self) -> ExperimentConfig:
        return self.model.config

    @cached_property
    def losses(self) -> HeldOutLosses:
        """Losses of all objectives; computed once a step, however many evaluators ask."""
        return HeldOutLosses(self.model, self.mesh, self.data)

    def over_cells(self, function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
        """Calls a function of (params, constants, batch) with every batch of the held-out cells.

        Args:
          function: gives arrays whose first dimension is the rows of the batch; it is jitted once.

        Returns:
          A function of (params, constants) that gives numpy arrays whose first dimension is the held-out cells, the
          same on every process.
        """
        call = jax.jit(function, out_shardings=replicated(self.mesh))

        def parts(params: Any, constants: Any) -> Iterator[Any]:
            for batch in self.data.batches:
                yield jax.device_get(call(params, constants, batch_to_devices(batch, self.mesh)))

        def over_all(params: Any, constants: Any) -> Any:
            number = self.data.num_cells
            return jax.tree.map(lambda *of_batches: np.concatenate(of_batches)[:number], *parts(params, constants))

        return over_all

    def over_whole_cells(
        self, function: Callable[[ScMbert, jax.Array, CutBatch], Any]
    ) -> dict[str, Callable[[Any, Any], Any]]:
        """Calls a function of (model, its feature table, batch) with every held-out cell as `scmbert embed` shows it to
        a model: all that it expresses, scores of all its counts, no covariate known.

        Args:
          function: gives arrays whose first dimension is the rows of the batch; it is jitted, once per width of rows.

        Returns:
          What the names of metrics end with -> as that of `over_cells`. "": of the model. `ALONE`: of the same without
          its transformer (`ModelDefinition.linear_path_alone`); not there for a model that has no linear path.
        """
        found = {"": self._whole_cells.over_cells(function)}
        if self.config.model.linear_path:
            found[ALONE] = self._whole_cells.over_cells(function, linear_path_alone=True)
        return found

    @cached_property
    def _whole_cells(self) -> WholeCellBatches:
        return WholeCellBatches(self.model, self.mesh, self.data)
