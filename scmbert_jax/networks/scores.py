"""What every method gives, and what a method that asks a model is given."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from scmbert_jax.networks.population import Population
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.embed import feature_table
from scmbert_jax.tasks.model_cells import ModelCells

Array = np.ndarray


class Scores(NamedTuple):
    """Attributes:
    weight: float [R, G], at least 0; the higher, the likelier an edge, and 0: none.
    sign: int8 [R, G], 1 or -1; None: the method knows none.
    """

    weight: Array
    sign: Array | None = None


@dataclass(frozen=True)
class Resampling:
    """Bootstraps: the cells (or parts of them) as they are, then drawn `number` times with replacement, by a seed."""

    number: int
    seed: int

    def weights(self, units: int) -> Array:
        """int64 [1 + number, units]: how often each counts."""
        drawn = np.random.default_rng(self.seed).multinomial(units, np.full(units, 1 / units), self.number)
        return np.concatenate([np.ones((1, units), np.int64), drawn])


@dataclass(frozen=True)
class Reader:
    """A model that reads the cells of a file.

    Attributes:
      model: computes in float32.
      opened: the file in its features.
      num_tokens: most tokens of a cell; None: as `scmbert embed`.
      batch_size: cells per device call.
      progress: called with (cells done, cells in all).
    """

    model: PretrainedModel
    opened: ModelCells
    num_tokens: int | None
    batch_size: int
    progress: Callable[[int, int], None]

    @cached_property
    def given(self) -> tuple[Any, Any, Any, Any]:
        """Definition, parameters, constants and feature table, as jitted functions take them."""
        model = self.model
        return (
            model.definition,
            model.params,
            model.constants,
            feature_table(model.definition, model.params, model.constants),
        )

    def places(self, population: Population) -> Array:
        """int64 [features of the model's table]: the place of each among the population's genes; -1: it is none."""
        layout = self.model.definition.layout
        found = np.full(layout.num_features, -1, np.int64)
        found[layout.slices["rna"][0] + population.genes] = np.arange(len(population.genes))
        return found
