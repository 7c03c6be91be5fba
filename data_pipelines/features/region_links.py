"""Which genes a region may regulate: those whose transcription starts near it, or those a table names.

    distance             up to three genes whose TSS lies within 100,000 bp of the region's middle, nearest first
    distance:20000       ... within 20,000 bp
    none                 no links
    links.tsv[.gz]       a header line with the columns region or peak, and gene (others are not read), tab-separated
                         (.csv: commas); one pair a line; regions as chr1:100-200, genes as Ensembl ids or symbols. Only
                         exactly the regions of the corpus get links: peaks that are mapped to a catalogue, those of
                         the catalogue.

A sparse matrix of genes x regions becomes such a table in one line of pandas: rows `genes[m.row]`, `regions[m.col]`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from data_pipelines.features.gene_names import find_gene
from data_pipelines.features.gene_tables import ASSEMBLY_OF, GeneTable, load_gene_table
from data_pipelines.features.genome_assembly import ORGANISM_OF_ASSEMBLY, outside_assembly, parse_regions
from scmbert_jax.errors import InputError

MAX_GENES = 3
MAX_DISTANCE = 100_000  # base pairs; most enhancer-promoter contacts are closer

_DISTANCE = re.compile(r"^distance(:(?P<limit>\d+))?$")
_EXPECTED = "expected distance, distance:BP, none, or a table with the columns region and gene"
_LEAST_KNOWN = 0.5  # fraction of the genes of a table that must be known


class RegionLinks(Protocol):
    """Where links come from. Equal ones give equal links."""

    def of(self, ids: np.ndarray, chrom: np.ndarray, start: np.ndarray, end: np.ndarray, assembly: str) -> Any:
        """tuple [n] of tuples of unversioned Ensembl ids, one per region (ids str [n]; 0-based half-open)."""

    def to_dict(self) -> dict[str, Any]:
        """What reports and manifests say of it."""

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class NearestGenes:
    """By distance to transcription start sites; none on an assembly whose genes the package has no positions of."""

    max_distance: int = MAX_DISTANCE

    def of(
        self, ids: np.ndarray, chrom: np.ndarray, start: np.ndarray, end: np.ndarray, assembly: str
    ) -> tuple[tuple[str, ...], ...]:
        organism = ORGANISM_OF_ASSEMBLY[assembly]
        if ASSEMBLY_OF[organism] != assembly:
            return ((),) * len(ids)
        return nearest_genes(chrom, start, end, load_gene_table(organism), self.max_distance)

    def to_dict(self) -> dict[str, Any]:
        return {"by": "distance to the TSS", "max_distance": self.max_distance, "max_genes": MAX_GENES}


@dataclass(frozen=True)
class NoLinks:
    def of(
        self, ids: np.ndarray, chrom: np.ndarray, start: np.ndarray, end: np.ndarray, assembly: str
    ) -> tuple[tuple[str, ...], ...]:
        return ((),) * len(ids)

    def to_dict(self) -> dict[str, Any]:
        return {"by": "none"}


@dataclass(frozen=True)
class LinksOfFile:
    """Those of a table, read for one assembly."""

    source: str
    assembly: str
    genes_of: Mapping[str, tuple[str, ...]] = field(repr=False, hash=False)
    unknown_genes: int  # pairs left out, for their gene is not known

    def of(
        self, ids: np.ndarray, chrom: np.ndarray, start: np.ndarray, end: np.ndarray, assembly: str
    ) -> tuple[tuple[str, ...], ...]:
        return tuple(self.genes_of.get(region, ()) for region in ids.tolist())

    def to_dict(self) -> dict[str, Any]:
        return {
            "by": "table",
            "source": self.source,
            "regions": len(self.genes_of),
            "pairs": sum(len(genes) for genes in self.genes_of.values()),
            "pairs_left_out_gene_unknown": self.unknown_genes,
        }


NEAREST = NearestGenes()


def region_links(spec: str, assembly: str) -> RegionLinks:
    """Opens what the head of this file lists. Raises InputError for another spec, or a table that cannot be used."""
    match = _DISTANCE.match(spec)
    if match:
        return NearestGenes(int(match["limit"] or MAX_DISTANCE))
    if spec == "none":
        return NoLinks()
    path = Path(spec)
    if not path.is_file():
        raise InputError(f"region links {spec}: no such file; {_EXPECTED}")
    about = path.stat()
    return _read(spec, assembly, (about.st_mtime_ns, about.st_size))


@lru_cache(maxsize=4)
def _read(spec: str, assembly: str, version: tuple[int, int]) -> LinksOfFile:
    """`version`: of the file, so that one that has changed is read again."""
    separator = "," if spec.removesuffix(".gz").endswith(".csv") else "\t"
    try:
        table = pd.read_csv(spec, sep=separator, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except (OSError, EOFError, ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{spec}: cannot be read ({error}); {_EXPECTED}") from error
    table = table.rename(columns={} if "region" in table else {"peak": "region"})
    missing = [column for column in ("region", "gene") if column not in table.columns]
    if missing:
        found = ", ".join(map(str, table.columns[:6]))
        raise InputError(f"{spec}, line 1: no column {' and '.join(missing)} (there is {found}); {_EXPECTED}")
    names = table["region"].to_numpy(dtype=str)
    regions = parse_regions(names)
    lacking, beyond = outside_assembly(regions, assembly)
    for bad, why in (
        (~regions.valid, "is not a region; expected chr1:100-200"),
        (lacking | beyond, f"does not lie in {assembly}; the links are probably of another assembly"),
    ):
        if bad.any():
            place = int(np.argmax(bad))
            raise InputError(f"{spec}, line {place + 2:,}: {str(names[place])!r} {why}")
    ids = [f"{c}:{s}-{e}" for c, s, e in zip(regions.chrom.tolist(), regions.start, regions.end, strict=True)]
    genes = load_gene_table(ORGANISM_OF_ASSEMBLY[assembly])
    found_genes = {name: find_gene(name, genes)[0] for name in set(table["gene"])}
    unknown = table["gene"][[not found_genes[name] for name in table["gene"]]]
    if len(table) == 0 or len(unknown) > (1 - _LEAST_KNOWN) * len(table):
        shown = ", ".join(unknown.unique()[:3]) or "none"
        raise InputError(
            f"{spec}: {len(unknown):,} of {len(table):,} genes are not known as {genes.organism} genes ({shown}); give "
            "Ensembl ids or official symbols"
        )
    links: dict[str, dict[str, None]] = {}
    for region, name in zip(ids, table["gene"], strict=True):
        if found_genes[name]:
            links.setdefault(region, {})[found_genes[name]] = None
    return LinksOfFile(Path(spec).name, assembly, {r: tuple(found) for r, found in links.items()}, len(unknown))


def nearest_genes(
    chrom: np.ndarray, start: np.ndarray, end: np.ndarray, genes: GeneTable, max_distance: int = MAX_DISTANCE
) -> tuple[tuple[str, ...], ...]:
    """For each region the ids of up to 3 genes whose TSS is nearest to its middle, nearest first.

    Args:
      chrom, start, end: [n] regions of the assembly of `genes`, 0-based half-open.
      max_distance: base pairs from the middle to a TSS, at most.
    """
    links: list[tuple[str, ...]] = [()] * len(chrom)
    for name in np.unique(chrom).tolist():
        if name not in genes.tss_by_chromosome:
            continue
        tss, rows = genes.tss_by_chromosome[name]
        regions = np.flatnonzero(chrom == name)
        middle = (start[regions] + end[regions]) // 2
        # The three nearest are among the three before and the three after the middle.
        place = np.searchsorted(tss, middle)[:, None] + np.arange(-MAX_GENES, MAX_GENES)[None, :]  # [n, 6]
        inside = (place >= 0) & (place < len(tss))
        place = np.clip(place, 0, len(tss) - 1)
        distance = np.where(inside, np.abs(tss[place] - middle[:, None]), max_distance + 1)
        order = np.argsort(distance, axis=1, kind="stable")[:, :MAX_GENES]
        near = np.take_along_axis(distance, order, axis=1) <= max_distance
        gene_rows = rows[np.take_along_axis(place, order, axis=1)]
        for region, found, keep in zip(regions.tolist(), gene_rows, near, strict=True):
            links[region] = tuple(dict.fromkeys(genes.ids[found[keep]].tolist()))
    return tuple(links)
