"""The `probe` suite: what linear and kNN probes find of the cell types in an embedding, on held-out technical batches.

Wires a model, its linear path alone, its untrained twin and PCA to `run_probe`, modality by modality: the cells of a
modality are embedded from that modality alone, and cells with several from all of them together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from data_pipelines.batches.model_counts import model_counts
from data_pipelines.checks.input_report import InputReport
from data_pipelines.readers.dataset import Dataset
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.baselines import LINEAR_PATH_ALONE, pca_embedding
from scmbert_jax.evaluation.data.splits import inner_parts
from scmbert_jax.evaluation.probe.figures import score_drawing
from scmbert_jax.evaluation.probe.probe import make_folds, run_probe
from scmbert_jax.evaluation.probe.result import AT_RANDOM, BY_BATCH, ProbeResult, ProbeSettings
from scmbert_jax.evaluation.probe.tables import method_notes, render_differences, render_table, summary_sentences
from scmbert_jax.evaluation.report.projection import compute_umap
from scmbert_jax.evaluation.report.report import Umap, write_report
from scmbert_jax.evaluation.seen_cells import identified_cells, what_models_saw
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.embed import CellEmbeddings, embed_dataset
from scmbert_jax.tasks.modality_cells import full_batch_names, obs_labels
from scmbert_jax.training.goodput import Goodput

DEFAULT_DATA = "example:pbmc_mosaic"
RANDOM_PARTS = 5

Say = Callable[[str], None]


@dataclass(frozen=True)
class ProbeReport:
    """Scores of each kind of cell, and one trained embedding of each for pictures.

    Attributes:
      results: one per kind of cells ("rna", "protein", "rna+protein").
      pictures: kind -> (trained embedding [n, D], PCA [n, d], cell types, technical batches).
      seen: what the model's training had of the scored cells, in sentences.
    """

    results: tuple[ProbeResult, ...]
    pictures: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
    data: str
    seen: tuple[str, ...] = ()

    def table(self) -> str:
        return render_table(self.results)

    def text(self) -> str:
        """The tables and sentences that `scmbert evaluate probe` prints."""
        sentences = [*summary_sentences(self.results), *self.seen]
        parts = [self.table(), render_differences(self.results), "\n".join(sentences)]
        return "\n\n".join(part for part in parts if part)

    def to_dict(self) -> dict[str, Any]:
        results = [result.to_json() for result in self.results]
        return {"suite": "probe", "data": self.data, "seen": list(self.seen), "results": results}


def probe_model(
    model: PretrainedModel,
    data: str = DEFAULT_DATA,
    *,
    num_seeds: int = 5,
    test_batches: Sequence[str] = (),
    obs_fields: Mapping[str, str | None] | None = None,
    organism: str | None = None,
    assembly: str | None = None,
    say: Say = lambda message: None,
) -> ProbeReport:
    """Scores `model` on the labelled cells of `data`.

    Args:
      num_seeds: embeddings per method.
      test_batches: technical batches that are held out together, in one fold; none: each batch in turn, or random
        parts of each cell type where cells have no two batches.
      obs_fields: standard field -> column of obs, where it is not recognised by its name; None as the column: has none.

    Raises `InputError`, before anything is embedded, when the data has no cell types, too few cells of them, or none of
    the modalities that the model reads; `ConfigError` for batches there are not.
    """
    dataset = open_dataset(data)
    settings = ProbeSettings(num_seeds=num_seeds)
    tasks = _labelled_cells(model, dataset, obs_fields, test_batches, settings, say)
    alone = model.linear_path_alone()
    results, pictures = [], {}
    for task in tasks:
        say(f"{task.kind}: embedding {len(task.rows):,} cells, {num_seeds} times for each method")
        embed = partial(
            embed_dataset, cells=dataset, modalities=task.names, rows=task.rows, organism=organism, assembly=assembly
        )
        first = embed(model)
        has = np.isin(task.rows, _measured_in(dataset, task.names, first.report))
        has &= np.isfinite(first.embeddings[task.rows, 0])
        cells = task.rows[has]
        # Which tokens a cell shows is drawn anew for each seed of the trained model; the untrained one is another
        # initialisation each time.
        methods = {"trained": [first.embeddings[cells]]}
        methods["trained"] += [embed(model, seed=seed).embeddings[cells] for seed in range(1, num_seeds)]
        if alone is not None:
            methods[LINEAR_PATH_ALONE] = [embed(alone, seed=seed).embeddings[cells] for seed in range(num_seeds)]
        methods["untrained"] = [
            embed(model.untrained(1000 + seed), seed=seed).embeddings[cells] for seed in range(num_seeds)
        ]
        pca = _joint_pca(first, task.names, cells, model.config.model.embed_dim)
        say(f"{task.kind}: fitting probes on {len(cells):,} cells")
        results.append(
            run_probe(
                {**methods, "pca": [pca]},
                task.labels[has],
                task.parts[has],
                modality=task.kind,
                held_out=task.held_out,
                split=task.split,
                settings=settings,
            )
        )
        pictures[task.kind] = (methods["trained"][0], pca, task.labels[has], task.batches[has])
    identified = identified_cells(dataset, organism=organism, assembly=assembly)
    scored = dataset.cell_ids[np.unique(np.concatenate([task.rows for task in tasks]))]
    rows = np.flatnonzero(np.isin(identified.cell_ids, scored))
    return ProbeReport(
        tuple(results), pictures, data, tuple(what_models_saw([("model", model.trained_cells)], identified, rows))
    )


@dataclass(frozen=True)
class _LabelledCells:
    """The cells of one kind ("rna", "rna+protein") and how they are split.

    Attributes:
      rows: int64 [n] of the data set, the cells that were measured in all of `names`.
      labels, batches: str [n], "" where unknown.
      parts: str [n], what each cell is held out with: its technical batch, or a random part.
      held_out: the parts to hold out; None: each in turn. split: `BY_BATCH` or `AT_RANDOM`.
    """

    kind: str
    rows: np.ndarray
    labels: np.ndarray
    batches: np.ndarray
    parts: np.ndarray
    held_out: list[str] | None
    split: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.kind.split("+"))


def _labelled_cells(
    model: PretrainedModel,
    dataset: Dataset,
    obs_fields: Mapping[str, str | None] | None,
    test_batches: Sequence[str],
    settings: ProbeSettings,
    say: Say,
) -> list[_LabelledCells]:
    """What can be scored; a kind of cells that cannot is said. Raises where none can."""
    types = obs_labels(dataset, "cell_type", obs_fields)
    batches = obs_labels(dataset, "technical_batch", obs_fields)
    if types is None:
        raise InputError(
            f"{dataset.path}: no cell types among its cell metadata ({', '.join(map(str, dataset.obs.columns))}). "
            "Say which column holds them: --obs-field cell_type=COLUMN"
        )
    if batches is None:
        batches = np.full(len(types), "")
    chosen = full_batch_names(test_batches, batches.tolist(), "--test-batches", dataset.path)
    found, refused = [], []
    for kind in _kinds_of_cells(model, dataset):
        rows = _measured_in(dataset, kind.split("+"))
        task = _split(kind, rows, types[rows], batches[rows], chosen)
        try:
            make_folds(task.labels, task.parts, task.held_out, settings)
            found.append(task)
        except InputError as error:
            refused.append(f"{kind} cells cannot be scored: {error}")
    if not found:
        raise InputError(f"{dataset.path}: {' '.join(refused)}")
    for reason in refused:
        say(reason)
    return found


def _split(kind: str, rows: np.ndarray, labels: np.ndarray, batches: np.ndarray, chosen: list[str]) -> _LabelledCells:
    """By technical batch, the chosen ones under one name "a+b"; at random where labelled cells have no two batches."""
    if chosen:
        joined = "+".join(name for name in chosen if name in batches) or "+".join(chosen)
        parts = np.where(np.isin(batches, chosen), joined, batches.astype(object)).astype(str)
        return _LabelledCells(kind, rows, labels, batches, parts, [joined], BY_BATCH)
    if len(np.unique(batches[labels != ""])) > 1:
        return _LabelledCells(kind, rows, labels, batches, batches, None, BY_BATCH)
    parts = inner_parts(np.zeros(len(rows)), labels, np.random.default_rng(0), RANDOM_PARTS)
    return _LabelledCells(kind, rows, labels, batches, np.char.add("part ", (parts + 1).astype(str)), None, AT_RANDOM)


def _kinds_of_cells(model: PretrainedModel, dataset: Dataset) -> list[str]:
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


def _measured_in(dataset: Dataset, names: Sequence[str], report: InputReport | None = None) -> np.ndarray:
    """int64: rows of the cells in the matrices of all of `names`; with a report, of those the input check keeps."""
    rows = np.arange(len(dataset.cell_ids))
    for matrix in dataset.matrices:
        if matrix.modality in names:
            keep = slice(None) if report is None else report.modalities[matrix.modality].keep
            rows = np.intersect1d(rows, dataset.rows_of(matrix)[keep])
    return rows


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
        colours = {"cell type": labels.tolist()}
        if len(np.unique(batches)) > 1:
            colours["technical batch"] = batches.tolist()
        umaps.append((f"{kind}: model", compute_umap(trained, 0), colours))
        umaps.append((f"{kind}: PCA", compute_umap(pca, 0), colours))
    return write_report(
        path,
        title="Cell embeddings on held-out cells",
        run_info={"data": report.data, **run_info},
        loss_rows=loss_rows,
        goodput=goodput,
        tables=[("Scores", report.table()), ("Differences on the same cells", render_differences(report.results))],
        umaps=umaps,
        notes=[*report.seen, *method_notes(report.results)],
        summary=summary_sentences(report.results),
        scores=[score_drawing(result) for result in report.results],
    )
