"""What a file holds beside the fields that are read, and might be the counts somebody looks for: said, never taken.

A layer of raw counts need not be all of them (spliced, unspliced, corrected ones), and what stands in `obsm` has no
features: which of them to read is for a person to say.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from data_pipelines.readers.counts_field import describe_values, first_problem
from data_pipelines.readers.stored_matrix import StoredMatrix
from scmbert_jax.errors import InputError

_ROWS = 256
_FEWEST_COLUMNS = 3  # places in space have two or three, and may be whole numbers


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
        values = values[:_ROWS]
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
