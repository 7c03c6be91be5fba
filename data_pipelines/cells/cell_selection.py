"""Which cells are meant: only those of some technical batches, say, or all but those of a disease.

The same selection chooses cells of files when a corpus is built (`build/select_cells.py`) and cells of a corpus when it
is read (`selected_rows`, on its obs table).
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from data_pipelines.cells.cell_metadata import LOCAL_FIELDS, OBS_FIELDS
from data_pipelines.features.column_names import as_text
from scmbert_jax.errors import InputError

# How CELLxGENE joins the values of a cell that has several (schema 7, `disease`).
VALUE_SEPARATOR = " || "
PRIMARY = "is_primary_data"
_SHOWN = 20  # values listed in a message
_TRUTH = {"true": ("True", "true", "TRUE", "1"), "false": ("False", "false", "FALSE", "0")}
_TRUTH |= {"1": _TRUTH["true"], "0": _TRUTH["false"]}
_BOUND = re.compile(r"(>=|<=|>|<)\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)$")
_COMPARE = {">=": np.greater_equal, "<=": np.less_equal, ">": np.greater, "<": np.less}

Values = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class CellSelection:
    """Field -> values. A cell stays when it has one of the values of every field of `only`, and none of `exclude`.

    A field is a standard one (technical_batch, cell_type, donor, ..., dataset) or a column of obs. A technical batch or
    donor may be named as its file does ("p1": in every data set) or with the data set ("pbmc/p1"). A cell of which a
    field is not known is in none of its values. A cell with several values ("COVID-19 || asthma") has each of them.
    A truth value may be written True, true, TRUE or 1. On a field of numbers ">=500" is a bound; a cell has the bounds
    of a field when it meets all of them, so that (">=500", "<6000") is a range.

    Raises:
      InputError: a field without a value.
    """

    only: Values = dataclasses.field(default_factory=dict)
    exclude: Values = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for option, wanted in (("only", self.only), ("exclude", self.exclude)):
            for field, values in wanted.items():
                if not values:
                    raise InputError(f"{option} {field}: no value is given; write {field}=VALUE or {field}=VALUE,VALUE")

    def __bool__(self) -> bool:
        return bool(self.only or self.exclude)

    @property
    def fields(self) -> list[str]:
        """The fields it asks for, sorted: these columns of an obs table, and `dataset`, are enough to apply it."""
        return sorted({*self.only, *self.exclude})

    def to_dict(self) -> dict[str, dict[str, list[str]]]:
        return {
            "only": {field: list(values) for field, values in self.only.items()},
            "exclude": {field: list(values) for field, values in self.exclude.items()},
        }

    def __str__(self) -> str:
        """As on the command line."""
        return " ".join(
            f"--{option} {field}={','.join(values)}"
            for option, wanted in self.to_dict().items()
            for field, values in wanted.items()
        )


def selected_rows(obs: pd.DataFrame, selection: CellSelection, where: str = "the obs table") -> np.ndarray:
    """bool [cells]: which rows of the obs table of a corpus are selected. None may be: the caller judges that.

    Args:
      obs: `Corpus.obs()`, or its columns `dataset` and `selection.fields`.
      where: what messages call it.

    Raises:
      InputError: a field that the table has not, or a value that no cell has.
    """
    return kept_rows([obs], selection, where, sorted(map(str, obs.columns)), in_files=False)[0]


def not_primary(obs: pd.DataFrame) -> np.ndarray:
    """bool [cells]: those that CELLxGENE says another data set holds as well (`is_primary_data` is False).

    They are reported and kept, unless a selection says otherwise: which other data set, the field does not say, and one
    that is not in the corpus would lose the cell. Copies within a corpus are found by their counts (`duplicate_cells`).
    """
    if PRIMARY not in obs:
        return np.zeros(len(obs), bool)
    return _field_of(obs, PRIMARY).having(("False",))


# --- fields and their values -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Field:
    """One field of some cells, by its distinct values: what is asked for is compared with these, and not cell by cell.

    Attributes:
      codes: int64 [cells], which distinct value; -1 where it is not known.
      spellings: per distinct value, all that may be written for it.
      shown: what a message lists.
      numbers: float64 [distinct values]; None unless all are numbers.
    """

    codes: np.ndarray
    spellings: list[set[str]]
    shown: set[str]
    numbers: np.ndarray | None

    def having(self, values: Sequence[str]) -> np.ndarray:
        """bool [cells]."""
        bounds = self.bounds(values)
        wanted = set(values) - set(bounds)
        has = np.array([not wanted.isdisjoint(spellings) for spellings in self.spellings] + [False])
        if bounds:
            assert self.numbers is not None
            meets = [_COMPARE[sign](self.numbers, bound) for sign, bound in bounds.values()]
            has[:-1] |= np.logical_and.reduce(meets)
        return has[self.codes]  # the last is that of code -1

    def bounds(self, values: Sequence[str]) -> dict[str, tuple[str, float]]:
        """Those of the values that are bounds here: value -> (sign, number)."""
        found = {value: _BOUND.match(value) for value in values} if self.numbers is not None else {}
        return {value: (match[1], float(match[2])) for value, match in found.items() if match}

    def knows(self, value: str) -> bool:
        return bool(self.bounds([value])) or any(value in spellings for spellings in self.spellings)


def _field_of(table: pd.DataFrame, field: str) -> _Field:
    codes, distinct = pd.factorize(table[field])
    texts = [str(text) for text in as_text(pd.Series(distinct))]
    parts = [{part.strip() for part in text.split(VALUE_SEPARATOR)} for text in texts]
    spellings = [{text, *some} for text, some in zip(texts, parts, strict=True)]
    shown = set().union(*parts)
    if texts and all(text.lower() in _TRUTH for text in texts):
        spellings = [{text, *_TRUTH[text.lower()]} for text in texts]
    numbers = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(np.float64)
    if field in LOCAL_FIELDS and "dataset" in table and texts:
        of_cell, names = pd.factorize(table["dataset"])
        pairs, distinct = pd.factorize(np.where(codes >= 0, of_cell * len(texts) + codes, -1))
        codes = np.where(codes >= 0, pairs, -1)
        name_of, text_of = np.divmod(np.maximum(distinct, 0), len(texts))
        spellings = [  # what is not known is spelled in no way
            spellings[text] | {f"{names[name]}/{texts[text]}"} if pair >= 0 else set()
            for pair, name, text in zip(distinct, name_of, text_of, strict=True)
        ]
        numbers = numbers[text_of]
    return _Field(codes, spellings, shown, None if not texts or np.isnan(numbers).any() else numbers)


def kept_rows(
    tables: Sequence[pd.DataFrame], selection: CellSelection, where: str, columns: list[str], in_files: bool
) -> list[np.ndarray]:
    """Per table, bool [cells]. Raises InputError where no table has a field, or no cell of any a value.

    Args:
      where, columns, in_files: for messages: what the tables are, what there is, whether a column can be stated.
    """
    kept = [np.ones(len(table), bool) for table in tables]
    for option, wanted in (("only", selection.only), ("exclude", selection.exclude)):
        for field, values in wanted.items():
            known = [_field_of(table, field) if field in table else None for table in tables]
            _require_known(f"{option} {field}={','.join(values)}", field, values, known, where, columns, in_files)
            for keep, found in zip(kept, known, strict=True):
                has = np.zeros(len(keep), bool) if found is None else found.having(values)
                keep &= has if option == "only" else ~has
    return kept


def _require_known(
    asked: str,
    field: str,
    values: Sequence[str],
    known: Sequence[_Field | None],
    where: str,
    columns: list[str],
    in_files: bool,
) -> None:
    fields = [found for found in known if found is not None]
    if not fields:
        stated = f", or say which column it is with --obs-field {field}=COLUMN" * (in_files and field in OBS_FIELDS)
        raise InputError(
            f"{asked}: no cell of {where} has the field {field!r}; obs has {_listed(columns) or 'no columns'}. Name "
            f"another field{stated}"
        )
    there = _listed(sorted(set().union(*(found.shown for found in fields)))) or "no value"
    for value in values:
        if any(found.knows(value) for found in fields):
            continue
        if _BOUND.match(value):
            raise InputError(
                f"{asked}: {field} of {where} is not a field of numbers (there is {there}), which a bound needs"
            )
        raise InputError(f"{asked}: no cell of {where} has the {field} {value!r}; there is {there}")


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
