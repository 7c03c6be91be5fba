"""What a mixture tells a run beside counts: the information of its corpora, of the cells that are drawn.

A corpus records how many cells of a technical batch have which modalities. Of some of its cells that is known where all
cells of their batch have the same modalities; elsewhere their blocks are read and counted.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from data_pipelines.cells.supervision import CellCounts, cells_by_modalities, information_of, technical_batches
from data_pipelines.corpus.corpus import Corpus
from data_pipelines.sampling.mixture import Mixture


def information_of_mixture(mixture: Mixture, modalities: Collection[str]) -> dict[str, Any]:
    """`supervision.information_of`, of all cells that are drawn; data sets under their names in the mixture.

    Figures are None where one of the corpora does not record them.

    Raises:
      CorpusError: an obs table or a block that has to be read cannot be.
    """
    joined = mixture.joined
    counted: list[CellCounts | None] = []
    for index, (corpus, names) in enumerate(zip(joined.corpora, joined.dataset_names, strict=True)):
        counts = _drawn_cells(corpus, mixture.drawn_rows(index))
        counted.append(counts and {_renamed(group, names): of_group for group, of_group in counts.items()})
    cells: CellCounts = {}
    for counts in counted:
        cells |= counts or {}
    unpaired = [corpus.manifest.get("unpaired") for corpus in joined.corpora]
    manifest = {
        "datasets": joined.datasets,
        "cells_by_modalities": None if None in counted else cells,
        "unpaired": None if None in unpaired else all(unpaired),
    }
    return information_of(manifest, joined.feature_space, modalities)


def _renamed(group: str, names: dict[str, str]) -> str:
    dataset, slash, batch = group.partition("/")
    return names[dataset] + slash + batch


def _drawn_cells(corpus: Corpus, rows: np.ndarray | None) -> CellCounts | None:
    """Of the cells `rows` (None: all) of a corpus: technical batch -> set of modalities -> number of cells."""
    recorded: CellCounts | None = corpus.manifest.get("cells_by_modalities")
    if recorded is None or rows is None:
        return recorded
    obs = corpus.obs(columns=["dataset", "technical_batch"]).iloc[rows]
    groups, sizes = np.unique(technical_batches(obs), return_counts=True)
    drawn = {str(group): int(size) for group, size in zip(groups, sizes, strict=True)}
    if all(len(recorded[group]) == 1 for group in drawn):
        return {group: dict.fromkeys(recorded[group], size) for group, size in drawn.items()}
    measured = {name: np.zeros(corpus.num_cells, bool) for name in corpus.modalities}
    ends = np.cumsum(corpus.block_sizes)
    for number in np.unique(np.searchsorted(ends, rows, side="right")).tolist():
        block = corpus.read_block(number)
        for name, columns in block.modalities.items():
            measured[name][block.cell_index] = columns.measured
    return cells_by_modalities(obs, {name: flags[rows] for name, flags in measured.items()})
