"""A stretch of a chromosome, under the names of AlphaGenome's `genome.Interval`."""

from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from data_pipelines.features.genome_assembly import REGION
from scmbert_jax.errors import InputError

Strand = Literal["+", "-", "."]  # forward, reverse, not known


@dataclass(frozen=True)
class Interval:
    """Bases [start, end) of a chromosome; 0-based, half-open, whatever the strand.

    Attributes:
      chromosome: as the FASTA has it, "chr1".
      start, end: 0 <= start <= end.
      strand: "+", "-", or "." where it is not known.
      name: of the user's.

    Raises InputError: a negative start, an end before it, another strand.
    """

    chromosome: str
    start: int
    end: int
    strand: Strand = "."
    name: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise InputError(
                f"interval {self}: expected 0 <= start <= end; positions are 0-based and the end is not part of it"
            )
        if self.strand not in get_args(Strand):
            raise InputError(f"interval {self}: strand {self.strand!r}; expected +, - or .")

    def __str__(self) -> str:
        """ "chr1:100-200:+", 0-based half-open, as `from_str` reads it."""
        return f"{self.chromosome}:{self.start}-{self.end}:{self.strand}"

    @classmethod
    def from_str(cls, text: str) -> "Interval":
        """Reads "chr1:100-200" or "chr1:100-200:+"; 0-based half-open. (Genome browsers show 1-based closed ones.)"""
        place, strand = (text[:-2], text[-1]) if text[-2:] in (":+", ":-", ":.") else (text, ".")
        match = REGION.match(place.replace(",", ""))
        if match is None:
            raise InputError(f"interval {text!r}: expected chromosome:start-end, perhaps with :+ or :-")
        return cls(match["chrom"], int(match["start"]), int(match["end"]), cast(Strand, strand))

    @property
    def width(self) -> int:
        return self.end - self.start

    def center(self) -> int:
        """The 0-based position in the middle; of an even width the one to the right of it."""
        return (self.start + self.end) // 2

    def resize(self, width: int) -> "Interval":
        """One of this width around the same centre: [centre - width // 2, + width), 0-based half-open.

        Raises InputError where it would begin before the chromosome does.
        """
        start = self.center() - width // 2
        return replace(self, start=start, end=start + width)

    def contains(self, other: "Interval") -> bool:
        """Whether all bases of `other` are bases of this, whatever the strands."""
        return self.chromosome == other.chromosome and self.start <= other.start and other.end <= self.end

    def overlaps(self, other: "Interval") -> bool:
        """Whether they share a base, whatever the strands."""
        return self.chromosome == other.chromosome and self.start < other.end and other.start < self.end
