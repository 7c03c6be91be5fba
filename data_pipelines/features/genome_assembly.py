"""Assemblies: their names, their chromosomes, and regions written as text."""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from data_pipelines.features.column_names import columns_called, known_text, plain_name

# Lengths in base pairs (UCSC chrom.sizes of the primary chromosomes).
_AUTOSOMES = {
    "hg38": "248956422 242193529 198295559 190214555 181538259 170805979 159345973 145138636 138394717 133797422 "
    "135086622 133275309 114364328 107043718 101991189 90338345 83257441 80373285 58617616 64444167 46709983 50818468",
    "hg19": "249250621 243199373 198022430 191154276 180915260 171115067 159138663 146364022 141213431 135534747 "
    "135006516 133851895 115169878 107349540 102531392 90354753 81195210 78077248 59128983 63025520 48129895 51304566",
    "mm10": "195471971 182113224 160039680 156508116 151834684 149736546 145441459 129401213 124595110 130694993 "
    "122082543 120129022 120421639 124902244 104043685 98207768 94987271 90702639 61431566",
    "mm39": "195154279 181755017 159745316 156860686 151758149 149588044 144995196 130127694 124359700 130530862 "
    "121973369 120092757 120883175 125139656 104073951 98008968 95294699 90720763 61420004",
}
_OTHERS = {
    "hg38": {"chrX": 156040895, "chrY": 57227415, "chrM": 16569},
    "hg19": {"chrX": 155270560, "chrY": 59373566, "chrM": 16571},
    "mm10": {"chrX": 171031299, "chrY": 91744698, "chrM": 16299},
    "mm39": {"chrX": 169476592, "chrY": 91455967, "chrM": 16299},
}
CHROMOSOME_LENGTHS: dict[str, dict[str, int]] = {
    assembly: {f"chr{i}": int(size) for i, size in enumerate(sizes.split(), start=1)} | _OTHERS[assembly]
    for assembly, sizes in _AUTOSOMES.items()
}
ORGANISM_OF_ASSEMBLY = {"hg38": "human", "hg19": "human", "mm10": "mouse", "mm39": "mouse"}

_SYNONYMS = {"grch38": "hg38", "grch37": "hg19", "b37": "hg19", "grcm38": "mm10", "grcm39": "mm39"}
# Other words for a species, and its number at NCBI, as CELLxGENE has it in var["feature_reference"].
_SPECIES = {"human": ("human", "homosapiens", "ncbitaxon9606"), "mouse": ("mouse", "musmusculus", "ncbitaxon10090")}
# Cell Ranger puts the genome before every name where it counts on several, and fills up the shorter ones with "_".
_GENOMES = "|".join((*CHROMOSOME_LENGTHS, *_SYNONYMS, *_SPECIES))
_GENOME_PREFIX = re.compile(rf"(?P<genome>{_GENOMES})(?:-\d{{4}}-[A-Z]|\.p\d+)?[_-]+(?=[^_-])", re.IGNORECASE)
_BUILD_COLUMNS = ("genome", "genomes", "assembly", "genomebuild", "referencegenome")
GENOME_COLUMNS = (*_BUILD_COLUMNS, "species", "organism", "featurereference")
# As many digits as int64 holds: a longer number is no coordinate.
REGION = re.compile(
    r"^(?P<chrom>(?:chr)?[A-Za-z0-9]+(?:[._][A-Za-z0-9]+)*?)[:_-](?P<start>-?\d{1,18})[-_](?P<end>-?\d{1,18})$"
)
# Unplaced and alternate sequence: real, but not in the table of lengths.
_SCAFFOLD = re.compile(r"^(chr)?(Un_)?(GL|KI|JH|AC|KB|KQ|KV|KN|ML|MU)\d+|_(random|alt|fix)$|^chrUn_|^chrEBV$|^HLA-")


def assembly_of_genome(genome: str | None) -> str | None:
    """ "GRCh38", "GRCh38-2020-A", "refdata-gex-mm10-2020-A" -> "hg38", "mm10"; None for no or several known names."""
    if not genome:
        return None
    text = genome.lower()
    names = {name: name for name in CHROMOSOME_LENGTHS} | _SYNONYMS
    found = {assembly for name, assembly in names.items() if name in text}
    return found.pop() if len(found) == 1 else None


def organism_of_genome(genome: str) -> str | None:
    """ "human" or "mouse", from the name of an assembly or of the species; None for others, and for several."""
    plain = plain_name(genome)
    named = next((organism for organism, words in _SPECIES.items() if plain in words), None)
    return named or ORGANISM_OF_ASSEMBLY.get(assembly_of_genome(genome) or "")


