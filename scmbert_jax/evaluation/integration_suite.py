"""The `integration` suite: one embedding of all cells, whatever was measured in them: types apart, batches mixed?

Scores by scib-metrics (its values are not comparable with the older scib; the version is printed): bio conservation
(isolated labels, k-means NMI and ARI, silhouette, cLISI) and batch correction (BRAS, iLISI, kBET, graph connectivity).
The totals are the means of each group, and 0.6 / 0.4 of them (Luecken et al. 2022). 1 is best everywhere.
"""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from data_pipelines.readers import open_dataset
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.alignment_baselines import cca_space
from scmbert_jax.evaluation.alignment_result import AlignmentResult, AlignmentRow, score_rows
from scmbert_jax.evaluation.model_vectors import EmbeddedModels
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.modality_cells import ModalityCells, fit_projection, read_modalities, shared_cells
from scmbert_jax.tasks.pseudo_pairs import SharedSpace, match_unpaired

Array = np.ndarray
Say = Callable[[str], None]

DEFAULT_DATA = "example:pbmc_mosaic"
NEIGHBOURS = 90  # what LISI needs for its perplexity of 30
TRAIN_FRACTION = 0.8
BIO = ("isolated labels", "NMI", "ARI", "silhouette", "cLISI")
BATCH = ("BRAS", "iLISI", "kBET", "connectivity")


def score_integration(embedding: Array, types: Array, batches: Array) -> dict[str, float]:
    """All scores of cells float [n, d] with types and technical batches str [n].

    Raises `InputError` with fewer than two types or batches, or too few cells for the neighbourhoods.
    """
    import scib_metrics
    from scib_metrics.nearest_neighbors import pynndescent

    if len(np.unique(types)) < 2 or len(np.unique(batches)) < 2:
        raise InputError("integration: at least two cell types and two technical batches are needed.")
    if len(embedding) < NEIGHBOURS + 10:
        raise InputError(f"integration: {len(embedding)} cells; at least {NEIGHBOURS + 10} are needed.")
    x = np.ascontiguousarray(embedding, np.float32)
    # It logs to stdout, where --json promises one document, and of labels it knows the numbers only.
    logging.getLogger("scib_metrics").setLevel(logging.ERROR)
    labels, groups = np.unique(types, return_inverse=True)[1], np.unique(batches, return_inverse=True)[1]
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        near = pynndescent(x, NEIGHBOURS, random_state=0, n_jobs=1)
        fifteen, fifty = near.subset_neighbors(15), near.subset_neighbors(50)
        clusters = scib_metrics.nmi_ari_cluster_labels_kmeans(x, labels)
        found = {
            "isolated labels": scib_metrics.isolated_labels(x, labels, groups),
            "NMI": clusters["nmi"],
            "ARI": clusters["ari"],
            "silhouette": scib_metrics.silhouette_label(x, labels),
            "cLISI": scib_metrics.clisi_knn(near, labels),
            "BRAS": scib_metrics.bras(x, labels, groups),
            "iLISI": scib_metrics.ilisi_knn(near, groups),
            "kBET": scib_metrics.kbet_per_label(fifty, groups, labels),
            "connectivity": scib_metrics.graph_connectivity(fifteen, labels),
        }
    scores = {name: float(np.nan_to_num(value)) for name, value in found.items()}
    scores["bio"] = float(np.mean([scores[name] for name in BIO]))
    scores["batch"] = float(np.mean([scores[name] for name in BATCH]))
    scores["total"] = 0.6 * scores["bio"] + 0.4 * scores["batch"]
    return scores


@dataclass(frozen=True)
class IntegrationReport:
    """The result, and the embeddings of all cells for pictures: method -> float [n, d]."""

    result: AlignmentResult
    embeddings: Mapping[str, Array]
    cell_types: Array
    technical_batches: Array


