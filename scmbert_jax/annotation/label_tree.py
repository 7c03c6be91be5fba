"""Types that are kinds of other types: which of the finest types a label covers, and when a label is right.

    T cell ── CD4 T cell ── regulatory T cell        labels of the cells:  T cell, CD4 T cell, regulatory T cell, B cell
    B cell                                           leaves:               B cell, regulatory T cell

A classifier tells leaves apart: the labels of its cells below which no other label of theirs stands. A coarser label
says that its cell is one of the leaves below it, and no more: a loss sums their probabilities.
"""

import csv
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scmbert_jax.errors import InputError

Array = np.ndarray

CELL_ONTOLOGY = "cell-ontology"  # the name of the package's own table


class Hierarchy(NamedTuple):
    """Which type is a kind of which.

    Attributes:
      parents: every type -> the types that it is a kind of; () for one at the top.
      synonyms: another name, as `plain_label` gives it -> the type.
      name: where it is from, for messages.
    """

    parents: Mapping[str, tuple[str, ...]]
    synonyms: Mapping[str, str] = {}
    name: str = "no hierarchy"

    def type_of(self, label: str) -> str | None:
        """The type of this name or synonym, as `plain_label` compares them. None: there is none."""
        return label if label in self.parents else self.synonyms.get(plain_label(label))


@dataclass(frozen=True)
class LabelTree:
    """The leaves among some labels, and what stands above them.

    Attributes:
      leaves: L names, sorted; the classes of a classifier.
      hierarchy: of types.
    """

    leaves: tuple[str, ...]
    hierarchy: Hierarchy = field(default=Hierarchy({}))

    @classmethod
    def of(cls, labels: Iterable[str], hierarchy: Hierarchy | None = None) -> "LabelTree":
        """Of the labels of cells ("": none); every one of them below which no other one stands is a leaf.

        Raises `InputError` where two labels are names of one type of the hierarchy.
        """
        hierarchy = hierarchy or Hierarchy({})
        names = sorted(set(map(str, labels)) - {""})
        by_type: dict[str, str] = {}
        for name in names:
            known = hierarchy.type_of(name) or name
            if known in by_type:
                raise InputError(
                    f"labels {by_type[known]!r} and {name!r}: both are {known!r} of {hierarchy.name}. Give these cells "
                    "one label."
                )
            by_type[known] = name
        above = set[str]().union(*(_ancestors(hierarchy.parents, known) for known in by_type)) if by_type else set()
        return cls(tuple(sorted(name for known, name in by_type.items() if known not in above)), hierarchy)

    def membership(self, labels: Array) -> Array:
        """bool [n, L]: the leaves that each label (str [n]) covers.

        A row is all False for "", and for a label that is neither a leaf nor stands above one.
        """
        names, codes = np.unique(np.asarray(labels).astype(str), return_inverse=True)
        covered = np.array([[self._covers(name, leaf) for leaf in self.leaves] for name in names.tolist()], bool)
        return covered.reshape(len(names), len(self.leaves))[codes.ravel()]

    def is_right(self, predicted: Array, truth: Array) -> Array:
        """bool [n]: the predicted label is the true one or stands below it (str [n] both; "" is never right).

        The rule of evaluations by the Cell Ontology (scTab): a finer answer than the author's is right, a coarser one
        is wrong.
        """
        pairs = list(
            zip(np.asarray(predicted).astype(str).tolist(), np.asarray(truth).astype(str).tolist(), strict=True)
        )
        known = {pair: pair[0] != "" and self._covers(pair[1], pair[0]) for pair in set(pairs)}
        return np.array([known[pair] for pair in pairs], bool)

    def unplaced(self, labels: Iterable[str]) -> dict[str, str]:
        """Labels that are no types of the hierarchy -> the nearest name there, or "". None where there is no hierarchy.

        They are types of their own; a misspelt label would be, too, so people are told.
        """
        if not self.hierarchy.parents:
            return {}
        types = sorted(self.hierarchy.parents)
        missing = [name for name in sorted(set(map(str, labels)) - {""}) if self.hierarchy.type_of(name) is None]
        return {name: next(iter(difflib.get_close_matches(name, types, n=1)), "") for name in missing}

    def _covers(self, label: str, name: str) -> bool:
        if label == name:
            return label != ""
        above, below = self.hierarchy.type_of(label), self.hierarchy.type_of(name)
        return above is not None and below is not None and (above == below or above in self._above(below))

    def _above(self, known: str) -> frozenset[str]:
        if known not in self._ancestors:
            self._ancestors[known] = _ancestors(self.hierarchy.parents, known)
        return self._ancestors[known]

    @cached_property
    def _ancestors(self) -> dict[str, frozenset[str]]:
        return {}


