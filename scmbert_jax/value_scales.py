"""Counts as the values that linear models of each modality use; the same function for numpy and for JAX arrays."""

from typing import Any


def linear_values(modality: str, counts: Any, library_size: Any, mean_log_count: Any, typical: Any, xp: Any) -> Any:
    """Values in which principal components are taken; zero for a count of zero.

    rna: log1p(count / library_size * median library size). protein: log1p(count / g), g the geometric mean of count + 1
    over the cell's measured features (CLR, Stoeckius et al. 2017). atac: log1p(1e4 * [count > 0] / library_size / share
    of cells in which the region is open) (TF-IDF, Stuart et al. 2019).

    Args:
      counts, library_size, mean_log_count: of the tokens, any shape; see `ModalityTokens`.
      typical: of the tokens; rna: the median library size; atac: the detection rate of the region; protein: not read.
      xp: numpy or jax.numpy.
    """
    if modality == "protein":
        return xp.log1p(counts * xp.exp(-mean_log_count))
    per_count = counts / xp.maximum(library_size, 1.0)
    if modality == "rna":
        return xp.log1p(per_count * typical)
    return xp.log1p(1e4 * xp.where(counts > 0, 1.0, 0.0) / xp.maximum(library_size, 1.0) / xp.maximum(typical, 1e-4))
