"""Edges between known genes of an organism: what an edge table becomes, and how much of it a list of genes has."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.features.gene_names import ANOTHER_SPECIES, find_gene
from data_pipelines.features.gene_tables import ORGANISMS, load_gene_table
from data_pipelines.networks.edge_table import EdgeTable, merged_edges
from scmbert_jax.errors import InputError

_LEAST_KNOWN = 0.5  # fraction of the names that must be known
_SHOWN = 3
_UNKNOWN = "lines with unknown genes"
# Why a name is no gene, as `find_gene` tells it -> how lines with such names are reported.
_REASONS = {
    "a date": "lines with genes that a spreadsheet made a date (1-Mar was MARCHF1 or MTARC1)",
    "ambiguous": "lines with symbols that mean several genes",
    ANOTHER_SPECIES: "lines with genes of another species",
}


@dataclass(frozen=True)
class Coverage:
    """How much of a network a list of genes has.

    Attributes:
      sources, targets, edges: (there, of how many).
    """

    sources: tuple[int, int]
    targets: tuple[int, int]
    edges: tuple[int, int]

    def __str__(self) -> str:
        parts = (("regulators", self.sources), ("targets", self.targets), ("edges", self.edges))
        return ", ".join(f"{there:,} of {number:,} {what}" for what, (there, number) in parts)


@dataclass(frozen=True)
class GeneNetwork:
    """A network whose names are unversioned Ensembl ids.

    Attributes:
      edges: E of them.
      organism: "human" or "mouse".
      unknown: names that are no gene of the organism -> lines that had them.
    """

    edges: EdgeTable
    organism: str
    unknown: dict[str, int]

    def __len__(self) -> int:
        return len(self.edges)

    @property
    def problems(self) -> dict[str, int]:
        """What was found -> how many lines."""
        return self.edges.problems

    @property
    def licence(self) -> str:
        """As the table states it; "" where it does not."""
        return self.edges.licence

    def coverage(self, gene_ids: np.ndarray) -> Coverage:
        """Of the sources, the targets and the edges, those whose genes are among str [G]."""
        sides = [np.unique(names) for names in (self.edges.source, self.edges.target)]
        sources, targets = ((int(np.isin(side, gene_ids).sum()), len(side)) for side in sides)
        return Coverage(sources, targets, (int(self._among(gene_ids).sum()), len(self)))

    def indexed(self, gene_ids: np.ndarray) -> "IndexedEdges":
        """The edges between genes of a list, str [G] without repetition.

        Raises InputError where there is none, with names of both sides.
        """
        kept = np.flatnonzero(self._among(gene_ids))
        if not len(kept):
            raise InputError(
                f"{self.edges.name}: no edge lies between genes of the data ({self.coverage(gene_ids)}); the "
                f"network has {_some(self.edges.source)}, the data {_some(gene_ids)}"
            )
        order = np.argsort(gene_ids, kind="stable")
        source, target = (
            order[np.searchsorted(gene_ids, names[kept], sorter=order)].astype(np.int32)
            for names in (self.edges.source, self.edges.target)
        )
        return IndexedEdges(source, target, self.edges.sign[kept], self.edges.confidence[kept])

    def _among(self, gene_ids: np.ndarray) -> np.ndarray:
        return np.isin(self.edges.source, gene_ids) & np.isin(self.edges.target, gene_ids)


@dataclass(frozen=True)
class IndexedEdges:
    """Edges between places of a list of genes: source, target int32 [E]; sign int8 [E]; confidence float32 [E]."""

    source: np.ndarray
    target: np.ndarray
    sign: np.ndarray
    confidence: np.ndarray


def network_of_genes(table: EdgeTable, organism: str = "human") -> GeneNetwork:
    """Maps the names of a table to genes; lines whose names are none are counted and left out.

    Raises InputError where less than half of the names are genes of the organism; says so where they are another's.
    """
    found, unknown, why = genes_of(table, organism)
    source, target = (np.array([found[name] for name in own.tolist()], str) for own in (table.source, table.target))
    kept = (source != "") & (target != "")
    left, problems = table.among(kept), why | table.problems
    own = source[kept], target[kept], left.sign, left.confidence, left.weight
    edges = merged_edges(*own, table.name, problems, left.about)
    return GeneNetwork(edges, organism, unknown)


def genes_of(table: EdgeTable, organism: str) -> tuple[dict[str, str], dict[str, int], dict[str, int]]:
    """(name -> Ensembl id, "" where it is no gene; such names -> lines that have them; why they are none -> lines).

    Raises InputError as `network_of_genes`.
    """
    genes = load_gene_table(organism)
    names, places = np.unique(np.concatenate([table.source, table.target]), return_inverse=True)
    found = {name: find_gene(name, genes) for name in names.tolist()}
    known = sum(bool(gene) for gene, _ in found.values())
    if known < _LEAST_KNOWN * len(names):
        raise InputError(_too_few(table, names, known, organism, [why for _, why in found.values()]))
    whys = np.array([why if not gene else "" for gene, why in found.values()])[places].reshape(2, -1)
    why = np.where(whys[0] != "", whys[0], whys[1])  # a line that lacks both genes counts once
    counts = {text: int((why == reason).sum()) for reason, text in _REASONS.items()}
    other = int((why != "").sum()) - sum(counts.values())
    lines = np.bincount(places)
    unknown = {name: int(lines[place]) for place, name in enumerate(names.tolist()) if not found[name][0]}
    return (
        {name: gene for name, (gene, _) in found.items()},
        unknown,
        {text: number for text, number in {_UNKNOWN: other, **counts}.items() if number},
    )


def _too_few(table: EdgeTable, names: np.ndarray, known: int, organism: str, why: list[str]) -> str:
    text = f"{table.name}: {known:,} of {len(names):,} names are {organism} genes ({_some(names)})"
    if another := another_organism(names, organism):
        return text + another
    if ANOTHER_SPECIES in why:
        return f"{text}; some are ids of another species: give a network of {organism}"
    if np.char.isdigit(names).mean() > _LEAST_KNOWN:
        return f"{text}; these are numbers, such as those of NCBI Gene: give Ensembl ids or official symbols"
    return f"{text}; give Ensembl ids or official symbols"


def another_organism(names: np.ndarray, organism: str) -> str:
    """What to say where more of the names are genes of another organism, after a comma; else ""."""
    known = {own: _known(names, own) for own in ORGANISMS}
    best = max(known, key=lambda own: known[own])
    if known[best] <= known[organism]:
        return ""
    return f", but {known[best]:,} are {best} genes: give a network of {organism}, or cells of {best}"


def _known(names: np.ndarray, organism: str) -> int:
    genes = load_gene_table(organism)
    return sum(bool(find_gene(name, genes)[0]) for name in names.tolist())


def _some(names: np.ndarray) -> str:
    return ", ".join(np.unique(names)[:_SHOWN].tolist())
