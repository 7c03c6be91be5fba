"""Fragments files of ATAC (`chrom start end barcode count`, sorted, gzip or bgzip) -> counts of cells x regions.

Counted in one pass over the whole file, so no tabix index is needed or looked at. What a person decides: the regions,
and which barcodes are cells. Two ways of counting, after Tn5 cut both ends of a fragment (at `start` and at `end - 1`):

    fragments     a fragment counts once in every region that holds at least one of its two cuts ("paired insertion
                  count", Miao & Kim 2024). The default: cuts come in pairs, so counts of cuts are mostly even (Martens
                  et al. 2024); a fragment that only spans a region was not cut in it, and is no evidence of
                  accessibility.
    cut-sites     every cut counts (Cell Ranger ATAC).

Memory: one block of lines (16 MB of text, about four times that when parsed), some 150 bytes for each distinct barcode
that may be a cell, 24 bytes for each such barcode's sums, one slab of the copy by cell. The fragments themselves are
never held: 16 bytes per cell and region go to the temporary folder, and as much again while they are turned over.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from data_pipelines.features.genome_assembly import CHROMOSOME_LENGTHS, assembly_of_genome, known_chromosome, ucsc_name
from data_pipelines.features.interval_file import FRAGMENTS, IntervalBlock, header_lines, interval_blocks
from data_pipelines.features.region_space import HOW_TO_LIFT, RegionSpace, region_space
from data_pipelines.readers.compressed_copy import CompressedCopy, ScratchArray, compress_by_cell
from data_pipelines.readers.dataset import CountsMatrix, Dataset
from data_pipelines.readers.name_lines import name_lines
from data_pipelines.readers.reader import Cells, Reader, Request
from data_pipelines.readers.reading_options import ReadingOptions
from data_pipelines.readers.stored_matrix import StoredMatrix, canonical
from scmbert_jax.errors import InputError

_NAME = re.compile(r"^(?P<stem>.+)\.(?P<kind>tsv|bed|txt)(\.b?gz)?$")
_SLAB_VALUES = 1 << 20
_REFERENCE = re.compile(r"^#+\s*(reference_path|reference|genome|assembly)\s*=\s*(?P<said>.+)$")


def is_fragments(place: str) -> bool:
    """By its name: any .tsv[.gz], and .bed[.gz] or .txt[.gz] that call themselves fragments."""
    path = Path(place)
    match = _NAME.match(path.name)
    return match is not None and (match["kind"] == "tsv" or "fragments" in path.name.lower()) and path.exists()


def read_fragments(request: Request) -> list[Dataset]:
    """Counts a fragments file.

    Of `request.reading` it needs `regions`, and `assembly` unless the header of the file names it; `barcodes` or
    `min_fragments`, which stand before `request.partners`, unless there are those.

    Raises InputError when a choice is missing or impossible, or the file is damaged, unsorted, of another assembly, or
    has none of the cells.
    """
    path, reading = request.path, request.reading
    header = header_lines(path)
    genome = next((match["said"] for line in header if (match := _REFERENCE.match(line))), None)
    assembly = _assembly(path, reading.assembly, genome)
    if reading.regions is None:
        raise InputError(
            f"{path}: fragments are counted on regions, and none were given; state --regions catalogue.bed "
            "(ENCODE cCREs, or the peaks of this data set) or --regions windows:5000"
        )
    space = region_space(reading.regions, assembly)
    listed = _listed_cells(path, reading, request.partners)
    counting = _Counting(path, space, reading.fragment_counts, listed)
    try:
        chosen, unseen = counting.run(reading.min_fragments)
        copy = counting.by_cell(chosen)
    except OSError as error:
        raise InputError(
            f"{path}: counting needs 32 bytes per cell and region in the temporary folder ({error}). Make room there, "
            "or set TMPDIR"
        ) from error
    cell_ids = np.array(counting.barcodes, dtype=str)[chosen]
    again = dataclasses.replace(reading, assembly=assembly, barcodes=None, min_fragments=None)
    stored = FragmentCounts(copy, (len(chosen), len(space)), path, again, cell_ids)
    said_by = listed.said_by if listed else f"at least {reading.min_fragments:,} fragments"
    derivation = {
        "counted": reading.fragment_counts,
        "regions": space.source,
        "cells_are": said_by,
        "cells_without_fragments": unseen,
        "fragments": counting.num_fragments,
        "fragments_of_cells": int(counting.fragments_of[chosen].sum()),
        "fragments_of_cells_in_regions": int(counting.inside_of[chosen].sum()),
    }
    matrix = CountsMatrix(
        path=str(path),
        field=f"{reading.fragment_counts} on {space.source}",
        modality="atac",
        modality_evidence="a fragments file",
        feature_names=space.ids,
        feature_table=pd.DataFrame(index=pd.Index(space.ids, dtype=object)),
        cell_ids=cell_ids,
        obs=pd.DataFrame(index=pd.Index(cell_ids, dtype=object)),
        genome=genome or assembly,
        stored=stored,
        derivation={"fragments": derivation},
    )
    notes = []
    if counting.more_columns:
        notes.append(
            f"{path}: {counting.more_columns} more column(s) than {', '.join(FRAGMENTS.columns)}, such as the strand; "
            "not read"
        )
    if unseen:
        notes.append(f"{path}: {unseen:,} of {unseen + len(chosen):,} cells ({said_by}) have no fragment; not read")
    return [Dataset(request.name or _default_name(path), [matrix], cell_ids, matrix.obs, notes)]


def _default_name(path: Path) -> str:
    """ "pbmc_fragments.tsv.gz" -> "pbmc_fragments"; "pbmc/fragments.tsv.gz" -> "pbmc"."""
    match = _NAME.match(path.name)
    stem = match["stem"] if match else path.stem
    return path.resolve().parent.name if stem == "fragments" else stem


def _assembly(path: Path, stated: str | None, genome: str | None) -> str:
    of_file = assembly_of_genome(genome)
    assembly = assembly_of_genome(stated) if stated is not None else of_file
    known = ", ".join(CHROMOSOME_LENGTHS)
    if assembly is None:
        said = f"its header says {genome!r}" if genome else "its header names none"
        problem = f"assembly {stated!r} is not known" if stated else f"the assembly must be stated ({said})"
        raise InputError(f"{path}: {problem}; state --assembly with one of {known}")
    if of_file not in (None, assembly):
        lift = HOW_TO_LIFT.format(of=of_file, to=assembly)
        raise InputError(f"{path}: its header says {genome!r}, but the assembly was given as {assembly}. {lift}")
    return assembly


def _listed_cells(path: Path, reading: ReadingOptions, partners: Cells | None) -> Cells | None:
    if reading.barcodes is not None:
        return Cells(_read_barcodes(Path(reading.barcodes)), f"listed in {Path(reading.barcodes).name}")
    if reading.min_fragments is not None:
        return None
    if partners is not None:
        return partners
    raise InputError(
        f"{path}: most barcodes of a fragments file are empty droplets. Say which are cells: --barcodes FILE (one a "
        "line; Cell Ranger: filtered_peak_bc_matrix/barcodes.tsv or filtered_feature_bc_matrix/barcodes.tsv.gz), "
        "--min-fragments 1000, or join it to a file of the same cells: rna.h5ad+fragments.tsv.gz"
    )


def _read_barcodes(path: Path) -> list[str]:
    """The first column of a file; raises InputError when it is missing, damaged or empty, or a barcode repeats."""
    barcodes = [line.rstrip("\r").split("\t")[0] for line in name_lines(path)]
    seen: dict[str, int] = {}
    for number, barcode in enumerate(barcodes, start=1):
        if not barcode or barcode in seen:
            found = f"{barcode!r} stands in line {seen[barcode]:,} already" if barcode else "no barcode"
            raise InputError(f"{path}, line {number:,}: {found}; expected every cell's barcode once, one a line")
        seen[barcode] = number
    if not seen:
        raise InputError(f"{path}: no barcode in it; expected one a line")
    return barcodes


class _Counting:
    """Sums by barcode, and (barcode, region, count) on disk.

    Attributes:
      barcodes: those that may be cells, in the order of the list, or of the file.
      fragments_of, inside_of: int64 [barcodes], fragments, and those that count in some region.
      more_columns: of the file, that are not read.
    """

    def __init__(self, path: Path, space: RegionSpace, unit: str, listed: Cells | None):
        self._path, self._space, self._unit, self._listed = path, space, unit, listed
        self._code = {barcode: code for code, barcode in enumerate(listed.barcodes)} if listed else {}
        self.fragments_of = self.inside_of = np.zeros(len(self._code), np.int64)
        self.num_fragments = self._num_entries = 0
        self._entries = {name: ScratchArray(np.int32) for name in ("barcode", "region", "count")}
        self._example = ""
        self.more_columns = 0

    @property
    def barcodes(self) -> list[str]:
        return list(self._code)

    def run(self, min_fragments: int | None) -> tuple[np.ndarray, int]:
        """Counts the whole file. Returns and raises as `_cells`."""
        for block in interval_blocks(self._path, FRAGMENTS):
            self._add(block)
        return self._cells(min_fragments)

    def _add(self, block: IntervalBlock) -> None:
        codes = self._codes(block)
        self.more_columns = max(self.more_columns, block.more_columns)
        region = np.full((2, len(codes)), -1, np.int64)  # of both cuts
        edges = np.flatnonzero(np.concatenate([[True], block.chrom[1:] != block.chrom[:-1], [True]]))
        for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            rows = slice(first, last)
            chrom = self._chromosome(block, rows)
            region[0, rows] = self._space.at(chrom, block.start[rows])
            region[1, rows] = self._space.at(chrom, block.end[rows] - 1)
        self.num_fragments += len(codes)
        mine = codes >= 0
        inside = (region >= 0).any(axis=0)
        self.fragments_of = self.fragments_of + np.bincount(codes[mine], minlength=len(self._code))
        self.inside_of = self.inside_of + np.bincount(codes[mine & inside], minlength=len(self._code))
        if self._unit == "fragments":
            region[1, region[1] == region[0]] = -1
        counted = (region >= 0) & mine
        # Neighbours in the file lie in the same region: summing here makes the copy small.
        key, count = np.unique(
            (np.broadcast_to(codes, region.shape) * len(self._space) + region)[counted], return_counts=True
        )
        values = {"barcode": key // len(self._space), "region": key % len(self._space), "count": count}
        for name, array in self._entries.items():
            array.write(self._num_entries, values[name])
        self._num_entries += len(key)

    def _codes(self, block: IntervalBlock) -> np.ndarray:
        """int64 [n], -1 for a barcode that is not listed."""
        assert block.barcode is not None
        names = block.barcode.dictionary.to_pylist()
        self._example = self._example or names[0]
        if self._listed is None:
            for name in names:
                self._code.setdefault(name, len(self._code))
            more = len(self._code) - len(self.fragments_of)
            self.fragments_of, self.inside_of = (
                np.pad(sums, (0, more)) for sums in (self.fragments_of, self.inside_of)
            )
        of_name = np.array([self._code.get(name, -1) for name in names], dtype=np.int64)
        return of_name[block.barcode.indices.to_numpy()]

    def _chromosome(self, block: IntervalBlock, rows: slice) -> str:
        """The name in UCSC's spelling; raises InputError where the assembly has no such place."""
        named, assembly = str(block.chrom[rows.start]), self._space.assembly
        chrom = ucsc_name(named)
        line = block.first_line + rows.start
        if not known_chromosome(chrom, assembly):
            raise InputError(
                f"{self._path}, line {line:,}: {assembly} has no chromosome {named!r}; the assembly is another one, "
                "or the names have a prefix (of a mixture of species) that must be taken off"
            )
        limit = CHROMOSOME_LENGTHS[assembly].get(chrom)
        if limit is not None and (beyond := block.end[rows] > limit).any():
            place = int(np.argmax(beyond))
            raise InputError(
                f"{self._path}, line {line + place:,}: ends at {block.end[rows][place]:,}, beyond {named} of "
                f"{assembly} ({limit:,} bp); the assembly is probably another one"
            )
        return chrom

    def _cells(self, min_fragments: int | None) -> tuple[np.ndarray, int]:
        """(int64, the barcodes that are cells; how many listed ones have no fragment). Raises InputError for none."""
        if self._listed is None:
            assert min_fragments is not None
            chosen = np.flatnonzero(self.fragments_of >= min_fragments)
            if not len(chosen):
                raise InputError(
                    f"{self._path}: no barcode has {min_fragments:,} fragments (the most is "
                    f"{self.fragments_of.max(initial=0):,}); lower --min-fragments, or list the cells with --barcodes"
                )
            return chosen, 0
        chosen = np.flatnonzero(self.fragments_of > 0)
        if not len(chosen):
            raise InputError(
                f"{self._path}: none of the {len(self._code):,} cells ({self._listed.said_by}) occurs in it. They are "
                f"called like {next(iter(self._code))!r}, those of the file like {self._example!r}: write both the "
                "same, or name the right list"
            )
        return chosen, len(self._code) - len(chosen)

    def by_cell(self, chosen: np.ndarray) -> CompressedCopy:
        """The counts of the chosen barcodes, turned over to lie by cell."""
        cell_of = np.full(len(self._code), -1, np.int64)
        cell_of[chosen] = np.arange(len(chosen))
        values_of_cell = np.zeros(len(chosen), np.int64)
        for cells, _, _ in self._slabs(cell_of):
            values_of_cell += np.bincount(cells, minlength=len(chosen))
        return compress_by_cell(values_of_cell, self._slabs(cell_of), np.dtype(np.int32), _SLAB_VALUES)

    def _slabs(self, cell_of: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for first in range(0, self._num_entries, _SLAB_VALUES):
            last = min(first + _SLAB_VALUES, self._num_entries)
            part = {name: array.read(first, last) for name, array in self._entries.items()}
            cells = cell_of[part["barcode"]]
            yield cells[cells >= 0], part["region"][cells >= 0], part["count"][cells >= 0]


class FragmentCounts:
    """int32 counts, cells x regions, in temporary files that go with this object; another process counts again.

    Args:
      path, reading, cell_ids: to count the same again: `reading` has the regions, the assembly and the way of counting.
    """

    any_row = True

    def __init__(
        self, copy: CompressedCopy, shape: tuple[int, int], path: Path, reading: ReadingOptions, cell_ids: np.ndarray
    ):
        self.shape, self.dtype, self._copy = shape, copy.data.dtype, copy
        self._again = (path.resolve(), reading, cell_ids)

    def chunks(self, rows: int, first: int = 0, last: int | None = None) -> Iterator[tuple[int, sp.csr_matrix]]:
        end = self.shape[0] if last is None else last
        for start in range(first, end, rows):
            part = self._copy.rows(start, min(start + rows, end), self.shape[1], str(self._again[0]))
            yield start, canonical(part)

    def __reduce__(self) -> tuple[Any, ...]:
        return _count_again, self._again


def _count_again(path: Path, reading: ReadingOptions, cell_ids: np.ndarray) -> StoredMatrix:
    cells = Cells(cell_ids.tolist(), "those counted before")
    return read_fragments(Request(str(path), reading=reading, partners=cells))[0].matrices[0].stored


READER = Reader(is_fragments, read_fragments, "fragments .tsv.gz", opened_last=True)
