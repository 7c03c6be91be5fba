"""Variants out of VCF files and tables, checked against the genome that they are said to change.

    VCF          CHROM POS ID REF ALT ...; plain, gzip or bgzip. A line with several alleles is so many variants
    tables       .csv, .tsv with a header; `COLUMNS` are understood. "-" or "" is an allele without bases

Positions are 1-based in both. Alleles that are no sequences (<DEL>, *, breakends, or . for none) are left out and
counted.
"""

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from data_pipelines.features.genome_assembly import assembly_of_genome, ucsc_name
from data_pipelines.genome.bases import UNKNOWN, encode
from data_pipelines.genome.fasta import Fasta
from data_pipelines.genome.header_table import is_table, read_header_table, whole_numbers
from data_pipelines.genome.interval_table import names_remedy, refuse_another_assembly
from data_pipelines.genome.left_out import MOST_LEFT_OUT, LeftOut
from data_pipelines.genome.variant import Variant
from scmbert_jax.errors import InputError

# Role -> names of its column in a table, in small letters.
COLUMNS = {
    "chromosome": ("chromosome", "chrom", "#chrom", "chr"),
    "position": ("position", "pos"),
    "reference": ("reference_bases", "ref", "reference", "ref_allele"),
    "alternate": ("alternate_bases", "alt", "alternate", "alt_allele"),
    "name": ("name", "id", "rsid", "variant_id"),
    "assembly": ("assembly", "genome_build", "build", "release"),
}
_OPTIONAL = ("name", "assembly")
_MISSING, _NOWHERE = ("", "NA", "na", "nan", "NaN", "."), -1
_BASES = re.compile("[ACGTN]*")
_POSITION = re.compile("[0-9]{1,12}")
# What a header says of the genome: ##reference=file:///GRCh38.fa, ##assembly=..., ##contig=<ID=1,assembly=b37>.
_BUILD = re.compile(r"^##(?:reference|assembly)=(.*)|^##contig=<.*?assembly=([^,>]+)")
_CONTIG = re.compile(r"^##contig=<.*?ID=(?P<name>[^,>]+).*?length=(?P<length>\d+)")


@dataclass(frozen=True)
class VariantTable:
    """n variants, in the order of their file.

    Attributes:
      chromosome: str [n].
      position: int64 [n], 1-based.
      reference_bases, alternate_bases: str [n], capitals; of the forward strand.
      name: str [n], "" where there is none.
      line: int64 [n], of the file, from 1: what joins a score to what else stands there.
      where: the file.
      left_out: reason -> variants that were not taken.
    """

    chromosome: np.ndarray
    position: np.ndarray
    reference_bases: np.ndarray
    alternate_bases: np.ndarray
    name: np.ndarray
    line: np.ndarray
    where: str = "variants"
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.position)

    def __getitem__(self, row: int) -> Variant:
        alleles = (str(self.reference_bases[row]), str(self.alternate_bases[row]))
        return Variant(str(self.chromosome[row]), int(self.position[row]), *alleles, str(self.name[row]))

    def take(self, rows: np.ndarray) -> "VariantTable":
        """Some rows: int [m], or bool [n]. What was left out stays what was left out of the file."""
        columns = ("chromosome", "position", "reference_bases", "alternate_bases", "name", "line")
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})


