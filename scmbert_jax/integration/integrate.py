"""`integrate`: cells of several technical batches -> one embedding in which the batches are mixed.

Cells become vectors: principal components of these cells, or the embedding of a model. Then `correct_clusters` moves
them. What is given up and what is kept is measured on the cells themselves (`neighbours.py`).
"""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.readers.dataset import Dataset
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.annotation.pca import fit_pca, reference_space
from scmbert_jax.errors import InputError, ScmbertWarning, require
from scmbert_jax.integration.batches import confounded, read_batches, read_labels_beside
from scmbert_jax.integration.neighbours import NEIGHBOURS, Neighbours, mixed_at_random, neighbours_of
from scmbert_jax.pretrained import PretrainedModel, load_model
from scmbert_jax.tasks.embed import embed_dataset, provenance, told_the_batch
from scmbert_jax.tasks.model import Model
from scmbert_jax.tasks.progress_bar import progress_of
from scmbert_jax.tasks.soft_clusters import USUAL, SoftClusters, correct_clusters
from scmbert_jax.tasks.write_embedding import write_obsm

Array = np.ndarray
Progress = Callable[[int, int], None]

KEY = "X_scmbert_integrated"
PROVENANCE = "scmbert_integration"

_FEWEST_CELLS = 60  # two clusters


@dataclass(frozen=True)
class IntegrateOptions:
    """How cells are integrated.

    Attributes:
      batch_key: column of obs with the technical batches.
      label_key: column of obs with labels that are to stay apart; by these is told, and warned, what was lost.
        Nothing else looks at them.
      clusters: of the correction.
      seed: of where its clusters start.
    """

    batch_key: str
    label_key: str | None = None
    clusters: SoftClusters = USUAL
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.clusters.diversity >= 0, "diversity", self.clusters.diversity, "0 or more")
        require(self.clusters.softness > 0, "softness", self.clusters.softness, "above 0")
        require(self.clusters.ridge > 0, "ridge", self.clusters.ridge, "above 0")
        require(self.clusters.rounds >= 1, "rounds", self.clusters.rounds, "1 or more")


@dataclass(frozen=True)
class Integrated:
    """The result of `integrate_dataset`.

    Attributes:
      embedding: float32 [n, D]; nan for a cell without counts of the features that are read.
      dataset: the data set with its cell ids and metadata.
      before, after: of the vectors as they were and as they are.
      expected_own_batch: `own_batch` of cells that lie anywhere whatever their batch.
      provenance: what stands in `uns["scmbert_integration"]`.
    """

    embedding: Array
    dataset: Dataset
    before: Neighbours
    after: Neighbours
    expected_own_batch: float
    provenance: dict[str, Any]

    def in_words(self) -> list[str]:
        """Lines for people: how mixed batches are, how whole labels."""
        lines = [
            f"of a cell's {NEIGHBOURS} nearest neighbours, {self.before.own_batch:.0%} were of its batch and "
            f"{self.after.own_batch:.0%} are ({self.expected_own_batch:.0%} if batches made no difference)"
        ]
        if self.before.own_label is not None and self.after.own_label is not None:
            lines.append(f"{self.before.own_label:.0%} had its label and {self.after.own_label:.0%} have")
        return lines


