"""Names of a file -> stable features. Nothing is dropped silently: every name gets a status, and they are counted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd

from data_pipelines.antibodies import coding_genes, is_isotype_control, is_known_antibody, normalise_antibody
from data_pipelines.feature_space import ModalityFeatures
from data_pipelines.gene_names import ENSEMBL_ID, ERCC, SPIKE_IN, find_gene, gene_of_symbol, unversioned
from data_pipelines.gene_tables import GeneTable, load_gene_table
from data_pipelines.genome_assembly import outside_assembly, parse_regions
from data_pipelines.region_links import NEAREST, RegionLinks
from data_pipelines.region_space import RegionSpace

# Statuses that leave a column without a feature. A "spike-in" is left out rightly: it does not lower the coverage.
UNMAPPED = (
    "ambiguous",
    "unknown",
    "not a region",
    "no such chromosome",
    "beyond the chromosome",
    "in no region",
)
# Columns of var that may hold gene ids or symbols, ids first.
_GENE_COLUMNS = (
    "gene_ids",
    "gene_id",
    "ensembl",
    "ensembl_id",
    "ensembl_ids",
    "feature_id",
    "id",
    "gene_symbols",
    "gene_symbol",
    "symbol",
    "symbols",
    "gene_name",
    "gene_names",
    "feature_name",
    "name",
)
_EXAMPLES = 5


@dataclass(frozen=True)
class FeatureMapping:
    """What became of each column of a matrix.

    Attributes:
      space: "gene:human", "protein:human", "region:mm10", ...
      source: where the names were taken from: "var index", "var['ensembl']".
      names: str [columns], as the file has them.
      ids: str [columns], the stable id; "" = unmapped.
      status: str [columns], how the name was found ("id", "retired id", "symbol", "alias", "other case", "antibody",
        "isotype control", "no coding gene known", "region", "by overlap") or why it was not (`UNMAPPED`, "spike-in").
      features: the features found, in canonical order; of a `RegionSpace`, all its regions, found or not.
      column_to_feature: int64 [columns], index into `features.ids`, -1 = unmapped. Several columns may share one
        feature: their counts are summed.
    """

    space: str
    source: str
    names: np.ndarray
    ids: np.ndarray
    status: np.ndarray
    features: ModalityFeatures
    column_to_feature: np.ndarray = field(repr=False)

    @property
    def num_mapped(self) -> int:
        return int(np.count_nonzero(self.ids != ""))

    @property
    def num_eligible(self) -> int:
        """Columns that ought to map: all but spike-ins."""
        return int(np.count_nonzero(self.status != SPIKE_IN))

    @cached_property
    def measured(self) -> np.ndarray:
        """bool [features]: some column holds its counts. Others were not measured, which is not a zero."""
        found = np.zeros(len(self.features), bool)
        found[self.column_to_feature[self.column_to_feature >= 0]] = True
        return found

    @property
    def coverage(self) -> float:
        """Share of the eligible columns that map to a feature."""
        return self.num_mapped / max(1, self.num_eligible)

    @cached_property
    def status_counts(self) -> dict[str, int]:
        kinds, counts = np.unique(self.status, return_counts=True)
        return dict(sorted(zip(kinds.tolist(), counts.tolist(), strict=True), key=lambda item: -item[1]))

    def examples(self, *statuses: str) -> list[str]:
        """Up to five names with one of these statuses."""
        return self.names[np.isin(self.status, statuses)][:_EXAMPLES].tolist()

    @property
    def num_summed(self) -> int:
        """Columns that share their feature with an earlier column."""
        return self.num_mapped - int(np.count_nonzero(self.measured))

    def summed_examples(self) -> list[str]:
        """Up to five features that several columns map to, as "ID (name, name)"."""
        mapped = self.column_to_feature[self.column_to_feature >= 0]
        several = np.flatnonzero(np.bincount(mapped, minlength=len(self.features)) > 1)[:_EXAMPLES]
        return [
            f"{self.features.ids[place]} ({', '.join(self.names[self.column_to_feature == place].tolist())})"
            for place in several
        ]


def map_genes(names: np.ndarray, organism: str, source: str = "var index") -> FeatureMapping:
    """Ensembl ids (versions stripped) or symbols -> genes of `organism`."""
    genes = load_gene_table(organism)
    ids, status = _gene_ids(names, genes)
    found = sorted(set(ids.tolist()) - {""})
    rows = np.array([genes.row_of_id[gene_id] for gene_id in found], dtype=np.int64)
    features = ModalityFeatures(
        modality="rna",
        space=f"gene:{organism}",
        ids=genes.ids[rows],
        names=np.where(genes.symbols[rows] != "", genes.symbols[rows], genes.ids[rows]),
        chrom=genes.chrom[rows],
        start=genes.start[rows],
        end=genes.end[rows],
        links=((),) * len(rows),
    )
    return _mapping(source, names, ids, status, features)


def map_proteins(names: np.ndarray, organism: str, source: str = "var index") -> FeatureMapping:
    """Antibody names -> proteins, linked to their coding genes. Every antibody is a feature, known or not."""
    genes = load_gene_table(organism)
    ids = np.array([normalise_antibody(name) for name in names.tolist()], dtype=str)
    links, status = [], []
    for antibody in ids.tolist():
        symbols = coding_genes(antibody)
        # The table has human symbols; the mouse ortholog nearly always has the same one in title case.
        found = [gene_of_symbol(s if organism == "human" else s.capitalize(), genes) for s in symbols]
        links.append(tuple(dict.fromkeys(gene for gene in found if gene)))
        status.append(
            "unknown"
            if not antibody
            else "isotype control"
            if is_isotype_control(antibody)
            else "antibody"
            if links[-1]
            else "no coding gene known"
        )
    named = np.flatnonzero(ids != "")
    features = ModalityFeatures.sorted(
        "protein",
        f"protein:{organism}",
        ids[named],
        names[named],
        [""] * len(named),
        [-1] * len(named),
        [-1] * len(named),
        [links[column] for column in named],
    )
    return _mapping(source, names, ids, np.array(status, dtype=str), features)


def map_regions(
    names: np.ndarray,
    assembly: str,
    source: str = "var index",
    *,
    space: RegionSpace | None = None,
    links: RegionLinks = NEAREST,
) -> FeatureMapping:
    """Regions of an assembly -> features with positions and linked genes.

    Args:
      space: the regions they are mapped to: each to the one it overlaps most ("by overlap", unless it is that very
        region), or to none ("in no region"); all regions of the space are features. None: each is a feature itself.
      links: from a region to genes.
    """
    regions = parse_regions(names)
    lacking, beyond = outside_assembly(regions, assembly)
    status = np.full(len(names), "region", dtype="U32")
    status[~regions.valid] = "not a region"
    status[lacking] = "no such chromosome"
    status[beyond] = "beyond the chromosome"
    good = np.flatnonzero(status == "region")
    chrom, start, end = regions.chrom[good], regions.start[good], regions.end[good]
    ids = np.full(len(names), "", dtype=object)
    if space is None:
        columns = zip(good.tolist(), chrom.tolist(), start.tolist(), end.tolist(), strict=True)
        for column, name, first, last in columns:
            ids[column] = f"{name}:{first}-{last}"
        ids = ids.astype(str)
        found = links.of(ids[good], chrom, start, end, assembly)
        features = ModalityFeatures.sorted("atac", f"region:{assembly}", ids[good], ids[good], chrom, start, end, found)
    else:
        place = space.largest_overlap(chrom, start, end)
        same = (space.start[place] == start) & (space.end[place] == end) & (place >= 0)
        status[good[~same]] = "by overlap"
        status[good[place < 0]] = "in no region"
        ids[good[place >= 0]] = space.ids[place[place >= 0]]
        ids = ids.astype(str)
        features = features_of_space(space, links)
    return _mapping(source, names, ids, status, features)


@lru_cache(maxsize=2)
def features_of_space(space: RegionSpace, links: RegionLinks) -> ModalityFeatures:
    """All regions of a space, in canonical order; the same object for all data sets of a corpus."""
    order = np.argsort(space.ids, kind="stable")
    ids, chrom, start, end = (array[order] for array in (space.ids, space.chrom, space.start, space.end))
    found = links.of(ids, chrom, start, end, space.assembly)
    return ModalityFeatures("atac", f"region:{space.assembly}", ids, ids, chrom, start, end, found)


def gene_coverage(names: np.ndarray, organism: str) -> float:
    """Share of the names (spike-ins aside) that are ids or symbols of the organism, in exactly this spelling."""
    genes = load_gene_table(organism)
    eligible = [name for name in names.tolist() if not ERCC.match(name)]
    known = sum(
        (unversioned(name) in genes.row_of_id) if ENSEMBL_ID.match(name) else (name in genes.rows_of_symbol)
        for name in eligible
    )
    return known / max(1, len(eligible))


def gene_name_sources(feature_table: pd.DataFrame, index: np.ndarray) -> dict[str, np.ndarray]:
    """ "var index" or "var['column']" -> str [columns]: all that may hold the names of genes."""
    sources = {"var index": index}
    for column in _GENE_COLUMNS:
        if column in feature_table.columns:
            sources[f"var[{column!r}]"] = feature_table[column].astype(str).to_numpy(dtype=str)
    return sources


def choose_gene_names(
    feature_table: pd.DataFrame, index: np.ndarray, coverage: Callable[[np.ndarray], float]
) -> tuple[str, np.ndarray]:
    """("var index" or "var['column']", names [columns]): the source that `coverage` knows most of.

    Ensembl ids win over symbols when they cover as much, within one percent: they are not ambiguous.
    """
    sources = gene_name_sources(feature_table, index)
    scored = []
    for place, (source, names) in enumerate(sources.items()):
        sample = names[:: max(1, len(names) // 1000)]
        stable = sum(bool(ENSEMBL_ID.match(name)) for name in sample.tolist()) > len(sample) / 2
        scored.append((coverage(names) + (0.01 if stable else 0.0), -place, source))
    source = max(scored)[2]
    return source, sources[source]


def antibody_coverage(names: np.ndarray) -> float:
    return sum(is_known_antibody(normalise_antibody(name)) for name in names.tolist()) / max(1, len(names))


def _gene_ids(names: np.ndarray, genes: GeneTable) -> tuple[np.ndarray, np.ndarray]:
    ids, status = [], []
    for name in names.tolist():
        gene_id, how = find_gene(name, genes)
        ids.append(gene_id)
        status.append(how)
    # Upper-cased human symbols ("C1ORF43") are rescued only where the exact spelling already fits the organism:
    # otherwise every mouse file would pass as a human one.
    if sum(bool(gene_id) for gene_id in ids) * 2 >= len(ids):
        for column, (name, how) in enumerate(zip(names.tolist(), status, strict=True)):
            if how == "unknown" and (symbol := genes.symbol_of_folded.get(name.upper())):
                gene_id = gene_of_symbol(symbol, genes)
                ids[column], status[column] = (gene_id, "other case") if gene_id else ("", "ambiguous")
    return np.array(ids, dtype=str), np.array(status, dtype=str)


def _mapping(
    source: str, names: np.ndarray, ids: np.ndarray, status: np.ndarray, features: ModalityFeatures
) -> FeatureMapping:
    return FeatureMapping(features.space, source, names, ids, status, features, features.index_of(ids))
