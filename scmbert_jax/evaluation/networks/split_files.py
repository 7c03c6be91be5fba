"""Which pairs learn, choose and test, in a file: so that any tool can learn from and be judged on the same pairs.

.parquet or .tsv, a row for each pair:

    source, target   the regulator and the gene
    edge             1 or 0
    both_3           of the split `both` and the seed 3: train, validation, test, or - (of no use in it); and so on
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from data_pipelines.networks.pair_files import places_of, read_pairs, refuse_pairs, write_pairs
from data_pipelines.networks.parts import SPLITS
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.networks.pairs import NetworkSplit, Pairs

Array = np.ndarray
Parts = dict[tuple[str, int], NetworkSplit]  # (split, seed) ->

_COLUMNS = ("source", "target", "edge")
_PARTS = ("train", "validation", "test")
_NONE = "-"
_NAME = re.compile(rf"({'|'.join(SPLITS)})_([0-9]{{1,9}})")


def write_splits(
    path: str | Path, pairs: Pairs, parts: Mapping[tuple[str, int], NetworkSplit], overwrite: bool = False
) -> None:
    """Writes all pairs. Raises InputError where the file cannot be written."""
    rows, columns = np.nonzero(pairs.is_pair)
    table = {
        "source": pairs.regulators[rows],
        "target": pairs.genes[columns],
        "edge": pairs.is_edge[rows, columns].astype(int),
    }
    for (split, seed), own in parts.items():
        names = np.full(len(rows), _NONE, object)
        for name in _PARTS:
            names[getattr(own, name)[rows, columns]] = name
        table[f"{split}_{seed}"] = names
    write_pairs(path, pd.DataFrame(table), overwrite)


def read_splits(path: str | Path, pairs: Pairs) -> Parts:
    """What `write_splits` wrote of this network. Pairs that a file does not have are of no use in it.

    Raises InputError naming the column or the first pair, and how many there are: of no split, unknown names, a pair
    that is there twice or joins a gene with itself, an edge that is none here or the other way round, a part that
    nobody knows, and a split that tests no edge, or nothing else.
    """
    table = read_pairs(path, _COLUMNS)
    named = {name: found for name in table.columns if (found := _NAME.fullmatch(str(name)))}
    if not named:
        raise InputError(
            f"{path}: no column of a split, but {', '.join(map(str, table.columns[:6]))}; expected some like edge_0, "
            f"of {', '.join(SPLITS)} and a seed."
        )
    rows = places_of(path, "source", table["source"].to_numpy(), pairs.regulators)
    columns = places_of(path, "target", table["target"].to_numpy(), pairs.genes)
    edge = table["edge"].to_numpy()
    refuse_pairs(path, table, table.duplicated(["source", "target"]).to_numpy(), "is there twice")
    refuse_pairs(path, table, ~pairs.is_pair[rows, columns], "joins a gene with itself")
    refuse_pairs(path, table, ~np.isin(edge, ["0", "1"]), "is neither 1 nor 0 in the column edge")
    another = (edge == "1") != pairs.is_edge[rows, columns]
    refuse_pairs(path, table, another, "is an edge in one of the file and this network, and not in the other")
    return {
        (found[1], int(found[2])): _split_of(path, table, str(name), rows, columns, pairs)
        for name, found in named.items()
    }


def _split_of(
    path: str | Path, table: pd.DataFrame, name: str, rows: Array, columns: Array, pairs: Pairs
) -> NetworkSplit:
    given = table[name].to_numpy()
    refuse_pairs(
        path, table, ~np.isin(given, [*_PARTS, _NONE]), f"has another part than {', '.join(_PARTS)} or - in {name}"
    )
    found = []
    for part in _PARTS:
        own = np.zeros(pairs.is_pair.shape, bool)
        own[rows, columns] = given == part
        found.append(own)
    tested = pairs.is_edge[found[-1]]
    if not tested.any() or tested.all():
        raise InputError(
            f"{path}, column {name}: {len(tested):,} pairs test, {int(tested.sum()):,} of them edges; both kinds are "
            "needed."
        )
    return NetworkSplit(*found)
