"""Which regulators are active in a cell type: its accessible regions explained by the motifs in them.

Ridge regression of a type's accessibility on the regions' motif scores, each standardised; the strength is chosen for
each type by leaving a region out. The coefficient of a motif is the activity of its regulator: how much more accessible
a region is per standard deviation of the motif's score. A type that was measured on a part of the regions only is
predicted on the others from its activities there, beside what is typical of each region in the types that are known.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import LinearRegression, RidgeCV

from data_pipelines.genome.region_matrix import RegionMatrix
from scmbert_jax.errors import InputError

STRENGTHS = np.logspace(-1, 6, 15)
_FEWEST_REGIONS = 10


@dataclass(frozen=True)
class MotifActivities:
    """M motifs in K cell types.

    Attributes:
      motifs: str [M], columns of the matrix of scores.
      types: str [K], columns of the accessibility.
      activity: float64 [M, K], in units of the accessibility per standard deviation of the motif's score.
      num_regions: that both matrices had.
      strengths: float64 [K], of the ridge.
    """

    motifs: np.ndarray
    types: np.ndarray
    activity: np.ndarray
    num_regions: int
    strengths: np.ndarray


def motif_activities(scores: RegionMatrix, accessibility: RegionMatrix) -> MotifActivities:
    """Of every cell type, over the regions that both have, which are joined by their ids.

    Args:
      scores: regions by motifs, such as `motif_matrix` makes.
      accessibility: regions by cell types, on a scale on which effects add up, such as log odds or a log of counts.

    Raises `InputError`: fewer than 10 regions in both.
    """
    regions = accessibility.regions[np.isin(accessibility.regions, scores.regions)]
    _require_regions(len(regions), scores, accessibility)
    found = _ridge(_standardised(scores.joined(regions)[0].toarray()), accessibility.joined(regions)[0].toarray())
    return MotifActivities(scores.columns, accessibility.columns, found.coef_.T, len(regions), found.alpha_)


def accessibility_elsewhere(
    scores: RegionMatrix, known: RegionMatrix, measured: RegionMatrix, regions: np.ndarray
) -> RegionMatrix:
    """Accessibility of new cell types on regions where they were not measured.

    value = a + b x (mean of the known types) + scores of the region's motifs x activities in the new type; a, b and the
    activities are of the regions where the type was measured.

    Args:
      scores: regions by motifs.
      known: regions by types that are known; of all regions that are measured or asked for.
      measured: regions by new types; may be of any regions of both.
      regions: str [n], ids of those to predict.

    Returns:
      n regions by new types.

    Raises `InputError`: a region that `scores` or `known` lacks; fewer than 10 regions measured.
    """
    _require_regions(len(measured), scores, measured)
    everywhere = np.concatenate([measured.regions, np.asarray(regions, str)])
    x = _standardised(scores.joined(everywhere)[0].toarray())
    typical = known.joined(everywhere)[0].toarray().mean(axis=1, keepdims=True)
    here, y = slice(len(measured)), measured.values.toarray()
    line = LinearRegression().fit(typical[here], y)
    rest = _ridge(x[here], y - line.predict(typical[here]))
    predicted = line.predict(typical) + rest.predict(x).reshape(len(x), -1)
    values = predicted[len(measured) :].astype(np.float32)
    return RegionMatrix(np.asarray(regions, str), measured.columns, sp.csr_array(values), "predicted accessibility")


def _ridge(x: np.ndarray, y: np.ndarray) -> RidgeCV:
    """y [R, K] on x [R, M], a strength for each column of y."""
    return RidgeCV(STRENGTHS, alpha_per_target=True).fit(x, y)


def _standardised(scores: np.ndarray) -> np.ndarray:
    """A motif with the same score everywhere is 0."""
    spread = scores.std(axis=0)
    return (scores - scores.mean(axis=0)) / np.where(spread > 0, spread, 1.0)


def _require_regions(number: int, scores: RegionMatrix, accessibility: RegionMatrix) -> None:
    if number < _FEWEST_REGIONS:
        example = (
            f"{scores.regions[0]} and {accessibility.regions[0]}" if len(scores) and len(accessibility) else "none"
        )
        raise InputError(
            f"{accessibility.where}: {number} of its {len(accessibility):,} regions are in {scores.where}, at least "
            f"{_FEWEST_REGIONS} are needed; they are called as in {example}. Give matrices of the same regions."
        )
