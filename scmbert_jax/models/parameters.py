"""How parameters are made, and what each of them is: its role decides how the optimizer treats it.

layer_matrix   of a layer of the encoder or the decoder: between the residual stream (`embed`) and what is inside
matrix         any other that is multiplied with activations
embedding      rows looked up by a feature, a modality, a bin or a covariate: decay would pull rare ones to zero
norm, bias, dispersion, scalar
fixed          a number of the model that no training changes: who reads it stops its gradient
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Role = Literal["layer_matrix", "matrix", "embedding", "norm", "bias", "dispersion", "scalar", "fixed"]
LogicalAxes = tuple[str | None, ...]


class Constant(nnx.Variable):
    """A numpy array of the feature space or the corpus that is not trained: no moments, no part of a checkpoint.

    What the module is made with is what `ModelDefinition.constants` holds; `ModelDefinition.merge` puts in those of
    its caller.
    """


def parameter(value: jax.Array | np.ndarray, logical_axes: LogicalAxes, role: Role) -> nnx.Param:
    """A float32 parameter that starts at `value`."""
    assert role in get_args(Role), role
    return nnx.Param(jnp.asarray(value, jnp.float32), logical_axes=logical_axes, role=role)


def weight(
    rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, logical_axes: LogicalAxes, role: Role = "matrix"
) -> nnx.Param:
    """One that starts normal with standard deviation fan_in**-0.5."""
    return parameter(jax.random.normal(rngs.params(), shape) * fan_in**-0.5, logical_axes, role)


def filled(value: float, shape: tuple[int, ...], logical_axes: LogicalAxes, role: Role) -> nnx.Param:
    """One that starts at one value everywhere."""
    return parameter(jnp.full(shape, value, jnp.float32), logical_axes, role)