def without_genome(name: str) -> tuple[str, str]:
    """ "GRCh38____CD4" -> ("GRCh38", "CD4"); ("", the name) where neither a genome nor a species stands before it."""
    match = _GENOME_PREFIX.match(name)
    return (match["genome"], name[match.end() :]) if match else ("", name)


def genomes_of_features(table: pd.DataFrame) -> np.ndarray:
    """str [features]: the genome that a table of features says each is of; "" where it does not."""
    return _first_said(table, _BUILD_COLUMNS)


def genomes_text(table: pd.DataFrame) -> str | None:
    """The genome that a table of features names; several, of a mixture of species say, are joined by "+"."""
    return "+".join(np.unique([genome for genome in genomes_of_features(table).tolist() if genome]).tolist()) or None


def organisms_of_features(table: pd.DataFrame) -> np.ndarray:
    """str [features]: "human" or "mouse"; "" where the table says neither (a reference may have any name)."""
    said = _first_said(table, GENOME_COLUMNS)
    words, of_feature = np.unique(said, return_inverse=True)
    known = [organism_of_genome(word) or "" for word in words.tolist()]
    return np.array(known, dtype=str)[of_feature]


def _first_said(table: pd.DataFrame, columns: tuple[str, ...]) -> np.ndarray:
    """str [features]: the first of these columns that says anything."""
    for _, values in columns_called(table, columns):
        said = known_text(values)
        if np.any(said != ""):
            return said
    return np.full(len(table), "", dtype=str)


@dataclass(frozen=True)
class Regions:
    """Regions parsed from names; 0-based half-open.

    Attributes:
      chrom: str [n], "chr1" ...; "" where the name is not a region.
      start, end: int64 [n]; -1 where the name is not a region.
      valid: bool [n], the name is a region and 0 <= start < end.
      genome: str [n], what stands before the region in its name: "GRCh38", "mouse", ""; None: nowhere anything.
    """

    chrom: np.ndarray
    start: np.ndarray
    end: np.ndarray
    valid: np.ndarray
    genome: np.ndarray | None = None


def parse_regions(names: np.ndarray) -> Regions:
    """Reads chr1:1-2, chr1_1_2 and chr1-1-2, also after a genome; chromosomes without "chr" get it, MT becomes chrM."""
    chrom, start, end, genomes = [], [], [], []
    for name in names.tolist():
        genome, region = without_genome(name)
        match = REGION.match(region)
        genomes.append(genome)
        chrom.append(ucsc_name(match["chrom"]) if match else "")
        start.append(int(match["start"]) if match else -1)
        end.append(int(match["end"]) if match else -1)
    starts, ends = np.array(start, dtype=np.int64), np.array(end, dtype=np.int64)
    valid = (starts >= 0) & (ends > starts)
    return Regions(np.array(chrom, dtype=str), starts, ends, valid, np.array(genomes, dtype=str))


def ucsc_name(chrom: str) -> str:
    if chrom.startswith("chr"):
        return "chrM" if chrom == "chrMT" else chrom
    if chrom == "MT":
        return "chrM"
    return f"chr{chrom}" if re.fullmatch(r"\d{1,2}|X|Y|M", chrom) else chrom


def known_chromosome(chrom: str, assembly: str) -> bool:
    """Whether the assembly has it (in UCSC's spelling), or it is unplaced or alternate sequence."""
    return chrom in CHROMOSOME_LENGTHS[assembly] or bool(_SCAFFOLD.search(chrom))


def outside_assembly(regions: Regions, assembly: str) -> tuple[np.ndarray, np.ndarray]:
    """(bool [n] on a chromosome or genome the assembly lacks, bool [n] beyond the end of its chromosome).

    Unplaced and alternate scaffolds have no known length here and pass.
    """
    lengths = CHROMOSOME_LENGTHS[assembly]
    unique, inverse = np.unique(regions.chrom, return_inverse=True)
    known = np.array([known_chromosome(chrom, assembly) for chrom in unique.tolist()], dtype=bool)
    limit = np.array([lengths.get(chrom, np.iinfo(np.int64).max) for chrom in unique.tolist()], dtype=np.int64)
    here = known[inverse]
    if regions.genome is not None:
        genomes, of_genome = np.unique(regions.genome, return_inverse=True)
        words = ("", ORGANISM_OF_ASSEMBLY[assembly])
        own = [genome.lower() in words or assembly_of_genome(genome) == assembly for genome in genomes.tolist()]
        here &= np.array(own, dtype=bool)[of_genome]
    lacking = regions.valid & ~here
    return lacking, regions.valid & ~lacking & (regions.end > limit[inverse])
