"""Columns of tables that people write: found whatever their case and punctuation; what is missing is no text."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

LONGEST_NAME = 1000  # characters; the longest that is known of people's files has some 150
# What a missing value has become on its way through text files; no gene or antibody is called so.
_MISSING = frozenset({"", "nan", "none", "na", "n/a", "<na>", "null"})


def plain_name(text: str) -> str:
    """ "Feature Types", "feature_types" and "featureTypes" -> "featuretypes"."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def columns_called(table: pd.DataFrame, spellings: Sequence[str]) -> Iterator[tuple[str, pd.Series]]:
    """(its name, its values) of every column that is called one of `spellings` (`plain_name`), in their order."""
    places: dict[str, list[int]] = {}
    for place, column in enumerate(table.columns):
        places.setdefault(plain_name(str(column)), []).append(place)
    for spelling in spellings:
        for place in places.get(spelling, []):
            yield str(table.columns[place]), table.iloc[:, place]


def known_text(values: pd.Series) -> np.ndarray:
    """str [n]: the values as text; "" where there is none: NaN, None, the words that files write for them, an essay."""
    found = ["" if text is None or len(text) > LONGEST_NAME else text.strip() for text in as_text(values)]
    return np.array(["" if text.lower() in _MISSING else text for text in found], dtype=str)


def as_text(values: pd.Series) -> np.ndarray:
    """object [n]: str, or None where unknown. Whole numbers lose their ".0"."""
    found = values.to_numpy(object, na_value=None)
    return np.array(
        [
            None
            if value is None or value != value
            else str(int(value))
            if isinstance(value, (float, np.floating)) and float(value).is_integer()
            else str(value)
            for value in found
        ],
        dtype=object,
    )
