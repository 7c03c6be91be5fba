"""A change of some bases, under the names of AlphaGenome's `genome.Variant`."""

import re
from dataclasses import dataclass

from data_pipelines.genome.interval import Interval
from scmbert_jax.errors import InputError

_TEXT = re.compile(
    r"^(?P<chromosome>[^:]+):(?P<position>[\d,]+)[:_]?(?P<reference>[A-Za-z]*)>(?P<alternate>[A-Za-z]*)$"
)
_BASES = re.compile("[ACGTN]*")


@dataclass(frozen=True)
class Variant:
    """Reference bases that begin at a position, and what stands there instead.

    Attributes:
      chromosome: as the FASTA has it, "chr1".
      position: of the first reference base; **1-based**, as in VCF and dbSNP.
      reference_bases, alternate_bases: of the forward strand, capitals of ACGTN. Of different lengths: an insertion or
        a deletion; in VCF both then begin with the base before it. One may be empty.
      name: of the user's, an rs number say.

    Raises InputError: a position below 1, other letters, both alleles equal.
    """

    chromosome: str
    position: int
    reference_bases: str
    alternate_bases: str
    name: str = ""

    def __post_init__(self) -> None:
        if self.position < 1:
            raise InputError(f"variant {self}: position {self.position}; positions of variants are 1-based")
        for bases in (self.reference_bases, self.alternate_bases):
            if not _BASES.fullmatch(bases):
                raise InputError(f"variant {self}: {bases!r} has letters other than A, C, G, T and N (capitals)")
        if self.reference_bases == self.alternate_bases:
            raise InputError(f"variant {self}: both alleles are the same; it changes nothing")

    def __str__(self) -> str:
        """ "chr1:101:A>C", the position 1-based, as `from_str` reads it."""
        return f"{self.chromosome}:{self.position}:{self.reference_bases}>{self.alternate_bases}"

    @classmethod
    def from_str(cls, text: str) -> "Variant":
        """Reads "chr1:101:A>C", "chr1:101_A>C" or "chr1:101A>C"; the position is 1-based."""
        match = _TEXT.match(text)
        if match is None:
            raise InputError(f"variant {text!r}: expected chromosome:position:reference>alternate, e.g. chr1:101:A>C")
        position = int(match["position"].replace(",", ""))
        return cls(match["chromosome"], position, match["reference"].upper(), match["alternate"].upper())

    @property
    def start(self) -> int:
        """Of the reference bases, 0-based."""
        return self.position - 1

    @property
    def end(self) -> int:
        """Behind the last reference base, 0-based: they are [start, end)."""
        return self.start + len(self.reference_bases)

    @property
    def reference_interval(self) -> Interval:
        """Of the reference bases, 0-based half-open; of an insertion without an anchor it is empty."""
        return Interval(self.chromosome, self.start, self.end, name=self.name)
