"""What the suite is given: the network that is taken for true, cells, other networks, all by one name for each gene."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.features.gene_names import find_gene
from data_pipelines.features.gene_tables import load_gene_table
from data_pipelines.networks.beeline import LabelNetwork, is_beeline_folder, read_beeline_folder
from data_pipelines.networks.edge_table import EdgeTable, merged_edges, read_edge_table
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.networks.baselines import Given
from scmbert_jax.evaluation.networks.pairs import Pairs
from scmbert_jax.evaluation.networks.prior_graph import PriorGraph
from scmbert_jax.tasks.modality_cells import read_modalities

Array = np.ndarray


def read_labels(path: str | Path, organism: str) -> LabelNetwork:
    """A BEELINE folder, or a table of edges, in which all genes that an edge names were looked at.

    Names are Ensembl ids where the organism has a gene of the name, else as they are.
    """
    if is_beeline_folder(path):
        found = read_beeline_folder(path)
        regulators, genes = found.regulators, found.genes
        edges = found.edges
    else:
        edges = read_edge_table(path)
        regulators, genes = edges.source, np.concatenate([edges.source, edges.target])
    regulators, genes = (np.array(list(dict.fromkeys(_ids(names, organism).tolist()))) for names in (regulators, genes))
    # A regulator that is none of the genes of a BEELINE folder is one all the same.
    return LabelNetwork(_by_id(edges, organism), regulators, np.array(list(dict.fromkeys([*genes, *regulators]))))


def among_measured(labels: LabelNetwork, measured: Array) -> LabelNetwork:
    """Without the genes that are not among str [F]."""
    kept = np.isin(labels.edges.source, measured) & np.isin(labels.edges.target, measured)
    own = labels.edges
    edges = EdgeTable(
        own.source[kept], own.target[kept], own.sign[kept], own.confidence[kept], own.weight[kept], own.name, {}
    )
    regulators, genes = (names[np.isin(names, measured)] for names in (labels.regulators, labels.genes))
    return LabelNetwork(edges, regulators, genes)


def read_expression(path: str, organism: str | None) -> tuple[Array, Array]:
    """(str [F] ids, float32 [n, F] log1p of counts over the depth of the cell) of RNA. Raises InputError without it."""
    cells = read_modalities(path, organism=organism)
    if "rna" not in cells:
        raise InputError(f"{path}: no RNA in it, which co-expression needs.")
    return cells["rna"].features.ids.astype(str), cells["rna"].values.toarray().astype(np.float32)


def given_for(
    pairs: Pairs, expression: tuple[Array, Array] | None, priors: Sequence[str | Path], organism: str
) -> Given:
    """Columns of `expression` in the order of the pairs' genes; edges of the priors among the pairs."""
    values = None
    if expression is not None:
        ids, of_ids = expression
        place = {name: number for number, name in enumerate(ids.tolist())}
        values = of_ids[:, [place[name] for name in pairs.genes.tolist()]]
    tables = [_by_id(read_edge_table(path), organism) for path in priors]
    return Given(values, PriorGraph.of(tables, pairs.regulators, pairs.genes) if tables else None)


def read_scores(path: str | Path, pairs: Pairs, organism: str) -> tuple[Array, str]:
    """(float [R, G], what it covers) of a network that somebody brings: sizes of weights, 0 where it has no edge.

    Raises InputError where none of its edges is among the pairs.
    """
    edges = _by_id(read_edge_table(path), organism)
    scores = weights_of(pairs, edges)
    there = int((scores > 0).sum())
    if not there:
        raise InputError(
            f"{path}: none of its {len(edges):,} edges is among the pairs; it has {edges.source[0]} -> "
            f"{edges.target[0]}, the pairs {pairs.regulators[0]} -> {pairs.genes[0]}"
        )
    sides = (
        f"{np.isin(own, np.unique(theirs)).sum():,} of {len(own):,} {what}"
        for own, theirs, what in (
            (pairs.regulators, edges.source, "regulators"),
            (pairs.genes, edges.target, "genes"),
        )
    )
    return scores, f"{path}: {there:,} of its {len(edges):,} edges are among the pairs; it knows {' and '.join(sides)}"


def weights_of(pairs: Pairs, edges: EdgeTable) -> Array:
    """float64 [R, G], the size of the weight of each edge; 0 where there is none."""
    rows, columns = (
        {name: number for number, name in enumerate(names.tolist())} for names in (pairs.regulators, pairs.genes)
    )
    found = np.zeros(pairs.is_edge.shape)
    kept = np.isin(edges.source, pairs.regulators) & np.isin(edges.target, pairs.genes)
    places = (
        [rows[name] for name in edges.source[kept].tolist()],
        [columns[name] for name in edges.target[kept].tolist()],
    )
    found[places] = np.abs(edges.weight[kept])
    return found


def _by_id(table: EdgeTable, organism: str) -> EdgeTable:
    source, target = _ids(table.source, organism), _ids(table.target, organism)
    return merged_edges(source, target, table.sign, table.confidence, table.weight, table.name, table.problems)


def _ids(names: Array, organism: str) -> Array:
    genes = load_gene_table(organism)
    found = {name: find_gene(name, genes)[0] or name for name in dict.fromkeys(names.tolist())}
    return np.array([found[name] for name in names.tolist()])
