"""scmbert_jax: pre-training of multi-omic single-cell transformers, from a laptop to a TPU pod.

Importing this package loads neither JAX, TensorFlow nor anndata; `load` brings in what it needs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scmbert_jax.tasks.model import load as load

__version__ = (Path(__file__).parent / "VERSION").read_text().strip()
__all__ = ["load", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from scmbert_jax.tasks.model import load

        return load
    raise AttributeError(f"module 'scmbert_jax' has no attribute {name!r}")
