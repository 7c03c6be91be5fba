"""The `probe` suite: what linear and kNN probes find of the cell types in an embedding, on held-out technical batches.

Wires a model, its untrained twin and PCA to `run_probe`, modality by modality: the cells of a modality are embedded
from that modality alone, and cells with several from all of them together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from data_pipelines.model_counts import model_counts
from data_pipelines.readers import open_dataset
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.baselines import pca_embedding
from scmbert_jax.evaluation.probe import run_probe
from scmbert_jax.evaluation.probe_result import ProbeResult, ProbeSettings
from scmbert_jax.evaluation.probe_table import method_notes, render_differences, render_table, summary_sentences
from scmbert_jax.evaluation.projection import compute_umap
from scmbert_jax.evaluation.report import Umap, write_report
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.embed import CellEmbeddings, embed_dataset
from scmbert_jax.tasks.modality_cells import full_batch_names
from scmbert_jax.training.goodput import Goodput

DEFAULT_DATA = "example:pbmc_mosaic"

Say = Callable[[str], None]


@dataclass(frozen=True)
class ProbeReport:
    """Scores of each kind of cell, and one trained embedding of each for pictures.

    Attributes:
      results: one per kind of cells ("rna", "protein", "rna+protein").
      pictures: kind -> (trained embedding [n, D], PCA [n, d], cell types, technical batches).
    """

    results: tuple[ProbeResult, ...]
    pictures: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
    data: str

    def table(self) -> str:
        return render_table(self.results)

    def text(self) -> str:
        """The tables and sentences that `scmbert evaluate probe` prints."""
        parts = [self.table(), render_differences(self.results), "\n".join(summary_sentences(self.results))]
        return "\n\n".join(part for part in parts if part)

    def to_dict(self) -> dict[str, Any]:
        return {"suite": "probe", "data": self.data, "results": [result.to_json() for result in self.results]}


def probe_model(
    model: PretrainedModel,
    data: str = DEFAULT_DATA,
    *,
    num_seeds: int = 5,
    test_batches: Sequence[str] = (),
    organism: str | None = None,
    assembly: str | None = None,
    say: Say = lambda message: None,
) -> ProbeReport:
    """Scores `model` on the labelled cells of `data`.

    Args:
      num_seeds: embeddings per method.
      test_batches: technical batches that are held out together, in one fold; none: each batch in turn.

    Raises `InputError` when the data has no cell types or no technical batches, or cannot be read by the model.
    """
    dataset = open_dataset(data)
    embed = partial(embed_dataset, organism=organism, assembly=assembly)
    results, pictures = [], {}
    for kind in _kinds_of_cells(model, dataset):
        names = tuple(kind.split("+"))
        say(f"{kind}: embedding {num_seeds} x trained, {num_seeds} x untrained")
        first = embed(model, dataset, modalities=names)
        cells = _cells_with(first, names)
        all_batches = _labels(first, "technical_batch")
        labels, batches = _labels(first, "cell_type")[cells], all_batches[cells]
        chosen = full_batch_names(test_batches, all_batches.tolist(), "--test-batches", dataset.path)
        if chosen and not np.isin(batches, chosen).any():
            say(f"{kind}: none of these cells is of {', '.join(chosen)}; not scored")
            continue
        groups, held_out = _held_out_together(batches, chosen)
        # Which tokens a cell shows is drawn anew for each seed of the trained model; the untrained one is another
        # initialisation each time.
        trained = [first.embeddings[cells]] + [
            embed(model, dataset, modalities=names, rows=cells, seed=seed).embeddings[cells]
            for seed in range(1, num_seeds)
        ]
        untrained = [
            embed(model.untrained(1000 + seed), dataset, modalities=names, rows=cells, seed=seed).embeddings[cells]
            for seed in range(num_seeds)
        ]
        pca = _joint_pca(first, names, cells, model.config.model.embed_dim)
        say(f"{kind}: fitting probes on {len(cells):,} cells")
        results.append(
            run_probe(
                {"trained": trained, "untrained": untrained, "pca": [pca]},
                labels,
                groups,
                modality=kind,
                held_out=held_out,
                settings=ProbeSettings(num_seeds=num_seeds),
            )
        )
        pictures[kind] = (trained[0], pca, labels, batches)
    return ProbeReport(tuple(results), pictures, data)


def _kinds_of_cells(model: PretrainedModel, dataset: Any) -> list[str]:
    """Single modalities that the model reads and the data has; then all of them together where cells have several."""
    present = {matrix.modality: set(matrix.cell_ids.tolist()) for matrix in dataset.matrices}
    names = [name for name in model.config.modalities.in_use() if name in present]
    if not names:
        raise InputError(
            f"{dataset.path}: has {', '.join(present) or 'nothing'}; the model reads "
            f"{', '.join(model.config.modalities.in_use())}."
        )
    joint = len(names) > 1 and bool(set.intersection(*(present[name] for name in names)))
    return [*names, *(["+".join(names)] if joint else [])]


def _cells_with(result: CellEmbeddings, names: tuple[str, ...]) -> np.ndarray:
    """int64: cells that were measured in all of `names` and have an embedding."""
    usable = ~np.isnan(result.embeddings[:, 0])
    for matrix in result.dataset.matrices:
        if matrix.modality in names:
            has = np.zeros(len(usable), bool)
            has[result.dataset.rows_of(matrix)[result.report.modalities[matrix.modality].keep]] = True
            usable &= has
    return np.flatnonzero(usable)


def _labels(result: CellEmbeddings, field: str) -> np.ndarray:
    column = result.report.obs_fields.get(field)
    if column is None:
        raise InputError(
            f"{result.dataset.path}: no {field} among its cell metadata "
            f"({', '.join(map(str, result.dataset.obs.columns))}); "
            f"the probe needs cell_type and technical_batch. Name a column of obs '{field}'."
        )
    return result.dataset.obs[column].astype(object).where(result.dataset.obs[column].notna(), "").to_numpy(str)


def _held_out_together(batches: np.ndarray, chosen: list[str]) -> tuple[np.ndarray, list[str] | None]:
    """The batches, the chosen ones under one name "a+b"; and what to hold out (None: each in turn)."""
    if not chosen:
        return batches, None
    joined = "+".join(name for name in chosen if name in batches)
    return np.where(np.isin(batches, chosen), joined, batches.astype(object)).astype(str), [joined]


def _joint_pca(result: CellEmbeddings, names: tuple[str, ...], cells: np.ndarray, dim: int) -> np.ndarray:
    """PCA of each modality on the very features the model sees; several are scaled to equal variance and joined."""
    chunks = list(model_counts(result.dataset, result.report, result.overlaps))
    parts = []
    for name in names:
        counts = sp.vstack([chunk.counts[name] for chunk in chunks], format="csr")[cells]
        scores = pca_embedding(counts[:, result.overlaps[name].measured], name, dim // len(names))
        parts.append(scores if len(names) == 1 else scores / np.sqrt(scores.var(0).sum()))
    return np.concatenate(parts, axis=1)


def write_probe_report(
    path: Path,
    report: ProbeReport,
    run_info: dict[str, Any],
    loss_rows: list[dict[str, Any]],
    goodput: Goodput | None = None,
) -> Path:
    """`report.html` of a probe: scores, UMAPs of the model beside PCA, the loss curve, time spent, provenance."""
    umaps: list[Umap] = []
    for kind, (trained, pca, labels, batches) in report.pictures.items():
        colours = {"cell type": labels.tolist(), "technical batch": batches.tolist()}
        umaps.append((f"{kind}: model", compute_umap(trained, 0), colours))
        umaps.append((f"{kind}: PCA", compute_umap(pca, 0), colours))
    return write_report(
        path,
        title="Cell embeddings on held-out technical batches",
        run_info={"data": report.data, **run_info},
        loss_rows=loss_rows,
        goodput=goodput,
        tables=[("Scores", report.table()), ("Differences on the same cells", render_differences(report.results))],
        umaps=umaps,
        notes=method_notes(report.results),
        summary=summary_sentences(report.results),
        probe_results=report.results,
    )
