"""Labelled cells as a fit takes them: opened, their labels as leaves of a tree, and which of them train."""

from dataclasses import dataclass

import numpy as np

from scmbert_jax.annotation.label_tree import LabelTree
from scmbert_jax.tasks.model_cells import ModelCells

Array = np.ndarray


@dataclass(frozen=True)
class Reference:
    """Labelled cells, in the features of a model.

    Attributes:
      cells: the open cells, n of them.
      tree: its L leaves are the classes.
      membership: bool [n, L], the leaves that the label of a cell covers; a row of False: the cell has no label.
      train: int64, rows to fit to; all have a label and counts of the model's features.
      validation: int64, rows to stop, choose and calibrate by; the same holds. No row of `train`; no donor of `train`
        either, where `donors` tell them apart.
      donors: str [n], "" where unknown.
    """

    cells: ModelCells
    tree: LabelTree
    membership: Array
    train: Array
    validation: Array
    donors: Array
