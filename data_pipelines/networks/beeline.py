"""Label networks as BEELINE and GENELink distribute them: a folder with the genes that were looked at, too.

BL--network.csv     Gene1,Gene2: the edges, by symbol
TF.csv              ,TF,index: regulators that were looked at
Target.csv          ,Gene,index: all genes that were
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data_pipelines.networks.edge_table import EdgeTable, read_edge_table
from scmbert_jax.errors import InputError

_NETWORK, _REGULATORS, _GENES = "BL--network.csv", "TF.csv", "Target.csv"


@dataclass(frozen=True)
class LabelNetwork:
    """Which of the pairs of a regulator and a gene are edges.

    Attributes:
      edges: of names.
      regulators: str [R], those that were looked at, with edges or without.
      genes: str [G], all that were looked at, regulators among them.
    """

    edges: EdgeTable
    regulators: np.ndarray
    genes: np.ndarray

    @property
    def without_targets(self) -> int:
        """Regulators that no edge leads from."""
        return int((~np.isin(self.regulators, self.edges.source)).sum())


def is_beeline_folder(path: str | Path) -> bool:
    return (Path(path) / _NETWORK).is_file()


def read_beeline_folder(path: str | Path) -> LabelNetwork:
    """Reads such a folder. Raises InputError where a file or a column is missing, or an edge is of other genes."""
    folder = Path(path)
    edges = read_edge_table(folder / _NETWORK)
    regulators, genes = _names(folder / _REGULATORS, "TF"), _names(folder / _GENES, "Gene")
    for side, names, known in (("Gene1", edges.source, regulators), ("Gene2", edges.target, genes)):
        foreign = names[~np.isin(names, known)]
        if len(foreign):
            raise InputError(
                f"{folder / _NETWORK}, column {side}: {str(foreign[0])!r} is not in "
                f"{_REGULATORS if side == 'Gene1' else _GENES} ({len(foreign):,} edges); take all files of one data set"
            )
    return LabelNetwork(edges, regulators, genes)


def _names(path: Path, column: str) -> np.ndarray:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected BEELINE's, with a column {column}") from error
    if column not in table:
        raise InputError(f"{path}: columns {', '.join(map(str, table.columns))}; expected one named {column}")
    names = table[column].to_numpy(str)
    if len(np.unique(names)) < len(names):
        raise InputError(f"{path}, column {column}: {len(names) - len(np.unique(names)):,} names are there twice")
    return names
