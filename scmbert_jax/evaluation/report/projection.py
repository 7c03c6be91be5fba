"""Two dimensions to look at: UMAP, the same picture from the same numbers."""

import sys
import warnings
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from scmbert_jax.errors import InputError

Array = np.ndarray


def compute_umap(embedding: Array, seed: int, *, num_neighbours: int = 15, min_dist: float = 0.3) -> Array:
    """UMAP (McInnes et al. 2018) of an embedding, cosine metric about the mean; deterministic for a seed.

    Args:
      embedding: float [n, d].
      seed: of the layout. One thread, because only then does umap-learn repeat itself.
      num_neighbours: size of the neighbourhoods; at least num_neighbours + 2 cells are needed.
      min_dist: smallest distance in the picture, in its own units.

    Returns:
      float32 [n, 2]. Distances between far groups, and the axes, mean nothing.

    Raises:
      InputError: values that are not finite, or too few cells. There is no fallback to another picture.
    """
    x = np.asarray(embedding, dtype=np.float32)
    if x.ndim != 2 or len(x) < num_neighbours + 2:
        raise InputError(
            f"UMAP: an embedding of shape {x.shape}; expected [n, d] with n >= {num_neighbours + 2} cells."
        )
    bad = ~np.isfinite(x).all(1)
    if bad.any():
        raise InputError(f"UMAP: {int(bad.sum())} cells are not finite (first at row {int(bad.argmax())}).")
    umap = _import_umap()
    with warnings.catch_warnings(), threadpool_limits(1):
        # n_jobs=1 is what a fixed random_state needs; umap-learn warns of it even when it is asked for.
        warnings.filterwarnings("ignore", message=".*n_jobs value.*overridden.*")
        layout = umap.UMAP(
            n_neighbors=num_neighbours, min_dist=min_dist, metric="cosine", random_state=seed, n_jobs=1
        ).fit_transform(x - x.mean(0))
    return np.asarray(layout, dtype=np.float32)


def _import_umap() -> Any:
    """umap-learn, imported only when a picture is drawn and without TensorFlow.

    umap-learn loads TensorFlow, where it is installed, for a parametric variant that is not used here; that costs some
    600 MB. While it is imported, TensorFlow counts as not installed, which umap-learn allows for.
    """
    hidden = [name for name in ("tensorflow",) if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is the import system's "not there"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # umap-learn's "TensorFlow is not installed"
            import umap
    finally:
        for name in hidden:
            del sys.modules[name]
    return umap
