"""Names of a file -> stable features. Nothing is dropped silently: every name gets a status, and they are counted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd

from data_pipelines.features.antibodies import (
    coding_genes,
    is_isotype_control,
    is_known_antibody,
    no_antibody,
    normalise_antibody,
    without_tag,
)
from data_pipelines.features.feature_space import ModalityFeatures
from data_pipelines.features.gene_names import (
    ANOTHER_SPECIES,
    ERCC,
    SPIKE_IN,
    ensembl_id,
    find_gene,
    gene_of_symbol,
    is_known,
)
from data_pipelines.features.gene_tables import ORGANISMS, GeneTable, load_gene_table
from data_pipelines.features.genome_assembly import (
    ORGANISM_OF_ASSEMBLY,
    organism_of_genome,
    outside_assembly,
    parse_regions,
)
from data_pipelines.features.modality_names import name_sources
from data_pipelines.features.region_links import NEAREST, RegionLinks
from data_pipelines.features.region_space import RegionSpace

# Statuses that leave a column without a feature. What is none on purpose (`NO_FEATURES`) does not lower the coverage.
UNMAPPED = (
    "ambiguous",
    "unknown",
    "no name",
    "a date",
    ANOTHER_SPECIES,
    "not a region",
    "no such chromosome",
    "beyond the chromosome",
    "in no region",
)
# Left out rightly: spike-ins among genes, hashtags and reads without a tag among antibodies.
NO_FEATURES = (SPIKE_IN, "hashtag", "no tag")
# With a larger fraction of the features of another species a file is a mixture: a reference of two species, or one with
# more of the other than a few transgenes.
MIXTURE = 0.05
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
        "isotype control", "no coding gene known", "region", "by overlap"), or why not (`UNMAPPED`, `NO_FEATURES`).
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
        """Columns that ought to map: all but what is no feature on purpose."""
        return int(np.count_nonzero(~np.isin(self.status, NO_FEATURES)))

    @cached_property
    def measured(self) -> np.ndarray:
        """bool [features]: some column holds its counts. Others were not measured, which is not a zero."""
        found = np.zeros(len(self.features), bool)
        found[self.column_to_feature[self.column_to_feature >= 0]] = True
        return found

    @property
    def coverage(self) -> float:
        """Fraction of the eligible columns that map to a feature."""
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


def map_genes(
    names: np.ndarray, organism: str, source: str = "var index", organisms: np.ndarray | None = None
) -> FeatureMapping:
    """Ensembl ids (versions stripped) or symbols -> genes of `organism`.

    Args:
      organisms: str [columns], which species the file says each gene is of; "" where it does not.
    """
    genes = load_gene_table(organism)
    ids, status = _gene_ids(names, genes)
    if organisms is not None:
        foreign = ~np.isin(organisms, ("", organism))
        ids, status = np.where(foreign, "", ids), np.where(foreign, ANOTHER_SPECIES, status)
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
    found_ids, links, status = [], [], []
    for name in names.tolist():
        left_out = no_antibody(name)
        antibody = "" if left_out else normalise_antibody(name)
        # The table has human symbols; the mouse ortholog nearly always has the same one in title case.
        found = [gene_of_symbol(s if organism == "human" else s.capitalize(), genes) for s in coding_genes(antibody)]
        found_ids.append(antibody)
        links.append(tuple(dict.fromkeys(gene for gene in found if gene)))
        status.append(
            left_out
            or (None if antibody else "unknown" if name else "no name")
            or ("isotype control" if is_isotype_control(antibody) else None)
            or ("antibody" if links[-1] else "no coding gene known")
        )
    ids = np.array(found_ids, dtype=str)
    named = np.flatnonzero(ids != "")
    features = ModalityFeatures.sorted(
        "protein",
        f"protein:{organism}",
        ids[named],
        [without_tag(name) for name in names[named].tolist()],
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
    genomes = regions.genome if regions.genome is not None else np.full(len(names), "")
    for genome in np.unique(genomes[lacking]).tolist():
        if organism_of_genome(genome) not in (None, ORGANISM_OF_ASSEMBLY[assembly]):
            status[lacking & (genomes == genome)] = ANOTHER_SPECIES
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
    """Fraction of the names (spike-ins aside) that are ids or symbols of the organism, in exactly this spelling."""
    genes = load_gene_table(organism)
    eligible = [name for name in names.tolist() if not ERCC.match(name)]
    return sum(is_known(name, genes) for name in eligible) / max(1, len(eligible))


def choose_names(
    table: pd.DataFrame, index: np.ndarray, coverage: Callable[[np.ndarray], float]
) -> tuple[str, np.ndarray]:
    """("var index" or "var['column']", names [columns]): the source that `coverage` knows most of.

    Ensembl ids win over symbols when they cover as much, within one percent: they are not ambiguous. Where a source has
    no name, the index gives it, else the next best source that has one.
    """
    sources = name_sources(table, index)
    of_index, scored = sources["var index"], []
    for place, (source, given) in enumerate(sources.items()):
        names = np.where(given == "", of_index, given)
        sample = names[:: max(1, len(names) // 1000)]
        stable = sum(bool(ensembl_id(name)) for name in sample.tolist()) > len(sample) / 2
        scored.append((coverage(names) + (0.01 if stable else 0.0), -place, source, names))
    scored.sort(key=lambda entry: entry[:2], reverse=True)
    (_, _, source, chosen), *others = scored
    for _, _, _, names in others:
        chosen = np.where(chosen == "", names, chosen)
    return source, chosen


def antibody_coverage(names: np.ndarray) -> float:
    """Fraction of the names (hashtags and the like aside) that are known antibodies."""
    eligible = [name for name in names.tolist() if not no_antibody(name)]
    return sum(is_known_antibody(normalise_antibody(name)) for name in eligible) / max(1, len(eligible))


def _gene_ids(names: np.ndarray, genes: GeneTable) -> tuple[np.ndarray, np.ndarray]:
    ids, status = [], []
    others = [load_gene_table(organism) for organism in ORGANISMS if organism != genes.organism]
    for name in names.tolist():
        gene_id, how = find_gene(name, genes)
        if how == "unknown" and any(is_known(name, other) for other in others):
            how = ANOTHER_SPECIES
        ids.append(gene_id)
        status.append(how)
    # Upper-cased human symbols ("C1ORF43") are rescued only where the exact spelling already fits the organism:
    # otherwise every mouse file would pass as a human one. And only where the gene has no column yet: beside App, APP
    # is a transgene.
    there = set(ids)
    if sum(bool(gene_id) for gene_id in ids) * 2 >= len(ids) and status.count(ANOTHER_SPECIES) <= MIXTURE * len(ids):
        for column, (name, how) in enumerate(zip(names.tolist(), status, strict=True)):
            if how not in ("unknown", ANOTHER_SPECIES) or not (symbol := genes.symbol_of_folded.get(name.upper())):
                continue
            gene_id = gene_of_symbol(symbol, genes)
            if gene_id not in there:
                ids[column], status[column] = gene_id, "other case"
            elif not gene_id:
                status[column] = "ambiguous"
    return np.array(ids, dtype=str), np.array(status, dtype=str)


def _mapping(
    source: str, names: np.ndarray, ids: np.ndarray, status: np.ndarray, features: ModalityFeatures
) -> FeatureMapping:
    return FeatureMapping(features.space, source, names, ids, status, features, features.index_of(ids))
