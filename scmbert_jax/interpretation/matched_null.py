"""What perturbing a gene does, against what perturbing genes like it does.

A gene that is removed changes what a model predicts of nearly every other gene, whatever it is. So a response of a
downstream gene means something only beside responses to genes of like expression, detection and degree. Two things are
asked apart, because a gene that moves a cell's embedding far moves everything with it:

    strength   the median over downstream genes of |response|, each by its median over the perturbed gene and the
               matched ones. Its p is a rank among the matched genes: not below 1 / (1 + N).
    z          (response / strength - mean of the null) / its standard deviation, of each downstream gene by itself;
               the null are the responses to matched genes, each by its strength. What responds beyond the rest.
    p          of z: the fraction of all z's of the null, of all downstream genes, that are as large in size,
               (1 + k) / (1 + n). The z of a matched gene is against the other matched genes.
    q          Benjamini and Hochberg's (1995), over the downstream genes.

With N matched genes and T downstream genes the smallest p is 1 / (1 + N T), where ranks against a gene's own N null
values could not be below 1 / (1 + N) and none would be left after correction. The price: z's of different downstream
genes are taken for draws of one distribution, and those of one matched gene move together. So what q is worth is
measured each time: each matched gene is tested against the others (`found_in_null`).
"""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import false_discovery_control

Array = np.ndarray

SIGNIFICANT = 0.05  # of q


class Tested(NamedTuple):
    """Of T downstream genes, float64 [T] each; nan where a gene has no response, or none to three matched genes.

    Attributes:
      mean, std: of the null, for a gene of this strength; z, p, q: see above.
      null_z: float64 [N, T], of each matched gene against the others.
      resolution: the smallest p there can be.
      found: genes of q < `SIGNIFICANT`; found_in_null: int64 [N], the same of each matched gene against the others.
      strength: by the median of the matched genes; strength_p: see above.
    """

    mean: Array
    std: Array
    z: Array
    p: Array
    q: Array
    null_z: Array
    resolution: float
    found: int
    found_in_null: Array
    strength: float
    strength_p: float

    @property
    def like_it(self) -> int:
        """Matched genes with as many significant genes as the perturbed one, and one at least."""
        return int((self.found_in_null >= max(self.found, 1)).sum())


def against_null(response: Array, null: Array) -> Tested:
    """Args: response float [T]; null float [N, T], responses to matched genes; nan where there is none."""
    every = np.concatenate([np.asarray(response, np.float64)[None], np.asarray(null, np.float64)])  # [1 + N, T]
    strength = _strength(every)
    own, *others = scaled = every / strength[:, None]
    mean, std = _moments(scaled[1:])
    z = [_z(own, scaled[1:])]
    z += [_z(other, np.delete(scaled[1:], place, axis=0)) for place, other in enumerate(others)]
    of_null = np.abs(np.stack(z[1:]))  # [N, T]
    sizes = [np.sort(some[np.isfinite(some)]) for some in _all_and_without_each(of_null)]
    corrected = [_corrected(one, those) for one, those in zip(z, sizes, strict=True)]
    found = [int((q < SIGNIFICANT).sum()) for _, q in corrected]
    return Tested(
        mean * strength[0],
        std * strength[0],
        z[0],
        *corrected[0],
        null_z=np.stack(z[1:]),
        resolution=1 / (1 + len(sizes[0])),
        found=found[0],
        found_in_null=np.array(found[1:], np.int64),
        strength=float(strength[0] / np.nanmedian(strength[1:])),
        strength_p=float((1 + (strength[1:] >= strength[0]).sum()) / len(strength)),
    )


def _all_and_without_each(values: Array) -> Iterator[Array]:
    yield values
    for place in range(len(values)):
        yield np.delete(values, place, axis=0)


def _strength(responses: Array) -> Array:
    """float64 [1 + N] of [1 + N, T]; nan of a gene to which nothing responds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # medians of nothing
        sizes = np.abs(responses)
        usual = np.nanmedian(np.where(sizes > 0, sizes, np.nan), axis=0)
        strength = np.nanmedian(sizes / usual, axis=1)
    return np.where(strength > 0, strength, np.nan)


def _moments(null: Array) -> tuple[Array, Array]:
    """Mean and standard deviation [T] over the matched genes that have a response; nan where they are fewer than 3."""
    there = np.isfinite(null)
    number = there.sum(axis=0)
    enough = number >= 3
    filled = np.where(there, null, 0.0)
    mean = filled.sum(axis=0) / np.maximum(number, 1)
    square = (np.where(there, null - mean, 0.0) ** 2).sum(axis=0) / np.maximum(number - 1, 1)
    return np.where(enough, mean, np.nan), np.where(enough, np.sqrt(square), np.nan)


def _z(response: Array, null: Array) -> Array:
    mean, std = _moments(null)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(std > 0, (response - mean) / std, np.nan)


def _corrected(z: Array, sizes: Array) -> tuple[Array, Array]:
    """(p, q) of z [T] against the sorted sizes of the null; nan where z is."""
    finite = np.isfinite(z)
    p, q = np.full(len(z), np.nan), np.full(len(z), np.nan)
    if finite.any():
        as_large = len(sizes) - np.searchsorted(sizes, np.abs(z[finite]), side="left")
        p[finite] = (1 + as_large) / (1 + len(sizes))
        q[finite] = false_discovery_control(p[finite])
    return p, q


def matched_genes(gene: int, figures: Array, candidates: Array, number: int) -> Array:
    """int64 [`number` at most]: of the candidates, those whose figures are nearest to the gene's.

    Args:
      gene: a place; never among what is found.
      figures: float [G, k], each made comparable by its standard deviation over the candidates.
      candidates: int64, places, in an order that decides among equals.
    """
    others = candidates[candidates != gene]
    scale = figures[candidates].std(axis=0)
    distance = (((figures[others] - figures[gene]) / np.where(scale > 0, scale, 1.0)) ** 2).sum(axis=1)
    return np.sort(others[np.argsort(distance, kind="stable")[:number]])
