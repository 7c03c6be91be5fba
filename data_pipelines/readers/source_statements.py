"""What a file says of itself: title, citation, licence. From `uns`, where CELLxGENE (schema 7) and others put it."""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.readers.stored_nodes import StoredGroup, is_group

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
