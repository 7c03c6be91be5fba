"""Regions that a user chose for a corpus: those of a BED catalogue, or windows of one size.

Regions of one space do not overlap, so that a cut lies in one region at most. What was counted on other regions (the
peaks of a file) goes to the region it overlaps most, which loses information: `mapped by overlap` stands in every
report of it. Only fragments can be counted exactly.
"""

import hashlib
import re
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.features.genome_assembly import (
    CHROMOSOME_LENGTHS,
    Regions,
    assembly_of_genome,
    outside_assembly,
    ucsc_name,
)
from data_pipelines.features.interval_file import BED, header_lines, interval_blocks
from scmbert_jax.errors import InputError

_WINDOWS = re.compile(r"^windows:(?P<size>\d+)$")
# Mitochondrial DNA has no nucleosomes: its fragments say nothing of accessibility.
_NOT_TILED = ("chrM",)
_SMALLEST_WINDOW = 100  # base pairs; smaller ones than a nucleosome hold next to nothing

HOW_TO_LIFT = (
    "Positions are not lifted over here. Count the fragments again on an alignment to {to}, or lift the intervals "
    "outside, with UCSC liftOver or CrossMap and the chain file from {of} to {to}"
)


class RegionSpace:
    """Regions of one assembly that do not overlap, by chromosome and position.

    Attributes:
      assembly: "hg38", ...
      source: "windows:5000", or the base name of the BED file.
      sha256: of the BED file; None for windows.
      chroms: the chromosomes, in their order here.
      chrom_code: int32 [n], into `chroms`.
      start, end: int64 [n], 0-based half-open; ascending within a chromosome.
    """

    def __init__(
        self, assembly: str, source: str, sha256: str | None, chrom: np.ndarray, start: np.ndarray, end: np.ndarray
    ):
        self.assembly, self.source, self.sha256 = assembly, source, sha256
        names = np.unique(chrom).tolist()
        self.chroms = sorted(names, key=_chromosome_order)
        rank = np.array([self.chroms.index(name) for name in names], dtype=np.int32)
        code = rank[np.searchsorted(names, chrom)]
        order = np.lexsort((start, code))
        self.chrom_code, self.start, self.end = code[order], start[order], end[order]
        edges = np.searchsorted(self.chrom_code, np.arange(len(self.chroms) + 1)).tolist()
        self._span = {name: (edges[i], edges[i + 1]) for i, name in enumerate(self.chroms)}

    def __len__(self) -> int:
        return len(self.start)

    @property
    def chrom(self) -> np.ndarray:
        """str [n]."""
        return np.array(self.chroms, dtype=str)[self.chrom_code]

    @cached_property
    def ids(self) -> np.ndarray:
        """str [n], "chr1:100-200"."""
        columns = zip(self.chrom_code.tolist(), self.start.tolist(), self.end.tolist(), strict=True)
        return np.array([f"{self.chroms[code]}:{start}-{end}" for code, start, end in columns], dtype=str)

    def at(self, chrom: str, position: np.ndarray) -> np.ndarray:
        """int64 [m]: the region that holds each position of a chromosome, -1 for none."""
        first, last = self._span.get(chrom, (0, 0))
        place = np.searchsorted(self.start[first:last], position, side="right") - 1 + first
        inside = (place >= first) & (position < self.end[np.maximum(place, 0)]) if last > first else place < -1
        return np.where(inside, place, -1).astype(np.int64)

    def largest_overlap(self, chrom: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """int64 [m]: the region that shares most base pairs with each interval (the first of equals), -1 for none."""
        best = np.full(len(chrom), -1, np.int64)
        for name in np.unique(chrom).tolist():
            first, last = self._span.get(name, (0, 0))
            rows = np.flatnonzero(chrom == name)
            # Neither starts nor ends of regions that do not overlap go down: what an interval touches is a range.
            left = np.searchsorted(self.end[first:last], start[rows], side="right")
            right = np.searchsorted(self.start[first:last], end[rows], side="left")
            touched = np.maximum(right - left, 0)
            row = np.repeat(np.arange(len(rows)), touched)
            offset = np.arange(len(row)) - np.repeat(np.cumsum(touched) - touched, touched)
            region = first + left[row] + offset
            shared = np.minimum(self.end[region], end[rows][row]) - np.maximum(self.start[region], start[rows][row])
            order = np.lexsort((region, -shared, row))
            winner = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
            best[rows[row[winner]]] = region[winner]
        return best

    def to_dict(self) -> dict[str, Any]:
        """What reports and manifests say of it."""
        return {"source": self.source, "sha256": self.sha256, "assembly": self.assembly, "regions": len(self)}


def region_space(spec: str, assembly: str) -> RegionSpace:
    """Opens `catalogue.bed`, `catalogue.bed.gz` or `windows:SIZE` on an assembly.

    Windows tile the chromosomes 1, 2, ..., X and Y from their start; the last of a chromosome is shorter.

    Raises InputError for another spec, a BED file that is damaged or empty, holds regions that overlap or that do not
    lie in the assembly, or says itself that it is of another one.
    """
    match = _WINDOWS.match(spec)
    if match:
        return _windows(int(match["size"]), assembly)
    if spec.startswith("windows"):
        raise InputError(f"regions {spec}: expected windows:SIZE with a size in base pairs, e.g. windows:5000")
    path = Path(spec)
    if not path.is_file():
        raise InputError(f"regions {spec}: no such file; give a BED file, or windows:SIZE, e.g. windows:5000")
    about = path.stat()
    return _catalogue(spec, assembly, (about.st_mtime_ns, about.st_size))


@lru_cache(maxsize=4)
def _windows(size: int, assembly: str) -> RegionSpace:
    if size < _SMALLEST_WINDOW:
        raise InputError(f"regions windows:{size}: expected at least {_SMALLEST_WINDOW} base pairs; 5000 is usual")
    chrom, start, end = [], [], []
    for name, length in CHROMOSOME_LENGTHS[assembly].items():
        if name not in _NOT_TILED:
            starts = np.arange(0, length, size, dtype=np.int64)
            chrom.append(np.full(len(starts), name))
            start.append(starts)
            end.append(np.minimum(starts + size, length))
    return RegionSpace(assembly, f"windows:{size}", None, *(np.concatenate(part) for part in (chrom, start, end)))


@lru_cache(maxsize=4)
def _catalogue(spec: str, assembly: str, version: tuple[int, int]) -> RegionSpace:
    """`version`: of the file, so that one that has changed is read again."""
    _refuse_another_assembly(spec, assembly)
    blocks = list(interval_blocks(spec, BED))
    names = [str(name) for name in np.unique(np.concatenate([np.unique(block.chrom) for block in blocks]))]
    ucsc = {name: ucsc_name(name) for name in names}
    chrom = np.concatenate([_renamed(block.chrom, ucsc) for block in blocks])
    start, end = (np.concatenate([getattr(block, column) for block in blocks]) for column in ("start", "end"))
    line = np.concatenate([np.arange(len(block.start)) + block.first_line for block in blocks])
    _refuse_outside(spec, assembly, chrom, start, end, line)
    order = np.lexsort((start, chrom))
    one, other = order[:-1], order[1:]
    overlap = np.flatnonzero((chrom[one] == chrom[other]) & (start[other] < end[one]))
    if len(overlap):
        a, b = sorted((int(line[one[overlap[0]]]), int(line[other[overlap[0]]])))
        raise InputError(
            f"{spec}, line {b:,}: overlaps the region of line {a:,} ({len(overlap):,} such pairs); a count would "
            "belong to both. Merge them: sort -k1,1 -k2,2n catalogue.bed | bedtools merge"
        )
    with open(spec, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return RegionSpace(assembly, Path(spec).name, digest, chrom, start, end)


def _renamed(chrom: np.ndarray, names: dict[str, str]) -> np.ndarray:
    unique, inverse = np.unique(chrom, return_inverse=True)
    return np.array([names[str(name)] for name in unique], dtype=str)[inverse]


def _refuse_another_assembly(spec: str, assembly: str) -> None:
    for evidence, said in (("its name", Path(spec).name), ("its header", " ".join(header_lines(spec)))):
        of_file = assembly_of_genome(said)
        if of_file not in (None, assembly):
            raise InputError(
                f"{spec}: {evidence} says {of_file}, but the assembly is {assembly}. "
                + HOW_TO_LIFT.format(of=of_file, to=assembly)
            )


def _refuse_outside(
    spec: str, assembly: str, chrom: np.ndarray, start: np.ndarray, end: np.ndarray, line: np.ndarray
) -> None:
    lacking, beyond = outside_assembly(Regions(chrom, start, end, np.ones(len(chrom), bool)), assembly)
    for bad, why in (
        (lacking, f"{assembly} has no chromosome of this name"),
        (beyond, f"ends beyond its chromosome in {assembly}; the assembly is probably another one"),
    ):
        if bad.any():
            place = int(np.argmax(bad))
            raise InputError(
                f"{spec}, line {line[place]:,}: {chrom[place]}:{start[place]}-{end[place]}: {why} "
                f"({np.count_nonzero(bad):,} of {len(bad):,} regions). {HOW_TO_LIFT.format(of='theirs', to=assembly)}"
            )


def _chromosome_order(name: str) -> tuple[int, str]:
    number = name.removeprefix("chr")
    return (int(number), "") if number.isdecimal() else (1000, name)