def integrate_dataset(
    cells: Any,
    options: IntegrateOptions,
    model: PretrainedModel | None = None,
    *,
    organism: str | None = None,
    assembly: str | None = None,
    num_tokens: int | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Integrated:
    """Integrates every cell of `cells`; no count is changed.

    Args:
      cells: whatever `open_dataset` takes, or an open `Dataset`.
      model: whose embedding is corrected; None: principal components of these cells.
      organism, assembly, num_tokens, batch_size, progress: as of `embed_dataset`.

    Raises `InputError`: a column of batches that cannot be corrected for (`read_batches`), too few cells, or what
    `embed_dataset` raises. Warns `ScmbertWarning` of labels that are in one batch only.
    """
    dataset = cells if isinstance(cells, Dataset) else open_dataset(cells)
    batches = read_batches(dataset, options.batch_key)
    labels = None if options.label_key is None else read_labels_beside(dataset, options.label_key)
    if labels is not None and (sentence := confounded(labels, batches)):
        warnings.warn(f"{dataset.path}: {sentence}.", ScmbertWarning, stacklevel=2)
    if model is None:
        space, mapped = reference_space(dataset, organism, assembly)
        pca = fit_pca(space, mapped)
        vectors = pca.vectors(mapped)
        vectors[~vectors.any(1)] = np.nan  # no counts
        source = {"of": "principal components of these cells", "components": pca.width}
    else:
        found = embed_dataset(
            model,
            dataset,
            num_tokens=num_tokens,
            organism=organism,
            assembly=assembly,
            average_batches=told_the_batch(model),
            batch_size=batch_size,
            progress=progress,
        )
        averaged = " averaged over the technical batches it knows" if told_the_batch(model) else ""
        vectors = found.embeddings
        source = {"of": f"the embedding of a model{averaged}", **provenance(model, found)}
    known = np.isfinite(vectors[:, 0])
    if known.sum() < _FEWEST_CELLS:
        raise InputError(f"{dataset.path}: {int(known.sum())} cells have counts; {_FEWEST_CELLS} or more are needed.")
    corrected = np.full(vectors.shape, np.nan, np.float32)
    corrected[known] = correct_clusters(vectors[known], batches[known], options.clusters, options.seed)
    of_labels = None if labels is None else labels[known]
    before, after = (neighbours_of(x[known], batches[known], of_labels) for x in (vectors, corrected))
    names, numbers = np.unique(batches, return_counts=True)
    expected = mixed_at_random(batches[known])
    return Integrated(
        corrected,
        dataset,
        before,
        after,
        expected,
        {
            "batch_key": options.batch_key,
            "batches": names.astype(object),
            "cells_of_batches": numbers,
            "label_key": options.label_key or "",
            "method": "soft clusters (Korsunsky et al. 2019)",
            "clusters": asdict(options.clusters),
            "seed": options.seed,
            "vectors": source,
            "cells_without_embedding": int((~known).sum()),
            "neighbours_of_own_batch": {
                "before": before.own_batch,
                "after": after.own_batch,
                "if_batches_made_no_difference": expected,
            },
            **(
                {}
                if before.own_label is None
                else {"neighbours_of_own_label": {"before": before.own_label, "after": after.own_label}}
            ),
        },
    )


def write_integrated(path: Path, spec: str, found: Integrated, overwrite: bool = False) -> None:
    """Writes `obsm["X_scmbert_integrated"]` and `uns["scmbert_integration"]` into a copy of the file, as
    `write_embedding` does; errors as there."""
    write_obsm(path, spec, found.dataset, {KEY: found.embedding}, {PROVENANCE: found.provenance}, overwrite)


def integrate(
    adata: Any,
    batch_key: str,
    *,
    model: Any = None,
    label_key: str | None = None,
    options: IntegrateOptions | None = None,
    copy: bool = False,
    allow_low_coverage: bool = False,
    organism: str | None = None,
    assembly: str | None = None,
    num_tokens: int | None = None,
    batch_size: int = 64,
    progress: bool | Progress = False,
) -> Any:
    """Adds an embedding in which technical batches are mixed to an AnnData or MuData, in place.

        scmbert_jax.integrate(adata, "donor")
        scanpy.pp.neighbors(adata, use_rep="X_scmbert_integrated")

    `obsm["X_scmbert_integrated"]` is float32 [n_cells, D]; nan for cells without counts. `uns["scmbert_integration"]`
    says what was done. Counts stay as they are. `docs/integrate.md` says what a correction can destroy.

    Args:
      adata: AnnData or MuData with raw counts.
      batch_key: column of obs: library, experiment, donor.
      model: a model folder, or what `load` gave, whose embedding is corrected; None: principal components of the cells.
      label_key: column of obs by which is told what was lost; nothing is fitted to it.
      options: other options; their `batch_key` and `label_key` are those given here.
      copy: give a copy with it instead.
      allow_low_coverage: continue even if the cells measure few of the model's features.
      organism, assembly, num_tokens, batch_size: as of `Model.embed`.
      progress: True: a bar; or a function of (cells done, cells in all).

    Returns None, or with `copy` the copy.

    Raises `InputError`: no such column, one that cannot be corrected for, or counts that cannot be used.
    """
    if not (hasattr(adata, "obs") and hasattr(adata, "obsm") and hasattr(adata, "uns")):
        raise InputError(
            f"a {type(adata).__name__} cannot be integrated in place; give an AnnData or MuData, or for a file use "
            "scmbert integrate."
        )
    named = IntegrateOptions(batch_key, label_key)
    found = integrate_dataset(
        adata,
        named if options is None else replace(options, batch_key=batch_key, label_key=label_key),
        _model(model, allow_low_coverage),
        organism=organism,
        assembly=assembly,
        num_tokens=num_tokens,
        batch_size=batch_size,
        progress=progress_of(progress, "embed"),
    )
    adata = adata.copy() if copy else adata
    adata.obsm[KEY] = found.embedding
    adata.uns[PROVENANCE] = found.provenance
    return adata if copy else None


def _model(given: Any, allow_low_coverage: bool) -> PretrainedModel | None:
    if given is None:
        return None
    if isinstance(given, str | Path):
        return load_model(Path(given), allow_low_coverage=allow_low_coverage)
    known = given.pretrained if isinstance(given, Model) else given
    return replace(known, allow_low_coverage=allow_low_coverage or known.allow_low_coverage)
