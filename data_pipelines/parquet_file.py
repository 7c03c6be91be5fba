"""Reads Parquet files in the calling thread.

Arrow's thread pool can abort a process that ends soon after a read ("terminate called without an active exception";
seen in 2 of 12 calls of `scmbert corpus verify`, open in Arrow's tracker since 2023). Our tables are small: threads
would gain nothing.
"""

from pathlib import Path
from typing import BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet_table(path: str | Path | BinaryIO) -> pa.Table:
    """The whole table of a file (its name, or open). Raises OSError or `pyarrow.ArrowException`: missing or damaged."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        return file.read(use_threads=False)


def read_parquet_frame(path: str | Path | BinaryIO) -> pd.DataFrame:
    """The same as a pandas frame."""
    return read_parquet_table(path).to_pandas(use_threads=False)
