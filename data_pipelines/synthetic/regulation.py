"""A network of genes that is known because it was drawn, and cells whose counts follow it. No file, and no database.

A regulator's activity is its own noise and what its regulators say; a gene's log mean is a weighted sum of the
activities of its regulators, and noise:

    z_g = sqrt(s) sum_r w_rg z_r / |w_g| + sqrt(1 - s) noise     over the regulators r of g, w_rg = +-1; s: how much
    counts ~ Poisson(gamma(depth x mean_g x exp(z_g)))             of a gene is regulated

Degrees of both sides are uneven, as those of curated networks are: who knows them finds edges at random, and none where
both sides are unseen.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.networks.edge_table import EdgeTable, merged_edges

NAME = "example:network"
LICENCE = "Apache-2.0 (drawn by this package)"
_REGULATORS, _GENES, _CELLS = 24, 120, 600
_REGULATED = 0.75  # s: of the variance of a gene that has regulators
_MEAN_COUNT, _SPREAD, _DEPTH_SPREAD, _DISPERSION = 4.0, 0.8, 0.3, 4.0
_REPRESSED = 0.3  # of the edges
_KNOWN, _WRONG = 0.5, 0.04  # of the edges, and of the other pairs, that the prior network has


@dataclass(frozen=True)
class PlantedNetwork:
    """Attributes:
    edges: the truth. prior: half of it, and pairs that are none, as a database would have them.
    regulators: str [R]; genes: str [G], regulators first.
    counts: int32 [n, G].
    """

    edges: EdgeTable
    prior: EdgeTable
    regulators: np.ndarray
    genes: np.ndarray
    counts: np.ndarray


def planted_network(seed: int = 0) -> PlantedNetwork:
    """24 regulators, 120 genes, 600 cells; the same for the same seed."""
    rng = np.random.default_rng([seed, 17])
    regulators = np.array([f"REG{number:02d}" for number in range(1, _REGULATORS + 1)])
    others = np.array([f"GENE{number:03d}" for number in range(1, _GENES - _REGULATORS + 1)])
    genes = np.concatenate([regulators, others])
    odds = rng.normal(-2.6, 1.0, _REGULATORS)[:, None] + rng.normal(0, 1.0, _GENES)[None]
    # Regulators regulate those after them, so that nothing goes in circles.
    later = np.arange(_GENES)[None] > np.arange(_REGULATORS)[:, None]
    is_edge = (rng.random(odds.shape) < 1 / (1 + np.exp(-odds))) & later
    sign = np.where(rng.random(odds.shape) < _REPRESSED, -1, 1)
    prior = np.where(is_edge, rng.random(odds.shape) < _KNOWN, rng.random(odds.shape) < _WRONG) & later
    return PlantedNetwork(
        _edges(is_edge, sign, regulators, genes, NAME),
        _edges(prior, np.zeros_like(sign), regulators, genes, f"{NAME}, its prior"),
        regulators,
        genes,
        _counts(is_edge * sign, rng),
    )


def _counts(effect: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int32 [n, G] of signed edges [R, G], each regulator after those that regulate it."""
    activity = rng.normal(size=(_CELLS, _GENES))
    for gene in range(_GENES):
        size = np.linalg.norm(effect[:, gene])
        if size:
            said = activity[:, :_REGULATORS] @ effect[:, gene] / size
            activity[:, gene] = np.sqrt(_REGULATED) * said + np.sqrt(1 - _REGULATED) * activity[:, gene]
    depth = rng.normal(0, _DEPTH_SPREAD, (_CELLS, 1))
    mean = _MEAN_COUNT * np.exp(rng.normal(0, 0.5, _GENES) + _SPREAD * activity + depth)
    return rng.poisson(rng.gamma(_DISPERSION, mean / _DISPERSION)).astype(np.int32)


def _edges(there: np.ndarray, sign: np.ndarray, regulators: np.ndarray, genes: np.ndarray, name: str) -> EdgeTable:
    rows, columns = np.nonzero(there)
    ones = np.ones(len(rows))
    about = {"licence": np.full(len(rows), LICENCE)}
    return merged_edges(
        regulators[rows], genes[columns], sign[rows, columns].astype(np.int8), ones, ones, name, about=about
    )
