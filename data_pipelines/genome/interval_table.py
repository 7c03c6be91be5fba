"""Many intervals as columns, and what reads them: BED3 to BED6, narrowPeak, tables with a header."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np

from data_pipelines.features.genome_assembly import assembly_of_genome, ucsc_name
from data_pipelines.features.interval_file import BED6, NARROW_PEAK, count_columns, header_lines, interval_blocks
from data_pipelines.genome.fasta import Fasta
from data_pipelines.genome.header_table import is_table, read_header_table, whole_numbers
from data_pipelines.genome.interval import Interval, Strand
from data_pipelines.genome.left_out import MOST_LEFT_OUT, LeftOut
from scmbert_jax.errors import InputError

# Role -> names of its column in a table with a header, in small letters.
COLUMNS = {
    "chromosome": ("chromosome", "chrom", "chr", "region", "seqname", "contig"),
    "start": ("start", "chromstart"),
    "end": ("end", "stop", "chromend"),
    "strand": ("strand",),
    "name": ("name", "id", "peak_id"),
    "summit": ("summit",),
}


@dataclass(frozen=True)
class IntervalTable:
    """n intervals, 0-based half-open, in the order of their file.

    Attributes:
      chromosome: str [n].
      start, end: int64 [n], 0 <= start < end.
      strand: str [n], "+", "-" or ".".
      name: str [n], "" where there is none.
      summit: int64 [n], 0-based positions on the chromosome; -1 where there is none.
      where: the file.
      left_out: reason -> rows that were not taken.
      overlapping: intervals that share a base with another one.
      unsorted: intervals that begin before the one ahead of them on the same chromosome.
    """

    chromosome: np.ndarray
    start: np.ndarray
    end: np.ndarray
    strand: np.ndarray
    name: np.ndarray
    summit: np.ndarray
    where: str = "intervals"
    left_out: Mapping[str, int] = field(default_factory=dict)
    overlapping: int = 0
    unsorted: int = 0

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, row: int) -> Interval:
        place = (str(self.chromosome[row]), int(self.start[row]), int(self.end[row]))
        return Interval(*place, cast(Strand, str(self.strand[row])), str(self.name[row]))

    def take(self, rows: np.ndarray) -> "IntervalTable":
        """Some rows: int [m], or bool [n]. What was counted stays what was counted of the file."""
        columns = ("chromosome", "start", "end", "strand", "name", "summit")
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})

    @property
    def ids(self) -> np.ndarray:
        """str [n], "chr1:100-200", 0-based half-open: the key under which a region is joined."""
        return interval_ids(self.chromosome, self.start, self.end)


def interval_ids(chromosome: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """str [n], "chr1:100-200", as `Interval` and the regions of a feature space are written."""
    columns = zip(chromosome.tolist(), start.tolist(), end.tolist(), strict=True)
    return np.array([f"{name}:{first}-{last}" for name, first, last in columns], dtype=str)


def intervals_of(intervals: Iterable[Interval], where: str = "intervals") -> IntervalTable:
    """A table of single intervals (0-based half-open)."""
    found = list(intervals)
    return IntervalTable(
        np.array([one.chromosome for one in found], dtype=str),
        np.array([one.start for one in found], dtype=np.int64),
        np.array([one.end for one in found], dtype=np.int64),
        np.array([one.strand for one in found], dtype=str),
        np.array([one.name for one in found], dtype=str),
        np.full(len(found), -1, np.int64),
        where,
    )


def read_intervals(
    path: str | Path,
    fasta: Fasta | None = None,
    *,
    ucsc_names: bool = False,
    most_left_out: float = MOST_LEFT_OUT,
    most_overlapping: float = 1.0,
    most_unsorted: float = 1.0,
) -> IntervalTable:
    """Reads BED3 to BED6 (columns behind them are not looked at), narrowPeak (by its name, or its ten columns), and
    tables with a header (.csv, .tsv; `COLUMNS` are understood). All of them are 0-based half-open. The summit is
    counted from the start of the interval in narrowPeak, from that of the chromosome in tables.

    Args:
      path: plain, gzip or bgzip.
      fasta: what the intervals are of: those on sequences that it has not, or beyond their ends, are left out.
      ucsc_names: chromosomes are called as UCSC calls them ("1" becomes "chr1").
      most_left_out: fraction of the rows that may be unusable.
      most_overlapping: fraction of the intervals that may share a base with another one.
      most_unsorted: fraction of the intervals that may begin before the one ahead of them.

    Raises InputError: damaged; more than these fractions; nothing left; its name or header say another assembly.
    """
    table = _read_table(path) if is_table(path) else _read_bed(path)
    if ucsc_names:
        names, inverse = np.unique(table.chromosome, return_inverse=True)
        table = replace(table, chromosome=np.array([ucsc_name(str(name)) for name in names], dtype=str)[inverse])
    refuse_another_assembly(path, fasta, "" if is_table(path) else " ".join(header_lines(path)))
    left_out = LeftOut(str(path), len(table))
    kept, remedy = _usable(table, fasta, left_out)
    left_out.refuse(most_left_out, remedy)
    table = table.take(kept)
    overlapping, unsorted = count_overlapping(table), count_unsorted(table)
    for number, most, what, remedy in (
        (overlapping, most_overlapping, "share a base with another", "Merge them: bedtools merge"),
        (unsorted, most_unsorted, "begin before the one ahead of them", "Sort it: sort -k1,1 -k2,2n"),
    ):
        if number > most * len(table):
            raise InputError(
                f"{path}: {number:,} of {len(table):,} intervals {what}; expected at most {most:.1%}. {remedy}"
            )
    return replace(table, left_out=left_out.counts, overlapping=overlapping, unsorted=unsorted)


def count_overlapping(table: IntervalTable) -> int:
    """Intervals that share a base with another one of the table."""
    order = np.lexsort((table.start, table.chromosome))
    chromosome, start, end = table.chromosome[order], table.start[order], table.end[order]
    bad = np.zeros(len(table), bool)
    for first, last in _stretches(chromosome):
        furthest = np.maximum.accumulate(end[first:last])
        bad[first + 1 : last] |= start[first + 1 : last] < furthest[:-1]
        # who is overlapped by one that begins later
        bad[first : last - 1] |= start[first + 1 : last] < end[first : last - 1]
    return int(bad.sum())


def count_unsorted(table: IntervalTable) -> int:
    """Intervals that begin before the one ahead of them, or on a chromosome that others stood between."""
    same = table.chromosome[1:] == table.chromosome[:-1]
    back = int((same & (table.start[1:] < table.start[:-1])).sum())
    return back + int((~same).sum()) + 1 - len(np.unique(table.chromosome)) if len(table) else 0


def _stretches(chromosome: np.ndarray) -> list[tuple[int, int]]:
    edges = (np.flatnonzero(chromosome[1:] != chromosome[:-1]) + 1).tolist()
    return [(first, last) for first, last in pairwise([0, *edges, len(chromosome)]) if last > first]


def _usable(table: IntervalTable, fasta: Fasta | None, left_out: LeftOut) -> tuple[np.ndarray, str]:
    """bool [n], and what to do where too few are."""
    labels, kept = table.ids, np.ones(len(table), bool)
    kept = left_out.drop(kept, table.start < 0, "that begin before 0", labels)
    kept = left_out.drop(kept, table.end <= table.start, "that end at or before their start", labels)
    kept = left_out.drop(kept, ~np.isin(table.strand, ("+", "-", ".")), "with a strand other than + - .", labels)
    outside = (table.summit != -1) & ((table.summit < table.start) | (table.summit >= table.end))
    kept = left_out.drop(kept, outside, "with a summit outside (narrowPeak has it from the start, tables not)", labels)
    if fasta is None:
        return kept, ""
    names, inverse = np.unique(table.chromosome, return_inverse=True)
    known = [str(name) in fasta.lengths for name in names]
    kept = left_out.drop(kept, ~np.array(known, bool)[inverse], f"on sequences that {fasta.name} has not", labels)
    lengths = np.array([fasta.lengths.get(str(name), 0) for name in names], np.int64)[inverse]
    kept = left_out.drop(kept, table.end > lengths, "beyond the end of their chromosome", labels)
    return kept, names_remedy(names, fasta)


def names_remedy(names: np.ndarray, fasta: Fasta) -> str:
    """What to do where chromosomes are not called as in the FASTA file; "" where that is not the reason."""
    of_fasta = {ucsc_name(name) for name in fasta.lengths}
    for name in map(str, names):
        if name not in fasta.lengths and ucsc_name(name) in of_fasta:
            of_it = next(other for other in fasta.lengths if ucsc_name(other) == ucsc_name(name))
            return (
                f"The FASTA file has {of_it!r} for what is {name!r} here: give ucsc_names=True to both "
                "(--ucsc-names), or write one of them again."
            )
    return ""


def refuse_another_assembly(path: str | Path, fasta: Fasta | None, header: str) -> None:
    """Raises InputError where the name of a file, or what its header says, is another assembly than that of `fasta`."""
    if fasta is None or fasta.assembly is None:
        return
    for what, said in (("name", Path(path).name), ("header", header)):
        found = assembly_of_genome(said)
        if found not in (None, fasta.assembly):
            raise InputError(f"{path}: its {what} says {found}, but {fasta.name} is of {fasta.assembly}; lift it over")


def _read_bed(path: str | Path) -> IntervalTable:
    narrow = "narrowpeak" in Path(path).name.lower() or count_columns(path) == len(NARROW_PEAK.columns)
    blocks = list(interval_blocks(path, NARROW_PEAK if narrow else BED6))
    start, end = (np.concatenate([getattr(block, side) for block in blocks]) for side in ("start", "end"))
    others = {name: np.concatenate([block.others[name] for block in blocks]) for name in blocks[0].others}
    name = others.get("name", np.full(len(start), ""))
    offset = others.get("summit", np.full(len(start), -1))
    return IntervalTable(
        np.concatenate([block.chrom for block in blocks]),
        start,
        end,
        others.get("strand", np.full(len(start), ".")),
        np.where(name == ".", "", name),
        np.where(offset >= 0, start + offset, -1),
        str(path),
    )


def _read_table(path: str | Path) -> IntervalTable:
    raw, found = read_header_table(path, COLUMNS, ("chromosome", "start", "end"))
    size = len(raw)
    strand = raw[found["strand"]].str.strip().to_numpy(str) if "strand" in found else np.full(size, ".")
    return IntervalTable(
        raw[found["chromosome"]].str.strip().to_numpy(str),
        whole_numbers(path, raw[found["start"]]),
        whole_numbers(path, raw[found["end"]]),
        np.where(strand == "", ".", strand),
        raw[found["name"]].to_numpy(str) if "name" in found else np.full(size, ""),
        whole_numbers(path, raw[found["summit"]]) if "summit" in found else np.full(size, -1, np.int64),
        str(path),
    )
