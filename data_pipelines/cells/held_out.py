"""Cells that a run never trains on, by a rule: the same cells for ever, on any machine, in any corpus.

    cell=0.05            a twentieth of the cells, by a hash of their barcodes
    donor=0.2            all cells of a fifth of the donors, by a hash of their names
    dataset=kang,zheng   all cells of these data sets

A hash depends on the field and the value alone, so a donor, a data set or a copy of a cell that is held out of one
corpus is held out of every other under the same rule, and 0.1 holds out some of what 0.2 holds out. A cell of which the
field is not known is trained on. A rule that is part of a corpus stands in its manifest; training draws from the rest.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from data_pipelines.cells.cell_identity import barcode_keys
from data_pipelines.cells.cell_selection import CellSelection, selected_rows
from data_pipelines.features.column_names import as_text
from scmbert_jax.errors import ConfigError, InputError

CELL = "cell"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
_SHOWN = 12  # values listed in a message


@dataclass(frozen=True)
class HeldOutRule:
    """FIELD=FRACTION or FIELD=VALUE,VALUE. `fraction` is 0 where values are named.

    A number alone is a fraction where it lies between 0 and 1, else the name of a value: donor=101.

    Raises:
      ConfigError: a text that is neither, or cell=VALUE.
    """

    field: str
    fraction: float
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "HeldOutRule":
        field, sign, given = (part.strip() for part in text.partition("="))
        values = tuple(part.strip() for part in given.split(","))
        if not (field and sign and all(values)):
            raise ConfigError(
                f"held out {text!r}: expected FIELD=FRACTION or FIELD=VALUE,VALUE, e.g. donor=0.2, cell=0.05 or "
                "dataset=kang"
            )
        fraction = float(given) if _NUMBER.match(given) else 0.0
        if 0 < fraction < 1:
            return cls(field, fraction, ())
        if field == CELL:
            raise ConfigError(f"held out {text!r}: of cells a fraction is held out, above 0 and below 1: cell=0.05")
        return cls(field, 0.0, values)

    def __str__(self) -> str:
        return f"{self.field}={self.fraction!r}" if self.fraction else f"{self.field}={','.join(self.values)}"

    def cells(self, obs: pd.DataFrame, where: str) -> np.ndarray:
        """bool [cells]: those of an obs table that are held out.

        Args:
          obs: with `dataset`, and the field (for cells: `cell_id`).
          where: what messages call it.

        Raises:
          InputError: the table has not the field, no cell has a value, or the fraction is of so few values that none
            of them, or every one, is held out.
        """
        if self.field == CELL:
            return barcode_keys(obs["cell_id"].to_numpy(str)) < np.uint64(self.fraction * 2.0**64)
        if self.values or self.field not in obs:
            selection = CellSelection(only={self.field: self.values or (f"{self.fraction:g}",)})
            try:
                return selected_rows(obs, selection, where)
            except InputError as error:
                raise InputError(f"held out {str(error).removeprefix('only ')}") from error
        codes, distinct = pd.factorize(obs[self.field])
        names = as_text(pd.Series(distinct))
        places = np.array([_place(self.field, name) for name in names])
        chosen = np.append(places < self.fraction, False)  # the last is that of code -1: not known
        if chosen[:-1].all() or not chosen.any():
            order = np.argsort(places)[:_SHOWN]
            listed = ", ".join(f"{names[place]} above {places[place]:.3f}" for place in order)
            raise InputError(
                f"held out {self}: {'every' if chosen.any() else 'no'} {self.field} of {where} would be held out "
                f"({listed or 'it is known of no cell'}{' and more' if len(places) > _SHOWN else ''}); choose another "
                f"fraction, or name them: {self.field}=VALUE,VALUE"
            )
        return chosen[codes]


def _place(field: str, value: str) -> float:
    """In [0, 1): the fraction above which a value is held out."""
    digest = hashlib.blake2b(f"{field}\0{value}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def held_out_cells(obs: pd.DataFrame, rules: Sequence[str], where: str) -> np.ndarray:
    """bool [cells]: those of an obs table that any of the rules holds out.

    Args:
      obs: with `dataset` and `columns_of(rules)`, as far as the cells have them.
      rules: texts of `HeldOutRule`.
      where: what messages call the table.

    Raises:
      ConfigError: a text that is no rule.
      InputError: what `HeldOutRule.cells` raises, or no cell is held out, or none is left to train on.
    """
    held = np.zeros(len(obs), bool)
    for text in rules:
        held |= HeldOutRule.parse(text).cells(obs, where)
    if held.all() or not held.any():
        number = "none" if not held.any() else "all"
        raise InputError(
            f"held out {' '.join(rules)}: {number} of the {len(held):,} cells of {where} would be held out; choose "
            "another fraction or other values"
        )
    return held


def columns_of(rules: Sequence[str]) -> list[str]:
    """The columns of an obs table, beside `dataset`, that the rules look at."""
    fields = [HeldOutRule.parse(text).field for text in rules]
    return list(dict.fromkeys("cell_id" if field == CELL else field for field in fields))