class _AllCells:
    """Every cell of a data set with all its modalities: ids, labels, and vectors by modality joined by cell."""

    def __init__(self, cells: Mapping[str, ModalityCells]):
        self.sides = list(cells.values())
        ids = np.concatenate([side.cell_ids for side in self.sides])
        self.ids, where = np.unique(ids, return_index=True)
        self.types = np.concatenate([side.cell_types for side in self.sides])[where]
        self.batches = np.concatenate([side.technical_batches for side in self.sides])[where]
        self.kinds = np.full(len(self.ids), "", dtype=object)
        for side in self.sides:
            rows = np.isin(self.ids, side.cell_ids)
            self.kinds[rows] = [f"{kind}+{side.modality}".strip("+") for kind in self.kinds[rows]]

    def mean_of(self, vectors: Sequence[Array]) -> Array:
        """float64 [n, d]: mean over the modalities of each cell of its unit vectors."""
        total = np.zeros((len(self.ids), vectors[0].shape[1]))
        for side, values in zip(self.sides, vectors, strict=True):
            units = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
            total[np.searchsorted(self.ids, side.cell_ids)] += units
        return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def evaluate_integration(
    data: str = DEFAULT_DATA,
    *,
    models: Sequence[PretrainedModel] = (),
    num_seeds: int = 5,
    space: str | None = None,
    organism: str | None = None,
    assembly: str | None = None,
    say: Say = lambda message: None,
) -> IntegrationReport:
    """Scores the joint embedding of all cells beside PCA, CCA on the pairs, and pseudo-pairs.

    Args:
      models: trained models of one method, one per seed; a single one is embedded with `num_seeds` token draws.
      space: of the models; None: "cell", all modalities of a cell read together.

    Raises:
      InputError: cells without types or technical batches.
    """
    if num_seeds < 1:
        raise ConfigError(f"num_seeds {num_seeds}: expected 1 or more.")
    dataset = open_dataset(data)
    cells = read_modalities(dataset, organism=organism, assembly=assembly)
    everyone = _AllCells(cells)
    known = (everyone.types != "") & (everyone.batches != "")
    if not known.any():
        raise InputError(f"{dataset.path}: integration needs cell_type and technical_batch among the cell metadata.")
    embedded = EmbeddedModels(models, dataset, num_seeds, space or "cell", organism, assembly)
    rows: list[AlignmentRow] = []
    pictures: dict[str, Array] = {}

    def add(method: str, uses: str, whole: Array | None, seeds: Sequence[Array]) -> None:
        def score(x: Array) -> dict[str, float]:
            usable = known & np.isfinite(x[:, 0])
            return score_integration(x[usable], everyone.types[usable], everyone.batches[usable])

        best = None if whole is None else score(whole)
        title = f"all cells ({'; '.join(sorted(set(everyone.kinds.tolist())))})"
        rows.extend(score_rows(title, method, uses, best, [score(x) for x in seeds], int(known.sum())))
        pictures[method] = seeds[0] if whole is None else whole

    for method, uses, build in _baselines(everyone):
        say(method)
        add(method, uses, build(None), [build(seed) for seed in range(num_seeds)])
    if models:
        say("model")
        found = []
        for seed in range(embedded.num_seeds):
            vectors = embedded.of(seed, None)
            width = len(next(iter(vectors.values())))
            found.append(np.stack([vectors.get(cell, np.full(width, np.nan)) for cell in everyone.ids.tolist()]))
        add("model", embedded.uses(), None, found)
    result = AlignmentResult("integration", data, tuple(rows), _notes(), embedded.information())
    return IntegrationReport(result, pictures, everyone.types, everyone.batches)


def _baselines(everyone: _AllCells) -> list[tuple[str, str, Callable[[int | None], Array]]]:
    def some(side: ModalityCells, seed: int | None) -> ModalityCells:
        if seed is None:
            return side
        rng = np.random.default_rng([seed, len(side)])
        return side.take(np.sort(rng.choice(len(side), round(TRAIN_FRACTION * len(side)), replace=False)))

    def pca(seed: int | None) -> Array:
        """PCs of each modality beside each other; the mean (zero) where a modality was not measured."""
        parts = []
        for side in everyone.sides:
            scores = fit_projection(some(side, seed), 25)(side.values)
            part = np.zeros((len(everyone.ids), scores.shape[1]))
            part[np.searchsorted(everyone.ids, side.cell_ids)] = scores / np.sqrt(scores.var(0).sum())
            parts.append(part)
        return np.concatenate(parts, axis=1)

    def joint(space: SharedSpace) -> Array:
        first, second = everyone.sides
        return everyone.mean_of([space.embed_first(first), space.embed_second(second)])

    def cca(seed: int | None) -> Array:
        first, second = everyone.sides
        left, right = shared_cells(first, second)
        if seed is not None:
            rng = np.random.default_rng(seed)
            chosen = np.sort(rng.choice(len(left), round(TRAIN_FRACTION * len(left)), replace=False))
            left, right = left[chosen], right[chosen]
        return joint(cca_space(first.take(left), second.take(right)))

    def pseudo(seed: int | None) -> Array:
        space = match_unpaired(*(some(side, seed) for side in everyone.sides)).space
        assert space is not None
        return joint(space)

    methods: list[tuple[str, str, Callable[[int | None], Array]]] = [("PCA side by side", "nothing", pca)]
    if len(everyone.sides) == 2:
        if len(shared_cells(*everyone.sides)[0]) >= 100:
            methods.append(("CCA", "pairs", cca))
        methods.append(("pseudo-pairs", "links, no pairs", pseudo))
    return methods


def _notes() -> tuple[str, ...]:
    import scib_metrics

    return (
        f"scib-metrics {scib_metrics.__version__}; its values are not those of the older scib. 1 is best everywhere. "
        f"bio: mean of {', '.join(BIO)}; batch: mean of {', '.join(BATCH)}; total: 0.6 bio + 0.4 batch.",
        "CCA and pseudo-pairs take the mean of each technical batch off: that mixes batches, and would hide a real "
        "difference of composition between them. PCA does not.",
        "Each figure is the fit to all cells; in brackets mean ± half of the 95% Student-t interval over seeds (80% of "
        "the cells each; for models, trained seeds or token draws).",
    )


def write_integration_report(path: Path, report: IntegrationReport, run_info: Mapping[str, Any]) -> Path:
    """`report.html`: tables and UMAPs of each method, coloured by type and technical batch."""
    from scmbert_jax.evaluation.projection import compute_umap
    from scmbert_jax.evaluation.report import write_report

    umaps = []
    for method, x in report.embeddings.items():
        there = np.isfinite(x[:, 0])
        colours = {
            "cell type": report.cell_types[there].astype(str).tolist(),
            "technical batch": report.technical_batches[there].astype(str).tolist(),
        }
        umaps.append((method, compute_umap(x[there], 0), colours))
    return write_report(
        path,
        title="Integration of all cells",
        run_info={"data": report.result.data, "information": dict(report.result.information), **run_info},
        tables=report.result.tables(),
        umaps=umaps,
        notes=report.result.notes,
    )
