"""Genomes as FASTA files: any stretch of any sequence, at once.

Our own and not pyfaidx, which writes an index beside a file that may not be ours to write to, refuses gzip, and needs
Biopython for bgzip. An index of samtools (.fai) is taken where it lies beside the file; else one is made in memory.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_pipelines.features.genome_assembly import CHROMOSOME_LENGTHS, assembly_of_genome, ucsc_name
from data_pipelines.genome.bases import MOST_FOREIGN, UNKNOWN, encode, reverse_complement
from data_pipelines.genome.fasta_index import INDEX_AGAIN, Record, made_index, stored_index
from data_pipelines.genome.interval import Interval
from data_pipelines.genome.random_text import open_text
from scmbert_jax.errors import InputError


class Fasta:
    """A FASTA file: plain, gzip or bgzip. Threads may share it.

    Args:
      path: of the file.
      assembly: "hg38", "GRCh38", ...: its chromosomes must be as long as there. None: nothing is compared.
      ucsc_names: sequences are called as UCSC calls them ("1" becomes "chr1", "MT" "chrM").

    Attributes:
      lengths: sequence -> bases.
      name: of the file.

    Raises InputError: no FASTA file, lines of unequal length, a name twice, another assembly.
    """

    def __init__(self, path: str | Path, assembly: str | None = None, ucsc_names: bool = False):
        self.name = str(path)
        self.assembly = assembly if assembly is None else assembly_of_genome(assembly) or assembly
        self._text = open_text(path)
        index = Path(f"{path}.fai")
        found = stored_index(index, self._text.size) if index.is_file() else made_index(self._text, self.name)
        self._records: dict[str, Record] = {}
        for name, record in found:
            name = ucsc_name(name) if ucsc_names else name
            if name in self._records:
                raise InputError(f"{path}: two sequences are called {name}; remove one, or give it another name")
            self._records[name] = record
        self.lengths = {name: record.length for name, record in self._records.items()}
        if self.assembly is not None:
            check_lengths(self.lengths, self.assembly, self.name)

    def codes(self, chromosome: str, start: int, end: int, most_foreign: float = MOST_FOREIGN) -> np.ndarray:
        """uint8 [end - start]: bases [start, end) of the forward strand, 0-based half-open, as codes (`bases`).

        Raises InputError: no such sequence, a stretch outside it, letters that are no bases.
        """
        record = self._records.get(chromosome)
        where = f"{self.name}, {chromosome}:{start}-{end}"
        if record is None:
            raise InputError(f"{where}: no such sequence; there are {_some(self.lengths)}")
        if not 0 <= start <= end <= record.length:
            raise InputError(f"{where}: outside {chromosome}, which has {record.length:,} bases")
        lines, widths = record.line_bases, record.line_width
        first, last = (record.offset + place // lines * widths + place % lines for place in (start, end))
        letters = np.frombuffer(self._text.read(first, last), np.uint8)
        bases = letters[letters > ord(" ")]
        if len(bases) != end - start:
            raise InputError(f"{where}: {len(bases):,} bases there; {self.name}.fai is of another file: {INDEX_AGAIN}")
        return encode(bases, most_foreign, where)

    def interval_codes(self, interval: Interval) -> np.ndarray:
        """uint8 [width]: the bases of an interval (0-based half-open); of the reverse strand where it says "-"."""
        codes = self.codes(interval.chromosome, interval.start, interval.end)
        return reverse_complement(codes) if interval.strand == "-" else codes

    def padded_codes(self, chromosome: str, start: int, end: int) -> np.ndarray:
        """uint8 [end - start]: as `codes` of [start, end), 0-based half-open, with N where that is no base of it.

        A single letter for several bases is an N in stretches of any length.
        """
        length = self.lengths.get(chromosome, 0)
        first, last = (min(max(place, 0), length) for place in (start, end))
        found = np.full(end - start, UNKNOWN, np.uint8)
        if last > first:
            most_foreign = max(MOST_FOREIGN, 1 / (last - first))
            found[first - start : last - start] = self.codes(chromosome, first, last, most_foreign)
        return found


def check_lengths(lengths: Mapping[str, int], assembly: str, where: str) -> None:
    """Raises InputError unless the sequences that an assembly has, have its lengths; `lengths`: name -> bases."""
    known = CHROMOSOME_LENGTHS.get(assembly)
    if known is None:
        raise InputError(f"assembly {assembly!r}: expected one of {', '.join(CHROMOSOME_LENGTHS)}")
    own = {name: ucsc_name(name) for name in lengths}
    wrong = [name for name, ucsc in own.items() if known.get(ucsc, lengths[name]) != lengths[name]]
    if wrong:
        others = [
            other
            for other, of_other in CHROMOSOME_LENGTHS.items()
            if all(of_other.get(own[name]) == lengths[name] for name in wrong)
        ]
        name = wrong[0]
        raise InputError(
            f"{where}: {name} has {lengths[name]:,} bases, of {assembly} it would have {known[own[name]]:,} "
            f"({len(wrong):,} of {len(lengths):,} sequences differ). "
            + (
                f"It is of {' or '.join(others)}"
                if others
                else "It is of no assembly known here, or a part of one: name none"
            )
        )


def _some(names: Mapping[str, int]) -> str:
    shown = ", ".join(list(names)[:5])
    return f"{shown}, ... ({len(names):,})" if len(names) > 5 else shown
