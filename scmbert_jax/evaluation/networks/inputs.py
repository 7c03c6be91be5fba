"""What the suite is given: the network that is taken for true, cells, other networks, all by one name for each gene."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.features.gene_names import find_gene
from data_pipelines.features.gene_tables import load_gene_table
from data_pipelines.networks.beeline import LabelNetwork, is_beeline_folder, read_beeline_folder
from data_pipelines.networks.edge_table import EdgeTable, merged_edges
from data_pipelines.networks.gene_network import another_organism
from data_pipelines.networks.named_networks import read_network
from data_pipelines.synthetic import regulation
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.networks.baselines import Given
from scmbert_jax.evaluation.networks.pairs import Pairs
from scmbert_jax.evaluation.networks.prior_graph import PriorGraph
from scmbert_jax.tasks.modality_cells import read_modalities

Array = np.ndarray
Expression = tuple[Array, Array]  # str [F] ids, float32 [n, F] log1p of counts over the depth of the cell

EXAMPLE = regulation.NAME
_SHOWN = 3


def read_labels(path: str | Path, organism: str) -> LabelNetwork:
    """A BEELINE folder, or a table of edges, in which all genes that an edge names were looked at.

    Names are Ensembl ids where the organism has a gene of the name, else as they are.
    """
    if is_beeline_folder(path):
        found = read_beeline_folder(path)
        regulators, genes = found.regulators, found.genes
        edges = found.edges
    else:
        edges = read_network(path, organism)
        regulators, genes = edges.source, np.concatenate([edges.source, edges.target])
    regulators, genes = (np.array(list(dict.fromkeys(_ids(names, organism).tolist()))) for names in (regulators, genes))
    # A regulator that is none of the genes of a BEELINE folder is one all the same.
    return LabelNetwork(by_id(edges, organism), regulators, np.array(list(dict.fromkeys([*genes, *regulators]))))


def read_example(data: str | None, priors: Sequence[str | Path]) -> tuple[LabelNetwork, Expression, list[EdgeTable]]:
    """The network, the cells and the prior of `example:network`. Raises ConfigError where others are given, too."""
    for option, given in (("--data", data), ("--prior", priors)):
        if given:
            raise ConfigError(f"{option}: {EXAMPLE} has cells and a prior of its own; give a true network, too.")
    planted = regulation.planted_network()
    depth = planted.counts.sum(1, keepdims=True)
    values = np.log1p(planted.counts / depth * np.median(depth)).astype(np.float32)
    labels = LabelNetwork(planted.edges, planted.regulators, planted.genes)
    return labels, (planted.genes, values), [planted.prior]


def among_measured(labels: LabelNetwork, measured: Array, organism: str) -> LabelNetwork:
    """Without the genes that are not among str [F]. Raises InputError where no edge stays."""
    own = labels.edges
    kept = np.isin(own.source, measured) & np.isin(own.target, measured)
    if not kept.any():
        raise InputError(
            f"{own.name}: none of its {len(own):,} edges is between genes of the cells; it has {_some(own.source)}, "
            f"the cells {_some(measured)}{another_organism(np.unique(own.source), organism)}"
        )
    regulators, genes = (names[np.isin(names, measured)] for names in (labels.regulators, labels.genes))
    return LabelNetwork(own.among(kept), regulators, genes)


def read_expression(path: str, organism: str | None) -> Expression:
    """Raises InputError without RNA."""
    cells = read_modalities(path, organism=organism)
    if "rna" not in cells:
        raise InputError(f"{path}: no RNA in it, which co-expression needs.")
    return cells["rna"].features.ids.astype(str), cells["rna"].values.toarray().astype(np.float32)


def given_for(pairs: Pairs, expression: Expression | None, priors: Sequence[EdgeTable], organism: str) -> Given:
    """Columns of `expression` in the order of the pairs' genes; edges of the priors among the pairs.

    Raises InputError where a prior has none of the genes of the pairs.
    """
    values = None
    if expression is not None:
        ids, of_ids = expression
        place = {name: number for number, name in enumerate(ids.tolist())}
        values = of_ids[:, [place[name] for name in pairs.genes.tolist()]]
    for prior in priors:
        names = np.concatenate([prior.source, prior.target])
        if not np.isin(pairs.genes, names).any():
            raise InputError(
                f"{prior.name}: none of its genes is among the pairs; it has {_some(names)}, the pairs "
                f"{_some(pairs.genes)}{another_organism(np.unique(names), organism)}"
            )
    return Given(values, PriorGraph.of(priors, pairs.regulators, pairs.genes) if priors else None)


def scores_of(edges: EdgeTable, pairs: Pairs, organism: str) -> tuple[Array, str]:
    """(float [R, G], what it covers) of a network that somebody brings: sizes of weights, 0 where it has no edge.

    Raises InputError where none of its edges is among the pairs.
    """
    scores = weights_of(pairs, edges)
    there = int((scores > 0).sum())
    if not there:
        raise InputError(
            f"{edges.name}: none of its {len(edges):,} edges is among the pairs; it has {edges.source[0]} -> "
            f"{edges.target[0]}, the pairs {pairs.regulators[0]} -> {pairs.genes[0]}"
            f"{another_organism(np.unique(edges.source), organism)}"
        )
    sides = (
        f"{np.isin(own, np.unique(theirs)).sum():,} of {len(own):,} {what}"
        for own, theirs, what in (
            (pairs.regulators, edges.source, "regulators"),
            (pairs.genes, edges.target, "genes"),
        )
    )
    found = f"{edges.name}: {there:,} of its {len(edges):,} edges are among the pairs; it knows {' and '.join(sides)}"
    return scores, found + told(edges)


def row_names(paths: Sequence[str]) -> list[str]:
    """What the rows of a table call files or folders: their names, or the paths of those that share one.

    Raises ConfigError where a path is given twice.
    """
    names = [Path(path).name or path for path in paths]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise ConfigError(f"{twice[0]}: is given twice; name it once.")
    return [path if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]


def told(edges: EdgeTable) -> str:
    """What is to be said of a file of edges, after a semicolon."""
    return "".join(f"; {number:,} {what}" for what, number in edges.problems.items())


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


def by_id(table: EdgeTable, organism: str) -> EdgeTable:
    """With Ensembl ids for names that are genes of the organism; counts the others, which stay as they are."""
    source, target = _ids(table.source, organism), _ids(table.target, organism)
    genes = load_gene_table(organism)
    whys = [find_gene(name, genes) for name in np.unique(np.concatenate([source, target])).tolist()]
    strange = {
        f"names that are no {organism} genes and stand as they are": sum(not gene for gene, _ in whys),
        "names that a spreadsheet made a date": sum(why == "a date" for _, why in whys),
    }
    own = table.sign, table.confidence, table.weight, table.name, strange | table.problems, table.about
    return merged_edges(source, target, *own)


def _ids(names: Array, organism: str) -> Array:
    genes = load_gene_table(organism)
    found = {name: find_gene(name, genes)[0] or name for name in dict.fromkeys(names.tolist())}
    return np.array([found[name] for name in names.tolist()])


def _some(names: Array) -> str:
    return ", ".join(np.unique(names)[:_SHOWN].tolist())
