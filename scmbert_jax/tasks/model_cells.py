"""A file's cells as a trained model reads them: checked, mapped to its features, made into batches of one shape."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from data_pipelines.collate import TokenSampling, collate_counts
from data_pipelines.input_check import check_dataset, require_usable
from data_pipelines.input_report import InputReport
from data_pipelines.model_counts import Overlap, model_counts, overlap_with_model
from data_pipelines.readers import Dataset, open_dataset
from scmbert_jax.batch import CellBatch
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.pretrained import PretrainedModel


@dataclass(frozen=True)
class ModelCells:
    """The cells of a data set in the features of a model.

    Attributes:
      model: the model.
      dataset: the data set with its cell ids and metadata.
      report: the input check.
      overlaps: modality -> how the file's features meet the model's.
    """

    model: PretrainedModel
    dataset: Dataset
    report: InputReport
    overlaps: dict[str, Overlap]

    def batches(
        self, num_tokens: Mapping[str, int] | None, batch_size: int, seed: int, only: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, CellBatch, int]]:
        """(cells int64 [n], batch of `batch_size` rows of which the first n are those cells, cells done) in order.

        Cells of which the model sees nothing are passed over.

        Args:
          num_tokens: modality -> tokens per cell, where they should differ from the configuration's.
          seed: which tokens are drawn for cells with more features than tokens.
          only: int64, the cells that are wanted; None: all.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size}: expected 1 or more cells per device call.")
        model = self.model
        sampling = {name: choice for name, choice in token_sampling(model, num_tokens).items() if name in self.overlaps}
        for chunk in model_counts(self.dataset, self.report, self.overlaps):
            num_cells = len(next(iter(chunk.measured.values())))
            batch = collate_counts(
                chunk.counts,
                sampling,
                model.definition.layout.slices,
                {name: overlap.measured for name, overlap in self.overlaps.items()},
                measured_cells=chunk.measured,
                # A new file's technical batches are none of those of training.
                covariates={name: np.full(num_cells, -1, np.int32) for name in model.config.model.covariates},
                seed=seed,
            )
            rows = np.flatnonzero(np.sum([tokens.lengths for tokens in batch.modalities.values()], axis=0) > 0)
            if only is not None:
                rows = rows[np.isin(chunk.first + rows, only)]
            for start in range(0, len(rows), batch_size):
                mine = rows[start : start + batch_size]
                # The last rows are repeated to fill the batch, so that one program serves all of them.
                filled = np.resize(mine, batch_size)
                whole = jax.tree.map(lambda x, r=filled: x[r], batch)
                yield chunk.first + mine, whole, chunk.first + int(mine[-1]) + 1


def token_sampling(model: PretrainedModel, num_tokens: Mapping[str, int] | None = None) -> dict[str, TokenSampling]:
    """How cells become tokens: `embed_tokens` of the configuration, or other numbers of tokens per modality."""
    in_use = model.config.modalities.in_use()
    return {
        name: TokenSampling((num_tokens or {}).get(name, modality.tokens_shown), modality.zero_fraction)
        for name, modality in in_use.items()
    }


def open_model_cells(
    model: PretrainedModel,
    cells: Any,
    modalities: tuple[str, ...] | None = None,
    organism: str | None = None,
    assembly: str | None = None,
) -> ModelCells:
    """Checks `cells` and maps them to the model's features.

    Args:
      cells: whatever `open_dataset` takes: a path, `A+B`, `example:NAME`, an AnnData, a MuData, or an open `Dataset`.
      modalities: read only these (of those the model knows and the data has); None: all.
      organism, assembly: as in `check_dataset`; what the file does not tell is taken from the model.

    Raises:
      InputError: no raw counts, unknown features, another organism or genome build; the message says what to do.
    """
    dataset = cells if isinstance(cells, Dataset) else open_dataset(cells)
    measured = [matrix.modality for matrix in dataset.matrices]
    if assembly is None and "atac" in measured and "atac" in model.feature_space.modalities:
        # Regions only mean something in the model's own assembly; that they match it is checked interval by interval.
        assembly = model.feature_space.modalities["atac"].space.partition(":")[2]
    if organism is None and "rna" not in measured:
        # Genes tell their organism, antibodies and regions do not.
        organism = model.feature_space.organism
    report = check_dataset(dataset, organism=organism, assembly=assembly, min_genes=0)
    require_usable(report)
    wanted = [name for name in model.config.modalities.in_use() if modalities is None or name in modalities]
    if not wanted:
        raise InputError(
            f"modalities {', '.join(modalities or ())}: the model reads {', '.join(model.config.modalities.in_use())}."
        )
    return ModelCells(model, dataset, report, overlap_with_model(report, model.feature_space, wanted))
