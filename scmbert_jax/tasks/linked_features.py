"""What two modalities share without a single pair: a protein and its coding gene, a gene and the regions near it.

Single cells are too noisy for one gene to be compared with one protein. Each linked value is therefore replaced by what
the rest of its own modality says of it: its projection on the cells' leading SVD scores. How much of it is left then is
its quality; links are weighted by the quality of both ends, so that a gene that is nearly never seen has little say.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from scmbert_jax.errors import InputError
from scmbert_jax.tasks.modality_cells import ModalityCells
from scmbert_jax.tasks.normalisation import log1p_of_depth
from scmbert_jax.value_scales import log1p_values

Array = np.ndarray

FEWEST_LINKS = 5


@dataclass(frozen=True)
class Links:
    """K linked features of two modalities.

    Attributes:
      names: str [K], the antibody, or the id of the gene.
      first: float CSR [F_first, K], weights with which features become the linked value of the first modality.
      second: the same of the second modality, [F_second, K].
    """

    names: Array
    first: sp.csr_matrix
    second: sp.csr_matrix

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Array) -> "Links":
        return Links(self.names[rows], self.first[:, rows], self.second[:, rows])


def find_links(first: ModalityCells, second: ModalityCells) -> Links:
    """One link per antibody where one of the two is protein, else one per gene.

    Raises:
      InputError: two organisms or assemblies that do not belong together, or fewer than 5 links.
    """
    organisms = {first.features.organism, second.features.organism} - {None}
    if len(organisms) > 1:
        raise InputError(
            f"{first.path}: {first.modality} is {first.features.space}, {second.modality} is {second.features.space}; "
            "cells of different organisms have no links. Give data of one organism."
        )
    genes_of_first, genes_of_second = _genes(first), _genes(second)
    known = set().union(*genes_of_first) & set().union(*genes_of_second)
    own: dict[str, list[int]] = {}
    if "protein" in (first.modality, second.modality):
        antibodies, genes = (first, genes_of_first) if first.modality == "protein" else (second, genes_of_second)
        own["protein"] = [row for row, linked in enumerate(genes) if known & linked]
        units = [(str(antibodies.features.names[row]), genes[row] & known) for row in own["protein"]]
    else:
        units = [(gene, {gene}) for gene in sorted(known)]
    if len(units) < FEWEST_LINKS:
        raise InputError(
            f"{first.path}: {len(units)} links between {first.modality} and {second.modality} ({len(first.features)} "
            f"and {len(second.features)} features); at least {FEWEST_LINKS} are needed to match cells without pairs. "
            "Measure more shared genes, check the names with scmbert doctor, or use pairs."
        )
    return Links(
        np.array([name for name, _ in units]),
        _incidence(first, genes_of_first, units, own.get(first.modality)),
        _incidence(second, genes_of_second, units, own.get(second.modality)),
    )


def linked_values(cells: ModalityCells, weights: sp.csr_matrix) -> Array:
    """float64 [n, K]: mean normalised value of the linked genes or antibodies; for ATAC the gene activity, log1p of the
    number of open linked regions per open region of the cell (times the median number)."""
    if cells.modality == "atac":
        opened = sp.csr_matrix((cells.counts > 0).astype(np.float64))
        depth = np.asarray(opened.sum(1)).ravel()
        activity = (opened @ (weights > 0).astype(np.float64)).toarray()
        return log1p_values(activity, depth[:, None], np.median(depth))
    values = log1p_of_depth(cells.counts.astype(np.float64)) if cells.modality == "rna" else cells.values
    return (values @ weights).toarray()


def smoothed(values: Array, scores: Array) -> tuple[Array, Array]:
    """Least-squares projection of each linked value on the cells' scores, and what is left of its variance.

    Args:
      values: float [n, K]; scores: float [n, d].

    Returns:
      float64 [n, K] smoothed values, centred; float64 [K] quality in [0, 1], the adjusted R^2 (0 where the scores say
      no more than as many random numbers would).
    """
    centred = values - values.mean(0)
    basis, _ = np.linalg.qr(scores - scores.mean(0))
    fitted = basis @ (basis.T @ centred)
    number, dimensions = len(values), scores.shape[1]
    left = (fitted**2).sum(0) / np.maximum((centred**2).sum(0), np.finfo(float).tiny)
    quality = 1 - (1 - left) * (number - 1) / max(number - 1 - dimensions, 1)
    return fitted, np.clip(quality, 0.0, 1.0)


def comparable(first: Array, second: Array, quality: Array) -> tuple[Array, Array]:
    """z-scored linked values, scaled by the square root of the link's weight: their cosine compares cells.

    Args:
      first: float [n, K]; second: float [m, K] smoothed values; quality: float [K] weight of each link.
    """
    root = np.sqrt(quality)

    def scaled(values: Array) -> Array:
        spread = values.std(0)
        return (values - values.mean(0)) / np.where(spread > 1e-12, spread, np.inf) * root

    return scaled(first), scaled(second)


def _genes(cells: ModalityCells) -> list[set[str]]:
    if cells.modality == "rna":
        return [{str(gene)} for gene in cells.features.ids]
    return [set(linked) for linked in cells.features.links]


def _incidence(
    cells: ModalityCells, genes: list[set[str]], units: list[tuple[str, set[str]]], own: list[int] | None
) -> sp.csr_matrix:
    """[F, K], columns sum to 1. `own`: the very feature of each unit, where the units are features of this modality."""
    if own is not None:
        return sp.csr_matrix((np.ones(len(own)), (own, np.arange(len(own)))), (len(genes), len(units)))
    features_of: dict[str, list[int]] = {}
    for row, linked in enumerate(genes):
        for gene in linked:
            features_of.setdefault(gene, []).append(row)
    places = [
        (row, column)
        for column, (_, wanted) in enumerate(units)
        for row in sorted({row for gene in wanted for row in features_of.get(gene, ())})
    ]
    rows, columns = np.array(places).T
    weights = 1.0 / np.bincount(columns, minlength=len(units))[columns]
    return sp.csr_matrix((weights, (rows, columns)), (len(genes), len(units)))
