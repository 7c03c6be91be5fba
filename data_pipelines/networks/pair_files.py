"""Files of pairs of genes, .parquet or .tsv: drawn negatives, and which pairs learn, choose and test."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from data_pipelines.files.parquet_file import read_parquet_frame
from scmbert_jax.errors import InputError
from scmbert_jax.outputs import check_output_file, partial_beside

ENDINGS = (".parquet", ".tsv")
_SHOWN = 3


def check_pair_path(path: Path, inputs: Sequence[object] = (), overwrite: bool = False) -> None:
    """Raises InputError where no such file can be written; to be asked before the work, too."""
    if path.suffix not in ENDINGS:
        raise InputError(f"{path}: pairs are written as {' or '.join(ENDINGS)}; give the file one of these endings.")
    check_output_file(path, inputs, overwrite)


def write_pairs(path: str | Path, table: pd.DataFrame, overwrite: bool = False) -> None:
    """Writes a table, whole or not at all. Raises InputError where it cannot be written."""
    path = Path(path)
    check_pair_path(path, overwrite=overwrite)
    partial = partial_beside(path)
    try:
        if path.suffix == ".parquet":
            table.to_parquet(partial, index=False)
        else:
            table.to_csv(partial, index=False, sep="\t")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}).") from error
    finally:
        partial.unlink(missing_ok=True)


def read_pairs(path: str | Path, columns: Sequence[str]) -> pd.DataFrame:
    """Text, all columns of it; of a file with at least `columns`. Raises InputError naming what is missing."""
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise InputError(f"{path}: pairs are read from {' or '.join(ENDINGS)}; write the table so.")
    try:
        if path.suffix == ".parquet":
            table = read_parquet_frame(path).astype(str)
        else:
            table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a table with {', '.join(columns)}.") from error
    if missing := [name for name in columns if name not in table]:
        raise InputError(
            f"{path}: no column {missing[0]}, but {', '.join(map(str, table.columns[:6]))}; expected "
            f"{', '.join(columns)}."
        )
    if table.empty:
        raise InputError(f"{path}: no pair in it.")
    return table


def places_of(path: str | Path, column: str, given: np.ndarray, names: np.ndarray) -> np.ndarray:
    """int64 [n], where each of str [n] is among str [N]. Raises InputError with examples of both where one is not."""
    own, back = np.unique(given.astype(str), return_inverse=True)
    order = np.argsort(names, kind="stable")
    place = order[np.clip(np.searchsorted(names, own, sorter=order), 0, len(names) - 1)]
    foreign = own[names[place] != own]
    if len(foreign):
        raise InputError(
            f"{path}, column {column}: {len(foreign):,} of {len(own):,} names are none of this network's "
            f"({', '.join(foreign[:_SHOWN].tolist())}; it has {', '.join(names[:_SHOWN].tolist())}). The file is of "
            "another network, or of other names: write it again."
        )
    return place[back]


def refuse_pairs(path: str | Path, table: pd.DataFrame, bad: np.ndarray, why: str) -> None:
    """Raises InputError naming the first of the pairs of which `bad` bool [n] is true."""
    if bad.any():
        row = table.iloc[int(np.argmax(bad))]
        raise InputError(
            f"{path}, row {int(np.argmax(bad)) + 1:,}: {row['source']} -> {row['target']} {why} ({int(bad.sum()):,} of "
            f"{len(table):,} pairs)."
        )
