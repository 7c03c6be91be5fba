"""Label transfer on files: embed each side from its own modality, then `transfer_labels`."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from data_pipelines.readers.dataset import Dataset
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.embed import CellEmbeddings, embed_dataset
from scmbert_jax.tasks.label_transfer import TransferredLabels, transfer_labels
from scmbert_jax.tasks.match import comparison_space, embedded_cells

Array = np.ndarray


@dataclass(frozen=True)
class DatasetTransfer:
    """Labels of the target's cells.

    Attributes:
      target_ids: str [m], cells that have an embedding.
      transferred: their labels, with confidence.
      known_types: str [m], what the target file itself says of their types; "" where it says nothing.
    """

    target_ids: Array
    transferred: TransferredLabels
    known_types: Array

    def table(self) -> pd.DataFrame:
        """One line per cell: cell, cell_type, confidence."""
        found = self.transferred
        return pd.DataFrame({"cell": self.target_ids, "cell_type": found.labels, "confidence": found.confidence})


def transfer_dataset(
    model: PretrainedModel,
    labelled: Any,
    cells: Any,
    *,
    source: str,
    target: str,
    method: str = "knn",
    neighbours: int = 15,
    space: str | None = None,
    centre: bool = True,
    **options: Any,
) -> DatasetTransfer:
    """Labels the `target` cells of `cells` after the `source` cells of `labelled`.

    Args:
      labelled, cells: whatever `embed_dataset` takes; may be the same.
      source, target: two modalities; each side is embedded from its own alone.
      space: "aligned" or "cell"; None: `comparison_space`.
      method, neighbours, centre: as in `transfer_labels`.
      **options: as those of `embed_dataset`.

    Raises:
      InputError: no labels in the labelled file, or a modality that is missing.
    """
    if source == target:
        raise ConfigError(
            f"source and target are both {source}; here, labels go from one modality to another. Within one: scmbert "
            "embed both files, and give their obsm['X_scmbert'] to scmbert_jax.tasks.label_transfer.transfer_labels, "
            "or to any classifier."
        )
    options["space"] = space or comparison_space(model)
    opened = labelled if isinstance(labelled, Dataset) else open_dataset(labelled)
    first = embed_dataset(model, opened, modalities=(source,), **options)
    column = first.report.obs_fields.get("cell_type")
    if column is None:
        raise InputError(
            f"{opened.path}: no cell types among its cell metadata ({', '.join(map(str, opened.obs.columns))}); "
            "name a column of obs 'cell_type'."
        )
    second = embed_dataset(model, cells, modalities=(target,), **options)
    a, ids_a, _, _ = embedded_cells(first, source)
    b, ids_b, _, _ = embedded_cells(second, target)
    types_a, types_b = _types(first, ids_a), _types(second, ids_b)
    found = transfer_labels(a, types_a, b, method=method, neighbours=neighbours, centre=centre)
    return DatasetTransfer(ids_b, found, types_b)


def _types(result: CellEmbeddings, ids: Array) -> Array:
    column = result.report.obs_fields.get("cell_type")
    if column is None:
        return np.full(len(ids), "")
    values = result.dataset.obs[column].astype(object)
    return values.where(values.notna(), "").astype(str).loc[ids].to_numpy(str)
