"""Cell embeddings of a file, an AnnData or a MuData: deterministic, row-aligned, unknown features reported."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from data_pipelines.collate import TokenSampling, collate_counts
from data_pipelines.input_check import check_dataset, require_usable
from data_pipelines.input_report import InputReport
from data_pipelines.model_counts import CountsChunk, Overlap, model_counts, overlap_with_model
from data_pipelines.readers import Dataset, open_dataset
from scmbert_jax.batch import CellBatch
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.models.scmbert import ModelDefinition
from scmbert_jax.pretrained import PretrainedModel


@dataclass(frozen=True)
class CellEmbeddings:
    """The result of `embed_dataset`.

    Attributes:
      embeddings: float32 [n, embed_dim], row i is cell i of `dataset`; nan for a cell in which none of the modalities
        read was measured (or which has no counts of the model's features): nothing is known of it.
      dataset: the data set with its cell ids and metadata.
      report: the input check.
      overlaps: modality -> how the file's features meet the model's.
    """

    embeddings: np.ndarray
    dataset: Dataset
    report: InputReport
    overlaps: dict[str, Overlap]

    @property
    def num_empty(self) -> int:
        return int(np.isnan(self.embeddings[:, 0]).sum())


def token_sampling(model: PretrainedModel, num_tokens: Mapping[str, int] | None = None) -> dict[str, TokenSampling]:
    """How cells become tokens: `embed_tokens` of the configuration, or other numbers of tokens per modality."""
    in_use = model.config.modalities.in_use()
    return {
        name: TokenSampling(
            (num_tokens or {}).get(name, modality.embed_tokens or modality.num_tokens), modality.zero_fraction
        )
        for name, modality in in_use.items()
    }


def embed_dataset(
    model: PretrainedModel,
    cells: Any,
    *,
    modalities: tuple[str, ...] | None = None,
    num_tokens: Mapping[str, int] | None = None,
    organism: str | None = None,
    assembly: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CellEmbeddings:
    """Embeds every cell of `cells`.

    Args:
      cells: whatever `open_dataset` takes: a path, `A+B`, `example:NAME`, an AnnData, a MuData, or an open `Dataset`.
      modalities: read only these (of those the model knows and the data has); None: all.
      num_tokens: modality -> tokens per cell, where they should differ from training.
      organism, assembly: as in `check_dataset`; what the file does not tell is taken from the model.
      batch_size: cells per device call; changes speed and memory only.
      seed: which tokens are drawn for cells with more features than tokens; the same seed gives the same embedding.
      progress: called with (cells done, cells in all).

    Raises:
      InputError: no raw counts, unknown features, another organism or genome build; the message says what to do.
      ConfigError: a batch size below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size}: expected 1 or more cells per device call.")
    dataset = cells if isinstance(cells, Dataset) else open_dataset(cells)
    if assembly is None and "atac" in model.feature_space.modalities:
        # Regions only mean something in the model's own assembly; that they match it is checked interval by interval.
        assembly = model.feature_space.modalities["atac"].space.partition(":")[2]
    if organism is None and all(matrix.modality != "rna" for matrix in dataset.matrices):
        # Genes tell their organism, antibodies and regions do not.
        organism = model.feature_space.organism
    report = check_dataset(dataset, organism=organism, assembly=assembly, min_genes=0)
    require_usable(report)
    wanted = [name for name in model.config.modalities.in_use() if modalities is None or name in modalities]
    if not wanted:
        raise InputError(
            f"modalities {', '.join(modalities or ())}: the model reads {', '.join(model.config.modalities.in_use())}."
        )
    overlaps = overlap_with_model(report, model.feature_space, wanted)
    sampling = {name: choice for name, choice in token_sampling(model, num_tokens).items() if name in overlaps}
    embed = _embedding_function(model)
    result = np.full((len(dataset.cell_ids), model.config.model.embed_dim), np.nan, np.float32)
    for chunk in model_counts(dataset, report, overlaps):
        batch = _chunk_batch(model, chunk, sampling, overlaps, seed)
        known = np.sum([tokens.lengths for tokens in batch.modalities.values()], axis=0) > 0
        rows = np.flatnonzero(known)
        for start in range(0, len(rows), batch_size):
            mine = rows[start : start + batch_size]
            # The last rows are repeated to fill the batch, so that one program serves all of them.
            filled = np.resize(mine, batch_size)
            result[chunk.first + mine] = embed(jax.tree.map(lambda x, r=filled: x[r], batch))[: len(mine)]
        if progress is not None:
            progress(chunk.first + len(known), len(dataset.cell_ids))
    return CellEmbeddings(result, dataset, report, overlaps)


def _chunk_batch(
    model: PretrainedModel,
    chunk: CountsChunk,
    sampling: dict[str, TokenSampling],
    overlaps: dict[str, Overlap],
    seed: int,
) -> CellBatch:
    num_cells = len(next(iter(chunk.measured.values())))
    return collate_counts(
        chunk.counts,
        sampling,
        model.definition.layout.slices,
        {name: overlap.measured for name, overlap in overlaps.items()},
        measured_cells=chunk.measured,
        # A new file's technical batches are none of those of training.
        covariates={name: np.full(num_cells, -1, np.int32) for name in model.config.model.covariates},
        seed=seed,
    )


# Compiled once per definition and batch shape, so that a model embeds file after file, and its untrained twin with it.
@partial(jax.jit, static_argnums=0)
def _feature_table(definition: ModelDefinition, params: Any, constants: Any) -> jax.Array:
    return definition.merge(params, constants).feature_table()


@partial(jax.jit, static_argnums=0)
def _cell_embedding(
    definition: ModelDefinition, params: Any, constants: Any, table: jax.Array, batch: CellBatch
) -> jax.Array:
    return definition.merge(params, constants).cell_embedding(table, batch)


def _embedding_function(model: PretrainedModel) -> Callable[[CellBatch], np.ndarray]:
    definition = model.definition
    table = _feature_table(definition, model.params, definition.constants)
    return lambda batch: np.asarray(_cell_embedding(definition, model.params, definition.constants, table, batch))


def provenance(model: PretrainedModel, result: CellEmbeddings) -> dict[str, Any]:
    """What stands in `uns["scmbert"]` of a written file: which model, which features, which software."""
    known = model.info["provenance"]
    return {
        "model_step": int(model.info["step"]),
        "corpus_fingerprint": known["corpus_fingerprint"],
        "feature_space_hash": known["feature_space_hash"],
        "git_commit": known["git_commit"],
        "scmbert_jax_version": known["versions"]["scmbert_jax"],
        "cells_without_embedding": result.num_empty,
        "features": {name: overlap.summary() for name, overlap in result.overlaps.items()},
    }
