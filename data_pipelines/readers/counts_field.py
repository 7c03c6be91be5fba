"""Which of the fields of an AnnData holds raw counts: decided by what is in them."""

import numpy as np

from data_pipelines.readers.stored_matrix import StoredMatrix
from data_pipelines.readers.whole_counts import is_whole

# Raw counts by custom: an explicit layer, then `raw`, then X.
PREFERENCE = ("layers['counts']", "raw.X", "X")
_ROWS_LOOKED_AT = 64
_PLACES = 4


def describe_values(values: np.ndarray) -> str | None:
    """None for counts (finite, non-negative, integer-valued); else what is wrong, in words.

    Float storage is allowed: a value counts as an integer within float rounding (`is_whole`).
    """
    if not len(values):
        return None
    if np.issubdtype(values.dtype, np.unsignedinteger) or values.dtype == bool:
        return None
    if not np.all(np.isfinite(values)):
        return "NaN or infinite values"
    if values.min() < 0:
        return f"negative values (as low as {values.min():.4g})"
    fraction = float(np.mean(~is_whole(values)))
    if fraction == 0:
        return None
    log = ": looks log-normalised" if values.max() < 20 else ": looks normalised"
    return f"non-integers: {fraction:.0%} of the values, max {values.max():.4g}{log}"


def choose_counts_field(candidates: dict[str, StoredMatrix]) -> tuple[str, dict[str, str]]:
    """The field to read, and for each other field what was seen in it.

    Looks at some rows in several places of each candidate. The first by preference that holds counts wins; if none
    does, the first by preference is returned and the full check will say what is wrong with it.
    """
    if len(candidates) == 1:
        return next(iter(candidates)), {}
    seen = {name: first_problem(candidates[name]) for name in PREFERENCE if name in candidates}
    chosen = next((name for name, problem in seen.items() if problem is None), next(iter(seen)))
    return chosen, {name: problem or "counts" for name, problem in seen.items() if name != chosen}


def first_problem(matrix: StoredMatrix) -> str | None:
    """None where some rows in several places hold counts; else what is wrong with the first that do not."""
    rows = matrix.shape[0]
    looked = 0
    for first, part in matrix.chunks(_ROWS_LOOKED_AT):
        problem = describe_values(part.data)
        looked += part.nnz > 0
        if problem or looked >= _PLACES:
            return problem
        if first + _ROWS_LOOKED_AT >= rows:
            break
    return None
