"""The verb that makes a corpus of DNA: corpus genome."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from scmbert_jax.commands.terminal import Assembly, Output, Overwrite, listed, show
from scmbert_jax.errors import ConfigError

Summary = Literal["hits", "max", "sum", "log_mean_exp"]


@dataclass(frozen=True)
class CorpusGenome:
    """Make a corpus of DNA out of a genome and regions of it, for experiments such as genebert.

    Without regions, every sequence of the FASTA file is one; a hash says which validate (1 of 20) and test (2 of 20).

    Example:  scmbert corpus genome hg38.fa peaks.narrowPeak -o regions.npz --width 300 --motifs JASPAR.txt
              scmbert corpus genome mm10.fa peaks.bed -o regions.npz --accessibility atac.h5ad --group-by cell_type
              scmbert corpus genome promoters.fa -o promoters.npz --motifs JASPAR.txt
    """

    fasta: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FASTA")]]
    """Plain, gzip or bgzip."""
    intervals: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="REGIONS")]] = None
    """BED, narrowPeak, or a table with a header; 0-based half-open."""
    output: Output = Path("regions.npz")
    """.npz to write."""
    width: int | None = None
    """Bases of a window around the middle of a region. Default: the region as it is."""
    around: Literal["centre", "summit"] = "centre"
    """What is in the middle of a window."""
    edges: Literal["drop", "pad"] = "drop"
    """Windows beyond the end of their chromosome are left out, or filled with N."""
    regulators: Path | None = None
    """A matrix of regions by regulators: .parquet, .csv, .npz or .h5ad, found by the regions' ids."""
    motifs: Path | None = None
    """A file of motifs (JASPAR, MEME, PFM, TRANSFAC), in place of --regulators: windows are scanned for them."""
    summary: Summary = "hits"
    """What the scan keeps of a window: hits at p 1e-4, or a summary of all scores."""
    accessibility: Path | None = None
    """A matrix of regions by cell types, or cells: as --regulators."""
    group_by: str | None = None
    """Of an .h5ad of cells: the column of obs with their types; accessibility is the mean of each type."""
    assembly: Assembly = None
    ucsc_names: bool = False
    """Chromosomes are called as UCSC calls them ("1" becomes "chr1"), in both files."""
    validation_chromosomes: tuple[str, ...] = ("chr7",)
    """Do not train; the run is judged by them."""
    test_chromosomes: tuple[str, ...] = ("chr8", "chr9")
    """Neither train nor choose."""
    most_left_out: float = 0.01
    """Fraction of the regions that may be unusable; they are counted."""
    overwrite: Overwrite = False

    def run(self) -> int:
        from data_pipelines.genome.sealed_chromosomes import Part, SealedChromosomes
        from scmbert_jax.outputs import check_output_file
        from scmbert_jax.tasks.sequence_corpus import corpus_of_regions, corpus_of_sequences

        if self.output.suffix != ".npz":
            raise ConfigError(f"{self.output}: expected a name that ends in .npz.")
        read = [self.fasta, self.intervals, self.regulators, self.motifs, self.accessibility]
        check_output_file(self.output, [path for path in read if path is not None], self.overwrite)
        told: list[str] = []
        if self.intervals is None:
            self._refuse_what_needs_places()
            corpus = corpus_of_sequences(self.fasta, motifs=self.motifs, summary=self.summary)
        else:
            parts = SealedChromosomes(listed(self.validation_chromosomes), listed(self.test_chromosomes))
            corpus, told = corpus_of_regions(
                self.fasta,
                self.intervals,
                width=self.width,
                around=self.around,
                edges=self.edges,
                assembly=self.assembly,
                ucsc_names=self.ucsc_names,
                regulators=self.regulators,
                motifs=self.motifs,
                summary=self.summary,
                accessibility=self.accessibility,
                group_by=self.group_by,
                chromosomes=parts,
                most_left_out=self.most_left_out,
            )
        corpus.save(self.output)
        rows = {part: len(corpus.chromosomes.rows(corpus.chromosome, part)) for part in get_args(Part)}
        counted = ", ".join(f"{number:,} {part}" for part, number in rows.items())
        show(f"{self.output}: {len(corpus):,} sequences of up to {corpus.codes.shape[1]:,} bases ({counted})")
        for name, matrix in (("regulators", corpus.regulators), ("accessibility", corpus.accessibility)):
            if matrix is not None:
                filled = matrix.values.nnz / max(1, matrix.values.shape[0] * matrix.values.shape[1])
                show(f"{name}: {len(matrix.columns):,} columns of {matrix.where}, {filled:.1%} of the values not 0")
        told += [
            f"note: no sequence is of the part {part}; {remedy}"
            for part, remedy in (
                (
                    "train",
                    "no model can be trained on them: give other --validation-chromosomes and --test-chromosomes",
                ),
                ("validation", "a run is not judged: --validation-chromosomes says which chromosomes do that"),
            )
            if not rows[part]
        ]
        for line in told:
            show(line)
        return 0

    def _refuse_what_needs_places(self) -> None:
        read = ("fasta", "intervals", "output", "motifs", "summary", "overwrite")
        needs = [own for own in fields(self) if own.name not in read and getattr(self, own.name) != own.default]
        given = [f"--{own.name.replace('_', '-')}" for own in needs]
        if given:
            raise ConfigError(f"{', '.join(given)}: of regions; give REGIONS, or leave it out.")
