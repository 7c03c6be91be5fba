"""The state of a run, and how it is made sharded without ever existing whole on one device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from scmbert_jax.models.definition import Definition
from scmbert_jax.parallel.mesh import replicated, sharding
from scmbert_jax.random_keys import init_key


class TrainState(NamedTuple):
    """params: nested dict of float32 arrays; opt_state: optax state over the same tree; step: int32 [], steps done."""

    params: Any
    opt_state: Any
    step: Any


def param_shardings(model: Definition, mesh: Mesh) -> dict[str, Any]:
    """One `NamedSharding` per parameter. Raises `ConfigError` naming a parameter whose size does not divide."""

    def one(path: tuple, param: jax.ShapeDtypeStruct, axes: tuple[str | None, ...]) -> NamedSharding:
        return sharding(mesh, axes, param.shape, f"parameter {jax.tree_util.keystr(path)}")

    return jax.tree_util.tree_map_with_path(one, model.abstract_params, model.logical_axes)


def abstract_state(model: Definition, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The `TrainState` as `jax.ShapeDtypeStruct`s with shardings; the optimizer's moments lie as their parameters."""
    shardings = param_shardings(model, mesh)

    def placed(leaf: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    of_params = {
        _keys(path): (param.shape, where)
        for (path, param), where in zip(
            jax.tree_util.tree_leaves_with_path(model.abstract_params), jax.tree.leaves(shardings), strict=True
        )
    }

    # What an optimizer keeps for a parameter stands at the end of the parameter's path, whatever lies around it
    # (`optax.tree_utils.tree_map_params` does not get through Muon, which looks at the parameters it is made for).
    def beside(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        keys = _keys(path)
        for start in range(len(keys)):
            shape, where = of_params.get(keys[start:], (None, None))
            if shape == leaf.shape:
                return placed(leaf, where)
        return placed(leaf, replicated(mesh))

    opt_state = jax.tree_util.tree_map_with_path(beside, jax.eval_shape(optimizer.init, model.abstract_params))
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    return TrainState(jax.tree.map(placed, model.abstract_params, shardings), opt_state, step)


def _keys(path: tuple) -> tuple[Any, ...]:
    return tuple(part.key for part in path if isinstance(part, jax.tree_util.DictKey))


def initial_state(model: Definition, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Random parameters of `config.seed` and a fresh optimizer, made in place on the devices of `mesh`.

    threefry numbers do not depend on the sharding, so every mesh starts from the same parameters.
    """

    def create() -> TrainState:
        params = _initial_params(model)
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    where = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, optimizer, mesh))
    return jax.jit(create, out_shardings=where)()


def initial_params(model: Definition, mesh: Mesh) -> Any:
    """Those of `initial_state`, without an optimizer."""
    return jax.jit(lambda: _initial_params(model), out_shardings=param_shardings(model, mesh))()


def _initial_params(model: Definition) -> Any:
    return model.init(init_key(model.config.seed))
