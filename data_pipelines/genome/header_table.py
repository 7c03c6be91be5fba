"""Tables with a header (.csv, .tsv, plain or gzip): their columns under the names that people give them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from scmbert_jax.errors import InputError

TABLE_ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_MOST_BASES = 1 << 40  # far beyond any sequence: a position above it is none


def is_table(path: str | Path) -> bool:
    return str(path).lower().endswith(TABLE_ENDINGS)


def read_header_table(
    path: str | Path, names: Mapping[str, tuple[str, ...]], needed: tuple[str, ...]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """All columns as text, and role -> name of its column, of the roles that are there.

    Args:
      path: separated by tabs where ".tsv" is in its name, else by commas.
      names: role -> names of its column, in small letters, the first that is there is taken.
      needed: roles without which there is nothing to read.

    Raises InputError: damaged; a needed column is missing; a name is there twice.
    """
    try:
        raw = pd.read_csv(path, sep="\t" if ".tsv" in str(path).lower() else ",", dtype=str, keep_default_na=False)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a table with a header") from error
    raw = raw.rename(columns=lambda name: str(name).strip().lower())
    if (again := raw.columns[raw.columns.duplicated()]).size:
        raise InputError(f"{path}: column {again[0]!r} is there twice (capitals do not count); rename or remove one")
    found = {role: name for role, own in names.items() if (name := next((one for one in own if one in raw), None))}
    if missing := [role for role in needed if role not in found]:
        expected = "; ".join(f"{role}: {', '.join(names[role])}" for role in missing)
        raise InputError(f"{path}: columns {', '.join(raw.columns[:8])}; expected also one of {expected}")
    return raw, found


def whole_numbers(path: str | Path, column: pd.Series) -> np.ndarray:
    """int64 [rows]. Raises InputError, with the line, for what is no position."""
    values = pd.to_numeric(column, errors="coerce")
    bad = (values.isna() | (values % 1 != 0) | (values.abs() > _MOST_BASES)).to_numpy()
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(f"{path}, line {row + 2:,}, column {column.name}: {column.iloc[row]!r} is no position")
    return values.to_numpy(np.int64)
