"""scmbert_jax: pre-training of multi-omic single-cell transformers, from a laptop to a TPU pod.

The verbs of the command line as functions: `build_corpus`, `pretrain`, `export`, `load`. Importing this package loads
neither JAX, TensorFlow nor anndata; each function brings in what it needs. It raises `ForeignPackage` (an ImportError)
where another `data_pipelines` is found than the one beside it.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scmbert_jax.version import VERSION as __version__

if TYPE_CHECKING:
    from data_pipelines.build.build_corpus import build_corpus as build_corpus
    from data_pipelines.build.options import BuildOptions as BuildOptions
    from data_pipelines.cells.cell_selection import CellSelection as CellSelection
    from data_pipelines.sampling.mixture import MixtureOptions as MixtureOptions
    from scmbert_jax.annotation.annotate import annotate as annotate
    from scmbert_jax.annotation.annotate import fit_annotator as fit_annotator
    from scmbert_jax.experiment_files import load_experiment as load_experiment
    from scmbert_jax.finished_run import Run as Run
    from scmbert_jax.integration.integrate import integrate as integrate
    from scmbert_jax.interpretation.explain import ExplainOptions as ExplainOptions
    from scmbert_jax.interpretation.explain import explain as explain
    from scmbert_jax.parallel.processes import Processes as Processes
    from scmbert_jax.pretraining import pretrain as pretrain
    from scmbert_jax.regulation.fit import fit_regulatory as fit_regulatory
    from scmbert_jax.regulation.model_folder import load_regulatory as load_regulatory
    from scmbert_jax.tasks.model import Model as Model
    from scmbert_jax.tasks.model import export as export
    from scmbert_jax.tasks.model import load as load

_HOMES = {
    "build_corpus": "data_pipelines.build.build_corpus",
    "pretrain": "scmbert_jax.pretraining",
    "export": "scmbert_jax.tasks.model",
    "load": "scmbert_jax.tasks.model",
    "annotate": "scmbert_jax.annotation.annotate",
    "fit_annotator": "scmbert_jax.annotation.annotate",
    "integrate": "scmbert_jax.integration.integrate",
    "explain": "scmbert_jax.interpretation.explain",
    "fit_regulatory": "scmbert_jax.regulation.fit",
    "load_regulatory": "scmbert_jax.regulation.model_folder",
    "load_experiment": "scmbert_jax.experiment_files",
    "BuildOptions": "data_pipelines.build.options",
    "CellSelection": "data_pipelines.cells.cell_selection",
    "ExplainOptions": "scmbert_jax.interpretation.explain",
    "MixtureOptions": "data_pipelines.sampling.mixture",
    "Model": "scmbert_jax.tasks.model",
    "Processes": "scmbert_jax.parallel.processes",
    "Run": "scmbert_jax.finished_run",
}

__all__ = [*_HOMES, "__version__"]


def _check_data_pipelines() -> None:
    """Many projects have a package of this name, and Python takes the first that it finds: their code would be run."""
    ours = Path(__file__).resolve().parent.parent / "data_pipelines"
    spec = importlib.util.find_spec("data_pipelines")
    found = [Path(folder).resolve() for folder in (spec and spec.submodule_search_locations) or ()]
    if ours not in found[:1]:
        from scmbert_jax.errors import ForeignPackage

        where = found[0] if found else spec.origin if spec else "no package data_pipelines"
        raise ForeignPackage(
            f"{where}: found where {ours} is needed, a part of scmbert_jax. Rename the other package, or take its "
            "folder off the import path (PYTHONPATH, or the folder you started Python in), then start Python again."
        )


_check_data_pipelines()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'scmbert_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
