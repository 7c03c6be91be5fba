"""One commented Python file per experiment; each has a function `config()` that gives an `ExperimentConfig`.

The docstring of an experiment holds the exact command, the expected time and the expected result. README.md is the
ledger of what was measured.
"""

import importlib.util
import inspect
import pkgutil
from pathlib import Path

from scmbert_jax.config import ExperimentConfig
from scmbert_jax.errors import ConfigError


def experiment_names() -> list[str]:
    """The experiments of this folder, by name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_experiment(name: str) -> ExperimentConfig:
    """The configuration of an experiment: a name of this folder, or the path of a Python file like those here.

    Behind a name may stand what its `config` is called with: `blood:large` is `config("large")` of blood.py.

    Raises `ConfigError` when there is none of that name, the file has no `config()`, or it takes no such argument.
    """
    file, _, variant = (name, "", "") if name.endswith(".py") else name.partition(":")
    path = Path(file) if file.endswith(".py") else Path(__file__).parent / f"{file}.py"
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(
            f"experiment {name!r} does not exist. There are: {', '.join(experiment_names())}; or give the path of a "
            "Python file with a function config()."
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "config"):
        raise ConfigError(f"{path}: no function config() that gives an ExperimentConfig.")
    if variant and not inspect.signature(module.config).parameters:
        raise ConfigError(f"experiment {name!r}: {file} has no variants; leave ':{variant}' out.")
    config = module.config(*[variant] if variant else [])
    if not isinstance(config, ExperimentConfig):
        raise ConfigError(f"{path}: config() gave {type(config).__name__}, expected ExperimentConfig.")
    return config
