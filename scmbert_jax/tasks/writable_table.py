"""Metadata as AnnData can write it: joined tables have columns that are neither text nor numbers."""

import pandas as pd


def writable_table(table: pd.DataFrame) -> pd.DataFrame:
    """A copy in which every column of mixed Python values is of one kind: numbers, truth values, or text.

    Missing values stay missing.
    """
    written = table.copy()
    for column in written.columns:
        if written[column].dtype != object:
            continue
        values = written[column].infer_objects()
        if values.dtype == object and not values.dropna().map(lambda value: isinstance(value, str)).all():
            values = values.convert_dtypes()
        if values.dtype == object:
            values = values.where(values.isna(), values.astype(str))
        written[column] = values
    return written
