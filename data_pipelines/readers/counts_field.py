"""Which of the fields of an AnnData holds raw counts, by what is in them; and which others might: said, not read.

A layer of raw counts need not be all of them (spliced, unspliced, corrected ones), and what stands in `obsm` has no
features: which of them to read is for a person to say.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from data_pipelines.readers.stored_matrix import StoredMatrix
from data_pipelines.readers.whole_counts import is_whole
from scmbert_jax.errors import InputError

# Raw counts by custom: an explicit layer, then `raw`, then X.
PREFERENCE = ("layers['counts']", "raw.X", "X")
_ROWS_LOOKED_AT = 64
_PLACES = 4
_ROWS_OF_OBSM = 256
_FEWEST_COLUMNS = 3  # places in space have two or three, and may be whole numbers


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


def layers_of_counts(layers: Mapping[str, Any], opened: Callable[[Any, str], StoredMatrix]) -> list[str]:
    """Names of those that look like raw counts in some places. One that cannot be read does not."""
    found = []
    for name, held in layers.items():
        try:
            matrix = opened(held, name)
            if 0 not in matrix.shape and first_problem(matrix) is None:
                found.append(name)
        except InputError:
            continue
    return found


def obsm_notes(tables: Iterable[tuple[str, Any]], path: str, prefix: str) -> list[str]:
    """One for each table of `obsm` that looks like counts.

    Args:
      tables: (key, its first rows: an array or a table [rows, columns]).
    """
    notes = []
    for key, table in tables:
        columns = [str(name) for name in getattr(table, "columns", ())]
        values = np.asarray(table)
        if values.ndim != 2 or values.shape[1] <= _FEWEST_COLUMNS or values.dtype.kind not in "iuf":
            continue
        values = values[:_ROWS_OF_OBSM]
        if describe_values(values[values != 0]) is not None or not values.any():
            continue
        called = f" ({', '.join(map(repr, columns[:3]))} ...)" if columns else ""
        notes.append(
            f"{path}: {prefix}obsm[{key!r}] holds whole numbers, maybe counts, in {values.shape[1]:,} columns{called}; "
            "it is not read. If they are counts of antibodies, make them a modality, in Python: "
            f"t = adata.obsm[{key!r}]; mudata.MuData({{'rna': adata, 'protein': anndata.AnnData(t)}})"
            ".write('cells.h5mu')"
        )
    return notes
