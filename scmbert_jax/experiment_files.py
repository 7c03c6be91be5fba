"""Experiments by name: one commented Python file each, with a function `config()` that gives its configuration: an
`ExperimentConfig`, or a `DnaExperiment`.

They lie in the folder `experiments` of the repository, or beside this file where a wheel was installed. Loaded by their
paths, they are no modules: no installation claims the name `experiments`, which many projects use for their own.
"""

import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

from scmbert_jax.config import ExperimentConfig
from scmbert_jax.dna_config import DnaExperiment, Experiment
from scmbert_jax.errors import ConfigError


def _folder() -> Path:
    here = Path(__file__).resolve().parent
    return next((path for path in (here / "experiments", here.parent / "experiments") if path.is_dir()), here)


EXPERIMENTS = _folder()


def experiment_names() -> list[str]:
    """Those of the package, in alphabetical order."""
    return sorted(path.stem for path in EXPERIMENTS.glob("[!_]*.py"))


def experiment_module(name: str) -> ModuleType:
    """The file of an experiment, loaded: a name, or a path ending in .py. Raises `ConfigError` when there is none."""
    path = Path(name) if name.endswith(".py") else EXPERIMENTS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(
            f"experiment {name!r} does not exist. There are: {', '.join(experiment_names())}; or give the path of a "
            "Python file with a function config()."
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_any_experiment(name: str) -> Experiment:
    """The configuration of an experiment: one of `experiment_names`, or the path of a Python file like those.

    Behind a name may stand what its `config` is called with: `blood:large` is `config("large")` of blood.py.

    Raises `ConfigError` when there is none of that name, the file has no `config()`, or it takes no such argument.
    """
    file, _, variant = (name, "", "") if name.endswith(".py") else name.partition(":")
    module = experiment_module(file)
    path = module.__file__
    if not hasattr(module, "config"):
        raise ConfigError(f"{path}: no function config() that gives an ExperimentConfig.")
    if variant and not inspect.signature(module.config).parameters:
        raise ConfigError(f"experiment {name!r}: {file} has no variants; leave ':{variant}' out.")
    config = module.config(*[variant] if variant else [])
    if not isinstance(config, ExperimentConfig | DnaExperiment):
        raise ConfigError(f"{path}: config() gave {type(config).__name__}, expected ExperimentConfig or DnaExperiment.")
    return config


def load_experiment(name: str) -> ExperimentConfig:
    """`load_any_experiment` of one on cells. Raises `ConfigError` for one on DNA, too, which `pretrain` takes by its
    name."""
    config = load_any_experiment(name)
    if not isinstance(config, ExperimentConfig):
        raise ConfigError(f"experiment {name!r} is one on DNA; this needs one on cells, such as tiny.")
    return config
