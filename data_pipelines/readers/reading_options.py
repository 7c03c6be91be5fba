"""What only a person can decide about a file: on which regions to count, which barcodes are cells, what to do with
reads.

Given for all files (`ReadingOptions`, the flags of the command line), or for one behind its name:

    fragments.tsv.gz?barcodes=barcodes.tsv.gz&regions=windows:5000&assembly=hg38
    census:2025-11-08?organism=human&obs_value_filter=tissue_general == 'blood' and is_primary_data == True

A "%", "&" or "+" within a value is written %25, %26 or %2B.
"""

import dataclasses
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import unquote

from scmbert_jax.errors import InputError

FragmentCounts = Literal["fragments", "cut-sites"]
FullLength = Literal["refuse", "length-normalise"]


@dataclasses.dataclass(frozen=True)
class ReadingOptions:
    """For all files; for one of them after its name: 'FILE?option=value&option=value' (min_fragments=1000).

    Attributes:
      assembly: genome build of regions ("hg38", "mm10", ...); None: the one the file names.
      regions: a BED file (.bed, .bed.gz), or "windows:5000" for windows of so many base pairs; None: a file's own
        peaks.
      region_links: from regions to genes: "distance" (TSS within 100,000 bp), "distance:BP", "none", or a table
        with the columns region and gene.
      barcodes: the file that lists the cells of a fragments file, one barcode a line.
      min_fragments: instead of barcodes: every barcode with at least so many fragments is a cell.
      fragment_counts: "fragments" (each counts once in a region that holds at least one of its two ends) or "cut-sites"
        (every end counts).
      assay: the assay of all cells, for a file whose obs does not say it.
      full_length: what to do with cells of assays that read whole transcripts (Smart-seq2, ...): "refuse" them, or
        "length-normalise" their counts.
      gene_lengths: a table with the columns gene and length (base pairs); None: var["feature_length"].
      layer: where the raw counts stand in an AnnData or in the modalities of a MuData: the name of a layer, or X or
        raw.X; None: layers["counts"], raw.X or X, the first of them that holds counts.

    Raises InputError for an impossible value.
    """

    assembly: str | None = None
    regions: str | None = None
    region_links: str = "distance"
    barcodes: str | None = None
    min_fragments: int | None = None
    fragment_counts: FragmentCounts = "fragments"
    assay: str | None = None
    full_length: FullLength = "refuse"
    gene_lengths: str | None = None
    layer: str | None = None

    def __post_init__(self) -> None:
        for name, kind in (("fragment_counts", FragmentCounts), ("full_length", FullLength)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"{name} {getattr(self, name)!r}: expected {' or '.join(get_args(kind))}")
        if self.min_fragments is not None and self.min_fragments < 1:
            raise InputError(f"min_fragments {self.min_fragments}: expected at least 1 (a thousand is usual)")
        if self.barcodes is not None and self.min_fragments is not None:
            raise InputError(
                "barcodes and min_fragments: either a list says which barcodes are cells, or a number; not both"
            )
        if self.gene_lengths is not None and self.full_length != "length-normalise":
            raise InputError("gene_lengths: only used by full_length length-normalise; state that too")

    def replaced(self, query: dict[str, str], spec: str) -> "ReadingOptions":
        """These, with what stands behind the name of one file. Raises InputError for an option that does not exist."""
        names = [field.name for field in dataclasses.fields(self)]
        for name in query:
            if name not in names:
                raise InputError(f"{spec}: no option {name!r}; there is {', '.join(names)}")
        changes: dict[str, str | int] = dict(query)
        # One file's rule of which barcodes are cells takes the place of everyone's.
        if {"barcodes", "min_fragments"} & set(query):
            changes = {"barcodes": None, "min_fragments": None, **query}  # type: ignore[dict-item]
        if "min_fragments" in query:
            if not query["min_fragments"].isdecimal():
                raise InputError(f"{spec}: min_fragments={query['min_fragments']} is not a whole number")
            changes["min_fragments"] = int(query["min_fragments"])
        try:
            return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
        except InputError as error:
            raise InputError(f"{spec}: {error}") from error


DEFAULT_READING = ReadingOptions()


def split_query(spec: str) -> tuple[str, dict[str, str]]:
    """ "a.h5ad?assay=Smart-seq2" -> ("a.h5ad", {"assay": "Smart-seq2"}); a file whose own name has a "?" stands first.

    Raises InputError where what follows the "?" is not NAME=VALUE&NAME=VALUE.
    """
    place, mark, query = spec.partition("?")
    if not mark or Path(spec).exists():
        return spec, {}
    options: dict[str, str] = {}
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        if not (name and equals and value) or name in options:
            raise InputError(f"{spec}: {part!r} after the '?'; expected NAME=VALUE, each name once, joined by '&'")
        options[name] = unquote(value)
    return place, options