def read_hierarchy(path: str | Path) -> Hierarchy:
    """A table (.csv, .tsv) with columns child and parent, a line each; or `cell-ontology`, the package's own.

    A type with an empty parent stands at the top.

    Raises:
      InputError: no such file or columns, a child with two parents, or a type that stands above itself.
    """
    if str(path) == CELL_ONTOLOGY:
        return cell_ontology()
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path}: the hierarchy cannot be read ({error}); give a .csv with columns child,parent."
        ) from error
    if not rows or not {"child", "parent"} <= set(rows[0]):
        found = ", ".join(map(str, rows[0])) if rows else "no lines"
        raise InputError(
            f"{path}: expected columns child and parent, and a line for each type below another; found {found}."
        )
    parents: dict[str, tuple[str, ...]] = {}
    for line, row in enumerate(rows, 2):
        child, parent = ((row[column] or "").strip() for column in ("child", "parent"))
        if not child:
            raise InputError(f"{path}: line {line} has no child (parent {parent!r}).")
        above = (parent,) if parent else ()
        if parents.setdefault(child, above) != above:
            both = " and ".join(repr((known or ("",))[0]) for known in (parents[child], above))
            raise InputError(f"{path}: line {line}: {child!r} has two parents, {both}; leave one out.")
    parents |= {parent: () for found in list(parents.values()) for parent in found if parent not in parents}
    _refuse_circles(parents, str(path))
    return Hierarchy(parents, _plain_names(parents), str(path))


def cell_ontology() -> Hierarchy:
    """The package's part of the Cell Ontology (cell_ontology.csv): common types, their kinds and their synonyms.

    A type there may be a kind of several others.
    """
    text = files("scmbert_jax.annotation").joinpath("cell_ontology.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    name_of = {row["id"]: row["name"] for row in rows}
    parents = {row["name"]: tuple(name_of[parent] for parent in row["parents"].split("|") if parent) for row in rows}
    synonyms = {plain_label(other): row["name"] for row in rows for other in row["synonyms"].split("|") if other}
    return Hierarchy(parents, {**synonyms, **_plain_names(parents)}, "the Cell Ontology")


def plain_label(label: str) -> str:
    """What is the same in "CD14+ Monocytes", "CD14-positive monocyte" and "cd14+_monocyte": letters, digits and signs
    of markers; capitals, blanks, punctuation and plurals say nothing."""
    text = re.sub(r"(cd\w*?\d+\w*)\+", r"\1 positive ", label.lower())
    text = re.sub(r"(cd\w*?\d+\w*)-(?=\W|_|$|cd)", r"\1 negative ", text)
    words = re.findall(r"[^\W_]+", text)
    return "".join(word[:-1] if len(word) > 3 and word[-1] == "s" and word[-2] != "s" else word for word in words)


def _plain_names(parents: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {plain_label(name): name for name in parents}


def _ancestors(parents: Mapping[str, Sequence[str]], name: str) -> frozenset[str]:
    found, left = set[str](), list(parents.get(name, ()))
    while left:
        if (one := left.pop()) not in found:
            found.add(one)
            left += parents.get(one, ())
    return frozenset(found)


def _refuse_circles(parents: Mapping[str, Sequence[str]], path: str) -> None:
    for name in parents:
        if name in _ancestors(parents, name):
            way, one = [name], parents[name][0]
            while one != name and len(way) < len(parents):
                way.append(one)
                one = parents[one][0]
            raise InputError(
                f"{path}: {' < '.join([*way, name])}: a type cannot stand above itself; leave one line out."
            )
