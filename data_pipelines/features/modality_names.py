"""Which modality a matrix is: from what the file says, else from its feature names. Never a guess without evidence."""

import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from data_pipelines.features.antibodies import is_known_antibody, no_antibody, normalise_antibody
from data_pipelines.features.column_names import columns_called, known_text, plain_name
from data_pipelines.features.gene_names import ensembl_id, is_known
from data_pipelines.features.gene_tables import ORGANISMS, load_gene_table
from data_pipelines.features.genome_assembly import REGION, without_genome
from scmbert_jax.modalities import TABLE

# What else is measured beside them: receptors, hashtags that tell samples apart, guides, and what Cell Ranger adds.
_OTHER_ASSAYS = (
    *("airr", "vdj", "tcr", "bcr", "hto", "htos", "hashtag", "hashtags", "hashing", "cellhashing", "cmo", "lmo"),
    *("multiplexing", "multiplexingcapture", "sampletag", "sampletags", "guide", "guides", "grna", "sgrna", "gdo"),
    *("crispr", "crisprguidecapture", "antigencapture", "custom", "spikein", "spikeins"),
)
# Columns that say what kind each feature is; others do where nothing else can be meant.
TYPE_COLUMNS = ("featuretypes", "featuretype", "modality", "modalities", "librarytype")

# Columns that may hold the names of features: ids first, then symbols, then what antibodies and regions are called.
NAME_COLUMNS = (
    *("geneids", "geneid", "ensembl", "ensemblid", "ensemblids", "ensemblgene", "ensemblgeneid", "ensemblgeneids"),
    *("ensg", "genestableid", "featureid", "featureids", "accession", "id", "ids"),
    *("genesymbols", "genesymbol", "symbol", "symbols", "hgncsymbol", "mgisymbol", "genename", "genenames", "gene"),
    *("genes", "geneshortname", "externalgenename", "featurename", "featurenames", "feature", "features", "name"),
    *("names", "varnames", "index"),
    *("antibody", "antibodies", "antibodyname", "protein", "proteins", "proteinname", "marker", "markers", "antigen"),
    *("interval", "intervals", "peak", "peaks", "peakid", "peakname", "region", "regions"),
)

_CHROMOSOME = re.compile(r"^chr|^(\d{1,2}|X|Y|MT?)$|^(GL|KI|JH)\d+")

# Below this fraction of recognised names the evidence is too thin to name a modality.
_ENOUGH = 0.2
_SAMPLE = 2000


def modality_of_name(name: str) -> str | None:
    """ "adt" -> "protein", "Peaks" -> "atac"; None for a name that is not one of the known words."""
    word = plain_name(name)
    return next((modality for modality, own in TABLE.items() if word in own.words), None)


def is_other_assay(name: str) -> bool:
    """Of "airr", "HTO", "CRISPR Guide Capture": known, and none of the modalities that are read."""
    return plain_name(name) in _OTHER_ASSAYS


class Kind(NamedTuple):
    """Features of one kind: their modality (None: of none that is read), what says so, int64 which columns."""

    modality: str | None
    evidence: str
    columns: np.ndarray


def kinds_of_features(table: pd.DataFrame, index: np.ndarray) -> list[Kind]:
    """The kinds that a column of the table tells apart, by first feature; none where no column does.

    What is not of a known kind is a `Kind` without modality. Where one kind alone is named, features whose type is
    missing are of that kind if their names are.
    """
    said = _feature_types(table)
    if said is None:
        return []
    column, types = said
    modalities = {kind: modality_of_name(kind) for kind in dict.fromkeys(types.tolist())}
    untyped, known = types == "", {modality for modality in modalities.values() if modality}
    if untyped.any() and len(known) == 1 and all(modality or not kind for kind, modality in modalities.items()):
        found, _ = modality_of_table(table.iloc[untyped], index[untyped])
        modalities[""] = found if found in known else None
    # Several words for one modality are one kind.
    kinds = []
    for modality in dict.fromkeys(modalities[kind] or kind for kind in modalities):
        words = [kind for kind in modalities if (modalities[kind] or kind) == modality]
        value = " or ".join(repr(kind) for kind in words if kind)
        evidence = f"var[{column!r}] = {value}" if value else f"var[{column!r}] is missing"
        kinds.append(Kind(modalities[words[0]], evidence, np.flatnonzero(np.isin(types, words))))
    return kinds


