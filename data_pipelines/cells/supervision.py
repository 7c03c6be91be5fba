"""What cells can teach a model beside their counts: which of them have several modalities at once, and who paired them.

The manifest of a corpus says how many cells have which set of modalities in each technical batch; `information_of`
turns that into what a run remembers: pairs that an assay measured, pairs that a program made, links between features.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from data_pipelines.cells.cell_metadata import local_categories
from data_pipelines.features.feature_space import FeatureSpace
from scmbert_jax.modalities import MODALITIES

CellCounts = dict[str, dict[str, int]]  # technical batch -> set of modalities ("rna+protein") -> number of cells


def cells_by_modalities(obs: pd.DataFrame, measured: Mapping[str, np.ndarray]) -> CellCounts:
    """technical batch -> set of modalities -> number of cells.

    Args:
      obs: the obs table of a corpus, n cells. A technical batch is named as in its vocabulary ("pbmc/p1"); cells of
        which it is not known count under the name of their data set.
      measured: modality -> bool [n].
    """
    present = [name for name in MODALITIES if name in measured]
    code = sum((measured[name].astype(np.int64) << place for place, name in enumerate(present)), np.zeros(1, np.int64))
    groups = technical_batches(obs)
    sizes = pd.Series(1, index=[groups, np.broadcast_to(code, len(obs))]).groupby(level=[0, 1]).sum()
    counts: CellCounts = {}
    for (group, value), size in sizes.items():
        names = [name for place, name in enumerate(present) if value >> place & 1]
        counts.setdefault(str(group), {})["+".join(names)] = int(size)
    return counts


def technical_batches(obs: pd.DataFrame) -> np.ndarray:
    """str [n]: the technical batch of each cell as a corpus counts it; where it is not known, the data set."""
    groups = obs["dataset"]
    if "technical_batch" in obs:
        known = local_categories(obs, "technical_batch")
        groups = known.where(known.notna(), groups)
    return groups.to_numpy(str)


def information_of(
    manifest: Mapping[str, Any], feature_space: FeatureSpace, modalities: Collection[str]
) -> dict[str, Any]:
    """What a run that reads `modalities` of a corpus is told beside counts, as JSON values.

    Returns:
      paired_cells: cells whose counts of several of these modalities an assay measured together.
      pseudo_paired_cells: cells that a program put together out of two (`data_pipelines/readers/source_statements.py`).
      pseudo_pairs: data set -> how they were.
      links: modality -> number of links from its features to genes of the same feature table.
      cells: technical batch -> set of modalities -> number of cells.
      unpaired: whether the corpus was built without joining cells by id.

      The figures of cells, and `unpaired`, are None where the corpus does not record them: it was built by an earlier
      version, and nobody guesses.
    """
    links = {name: len(sources) for name, (sources, _) in feature_space.layout().links.items() if name in modalities}
    pseudo_pairs = {
        entry["name"]: entry["pseudo_pairs"] for entry in manifest["datasets"] if entry.get("pseudo_pairs") is not None
    }
    known = manifest.get("cells_by_modalities")
    if known is None:
        return {
            **dict.fromkeys(("paired_cells", "pseudo_paired_cells")),
            "pseudo_pairs": pseudo_pairs,
            "links": links,
            **dict.fromkeys(("cells", "unpaired")),
        }
    cells: CellCounts = {}
    paired = {True: 0, False: 0}  # of data sets with pseudo-pairs, of others
    for group, counts in known.items():
        by_program = group.split("/")[0] in pseudo_pairs  # the name of a data set is that of a file, without "/"
        for combination, number in counts.items():
            read = [name for name in combination.split("+") if name in modalities]
            if not read:
                continue
            of_group = cells.setdefault(group, {})
            of_group["+".join(read)] = of_group.get("+".join(read), 0) + number
            paired[by_program] += number if len(read) > 1 else 0
    return {
        "paired_cells": paired[False],
        "pseudo_paired_cells": paired[True],
        "pseudo_pairs": pseudo_pairs,
        "links": links,
        "cells": cells,
        "unpaired": manifest["unpaired"],
    }