def read_variants(
    path: str | Path,
    fasta: Fasta | None = None,
    *,
    ucsc_names: bool = False,
    keep_repeated: bool = False,
    assembly: str | None = None,
    most_left_out: float = MOST_LEFT_OUT,
) -> VariantTable:
    """Reads a VCF file or a table of variants; positions are 1-based.

    Args:
      path: of the file; its name says whether it is a table.
      fasta: what is changed: variants whose reference bases are not what stands there are left out, and a VCF whose
        ##contig lines have other lengths is refused. None: nothing is compared.
      ucsc_names: chromosomes are called as UCSC calls them ("1" becomes "chr1").
      keep_repeated: a variant may be there more than once, as in a table of measurements; else the first is taken.
      assembly: "hg38", "GRCh38", ...: of a table whose column says so of each line, the lines of this one are taken.
        None: that of `fasta`; without one, a table of several is refused.
      most_left_out: fraction of the variants that may be unusable.

    Raises InputError: damaged; more than that; nothing left; another build, or several.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    columns, contigs, build = _read_table(Path(path)) if is_table(path) else _read_vcf(Path(path))
    refuse_another_assembly(path, fasta, build)
    columns = _of_assembly(path, columns, assembly, fasta)
    if ucsc_names:
        columns["chromosome"] = [ucsc_name(name) for name in columns["chromosome"]]
        contigs = {ucsc_name(name): length for name, length in contigs.items()}
    if fasta is not None:
        _refuse_another_build(path, contigs, fasta)
    table = VariantTable(
        np.array(columns["chromosome"], dtype=str),
        np.array(columns["position"], dtype=np.int64),
        np.array([_capital(bases) for bases in columns["reference"]], dtype=str),
        np.array([_capital(bases) for bases in columns["alternate"]], dtype=str),
        np.array(columns["name"], dtype=str),
        np.array(columns["line"], dtype=np.int64),
        str(path),
    )
    left_out = LeftOut(str(path), len(table))
    kept, remedy = _usable(table, fasta, keep_repeated, left_out)
    left_out.refuse(most_left_out, remedy)
    return replace(table.take(kept), left_out=left_out.counts)


def _capital(bases: str) -> str:
    return "" if bases.strip() == "-" else bases.strip().upper()


def _usable(table: VariantTable, fasta: Fasta | None, keep_repeated: bool, left_out: LeftOut) -> tuple[np.ndarray, str]:
    """bool [n], and what to do where too few are."""
    columns = (table.chromosome, table.position, table.reference_bases, table.alternate_bases)
    keys = ["{}:{}:{}>{}".format(*key) for key in zip(*(column.tolist() for column in columns), strict=True)]
    labels, kept = np.array(keys, dtype=str), np.ones(len(table), bool)
    no_bases = [
        not (_BASES.fullmatch(reference) and _BASES.fullmatch(alternate))
        for reference, alternate in zip(table.reference_bases.tolist(), table.alternate_bases.tolist(), strict=True)
    ]
    kept = left_out.drop(kept, np.array(no_bases, bool), "with alleles that are no sequences of ACGTN", labels)
    kept = left_out.drop(kept, table.position == _NOWHERE, "without a position", labels)
    kept = left_out.drop(kept, table.position < 1, "at a position below 1 (they are 1-based)", labels)
    same = table.reference_bases == table.alternate_bases
    kept = left_out.drop(kept, same, "with both alleles the same", labels)
    remedy = ""
    if not keep_repeated:
        again = np.ones(len(table), bool)
        again[np.unique(labels, return_index=True)[1]] = False
        if (kept & again).any():
            remedy = (
                "Where a variant may be there several times, give keep_repeated=True (--keep-repeated); else remove "
                "what repeats one."
            )
        kept = left_out.drop(kept, again, "that repeat one", labels)
    if fasta is None:
        return kept, remedy
    names, inverse = np.unique(table.chromosome, return_inverse=True)
    lengths = np.array([fasta.lengths.get(str(name), -1) for name in names], np.int64)[inverse]
    kept = left_out.drop(kept, lengths < 0, f"on sequences that {fasta.name} has not", labels)
    ends = table.position - 1 + np.char.str_len(table.reference_bases)
    kept = left_out.drop(kept, ends > lengths, "beyond the end of their chromosome", labels)
    differs = np.zeros(len(table), bool)
    for row in np.flatnonzero(kept).tolist():
        first_base, bases = int(table.position[row]) - 1, str(table.reference_bases[row])
        there = fasta.codes(str(table.chromosome[row]), first_base, first_base + len(bases), most_foreign=1.0)
        said = encode(bases)
        differs[row] = ((there != said) & (there != UNKNOWN) & (said != UNKNOWN)).any()
    kept = left_out.drop(kept, differs, "whose reference bases are not those of the genome", labels)
    if differs.any():
        remedy = "If most reference bases differ, the genome is another build, or positions are 0-based."
    return kept, names_remedy(names, fasta) or remedy


def _of_assembly(
    path: str | Path, columns: dict[str, list], assembly: str | None, fasta: Fasta | None
) -> dict[str, list]:
    """The lines of one assembly, without the column that says it. Lines that name none known are kept."""
    said = [assembly_of_genome(name) for name in columns.pop("assembly", [])]
    wanted = assembly_of_genome(assembly)
    if assembly is not None and (wanted is None or not any(said)):
        raise InputError(
            f"{path}: assembly {assembly!r}: "
            + ("no assembly known here" if wanted is None else f"no column ({', '.join(COLUMNS['assembly'])}) says it")
        )
    wanted = wanted or (fasta.assembly if fasta is not None else None)
    there = {name: said.count(name) for name in dict.fromkeys(said) if name is not None}
    if wanted is None and len(there) > 1:
        found = ", ".join(f"{number:,} of {name}" for name, number in there.items())
        raise InputError(
            f"{path}: its lines are of several assemblies ({found}), where a position is not the same place; choose "
            f"one: assembly={next(iter(there))!r}"
        )
    if wanted is None or not there:
        return columns
    if wanted not in there:
        raise InputError(f"{path}: its lines are of {', '.join(there)}, not of {wanted}; lift them over")
    rows = [row for row, name in enumerate(said) if name in (None, wanted)]
    return {role: [values[row] for row in rows] for role, values in columns.items()}


def _refuse_another_build(path: str | Path, contigs: Mapping[str, int], fasta: Fasta) -> None:
    wrong = [name for name, length in contigs.items() if fasta.lengths.get(name, length) != length]
    if wrong:
        raise InputError(
            f"{path}: its header says that {wrong[0]} has {contigs[wrong[0]]:,} bases, in {fasta.name} it has "
            f"{fasta.lengths[wrong[0]]:,} ({len(wrong):,} such sequences): they are of different builds. Take the "
            "FASTA file that the variants were called on"
        )


def _read_vcf(path: Path) -> tuple[dict[str, list], dict[str, int], str]:
    """The columns of `VariantTable`, a row per alternate allele; the lengths of contigs and the build in its header."""
    contigs: dict[str, int] = {}
    builds: dict[str, None] = {}
    columns: dict[str, list] = {
        role: [] for role in ("chromosome", "position", "reference", "alternate", "name", "line")
    }
    number = 0
    for number, line in enumerate(_lines(path), start=1):
        if line.startswith("#"):
            if match := _CONTIG.match(line):
                contigs[match["name"]] = int(match["length"])
            if match := _BUILD.match(line):
                builds[match[1] or match[2]] = None
            continue
        if not line.strip():
            continue
        words = line.rstrip("\r\n").split("\t")
        if len(words) < 5 or not _POSITION.fullmatch(words[1]):
            raise InputError(
                f"{path}, line {number:,}: {line[:60]!r}; expected CHROM, POS, ID, REF, ALT, ..., separated by tabs"
            )
        chromosome, position, name, reference, alternates = words[:5]
        for alternate in alternates.split(","):
            values = (chromosome, int(position), reference, alternate, "" if name == "." else name, number)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    if not columns["line"]:
        raise InputError(
            f"{path}: no variant in it ({number:,} lines); expected lines of CHROM, POS, ID, REF, ALT, ..."
        )
    return columns, contigs, " ".join(builds)


def _lines(path: Path) -> Iterator[str]:
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt") if packed else open(path) as text:
            yield from text
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy or download it again") from error


def _read_table(path: Path) -> tuple[dict[str, list], dict[str, int], str]:
    raw, found = read_header_table(path, COLUMNS, tuple(role for role in COLUMNS if role not in _OPTIONAL))
    columns = {role: raw[name].tolist() for role, name in found.items()}
    position = raw[found["position"]].replace(dict.fromkeys(_MISSING, str(_NOWHERE)))
    columns["position"] = whole_numbers(path, position).tolist()
    columns.setdefault("name", [""] * len(raw))
    return columns | {"line": [*range(2, len(raw) + 2)]}, {}, ""