def types_not_understood(table: pd.DataFrame) -> str | None:
    """What a column of types says, where none of it is known: neither a modality nor the biotype of genes."""
    biotypes = {biotype for organism in ORGANISMS for biotype in load_gene_table(organism).biotype.tolist()}
    for column, values in columns_called(table, TYPE_COLUMNS):
        kinds = [kind for kind in np.unique(known_text(values)).tolist() if kind]
        if len(kinds) > 1 and not any(modality_of_name(kind) or kind in biotypes for kind in kinds):
            return f"var[{column!r}] says {', '.join(map(repr, kinds[:5]))}"
    return None


def _feature_types(table: pd.DataFrame) -> tuple[str, np.ndarray] | None:
    """(column, str [features]: what it says, "" where nothing), or None where no column tells kinds of features apart.

    A column called otherwise is one, too, when all it says are names of modalities, of two at least.
    """
    for column, values in columns_called(table, TYPE_COLUMNS):
        types = known_text(values)
        if any(modality_of_name(kind) for kind in np.unique(types).tolist()):
            return column, types
    for place, column in enumerate(table.columns):
        values = table.iloc[:, place]
        # The first features tell most columns that say something else, long before all of a million are looked at.
        if pd.api.types.is_numeric_dtype(values) or not _kinds_said(known_text(values.iloc[:_SAMPLE])):
            continue
        types = known_text(values)
        if len(_kinds_said(types) - {"another"}) > 1:
            return str(column), types
    return None


def _kinds_said(types: np.ndarray) -> set[str]:
    """The modalities that these words name, and "another" for other assays; none where a word is something else."""
    words = np.unique(types[types != ""]).tolist()
    found = [modality_of_name(word) or ("another" if is_other_assay(word) else "") for word in words]
    return set(found) if all(found) else set()


def name_sources(table: pd.DataFrame, index: np.ndarray) -> dict[str, np.ndarray]:
    """ "var index" or "var['column']" -> str [features], "" where missing: all that may hold the names of features."""
    sources = {"var index": known_text(pd.Series(index, dtype=object))}
    for column, values in columns_called(table, NAME_COLUMNS):
        sources.setdefault(f"var[{column!r}]", known_text(values))
    return sources


def region_names(table: pd.DataFrame, index: np.ndarray) -> tuple[str, np.ndarray]:
    """("var index" or "var['column']", str [features]): the first source whose names are regions; else the index."""
    if modality_of_features(index) != "atac":
        for source, names in name_sources(table, index).items():
            if modality_of_features(names) == "atac":
                return source, names
    return "var index", index


def modality_of_table(table: pd.DataFrame, index: np.ndarray) -> tuple[str | None, str]:
    """(modality, what it was recognised by): of the index, else of the first column of names that tells one."""
    for source, names in name_sources(table, index).items():
        found = modality_of_features(names)
        if found:
            return found, "its feature names" if source == "var index" else f"the names in {source}"
    return None, f"feature names such as {', '.join(index[:3].tolist())} are no genes, antibodies or regions"


def modality_of_features(names: np.ndarray) -> str | None:
    """The modality whose features these names are, or None when no kind makes up a fifth of them."""
    if len(names) == 0:
        return None
    step = max(1, len(names) // _SAMPLE)
    sample = [str(name) for name in names[::step]]
    regions = sum(looks_like_region(name) for name in sample) / len(sample)
    if regions > 0.5:
        return "atac"
    if sum(bool(ensembl_id(name)) for name in sample) / len(sample) > 0.5:
        return "rna"
    tables = [load_gene_table(organism) for organism in ORGANISMS]
    genes = max(sum(is_known(name, table) for name in sample) for table in tables) / len(sample)
    tags = [name for name in sample if not no_antibody(name)]
    antibodies = sum(is_known_antibody(normalise_antibody(name)) for name in tags) / max(1, len(tags))
    # CD4, CD14, CD19 are symbols and antibodies: the kind that explains more of the names wins, clearly.
    if max(genes, antibodies) < _ENOUGH or genes == antibodies:
        return None
    return "rna" if genes > antibodies else "protein"


def looks_like_region(name: str) -> bool:
    match = REGION.match(without_genome(name)[1])
    return bool(match and _CHROMOSOME.match(match["chrom"]))
