"""The sequence around a variant with either allele: what a model compares."""

from collections.abc import Iterable

import numpy as np

from data_pipelines.genome.bases import UNKNOWN, decode, encode
from data_pipelines.genome.fasta import Fasta
from data_pipelines.genome.variant import Variant
from scmbert_jax.errors import InputError


def variant_windows(fasta: Fasta, variants: Iterable[Variant], width: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, width] twice: codes with the reference and with the alternate alleles.

    Both windows begin at `variant.start` - width // 2 (0-based), so that the first base of the allele is at position
    width // 2 of either. Behind an insertion or a deletion the alternate window ends earlier or later in the genome.
    Beyond the ends of a chromosome there is N. Where the genome has an N under the allele, the variant's base stands.

    Args:
      fasta: the genome.
      variants: positions 1-based (`VariantTable` gives them one by one, too).
      width: bases, 0-based half-open.

    Raises InputError: reference bases that are not in the genome, a chromosome that it has not, alleles that do not fit
    into the window.
    """
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for variant in variants:
        for windows, allele in zip(found, _alleles(fasta, variant, width), strict=True):
            windows.append(allele)
    if not found[0]:
        raise InputError("no variants: the filter that chose them has left none")
    return np.stack(found[0]), np.stack(found[1])


def _alleles(fasta: Fasta, variant: Variant, width: int) -> tuple[np.ndarray, np.ndarray]:
    there, said = fasta.codes(variant.chromosome, variant.start, variant.end, 1.0), encode(variant.reference_bases)
    if ((there != said) & (there != UNKNOWN) & (said != UNKNOWN)).any():
        raise InputError(
            f"variant {variant}: {fasta.name} has {decode(there)!r} there, not {variant.reference_bases!r}; is it of "
            "another build, or are its alleles the other way round?"
        )
    before = width // 2
    if max(len(variant.reference_bases), len(variant.alternate_bases)) > width - before:
        raise InputError(f"variant {variant}: its alleles do not fit into a window of {width} bases; take a wider one")
    left = fasta.padded_codes(variant.chromosome, variant.start - before, variant.start)
    right = fasta.padded_codes(variant.chromosome, variant.end, variant.end + width)
    reference = np.concatenate([left, np.where(there == UNKNOWN, said, there), right])[:width]
    return reference, np.concatenate([left, encode(variant.alternate_bases), right])[:width]
