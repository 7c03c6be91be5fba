"""Dataclasses, arrays, lists, dicts and plain values in a file, as data: reading it runs nothing.

    an .npz: `tree`, JSON in which every value that JSON has not is a list with its kind in front; `0`, `1`, ... arrays

What a build finishes it reads again after a restart, out of a folder that others may have had in their hands. So there
are no pickles in it: a class is only ever one of those that the reader names.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from scmbert_jax.errors import CorpusError

_TREE = "tree"


def write_record(value: Any, classes: Sequence[type], file: BinaryIO) -> None:
    """Writes dataclasses and named tuples of `classes`, and what they hold.

    Raises TypeError for what is neither of these nor plain data.
    """
    arrays: dict[str, Any] = {}
    tree = json.dumps(_encoded(value, {cls.__name__ for cls in classes}, arrays))
    np.savez(file, allow_pickle=False, **{_TREE: np.frombuffer(tree.encode(), np.uint8)}, **arrays)


def read_record(path: Path, classes: Sequence[type]) -> Any:
    """What `write_record` wrote. Raises CorpusError when the file is missing, damaged, or names other classes."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            tree = json.loads(arrays[_TREE].tobytes())
            return _decoded(tree, {cls.__name__: cls for cls in classes}, arrays)
    except Exception as error:  # zipfile, numpy and the classes' own checks raise many kinds
        raise CorpusError(
            f"{path}: damaged ({error}); remove the folder of the unfinished build, and run the command again"
        ) from error


def _encoded(value: Any, known: set[str], arrays: dict[str, Any]) -> Any:
    if isinstance(value, np.generic):
        return _encoded(value.item(), known, arrays)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray) and value.dtype != object:
        arrays[name := str(len(arrays))] = value
        return ["array", name]

    def all_of(values: Any) -> list[Any]:
        return [_encoded(inner, known, arrays) for inner in values]

    if isinstance(value, np.ndarray) and value.ndim == 1:
        return ["objects", *all_of(value.tolist())]
    if isinstance(value, dict):
        return ["dict", *all_of([*pair] for pair in value.items())]
    if isinstance(value, list):
        return ["list", *all_of(value)]
    name = type(value).__name__
    if name in known:
        names = value._fields if hasattr(value, "_fields") else [field.name for field in dataclasses.fields(value)]
        fields = {field: getattr(value, field) for field in names}
        return ["object", name, *all_of([*pair] for pair in fields.items())]
    if type(value) is tuple:
        return ["tuple", *all_of(value)]
    raise TypeError(f"a {name} is no data")


def _decoded(tree: Any, known: dict[str, type], arrays: Any) -> Any:
    if not isinstance(tree, list):
        return tree
    kind, *parts = tree
    if kind == "array":
        return arrays[parts[0]]
    if kind == "object":
        name, *parts = parts
        return known[name](**dict(_decoded(part, known, arrays) for part in parts))
    values = [_decoded(part, known, arrays) for part in parts]
    if kind == "objects":
        found = np.empty(len(values), object)
        found[:] = values
        return found
    return {"dict": dict, "list": list, "tuple": tuple}[kind](values)
