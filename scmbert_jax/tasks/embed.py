"""Cell embeddings of a file, an AnnData or a MuData: deterministic, row-aligned, unknown features reported."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from data_pipelines.batches.model_counts import Overlap
from data_pipelines.checks.input_report import InputReport
from data_pipelines.readers.dataset import Dataset
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.models.token_sequence import CutBatch
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.tasks.model_cells import ModelCells, open_model_cells
from scmbert_jax.training.run_information import information_in_words


@dataclass(frozen=True)
class CellEmbeddings:
    """The result of `embed_dataset` and `embed_jointly`.

    Attributes:
      embeddings: float32 [n, D], row i is cell i of `dataset`; nan for a cell in which none of the modalities
        read was measured (or which has no counts of the model's features): nothing is known of it.
      dataset: the data set with its cell ids and metadata.
      report: the input check.
      overlaps: modality -> how the file's features meet the model's.
      coverage: modality -> of the features that a training cell expresses, the fraction that the file measures.
      shown: modality -> of the features that the cells express, the fraction that the transformer was shown.
      aligned: of `embed_jointly`: modality, or "joint" -> float32 [n, P], unit vectors of the contrastive space; nan
        for a cell in which the modality (all of them) was not measured.
    """

    embeddings: np.ndarray
    dataset: Dataset
    report: InputReport
    overlaps: dict[str, Overlap]
    coverage: dict[str, float]
    shown: dict[str, float]
    aligned: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def num_empty(self) -> int:
        return int(np.isnan(self.embeddings[:, 0]).sum())


def embed_dataset(
    model: PretrainedModel,
    cells: Any,
    *,
    modalities: tuple[str, ...] | None = None,
    space: Literal["cell", "aligned"] = "cell",
    num_tokens: int | Mapping[str, int] | None = None,
    organism: str | None = None,
    assembly: str | None = None,
    rows: np.ndarray | None = None,
    average_batches: bool = False,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CellEmbeddings:
    """Embeds every cell of `cells`.

    Args:
      cells: whatever `open_dataset` takes: a path, `A+B`, `example:NAME`, an AnnData, a MuData, or an open `Dataset`.
      modalities: read only these (of those the model knows and the data has); None: all.
      space: `cell`, the encoder's cell embedding, all modalities of a cell read together; `aligned`, the unit vectors
        of the contrastive space, each modality read alone and the cell's mean taken: comparable across modalities.
      num_tokens: most tokens of a cell, of each modality or modality -> number; None: `model_cells.NUM_TOKENS`. Where
        that is less than cells need, a `ScmbertWarning` says what fraction was shown.
      organism, assembly: as in `check_dataset`; what the file does not tell is taken from the model.
      rows: int64, cells to embed, the others get nan; None: all.
      average_batches: the mean of a cell's embeddings as if it were of each technical batch of training in turn, so
        that none of them is in it; of models that are told the batch with the tokens. Takes as many times as long.
      batch_size: cells per device call; changes speed and memory only.
      seed: which tokens are drawn of cells that have more, and which zeros; the same seed gives the same embedding.
      progress: called with (cells done, cells in all).

    Raises:
      InputError: no raw counts, unknown features, too few of the model's, another organism or genome build, or a space
        the model lacks; the message says what to do.
      ConfigError: a batch size below 1; `average_batches` of a model that is not told the batch with the tokens.
    """
    if space == "aligned":
        _require_aligned_space(model)
    opened = open_model_cells(model, cells, modalities, organism, assembly)
    embed = embedding_function(model, space)
    if average_batches:
        embed = _averaged_over_batches(model, embed)
    result = _no_embeddings(opened, _width(model, space))
    for mine, batch, done in opened.batches(num_tokens, batch_size, seed, rows):
        result[mine] = embed(batch)[: len(mine)]
        if progress is not None:
            progress(done, len(result))
    if progress is not None:
        progress(len(result), len(result))
    return _embeddings(opened, result)


def embed_jointly(
    model: PretrainedModel,
    cells: Any,
    *,
    num_tokens: int | Mapping[str, int] | None = None,
    organism: str | None = None,
    assembly: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CellEmbeddings:
    """Embeds every cell by all its modalities and by each alone, in one pass over the file.

    `embeddings` of the result are those of `embed_dataset`; `aligned` are comparable across modalities: one entry for
    each modality that the file and the model share, and their mean, brought back to length 1, as "joint".

    Args: as those of `embed_dataset`.

    Raises:
      InputError: the model was not trained with contrastive_alignment; or what `embed_dataset` raises.
      ConfigError: a batch size below 1.
    """
    _require_aligned_space(model)
    opened = open_model_cells(model, cells, None, organism, assembly)
    embed_cell, embed_aligned = (embedding_function(model, space) for space in ("cell", "aligned"))
    whole = _no_embeddings(opened, _width(model, "cell"))
    aligned = {name: _no_embeddings(opened, _width(model, "aligned")) for name in ("joint", *opened.overlaps)}
    for rows, batch, done in opened.batches(num_tokens, batch_size, seed):
        whole[rows] = embed_cell(batch)[: len(rows)]
        total = np.zeros((len(rows), aligned["joint"].shape[1]), np.float32)
        for name, tokens in batch.modalities.items():
            has = tokens.lengths[: len(rows)] > 0
            if has.any():
                vectors = embed_aligned(replace(batch, modalities={name: tokens}))[: len(rows)][has]
                aligned[name][rows[has]] = vectors
                total[has] += vectors
        aligned["joint"][rows] = total / (np.linalg.norm(total, axis=1, keepdims=True) + 1e-6)
        if progress is not None:
            progress(done, len(whole))
    if progress is not None:
        progress(len(whole), len(whole))
    return _embeddings(opened, whole, aligned)


def _embeddings(
    opened: ModelCells, embeddings: np.ndarray, aligned: dict[str, np.ndarray] | None = None
) -> CellEmbeddings:
    opened.warn_of_what_was_not_shown()
    return CellEmbeddings(
        embeddings,
        opened.dataset,
        opened.report,
        opened.overlaps,
        opened.coverage,
        opened.fractions_shown(),
        aligned or {},
    )


def _require_aligned_space(model: PretrainedModel) -> None:
    if model.config.objectives.contrastive_alignment.weight == 0:
        raise InputError(
            "the model was not trained with contrastive_alignment, so its modalities have no common space (aligned, "
            "--joint) but the cell embedding. Train one with --objectives.contrastive-alignment.weight above 0."
        )


def _width(model: PretrainedModel, space: str) -> int:
    config = model.config
    return config.objectives.contrastive_alignment.projection_dim if space == "aligned" else config.model.cell_dim


def _no_embeddings(opened: ModelCells, width: int) -> np.ndarray:
    return np.full((len(opened.dataset.cell_ids), width), np.nan, np.float32)


# Compiled once per definition and batch shape, so that a model embeds file after file, and its untrained twin with it.
@partial(jax.jit, static_argnums=0)
def feature_table(definition: ModelDefinition, params: Any, constants: Any) -> jax.Array:
    return definition.merge(params, constants).feature_table()


@partial(jax.jit, static_argnums=(0, 1))
def _cell_embedding(
    definition: ModelDefinition, space: str, params: Any, constants: Any, table: jax.Array, batch: CutBatch
) -> jax.Array:
    merged = definition.merge(params, constants)
    return merged.aligned_embedding(table, batch) if space == "aligned" else merged.cell_embedding(table, batch)


def embedding_function(model: PretrainedModel, space: str) -> Callable[[CutBatch], np.ndarray]:
    """Batch -> float32 [B, D] of `space`, as in `embed_dataset`."""
    definition = model.definition
    table = feature_table(definition, model.params, model.constants)
    return lambda batch: np.asarray(_cell_embedding(definition, space, model.params, model.constants, table, batch))


def told_the_batch(model: PretrainedModel) -> bool:
    """Whether the model is told each cell's technical batch with its tokens, so that it may be in the embedding."""
    own = model.config.model
    return own.covariates_at == "tokens" and "technical_batch" in own.covariates


def _averaged_over_batches(
    model: PretrainedModel, embed: Callable[[CutBatch], np.ndarray]
) -> Callable[[CutBatch], np.ndarray]:
    if not told_the_batch(model):
        raise ConfigError(
            "average_batches is for models that are told the technical batch with the tokens (model.covariates and "
            "model.covariates_at); this one is not: embed without it."
        )
    number = model.definition.layout.covariate_sizes["technical_batch"]

    def mean(batch: CutBatch) -> np.ndarray:
        total = np.zeros(())
        for code in range(number):
            codes: Any = np.full_like(batch.covariates["technical_batch"], code)
            total = total + embed(replace(batch, covariates={**batch.covariates, "technical_batch": codes}))
        return total / number

    return mean


def provenance(model: PretrainedModel, result: CellEmbeddings) -> dict[str, Any]:
    """What stands in `uns["scmbert"]` of a written file: which model, which features, which software."""
    return {
        **model_provenance(model, result.report, result.overlaps),
        "cells_without_embedding": result.num_empty,
        "coverage": result.coverage,
        "shown": result.shown,
    }


def model_provenance(model: PretrainedModel, report: InputReport, overlaps: Mapping[str, Overlap]) -> dict[str, Any]:
    """Which model, what it was told in training, which features of a file it read and which it did not."""
    known = model.info["provenance"]
    return {
        "model_step": int(model.info["step"]),
        "corpus_fingerprint": known["corpus_fingerprint"],
        "feature_space_hash": known["feature_space_hash"],
        "git_commit": known["git_commit"],
        "scmbert_jax_version": known["versions"]["scmbert_jax"],
        "trained_on": np.array(information_in_words(known.get("information")), dtype=object),
        "features": {name: overlap.summary() for name, overlap in overlaps.items()},
        "features_not_read": {
            name: np.array(features_not_read(model, report, name), dtype=object) for name in overlaps
        },
    }


def features_not_read(model: PretrainedModel, report: InputReport, modality: str) -> list[str]:
    """Every feature of a file that the model saw nothing of, as the file names it, in the file's order."""
    mapping = report.modalities[modality].mapping
    assert mapping is not None  # or the file would have no overlap with the model
    place = model.feature_space.modalities[modality].index_of(mapping.ids)
    return mapping.names[place < 0].tolist()
