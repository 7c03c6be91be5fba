"""`perturb`: a model, cells and genes -> what removing each gene changes of the others, beside what needs no model.

Each gene is perturbed in each cell type alone, and so are the genes that are like it there (matched_null.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import rankdata

from data_pipelines.features.column_names import known_text
from data_pipelines.networks.gene_network import network_of_genes
from data_pipelines.networks.named_networks import read_network
from data_pipelines.readers.dataset import Dataset
from scmbert_jax.annotation.labels import check_obs_column
from scmbert_jax.annotation.representation import Reading
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.interpretation.matched_null import Tested, against_null, matched_genes
from scmbert_jax.interpretation.perturbation import REMOVED, CellsToPerturb, Responses, read_out_of
from scmbert_jax.interpretation.randomisation import spearman
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.translation_targets import target_features

Array = np.ndarray
Progress = Callable[[str, int, int], None]

ALL_CELLS = "all"
_GENES_AT_A_TIME = 512  # that are ranked: what bounds memory
_FEWEST_MATCHED = 5


@dataclass(frozen=True)
class PerturbOptions:
    """How genes are perturbed. Raises `ConfigError` naming the option that cannot be.

    Attributes:
      raise_to: a multiple of the gene's count; None: it is removed.
      by: column of obs; each of its values is a cell type by itself. None: all cells are one.
      network: edges, by whose number genes are matched, too.
      num_matched: genes that are perturbed for the null of each gene.
      cells_per_gene: cells that are perturbed in a gene, at most.
      max_cells: cells that are looked at of each cell type, at most.
      min_cells: cells of a cell type that must have a gene.
      seed: of the cells that are drawn.
    """

    raise_to: float | None = None
    by: str | None = None
    network: str | None = None
    num_matched: int = 50
    cells_per_gene: int = 100
    max_cells: int = 2000
    min_cells: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.raise_to is not None and not 1 < self.raise_to <= 1000:
            raise ConfigError(
                f"--raise-to {self.raise_to:g}: expected a multiple of the count, above 1 and at most 1,000."
            )
        for option, value, least, most in (
            ("--matched", self.num_matched, _FEWEST_MATCHED, 10_000),
            ("--cells-per-gene", self.cells_per_gene, 2, 1_000_000),
            ("--max-cells", self.max_cells, 10, 1_000_000),
            ("--min-cells", self.min_cells, 2, 1_000_000),
            ("--seed", self.seed, 0, 2**63),
        ):
            if not least <= value <= most:
                raise ConfigError(f"{option} {value:,}: expected {least:,} to {most:,}.")

    @property
    def times(self) -> float:
        return REMOVED if self.raise_to is None else self.raise_to


@dataclass(frozen=True)
class PerturbedGene:
    """One gene in the cells of one type.

    Attributes:
      name, feature_id, cell_type: of what.
      cells, having, perturbed: cells of the type that were looked at, that have the gene, that were perturbed.
      genes: table of T downstream genes, what responds most first: gene, gene_id, response, response_sd, null_mean,
        null_sd, z, p, q, spearman, mean_shift.
      null_z: float64 [N, T], z of the matched genes, in the order of `genes`; matched: their N names.
      tested: see there; in the order of the model's genes.
      shift: 1 - cosine of the cell embedding, the mean; null_shift: float32 [N], those of the matched genes.
      detection, null_detection: fraction of the cells that have it; the median of the matched genes.
    """

    name: str
    feature_id: str
    cell_type: str
    cells: int
    having: int
    perturbed: int
    genes: pd.DataFrame
    null_z: Array
    matched: tuple[str, ...]
    tested: Tested
    shift: float
    null_shift: Array
    detection: float
    null_detection: float

    def summary(self) -> dict[str, Any]:
        """One row: counts, what was found, and how far it is what co-expression says."""
        table, tested = self.genes, self.tested
        return {
            "perturbed": self.name,
            "cell_type": self.cell_type,
            "cells": self.cells,
            "with_it": self.having,
            "perturbed_cells": self.perturbed,
            "without_it": self.cells - self.having,
            "tested_genes": int(np.isfinite(tested.z).sum()),
            "q_below_.05": tested.found,
            "matched_genes": len(self.matched),
            "matched_like_it": tested.like_it,
            "smallest_p": tested.resolution,
            "strength": tested.strength,
            "p_of_strength": tested.strength_p,
            "shift": self.shift,
            "p_of_shift": float((1 + (self.null_shift >= self.shift).sum()) / (1 + len(self.null_shift))),
            "agrees_with_spearman": _agreement(table["response"], table["spearman"]),
            "agrees_with_mean_shift": _agreement(table["response"], table["mean_shift"]),
            "detection": self.detection,
            "matched_detection": self.null_detection,
        }


def _agreement(response: pd.Series, other: pd.Series) -> float:
    both = response.notna() & other.notna()
    if not both.any():  # all cells have the gene, so nothing is shifted
        return np.nan
    return spearman(response[both].to_numpy(), other[both].to_numpy())


@dataclass(frozen=True)
class Perturbation:
    """The result of `perturb`.

    Attributes:
      found: each gene in each cell type in which enough cells have it.
      skipped: table of perturbed, cell_type, cells, with_it: what was not scored.
      unlabelled: cells without a value of `PerturbOptions.by`, which are left out.
      covers: how much of `PerturbOptions.network` the model's genes have; "" without one.
      read_out: what a response is (`perturbation.read_out_of`).
      model, data: their folder and path; options: as asked.
    """

    found: tuple[PerturbedGene, ...]
    skipped: pd.DataFrame
    unlabelled: int
    covers: str
    read_out: str
    model: str
    data: str
    options: PerturbOptions

    def summary(self) -> pd.DataFrame:
        return pd.DataFrame([own.summary() for own in self.found])

    def table(self) -> pd.DataFrame:
        """A row for each perturbed gene, cell type and downstream gene, what responds most first."""
        tables = []
        for own in self.found:
            table = own.genes.copy()
            table.insert(0, "cell_type", own.cell_type)
            table.insert(0, "perturbed", own.name)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)


def perturb(
    model: PretrainedModel,
    cells: Any,
    genes: Sequence[str],
    options: PerturbOptions | None = None,
    *,
    reading: Reading | None = None,
    progress: Progress | None = None,
) -> Perturbation:
    """Perturbs each of `genes`, and the genes that are like it, one at a time.

    Args:
      model: knows RNA.
      cells: whatever `open_dataset` takes.
      genes: names or ids.
      options, reading: see there.
      progress: called with (what is done, pairs of a cell and a gene done, pairs in all).

    Raises:
      InputError: a gene that the model does not know or the file does not measure, or that too few cells of every type
        have; no such column; a network without an edge between genes of the model; or what `open_model_cells` raises.
    """
    options = options or PerturbOptions()
    known = model.feature_space.modalities["rna"] if "rna" in model.config.modalities.in_use() else None
    if known is None:
        raise InputError("the model does not read RNA; what is perturbed is the count of a gene.")
    if not any(genes):
        raise ConfigError("--gene: none is named.")
    asked = np.sort(target_features(model, "rna", list(genes)))
    groups = None if options.by is None else lambda dataset: _cell_types(dataset, str(options.by))
    opened = CellsToPerturb.open(
        model, cells, groups=groups, most=options.max_cells, seed=options.seed, reading=reading
    )
    path = opened.cells.report.path
    _require_measured(opened, known.names, asked)
    dataset = opened.cells.dataset
    labels = np.full(len(dataset.cell_ids), ALL_CELLS) if groups is None else groups(dataset)
    of_cell = labels[opened.rows]
    degree, covers = None, ""
    if options.network is not None:
        degree, covers = _degree(options.network, known.ids, model.feature_space.organism)
    counts, expression = opened.drawn.counts["rna"], _rna_expression(opened)
    types = sorted(set(of_cell.tolist()))
    having = {name: counts[np.flatnonzero(of_cell == name)].getnnz(axis=0) for name in types}
    _require_cells(path, known.names, asked, having, options)
    found, skipped = [], []
    for name in types:
        rows = np.flatnonzero(of_cell == name)
        there = asked[having[name][asked] >= options.min_cells]
        skipped += [
            {"perturbed": str(known.names[gene]), "cell_type": name, "cells": len(rows), "with_it": int(number)}
            for gene, number in zip(asked.tolist(), having[name][asked].tolist(), strict=True)
            if number < options.min_cells
        ]
        if len(there):
            told = None if progress is None else lambda done, total, name=name: progress(f"perturb {name}", done, total)
            found += _of_type(opened, name, rows, there, expression[rows], having[name], degree, options, told)
    order = {str(known.ids[gene]): place for place, gene in enumerate(asked.tolist())}
    found.sort(key=lambda own: (order[own.feature_id], own.cell_type))
    columns = ["perturbed", "cell_type", "cells", "with_it"]
    where = str(model.folder or "")
    return Perturbation(
        tuple(found),
        pd.DataFrame(skipped, columns=columns),
        int((labels == "").sum()),
        covers,
        read_out_of(model),
        where,
        path,
        options,
    )


def _of_type(
    opened: CellsToPerturb,
    cell_type: str,
    rows: Array,
    genes: Array,
    expression: sp.csr_matrix,
    having: Array,
    degree: Array | None,
    options: PerturbOptions,
    progress: Callable[[int, int], None] | None,
) -> list[PerturbedGene]:
    known = opened.model.feature_space.modalities["rna"]
    candidates = np.flatnonzero(having >= options.min_cells)
    if len(candidates) <= _FEWEST_MATCHED:
        raise InputError(
            f"{opened.cells.report.path}: {len(candidates)} genes are in {options.min_cells:,} cells or more of "
            f"{cell_type}, too few for a null of matched genes; look at more cells (--max-cells) or lower --min-cells."
        )
    figures = _figures(expression, having, degree)
    matched = {gene: matched_genes(gene, figures, candidates, options.num_matched) for gene in genes.tolist()}
    perturbed = np.unique(np.concatenate([genes, *matched.values()]))
    told = opened.responses(
        perturbed,
        targets=candidates,
        rows=rows,
        times=options.times,
        cells_per_gene=options.cells_per_gene,
        progress=progress,
    )
    place = {gene: number for number, gene in enumerate(perturbed.tolist())}
    column = {gene: number for number, gene in enumerate(candidates.tolist())}
    mean = told.mean.copy()
    mean[np.arange(len(perturbed)), [column[gene] for gene in perturbed.tolist()]] = np.nan  # of itself
    told = told._replace(mean=mean)
    correlation, difference = _co_expression(expression, genes, candidates)
    found = []
    for number, gene in enumerate(genes.tolist()):
        own, others = place[gene], np.array([place[other] for other in matched[gene].tolist()])
        tested = against_null(mean[own], mean[others])
        table = _table(told, own, tested, known, candidates, correlation[number], difference[number])
        table = table.drop(index=column[gene])
        order = table.sort_values(["p", "size", "gene_id"], ascending=[True, False, True]).index.to_numpy()
        found.append(
            PerturbedGene(
                name=str(known.names[gene]),
                feature_id=str(known.ids[gene]),
                cell_type=cell_type,
                cells=len(rows),
                having=int(having[gene]),
                perturbed=int(told.cells[own]),
                genes=table.loc[order].drop(columns="size").reset_index(drop=True),
                null_z=tested.null_z[:, order],
                matched=tuple(known.names[matched[gene]].tolist()),
                tested=tested,
                shift=float(told.shift[own]),
                null_shift=told.shift[others],
                detection=float(having[gene] / len(rows)),
                null_detection=float(np.median(having[matched[gene]]) / len(rows)),
            )
        )
    return found


def _table(
    told: Responses, own: int, tested: Tested, known: Any, targets: Array, correlation: Array, difference: Array
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "gene": known.names[targets],
            "gene_id": known.ids[targets],
            "response": told.mean[own],
            "response_sd": told.std[own],
            "null_mean": tested.mean,
            "null_sd": tested.std,
            "z": tested.z,
            "p": tested.p,
            "q": tested.q,
            "spearman": correlation,
            "mean_shift": difference,
            "size": np.abs(tested.z),
        }
    )


def _figures(expression: sp.csr_matrix, having: Array, degree: Array | None) -> Array:
    """float64 [G, 2 or 3]: by what genes are like each other. Logs, so that a ratio counts alike at any level."""
    level = np.asarray(expression.sum(axis=0)).ravel() / np.maximum(having, 1)  # of the cells that have it
    parts = [np.log(np.maximum(having, 1)), np.log(np.maximum(level, 1e-9))]
    return np.stack(parts if degree is None else [*parts, np.log1p(degree)], axis=1)


def _co_expression(expression: sp.csr_matrix, genes: Array, targets: Array) -> tuple[Array, Array]:
    """What needs no model, float64 [P, T] each: Spearman's correlation over the cells, 0 where one does not vary, and
    the mean of cells with the gene minus that of those without it, nan where all have it."""

    def centred_ranks(columns: Array) -> Array:
        ranks = rankdata(expression[:, columns].toarray(), axis=0)
        ranks -= ranks.mean(axis=0)
        size = np.sqrt((ranks**2).sum(axis=0))
        return ranks / np.where(size > 0, size, 1.0)

    own, has = centred_ranks(genes), expression[:, genes].toarray() > 0
    with np.errstate(invalid="ignore"):
        weights = has / has.sum(axis=0) - np.where(has, 0.0, 1.0) / (~has).sum(axis=0)  # [n, P]
    correlation = np.zeros((len(genes), len(targets)))
    difference = np.zeros_like(correlation)
    for start in range(0, len(targets), _GENES_AT_A_TIME):
        some = slice(start, start + _GENES_AT_A_TIME)
        correlation[:, some] = own.T @ centred_ranks(targets[some])
        difference[:, some] = weights.T @ expression[:, targets[some]].toarray()
    return correlation, difference


def _rna_expression(opened: CellsToPerturb) -> sp.csr_matrix:
    """float64 CSR [n, G]: log1p of counts per 10,000."""
    first, stop = opened.drawn.slices["rna"]
    return opened.drawn.expression()[:, first:stop]


def _cell_types(dataset: Dataset, column: str) -> Array:
    check_obs_column(dataset, column, "--by")
    found = known_text(dataset.obs[column])
    if not (found != "").any():
        raise InputError(f"{dataset.path}: no cell has a value in obs[{column!r}] (--by); name another column.")
    return found


def _require_measured(opened: CellsToPerturb, names: Array, genes: Array) -> None:
    lacking = genes[~opened.measured[genes]]
    if len(lacking):
        raise InputError(
            f"{opened.cells.report.path}: does not measure {', '.join(names[lacking].tolist())}, so it can be "
            "perturbed in none of its cells; leave it out, or give a file with it."
        )


def _require_cells(path: str, names: Array, genes: Array, having: dict[str, Array], options: PerturbOptions) -> None:
    for gene in genes.tolist():
        numbers = {name: int(own[gene]) for name, own in having.items()}
        if max(numbers.values()) < options.min_cells:
            most = max(numbers, key=lambda name: numbers[name])
            where = "" if options.by is None else f" of {most} (of the other types not more)"
            raise InputError(
                f"{path}: {names[gene]} has a count in {numbers[most]:,} cells{where} of those looked at; at least "
                f"{options.min_cells:,} are needed (--min-cells). Look at more cells (--max-cells), or leave it out."
            )


def _degree(network: str, gene_ids: Array, organism: str | None) -> tuple[Array, str]:
    """(int64 [G], edges of a network that each gene is in; how much of it they have)."""
    species = organism or "human"
    known = network_of_genes(read_network(network, species), species)
    edges = known.indexed(gene_ids)
    degree = np.bincount(edges.source, minlength=len(gene_ids)) + np.bincount(edges.target, minlength=len(gene_ids))
    return degree, f"{network}: {known.coverage(gene_ids)} are in the model"
