"""A model as training, checkpoints and model folders hold it: without its numbers, and what each of them is."""

from abc import ABC, abstractmethod
from typing import Any

import jax
import numpy as np
from flax import nnx

from scmbert_jax.models.attention.favor import redraw


class Definition(ABC):
    """A model without its numbers: parameters live outside, as a plain nested dict of float32 arrays.

    Attributes:
      config: the experiment's.
      layout: what it knows of the data before it reads a batch.
      unit: what a row of a batch is, in the plural.
      abstract_params: nested dict of `jax.ShapeDtypeStruct`.
      logical_axes: nested dict of tuples, one name (or None) per dimension of each parameter.
      roles: nested dict of what each parameter is (`parameters.Role`).
      constants: nested dict of numpy arrays, data and not parameters: what the corpus gave, and the random directions
        of `favor` attention, those of the run's last step. They are an argument of every jitted function, because
        baking the links of a million regions into a program is slow. They are made from the layout, so neither a
        checkpoint nor a model's weights hold them.
    """

    unit: str
    layout: Any

    def __init__(self, config: Any):
        self.config = config
        numbers: dict[str, Any] = {}

        def create() -> nnx.Module:
            model = self._create(jax.random.key(0))
            # numpy, which a trace leaves alone; of random directions, which are drawn below, a shape.
            constants: Any = nnx.split(model, nnx.Param, ...)[-1]
            numbers.update(nnx.to_pure_dict(constants))
            return model

        with nnx.use_eager_sharding(False):
            abstract = nnx.eval_shape(create)
        parts: Any = nnx.split(abstract, nnx.Param, ...)
        self._graph, params, constants = parts
        self._params_tree, self._constants_tree = jax.tree.structure(params), jax.tree.structure(constants)

        def metadata(name: str) -> dict[str, Any]:
            of_params = jax.tree.map(
                lambda param: param.get_metadata(name), params, is_leaf=lambda x: isinstance(x, nnx.Variable)
            )
            return nnx.to_pure_dict(of_params)

        self.abstract_params: dict[str, Any] = nnx.to_pure_dict(params)
        self.logical_axes, self.roles = metadata("logical_axes"), metadata("role")
        last = self.constants_at(numbers, config.train.num_steps - 1)
        self.constants: dict[str, Any] = jax.tree.map(np.asarray, last)

    @abstractmethod
    def _create(self, key: jax.Array) -> Any:
        """The model with random parameters of a key. Its `feature_table(key=...)` gives float32 [F, D], once a step."""

    @property
    def agreed(self) -> dict[str, str | None]:
        """What all processes of a run must have found alike, once the layout was made."""
        return {}

    @abstractmethod
    def reads_in_words(self) -> str:
        """What it reads, for the first line of a run."""

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Random parameters; a pure function of (config, layout, key), where a run starts with `random_keys.init_key`.

        Jit it with shardings for large models.
        """
        with nnx.use_eager_sharding(False):
            return nnx.to_pure_dict(nnx.split(self._create(key), nnx.Param, ...)[1])

    def constants_at(self, constants: dict[str, Any], step: jax.Array | int) -> dict[str, Any]:
        """`constants` as they are at a step of training: random directions are a function of (seed, step)."""
        every = self.config.model.favor_redraw_every
        return redraw(constants, self.config.seed, step // every if every else 0)

    def merge(self, params: dict[str, Any], constants: dict[str, Any]) -> Any:
        """The model with these numbers in it; call it inside the jitted function."""
        return nnx.merge(
            self._graph,
            jax.tree.unflatten(self._params_tree, jax.tree.leaves(params)),
            jax.tree.unflatten(self._constants_tree, jax.tree.leaves(constants)),
        )
