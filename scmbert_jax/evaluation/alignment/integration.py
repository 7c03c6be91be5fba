"""The `integration` suite: one embedding of all cells, whatever was measured in them: types apart, batches mixed?

Scores by scib-metrics (its values are not comparable with the older scib; the version is printed): bio conservation
(isolated labels, k-means NMI and ARI, silhouette, cLISI) and batch correction (BRAS, iLISI, kBET, graph connectivity).
The totals are the means of each group, and 0.6 / 0.4 of them (Luecken et al. 2022). 1 is best everywhere. Cells of one
technical batch have nothing to be mixed: of them only what needs no batch is scored.
"""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.alignment.baselines import Baseline
from scmbert_jax.evaluation.alignment.integration_baselines import INTEGRATION_BASELINES, AllCells, several_batches
from scmbert_jax.evaluation.alignment.result import AlignmentResult, AlignmentRow, score_rows
from scmbert_jax.evaluation.baselines import LINEAR_PATH_ALONE
from scmbert_jax.evaluation.data.model_vectors import embedded_models
from scmbert_jax.evaluation.seen_cells import identified_cells, what_models_saw
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.match import comparison_space
from scmbert_jax.tasks.modality_cells import read_modalities
from scmbert_jax.tasks.soft_clusters import correct_clusters

Array = np.ndarray
Say = Callable[[str], None]

DEFAULT_DATA = "example:pbmc_mosaic"
NEIGHBOURS = 90  # what LISI needs for its perplexity of 30


def check_labels(types: Array) -> None:
    """Raises `InputError` where cells of these types, str [n], cannot be scored."""
    if len(np.unique(types)) < 2:
        raise InputError(f"integration: the cells are of {len(np.unique(types))} cell type; at least two are needed.")
    if len(types) < NEIGHBOURS + 10:
        raise InputError(f"integration: {len(types)} cells; at least {NEIGHBOURS + 10} are needed.")


def _require_scib_metrics() -> None:
    """Raises `ConfigError` where the package is missing; asked before the work."""
    try:
        import scib_metrics  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"evaluate integration needs scib-metrics ({error}): pip install 'scmbert_jax[integration]'. It is an "
            "extra, since it brings igraph, which is under the GPL."
        ) from error


def score_integration(embedding: Array, types: Array, batches: Array) -> dict[str, float]:
    """All scores of cells float [n, d] with types and technical batches str [n]; of one batch, `bio` and its parts.

    Raises `InputError` with fewer than two types, or too few cells for the neighbourhoods.
    """
    import jax
    import scib_metrics
    from scib_metrics.nearest_neighbors import pynndescent

    check_labels(types)
    x = np.ascontiguousarray(embedding, np.float32)
    # It logs to stdout, where --json promises one document, and of labels it knows the numbers only.
    logging.getLogger("scib_metrics").setLevel(logging.ERROR)
    labels, groups = np.unique(types, return_inverse=True)[1], np.unique(batches, return_inverse=True)[1]
    # scib-metrics adds arrays of different ranks, which a user may have JAX refuse.
    with warnings.catch_warnings(), threadpool_limits(1), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        near = pynndescent(x, NEIGHBOURS, random_state=0, n_jobs=1)
        clusters = scib_metrics.nmi_ari_cluster_labels_kmeans(x, labels)
        bio = {
            "NMI": clusters["nmi"],
            "ARI": clusters["ari"],
            "silhouette": scib_metrics.silhouette_label(x, labels),
            "cLISI": scib_metrics.clisi_knn(near, labels),
        }
        mixed = {}
        if groups.any():
            fifteen, fifty = near.subset_neighbors(15), near.subset_neighbors(50)
            # A label is isolated when few batches have it.
            bio = {"isolated labels": scib_metrics.isolated_labels(x, labels, groups), **bio}
            mixed = {
                "BRAS": scib_metrics.bras(x, labels, groups),
                "iLISI": scib_metrics.ilisi_knn(near, groups),
                "kBET": scib_metrics.kbet_per_label(fifty, groups, labels),
                "connectivity": scib_metrics.graph_connectivity(fifteen, labels),
            }
    scores: dict[str, float] = {}
    for name, group in (("bio", bio), ("batch", mixed)):
        found = {metric: float(np.nan_to_num(value)) for metric, value in group.items()}
        scores |= found | ({name: float(np.mean(list(found.values())))} if found else {})
    if mixed:
        scores["total"] = 0.6 * scores["bio"] + 0.4 * scores["batch"]
    return scores


@dataclass(frozen=True)
class IntegrationReport:
    """The result, and the embeddings of all cells for pictures: method -> float [n, d]."""

    result: AlignmentResult
    embeddings: Mapping[str, Array]
    cell_types: Array
    technical_batches: Array


