"""A corpus of sequences out of files: a genome, regions of it, and what is known of them (`scmbert corpus genome`)."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.sparse as sp

from data_pipelines.genome.bases import UNKNOWN, reverse_complement
from data_pipelines.genome.fasta import Fasta
from data_pipelines.genome.genome_corpus import GenomeCorpus, genome_corpus
from data_pipelines.genome.interval import Interval
from data_pipelines.genome.interval_table import IntervalTable, intervals_of, read_intervals
from data_pipelines.genome.left_out import MOST_LEFT_OUT, added_up, counted_in_words
from data_pipelines.genome.motif_files import read_motifs
from data_pipelines.genome.region_matrix import RegionMatrix, read_region_matrix
from data_pipelines.genome.sealed_chromosomes import USUAL_PARTS, SealedChromosomes
from data_pipelines.genome.windows import Windows, cut_windows
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.sequences.motif_scanner import Summary
from scmbert_jax.tasks.motif_matrix import motif_matrix

# Chromosomes of sequences that have no place: their parts, so that the same sequence is never in two of them.
WITHOUT_PLACES = SealedChromosomes(validation=("validation",), test=("test",), train=("train",))
_MOST_BASES = 1 << 32  # of a corpus, which is read into memory


def corpus_of_regions(
    fasta: str | Path,
    intervals: str | Path,
    *,
    width: int | None = None,
    around: Literal["centre", "summit"] = "centre",
    edges: Literal["drop", "pad"] = "drop",
    assembly: str | None = None,
    ucsc_names: bool = False,
    regulators: str | Path | None = None,
    motifs: str | Path | None = None,
    summary: Summary = "hits",
    accessibility: str | Path | None = None,
    group_by: str | None = None,
    chromosomes: SealedChromosomes = USUAL_PARTS,
    most_left_out: float = MOST_LEFT_OUT,
) -> tuple[GenomeCorpus, list[str]]:
    """The windows of intervals of a genome, with their matrices.

    Args:
      fasta, assembly, ucsc_names: see `Fasta`.
      intervals: BED, narrowPeak or a table (`read_intervals`), 0-based half-open.
      width, around, edges: see `cut_windows`.
      regulators: a stored matrix of regions by regulators (`read_region_matrix`), or
      motifs: a file of motifs, for which the windows are scanned (`motif_matrix`); `summary`: of a window's scores.
      accessibility: a stored matrix of regions by cell types, or an .h5ad of cells.
      group_by: of an .h5ad of cells: the column of obs whose values are the cell types; accessibility is their mean.
      chromosomes: which of them train, choose and test.
      most_left_out: fraction of the intervals that may be unusable, and of the others that may have no window.

    Returns:
      (the corpus; what is to be told: intervals left out, by reason; those that overlap or are not sorted).

    Raises:
      InputError: files that cannot be used (the readers say why); a matrix that lacks a region.
      ConfigError: regulators and motifs, both; `group_by` without an .h5ad.
    """
    if regulators is not None and motifs is not None:
        raise ConfigError("--regulators and --motifs are both given; a corpus has one matrix of regulators.")
    genome = Fasta(fasta, assembly, ucsc_names)
    table = read_intervals(intervals, genome, ucsc_names=ucsc_names, most_left_out=most_left_out)
    _check_size(table, width, str(intervals))
    windows = cut_windows(genome, table, width, around=around, edges=edges, most_left_out=most_left_out)
    matrix = _regulators(table, windows, regulators, motifs, summary)
    cells = None if accessibility is None else _accessibility(Path(accessibility), group_by)
    if cells is None and group_by is not None:
        raise ConfigError("--group-by is of --accessibility, which is not given.")
    corpus = genome_corpus(table, windows, chromosomes, assembly or "", matrix, cells)
    told = counted_in_words(added_up(table.left_out, windows.left_out))
    found = {"share a base with another one": table.overlapping, "begin before the one ahead of them": table.unsorted}
    return corpus, told + [f"note: {number:,} intervals {what}; kept" for what, number in found.items() if number]


def corpus_of_sequences(
    fasta: str | Path, *, motifs: str | Path | None = None, summary: Summary = "hits"
) -> GenomeCorpus:
    """The sequences of a FASTA file, which have no place in a genome: no region has neighbours.

    Of every 20 sequences one validates and two test, by a hash of what they say on either strand: the same sequence is
    of one part, in any file.

    Raises InputError: a file that cannot be used.
    """
    found = Fasta(fasta)
    lengths = np.array(list(found.lengths.values()), np.int32)
    table = intervals_of((Interval(name, 0, length) for name, length in found.lengths.items()), str(fasta))
    _check_size(table, None, str(fasta))
    codes = np.full((len(lengths), lengths.max(initial=0)), UNKNOWN, np.uint8)
    for row, (name, length) in enumerate(found.lengths.items()):
        codes[row, :length] = found.codes(name, 0, length)
    order = np.arange(len(codes), dtype=np.int64)
    windows = Windows(codes, lengths, order, order, {})
    matrix = _regulators(table, windows, None, motifs, summary)
    parts = np.array([_part(row[:length]) for row, length in zip(codes, lengths, strict=True)], dtype=str)
    return GenomeCorpus(codes, lengths, parts, order, table.ids, WITHOUT_PLACES, "", matrix)


def has_places(corpus: GenomeCorpus) -> bool:
    """False: its sequences have no neighbours (`corpus_of_sequences`)."""
    return corpus.chromosomes != WITHOUT_PLACES


def _part(codes: np.ndarray) -> str:
    either = min(codes.tobytes(), reverse_complement(codes).tobytes())
    place = int.from_bytes(hashlib.sha256(either).digest()[:8], "big") % 20
    return "validation" if place == 0 else "test" if place < 3 else "train"


def _regulators(
    table: IntervalTable, windows: Windows, stored: str | Path | None, motifs: str | Path | None, summary: Summary
) -> RegionMatrix | None:
    if motifs is not None:
        return motif_matrix(table, windows, read_motifs(motifs), summary)
    return None if stored is None else read_region_matrix(stored)


def _accessibility(path: Path, group_by: str | None) -> RegionMatrix:
    matrix = read_region_matrix(path)
    if group_by is None:
        return matrix
    if path.suffix != ".h5ad":
        raise ConfigError(f"--group-by {group_by}: {path} has no cells; expected an .h5ad.")
    import anndata

    obs = anndata.read_h5ad(path, backed="r").obs
    if group_by not in obs.columns or matrix.columns.tolist() != obs.index.astype(str).tolist():
        raise InputError(f"{path}: no column {group_by!r} of cells in obs; there are {', '.join(obs.columns[:8])}")
    return _means(matrix, obs[group_by].astype(str).tolist())


def _means(matrix: RegionMatrix, labels: Sequence[str]) -> RegionMatrix:
    """The mean over the columns of each label."""
    names, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    ones = sp.csr_array((1 / counts[place], (np.arange(len(place)), place)), shape=(len(place), len(names)))
    values = sp.csr_array((matrix.values @ ones).astype(np.float32))
    return RegionMatrix(matrix.regions, names.astype(str), values, matrix.where)


def _check_size(table: IntervalTable, width: int | None, where: str) -> None:
    longest = int((table.end - table.start).max(initial=0)) if width is None else width
    if longest * len(table) > _MOST_BASES:
        raise InputError(
            f"{where}: {len(table):,} sequences as long as the longest ({longest:,} bases) are more than the 4 GB that "
            "a corpus holds in memory; give --width"
        )
