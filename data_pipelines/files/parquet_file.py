"""Reads Parquet files in the calling thread.

Arrow's thread pool can abort a process that ends soon after a read ("terminate called without an active exception";
seen in 2 of 12 calls of `scmbert corpus verify`, open in Arrow's tracker since 2023). Our tables are small: threads
would gain nothing.
"""

from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet_table(
    path: str | Path | BinaryIO, columns: Collection[str] | None = None, max_rows: int | None = None
) -> pa.Table:
    """The table of a file (its name, or open); of its columns only those of `columns` that it has (None: all).

    Raises OSError or `pyarrow.ArrowException` when it is missing or damaged, ValueError when it has more than
    `max_rows`: a file of a kilobyte may claim billions.
    """
    with pq.ParquetFile(path, pre_buffer=False) as file:
        if max_rows is not None and file.metadata.num_rows > max_rows:
            raise ValueError(f"{file.metadata.num_rows:,} rows, expected at most {max_rows:,}")
        there = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
        return file.read(columns=there, use_threads=False)


def read_parquet_frame(
    path: str | Path | BinaryIO, columns: Collection[str] | None = None, max_rows: int | None = None
) -> pd.DataFrame:
    """The same as a pandas frame."""
    return read_parquet_table(path, columns, max_rows).to_pandas(use_threads=False)
