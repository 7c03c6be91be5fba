"""What a layout is: how the parameters of another program's model are named and shaped, and which model here it is."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from scmbert_jax.config import ExperimentConfig
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.scmbert import ModelDefinition

StateDict: TypeAlias = Mapping[str, np.ndarray]

SETTINGS = "args.json"  # beside a checkpoint: what its tensors do not tell


class Layout(NamedTuple):
    """One line of `LAYOUTS` (layouts.py).

    Attributes:
      config: of a state dict and the settings that lie beside it (`SETTINGS`), the configuration of the same model
        here. Raises `InputError` for one of another layout.
      num_names: of a state dict, how many lines the list of its genes has.
      parameters: (state dict, definition, starting parameters, rows, places of `special`) -> parameters. `rows` int64
        [names], of each the row of the feature table, -1 of `special`; what the layout has not stays as it starts.
      state_dict: (definition, params, constants, rows) -> state dict: the inverse. Raises `ConfigError` for a model
        that the layout cannot hold. None: it is only read.
      special: names of the list that are no genes.
    """

    config: Callable[[StateDict, Mapping[str, Any]], ExperimentConfig]
    num_names: Callable[[StateDict], int]
    parameters: Callable[[StateDict, ModelDefinition, dict[str, Any], np.ndarray, dict[str, int]], dict[str, Any]]
    state_dict: Callable[[ModelDefinition, dict[str, Any], dict[str, Any], np.ndarray], dict[str, np.ndarray]] | None
    special: tuple[str, ...] = ()


def check_shapes(state: StateDict, wanted: Mapping[str, tuple[int, ...]], ignored: Callable[[str], bool]) -> None:
    """Raises `InputError` naming tensors that are missing, of other shapes, or of no use to the layout."""
    lacking = [name for name in wanted if name not in state]
    other = [name for name in state if name not in wanted and not ignored(name)]
    if lacking or other:
        told = [f"without {_some(lacking)}"] if lacking else []
        told += [f"with {_some(other)}, which this layout has not"] if other else []
        raise InputError(
            f"the state dict is of another layout: {' and '.join(told)}. docs/import.md lists the tensors."
        )
    for name, shape in wanted.items():
        if state[name].shape != shape:
            raise InputError(f"tensor {name} has shape {state[name].shape}, expected {shape} by the others.")
        if state[name].dtype.kind == "f" and not np.isfinite(state[name]).all():
            raise InputError(f"tensor {name} has numbers that are not finite.")


def check_fields(found: Mapping[str, Any], wanted: Mapping[str, Any], layout: str) -> None:
    """Raises `ConfigError` naming the fields of a configuration that a layout cannot hold."""
    differing = [name for name, value in wanted.items() if found[name] != value]
    differing = [f"{name} is {found[name]!r}, expected {wanted[name]!r}" for name in differing]
    if differing:
        raise ConfigError(f"this model cannot be written in the layout {layout}: {'; '.join(differing)}.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
