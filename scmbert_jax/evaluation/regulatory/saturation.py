"""Saturation mutagenesis: every change of every base of an element, measured by a reporter assay.

A table (.csv, .tsv) has a line per variant: chromosome, position (1-based), reference and alternate base ("-" or
nothing: the base is deleted), element, effect; also p-value and barcodes. A column that names the genome build may say
several, with each variant once in each: one is chosen. The reference sequence of an element is put together from the
reference bases of its variants.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from data_pipelines.genome.bases import UNKNOWN, encode
from data_pipelines.genome.header_table import read_header_table
from data_pipelines.genome.left_out import MOST_LEFT_OUT, LeftOut
from data_pipelines.genome.variant_file import VariantTable, read_variants
from scmbert_jax.errors import InputError

Array = np.ndarray

_COLUMNS = {
    "element": ("element", "experiment", "name"),
    "effect": ("coefficient", "effect", "value", "log2fc"),
    "barcodes": ("barcodes", "tags"),
}
_MOST_MISSING = 0.05  # of an element's bases, that no variant changes; they are N
DELETED = 5  # the alternate code of a deletion


@dataclass(frozen=True)
class Element:
    """One experiment.

    Attributes:
      name: "RET".
      chromosome, start: of its first base, 0-based.
      codes: uint8 [L], the reference (`bases`); N where no variant says it.
      place: int64 [n], of each variant in `codes`.
      alternate: uint8 [n], codes, or `DELETED`.
      effect: float64 [n], measured; positive where the alternate is more active.
    """

    name: str
    chromosome: str
    start: int
    codes: Array
    place: Array
    alternate: Array
    effect: Array

    def __len__(self) -> int:
        return len(self.place)

    @property
    def end(self) -> int:
        """Behind its last base, 0-based."""
        return self.start + len(self.codes)

    def windows(self, width: int) -> tuple[Array, Array]:
        """uint8 [n, width] twice: reference and alternate, the variant at width // 2, N beyond the element.

        Behind a deletion the alternate has one base more of the element.
        """
        before = width // 2
        # Long enough for the last window and the base that a deletion brings in.
        padded = np.pad(self.codes, (before, width + 1), constant_values=UNKNOWN)
        offsets = self.place[:, None] + np.arange(width)[None]
        reference = padded[offsets]
        alternate = padded[offsets + ((self.alternate == DELETED)[:, None] & (np.arange(width) >= before))]
        changed = self.alternate != DELETED
        alternate[changed, before] = self.alternate[changed]
        return reference, alternate


def read_elements(
    path: str | Path, *, assembly: str | None = None, min_barcodes: int = 0, most_left_out: float = MOST_LEFT_OUT
) -> list[Element]:
    """Reads a table of saturation mutagenesis.

    Args:
      assembly: the build whose lines are taken, where a column names several.
      min_barcodes: variants with fewer are not taken, where a column says so (they are mostly noise).
      most_left_out: fraction of the lines that may be unusable (insertions, changes of several bases, no effect).

    Returns:
      Elements in the order of the file.

    Raises InputError: columns that are missing; reference bases that contradict each other; an element with holes; more
    unusable lines than that; nothing left.
    """
    raw, columns = read_header_table(path, _COLUMNS, ("element", "effect"))
    variants = read_variants(path, assembly=assembly, keep_repeated=True, most_left_out=most_left_out)
    rows = variants.line - 2
    names = raw[columns["element"]].to_numpy(str)[rows]
    effect = _numbers(raw[columns["effect"]].to_numpy(str)[rows])
    left_out = LeftOut(str(path), len(rows))
    labels = np.array([f"line {line}" for line in variants.line.tolist()])
    kept = np.ones(len(rows), bool)
    single = (np.char.str_len(variants.reference_bases) == 1) & (np.char.str_len(variants.alternate_bases) <= 1)
    kept = left_out.drop(kept, ~single, "that change several bases or insert some", labels)
    kept = left_out.drop(kept, ~np.isfinite(effect), "without an effect", labels)
    left_out.refuse(most_left_out)
    if min_barcodes:
        if "barcodes" not in columns:
            raise InputError(
                f"{path}: no column of barcodes ({', '.join(_COLUMNS['barcodes'])}), so none can be asked for"
            )
        kept &= _numbers(raw[columns["barcodes"]].to_numpy(str)[rows]) >= min_barcodes
    taken = np.flatnonzero(kept)
    if not len(taken):
        raise InputError(f"{path}: no variant has {min_barcodes} barcodes; ask for fewer")
    # The reference sequence is read off all lines, also those with few barcodes.
    return [
        _element(path, name, variants, np.flatnonzero(single & (names == name)), taken[names[taken] == name], effect)
        for name in dict.fromkeys(names[taken].tolist())
    ]


def _numbers(text: Array) -> Array:
    """float64 [n], nan for what is no number."""

    def number(one: str) -> float:
        try:
            return float(one)
        except ValueError:
            return float("nan")

    return np.array([number(one) for one in text.tolist()])


def _element(path: str | Path, name: str, variants: VariantTable, known: Array, taken: Array, effect: Array) -> Element:
    chromosomes = np.unique(variants.chromosome[known])
    if len(chromosomes) > 1:
        raise InputError(f"{path}: element {name} is on {', '.join(chromosomes)}; expected one chromosome")
    position = variants.position[known]
    start = int(position.min()) - 1
    bases = encode("".join(variants.reference_bases[known]), 1.0, f"{path}, element {name}")
    codes = np.full(int(position.max()) - start, UNKNOWN, np.uint8)
    codes[position - 1 - start] = bases
    if (differs := codes[position - 1 - start] != bases).any():
        row = known[int(np.argmax(differs))]
        raise InputError(
            f"{path}, line {variants.line[row]}: the reference base of {name} at {variants.position[row]} is "
            f"{variants.reference_bases[row]}, and another one in another line"
        )
    if (codes == UNKNOWN).mean() > _MOST_MISSING:
        raise InputError(
            f"{path}: element {name} has no variant at {(codes == UNKNOWN).sum():,} of its {len(codes):,} bases, so "
            f"that its sequence is not known; at most {_MOST_MISSING:.0%} may miss"
        )
    alternate = np.array(
        [DELETED if not one else int(encode(one)[0]) for one in variants.alternate_bases[taken].tolist()], np.uint8
    )
    place = variants.position[taken] - 1 - start
    return Element(name, str(chromosomes[0]), start, codes, place, alternate, effect[taken])


def loci(elements: Sequence[Element]) -> Array:
    """int64 [E]: the same number for elements that share bases, directly or by way of others.

    Elements measured twice (other cells, the other orientation) are one locus: who learns of one of them has seen the
    other.
    """
    order = sorted(range(len(elements)), key=lambda row: (elements[row].chromosome, elements[row].start))
    found = np.zeros(len(elements), np.int64)
    reach = elements[order[0]].end if order else 0
    for before, row in pairwise(order):
        same = elements[row].chromosome == elements[before].chromosome and elements[row].start < reach
        found[row] = found[before] + (not same)
        reach = max(reach, elements[row].end) if same else elements[row].end
    return found
