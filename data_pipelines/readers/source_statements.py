"""What a file says of itself in `uns`: its title, citation and licence, and of its pairs, where no assay measured them.

CELLxGENE (schema 7) and others put the former there. The latter is `uns["scmbert_pseudo_pairs"]`: whoever matches cells
of two modalities by computation (optimal transport on linked features, say) and writes them as one cell each declares
it there. A corpus carries the declaration on, so that nobody takes such pairs for measured ones.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.readers.stored_nodes import StoredGroup, is_group
from scmbert_jax.errors import InputError

PSEUDO_PAIRS = "scmbert_pseudo_pairs"

# What it is called in a data card -> its names in `uns`; the first that is there is taken.
STATEMENTS: dict[str, tuple[str, ...]] = {
    "title": ("title",),
    "citation": ("citation",),
    "licence": ("licence", "license"),
    "doi": ("doi", "publication_doi"),
    "schema_version": ("schema_version",),
    "schema_reference": ("schema_reference",),
    "default_embedding": ("default_embedding",),
}


def statements_of(uns: Mapping[str, Any]) -> dict[str, str]:
    """Those of `STATEMENTS` that an AnnData's or MuData's `uns` has, as text on one line."""
    found = {
        statement: _text(uns[name])
        for statement, names in STATEMENTS.items()
        for name in reversed(names)
        if name in uns
    }
    return {statement: text for statement, text in found.items() if text}


def statements_of_file(group: StoredGroup) -> dict[str, str]:
    """As `statements_of`, from the group of an AnnData or MuData in a file or store."""
    from anndata.io import read_elem

    uns = group.get("uns")
    found = {}
    for name in {name for names in STATEMENTS.values() for name in names if is_group(uns) and name in uns}:
        with contextlib.suppress(Exception):  # what it says cannot be read: as if it said nothing
            found[name] = read_elem(uns[name])
    return statements_of(found)


def _text(value: Any) -> str:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, (list, tuple)):
        value = "; ".join(map(_text, value))
    text = " ".join(str(value).split())
    return text.encode(errors="backslashreplace").decode()  # also where HDF5 could not decode it


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