def evaluate_integration(
    data: str = DEFAULT_DATA,
    *,
    models: Sequence[PretrainedModel] = (),
    num_seeds: int = 5,
    space: str | None = None,
    obs_fields: Mapping[str, str | None] | None = None,
    others: Sequence[Baseline[AllCells, Array]] = (),
    organism: str | None = None,
    assembly: str | None = None,
    say: Say = lambda message: None,
) -> IntegrationReport:
    """Scores the joint embedding of all cells beside PCA, corrections of it, CCA on the pairs, and pseudo-pairs.

    Each embedding of a model is scored as it is, and as `scmbert integrate` corrects it.

    Args:
      models: trained models of one method, one per seed; a single one is embedded with `num_seeds` token draws.
      space: of the models, "aligned" or "cell"; None: both where they were trained for the aligned one, which stands
        first, else "cell", all modalities of a cell read together.
      obs_fields: standard field -> column of obs, where it is not recognised by its name.
      others: further baselines, such as other projects' (`benchmarks.integration_peers`).

    Raises:
      InputError: before anything is embedded, cells without types, of one type, or too few; models without that space.
    """
    if num_seeds < 1:
        raise ConfigError(f"num_seeds {num_seeds}: expected 1 or more.")
    _require_scib_metrics()
    dataset = open_dataset(data)
    cells = read_modalities(dataset, organism=organism, assembly=assembly, obs_fields=obs_fields)
    everyone = AllCells(cells)
    known = everyone.types != ""
    if not known.any():
        raise InputError(
            f"{dataset.path}: integration needs cell types, and the cell metadata has none "
            f"({', '.join(map(str, dataset.obs.columns))}). Say which column holds them: --obs-field cell_type=COLUMN"
        )
    if len(np.unique(everyone.batches[known])) > 1:
        known &= everyone.batches != ""
    check_labels(everyone.types[known])
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

    notes = list(_notes(len(np.unique(everyone.batches[known])) > 1))
    for baseline in (*INTEGRATION_BASELINES, *others):
        if not baseline.possible(everyone):
            continue
        say(baseline.name)
        try:
            whole = baseline.fitted(everyone, None)
        except InputError as error:  # too few links, say
            notes.append(f"No row of {baseline.name}: {error}")
            continue
        seeds = [baseline.fitted(everyone, seed) for seed in range(num_seeds)]
        add(baseline.name, baseline.uses, whole, seeds)
    information = {}
    for place, chosen in enumerate(_spaces(models, space)):
        trained = embedded_models(models, dataset, num_seeds, chosen, organism=organism, assembly=assembly)
        for method, embedded in trained.items():
            name = f"{method}, {chosen} space" + ("" if place else ", the model's own")
            say(name)
            information = embedded.information()
            seeds = [everyone.embedded(embedded, seed) for seed in range(embedded.num_seeds)]
            add(name, embedded.uses(), None, seeds)
            if several_batches(everyone):
                corrected = [_corrected(x, everyone.batches, seed) for seed, x in enumerate(seeds)]
                add(f"{name}, soft clusters", f"{embedded.uses()}; technical batches", None, corrected)
    if models:
        named = [(f"model {number}", model.trained_cells) for number, model in enumerate(models)]
        identified = identified_cells(dataset, organism=organism, assembly=assembly)
        notes += what_models_saw(named, identified, np.flatnonzero(np.isin(identified.cell_ids, everyone.ids)))
    result = AlignmentResult("integration", data, tuple(rows), tuple(notes), information)
    return IntegrationReport(result, pictures, everyone.types, everyone.batches)


def _corrected(embedding: Array, batches: Array, seed: int) -> Array:
    known = np.isfinite(embedding[:, 0])
    corrected = np.full(embedding.shape, np.nan)
    corrected[known] = correct_clusters(embedding[known], batches[known], seed=seed)
    return corrected


def _spaces(models: Sequence[PretrainedModel], space: str | None) -> list[str]:
    """The spaces to score: the one asked for, else the one the models were trained to compare cells in, and "cell"."""
    if space is not None or not models:
        return [space] if space is not None and models else []
    return list(dict.fromkeys([comparison_space(models[0]), "cell"]))


def _notes(several_batches: bool) -> tuple[str, ...]:
    import scib_metrics

    groups = (
        "bio: mean of isolated labels, NMI, ARI, silhouette, cLISI; batch: mean of BRAS, iLISI, kBET, connectivity; "
        "total: 0.6 bio + 0.4 batch."
        if several_batches
        else "bio: mean of NMI, ARI, silhouette, cLISI. The cells are of one technical batch: nothing is to be mixed."
    )
    return (
        f"scib-metrics {scib_metrics.__version__}; its values are not those of the older scib. 1 is best everywhere. "
        f"{groups}",
        "All but PCA are told the technical batches. CCA, pseudo-pairs and centring take the mean of each off: that "
        "hides a real difference of composition between them, too. Soft clusters: the algorithm of Harmony, ours.",
        "Each figure is the fit to all cells; in brackets mean ± half of the 95% Student-t interval over seeds (80% of "
        "the cells each; for models, trained seeds or token draws; for Harmony and scVI, random starts).",
        "Aligned space: the modalities of a cell, each read alone, in the contrastive space, and their mean; cell "
        f"space: read together by the encoder. {LINEAR_PATH_ALONE}: the same models without their transformer.",
    )


def write_integration_report(path: Path, report: IntegrationReport, run_info: Mapping[str, Any]) -> Path:
    """`report.html`: tables and UMAPs of each method, coloured by type and technical batch."""
    from scmbert_jax.evaluation.report.projection import compute_umap
    from scmbert_jax.evaluation.report.report import write_report

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
