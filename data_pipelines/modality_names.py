"""Which modality a matrix is: from what the file says, else from its feature names. Never a guess without evidence."""

import re

import numpy as np

from data_pipelines.antibodies import is_known_antibody, normalise_antibody
from data_pipelines.gene_tables import ORGANISMS, load_gene_table

# What files call a modality (MuData keys, 10x and Muon `feature_types`), lower-cased.
_NAMES = {
    "rna": ("rna", "gex", "gene expression", "gene_expression", "transcriptome", "expression", "scrna", "mrna"),
    "protein": ("protein", "prot", "adt", "antibody", "antibody capture", "antibodies", "cite", "citeseq", "proteins"),
    "atac": ("atac", "peaks", "peak", "chromatin accessibility", "accessibility", "scatac", "chromatin", "regions"),
}
_MODALITY_OF_NAME = {name: modality for modality, names in _NAMES.items() for name in names}
# What else is measured beside them: receptors, hashtags that tell samples apart, guides, and what Cell Ranger adds.
_OTHER_ASSAYS = (
    *("airr", "vdj", "tcr", "bcr", "hto", "hashtag", "hashtags", "hashing", "cmo", "lmo", "multiplexing capture"),
    *("guide", "guides", "grna", "sgrna", "gdo", "crispr", "crispr guide capture", "antigen capture", "custom"),
)

REGION = re.compile(r"^(?P<chrom>(?:chr)?[A-Za-z0-9]+(?:[._][A-Za-z0-9]+)*?)[:_-](?P<start>-?\d+)[-_](?P<end>-?\d+)$")
_ENSEMBL = re.compile(r"^ENS[A-Z]*G\d{11}(\.\d+)?(_PAR_Y)?$")
_CHROMOSOME = re.compile(r"^chr|^(\d{1,2}|X|Y|MT?)$|^(GL|KI|JH)\d+")

# Below this share of recognised names the evidence is too thin to name a modality.
_ENOUGH = 0.2
_SAMPLE = 2000


def modality_of_name(name: str) -> str | None:
    """ "adt" -> "protein", "Peaks" -> "atac"; None for a name that is not one of the known words."""
    return _MODALITY_OF_NAME.get(name.strip().lower())


def is_other_assay(name: str) -> bool:
    """Of "airr", "HTO", "CRISPR Guide Capture": known, and none of the modalities that are read."""
    return name.strip().lower().replace("_", " ") in _OTHER_ASSAYS


def modality_of_features(names: np.ndarray) -> str | None:
    """The modality whose features these names are, or None when no kind makes up a fifth of them."""
    if len(names) == 0:
        return None
    step = max(1, len(names) // _SAMPLE)
    sample = [str(name) for name in names[::step]]
    regions = sum(looks_like_region(name) for name in sample) / len(sample)
    if regions > 0.5:
        return "atac"
    if sum(bool(_ENSEMBL.match(name)) for name in sample) / len(sample) > 0.5:
        return "rna"
    genes = max(_share(sample, load_gene_table(organism).rows_of_symbol) for organism in ORGANISMS)
    antibodies = sum(is_known_antibody(normalise_antibody(name)) for name in sample) / len(sample)
    # CD4, CD14, CD19 are symbols and antibodies: the kind that explains more of the names wins, clearly.
    if max(genes, antibodies) < _ENOUGH or genes == antibodies:
        return None
    return "rna" if genes > antibodies else "protein"


def looks_like_region(name: str) -> bool:
    match = REGION.match(name)
    return bool(match and _CHROMOSOME.match(match["chrom"]))


def _share(sample: list[str], known: dict) -> float:
    return sum(name in known for name in sample) / len(sample)
