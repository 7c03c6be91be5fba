"""What a MuData says of its pairs where no assay measured them: `uns["scmbert_pseudo_pairs"]`.

Whoever matches cells of two modalities by computation (optimal transport on linked features, say) and writes them as
one cell each declares it here. A corpus carries the declaration on, so that nobody takes such pairs for measured ones.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.readers.stored_nodes import StoredGroup, is_group
from scmbert_jax.errors import InputError

PSEUDO_PAIRS = "scmbert_pseudo_pairs"


def pseudo_pairs_of(uns: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """The declaration as plain JSON values, or None where there is none.

    Raises InputError when it is no mapping of names to JSON values.
    """
    if PSEUDO_PAIRS not in uns:
        return None
    declared = uns[PSEUDO_PAIRS]
    if not isinstance(declared, Mapping) or not declared:
        raise InputError(
            f"{path}: uns[{PSEUDO_PAIRS!r}] is {declared!r}; expected a dict that says how the cells were paired, "
            'such as {"method": ..., "links": 39}'
        )
    where = f"{path}: uns[{PSEUDO_PAIRS!r}]"
    return {str(name): _json_value(value, f"{where}[{name!r}]") for name, value in declared.items()}


def pseudo_pairs_of_file(file: StoredGroup, path: str) -> dict[str, Any] | None:
    """As `pseudo_pairs_of`, from an open .h5mu or zarr store."""
    from anndata.io import read_elem

    uns = file.get("uns")
    if not is_group(uns) or PSEUDO_PAIRS not in uns:
        return None
    return pseudo_pairs_of({PSEUDO_PAIRS: read_elem(uns[PSEUDO_PAIRS])}, path)


def _json_value(value: Any, where: str) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()  # what HDF5 and zarr make of numbers, texts and lists
    if isinstance(value, Mapping):
        return {str(name): _json_value(part, f"{where}[{name!r}]") for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(part, where) for part in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise InputError(f"{where} is a {type(value).__name__}; expected text, numbers, lists or dicts of them")
