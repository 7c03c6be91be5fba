"""Two corpora of known cells whose genes overlap in part, for the tests of mixtures."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.synthetic.cells import SyntheticCells, synthetic_cells


class Made(NamedTuple):
    """A corpus, and what it was made of.

    `columns`: modality -> which columns of `cells` it measured.
    """

    path: Path
    cells: SyntheticCells
    columns: dict[str, np.ndarray]


def made(path: Path, num_cells: int, columns: dict[str, range], seed: int) -> Made:
    """RNA and protein of these columns of 100 genes and 12 antibodies."""
    cells = synthetic_cells(num_cells, 100, 12, num_batches=5, seed=seed)
    data = cells.to_mudata()
    parts = {name: part[:, list(columns[name])] for name, part in data.mod.items() if name in columns}
    build_corpus(path, [type(data)({name: part.copy() for name, part in parts.items()})], min_genes=5, block_size=8)
    return Made(path, cells, {name: np.array(list(chosen)) for name, chosen in columns.items()})


def two_corpora(folder: Path) -> tuple[Made, Made]:
    """300 cells of genes 0..79 and all antibodies; 90 cells of genes 20..99 and antibodies 4..11."""
    return (
        made(folder / "left", 300, {"rna": range(80), "protein": range(12)}, seed=0),
        made(folder / "right", 90, {"rna": range(20, 100), "protein": range(4, 12)}, seed=1),
    )
