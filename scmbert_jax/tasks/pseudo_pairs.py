"""Pairs for cells that were never paired: linked features, optimal transport, and a few rounds of CCA on all features.

Within each technical batch (cells of batches that measured only one modality make one more block):

  1. linked values of both modalities, smoothed in their own modality, weighted by quality (`linked_features`);
  2. entropic transport of their cosine cost;
  3. canonical correlation analysis of *all* features, the plan standing where the pairs would stand;
  4. transport of the mean of the links' cost and the CCA's cost; back to 3.

After the idea of MaxFuse (Chen et al. 2023), with a soft plan instead of an assignment in every round. No barcode of
one modality is ever compared with one of the other, and no label is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.tasks.linked_features import Links, comparable, find_links, linked_values, smoothed
from scmbert_jax.tasks.modality_cells import ModalityCells, Projection, centred_by, fit_projection
from scmbert_jax.tasks.optimal_transport import cosine_cost, plan

Array = np.ndarray

FEWEST_CELLS = 20


@dataclass(frozen=True)
class PseudoPairSettings:
    """How to match. The defaults were chosen by `held_out_link_correlation` on PBMC, never by true pairs.

    Attributes:
      smoothing_dimensions: SVD scores a linked value is projected on.
      dimensions: PCA or LSI scores of each modality that CCA reads.
      cca_dimensions: canonical axes kept.
      rounds: of CCA and transport; 0 leaves links alone.
      link_weight: weight of the links' cost beside the CCA's in later rounds, 0 to 1.
      epsilon: entropic regularisation, in units of the cosine cost (0 to 2).
      ridge: added to each covariance, as a fraction of its mean variance.
      largest_block: cells of a modality that are matched at once; larger technical batches are cut at random.
      seed: of that cut, and of SVD starts.
    """

    smoothing_dimensions: int = 20
    dimensions: int = 50
    cca_dimensions: int = 20
    rounds: int = 3
    link_weight: float = 0.5
    epsilon: float = 0.05
    ridge: float = 0.1
    largest_block: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("smoothing_dimensions", "dimensions", "cca_dimensions", "largest_block"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: expected 1 or more.")
        if self.rounds < 0 or not 0 <= self.link_weight <= 1 or self.epsilon <= 0 or self.ridge <= 0:
            raise ConfigError(
                f"rounds {self.rounds}, link_weight {self.link_weight}, epsilon {self.epsilon}, ridge {self.ridge}: "
                "expected rounds >= 0, 0 <= link_weight <= 1, epsilon > 0 and ridge > 0."
            )


@dataclass(frozen=True)
class SharedSpace:
    """Two linear maps into one space, in which the cosine compares cells of the two modalities.

    Attributes:
      first, second: the PCA or LSI of each modality.
      first_axes, second_axes: float64 [d_1, c], [d_2, c] canonical axes, scaled by their correlations.
      correlations: float64 [c].
    """

    first: Projection
    second: Projection
    first_axes: Array
    second_axes: Array
    correlations: Array

    def embed_first(self, cells: ModalityCells) -> Array:
        """float64 [n, c], centred within each technical batch."""
        return centred_by(self.first(cells.values), cells.technical_batches) @ self.first_axes

    def embed_second(self, cells: ModalityCells) -> Array:
        """float64 [n, c], centred within each technical batch."""
        return centred_by(self.second(cells.values), cells.technical_batches) @ self.second_axes


@dataclass(frozen=True)
class PseudoPairs:
    """The result of `match_unpaired`.

    Attributes:
      first_rows, second_rows: int64 [P], the cells of each pair; no cell stands in two pairs.
      probabilities: float64 [P], the plan's, mean of both directions.
      space: the maps of the last round; None with rounds = 0.
      num_links: linked features used.
      num_blocks, num_converged: blocks, and those of which the last transport converged.
      settings: what it was made with.
    """

    first_rows: Array
    second_rows: Array
    probabilities: Array
    space: SharedSpace | None
    num_links: int
    num_blocks: int
    num_converged: int
    settings: PseudoPairSettings


def match_unpaired(
    first: ModalityCells,
    second: ModalityCells,
    *,
    settings: PseudoPairSettings | None = None,
    links: Links | None = None,
) -> PseudoPairs:
    """Matches cells of two modalities without knowing any pair.

    Args:
      first, second: cells of two modalities; that some may be the same cells is not looked at.
      links: of these features; None: `find_links`.

    Raises:
      InputError: one modality twice, too few cells or links, or no block with cells of both.
    """
    settings = settings or PseudoPairSettings()
    matcher = _Matcher(first, second, links or find_links(first, second), settings)
    space: SharedSpace | None = None
    for _ in range(settings.rounds):
        space = matcher.shared_space(space)
    rows_first, rows_second, probabilities, converged = [], [], [], 0
    for block, coupling, done in matcher.plans(space):
        # Rows that have converged to the same log plan are compared as logarithms: tiny products underflow.
        left, right = linear_sum_assignment(-np.log(np.maximum(coupling, np.finfo(float).tiny)))
        mass = coupling[left, right]
        probabilities.append((mass / coupling.sum(1)[left] + mass / coupling.sum(0)[right]) / 2)
        rows_first.append(block[0][left])
        rows_second.append(block[1][right])
        converged += done
    return PseudoPairs(
        np.concatenate(rows_first),
        np.concatenate(rows_second),
        np.concatenate(probabilities),
        space,
        len(matcher.links),
        len(matcher.blocks),
        converged,
        settings,
    )


def held_out_link_correlation(
    first: ModalityCells, second: ModalityCells, *, settings: PseudoPairSettings | None = None, folds: int = 5
) -> float:
    """How well a matching made with some links predicts the others: a figure to choose settings by, without pairs.

    The links are split in `folds`; each part is left out once, the second modality's value of its links is averaged
    over the plan, and correlated (Pearson) over cells with the linked value of the first modality. The mean over links
    is weighted by their quality. 0: the matching knows nothing. It cannot reach 1: the linked value has its own noise.
    """
    settings = settings or PseudoPairSettings()
    links = find_links(first, second)
    order = np.random.default_rng(settings.seed).permutation(len(links))
    total, weight = 0.0, 0.0
    for fold in range(folds):
        left_out = np.sort(order[fold::folds])
        used = links.take(np.setdiff1d(order, left_out))
        matcher = _Matcher(first, second, used, settings)
        space: SharedSpace | None = None
        for _ in range(settings.rounds):
            space = matcher.shared_space(space)
        hidden = links.take(left_out)
        truth, other = linked_values(first, hidden.first), linked_values(second, hidden.second)
        quality = matcher.quality_of(hidden)
        cells = sum(len(block[0]) for block in matcher.blocks)
        for block, coupling, _ in matcher.plans(space):
            carried = coupling @ other[block[1]] / coupling.sum(1, keepdims=True)
            total += float(quality @ _correlation(truth[block[0]], carried)) * len(block[0]) / cells
        weight += float(quality.sum())
    return total / max(weight, np.finfo(float).tiny)


def canonical_axes(first: Array, second: Array, cross: Array, dimensions: int, ridge: float) -> tuple[Array, ...]:
    """Regularised CCA (Vinod 1976) of centred scores.

    Args:
      first, second: float [n, d_1], [m, d_2] centred; each modality's covariance comes from all of its cells.
      cross: float [d_1, d_2] cross-covariance: of pairs, or of a transport plan in their place.
      ridge: added to the diagonal of each covariance, as a fraction of its mean.

    Returns:
      axes [d_1, c] and [d_2, c], each column times its canonical correlation, so that axes that do not correlate do not
      count; the correlations [c].
    """

    def factor(scores: Array) -> Array:
        covariance = scores.T @ scores / len(scores)
        mean_variance = max(np.trace(covariance) / len(covariance), np.finfo(float).tiny)
        return np.linalg.cholesky(covariance + ridge * mean_variance * np.eye(len(covariance)))

    left, right = factor(first), factor(second)
    whitened = np.linalg.solve(right, np.linalg.solve(left, cross).T).T
    u, correlations, vt = np.linalg.svd(whitened)
    keep = min(dimensions, len(correlations))
    correlations = correlations[:keep]
    return (
        np.linalg.solve(left.T, u[:, :keep]) * correlations,
        np.linalg.solve(right.T, vt[:keep].T) * correlations,
        correlations,
    )


class _Matcher:
    """Scores, smoothed links and blocks of two sets of cells; makes plans block by block, holding one at a time."""

    def __init__(self, first: ModalityCells, second: ModalityCells, links: Links, settings: PseudoPairSettings):
        if first.modality == second.modality:
            raise InputError(f"{first.path}: {first.modality} cannot be paired with itself; name two modalities.")
        for cells in (first, second):
            if len(cells) < FEWEST_CELLS:
                raise InputError(
                    f"{cells.path}: {len(cells)} {cells.modality} cells; at least {FEWEST_CELLS} are needed to match."
                )
        self.links, self._settings, self._cells = links, settings, (first, second)
        self.blocks = list(_blocks(first, second, settings))
        if not self.blocks:
            raise InputError(f"{first.path}: no technical batch has cells of {first.modality} and {second.modality}.")
        wanted = max(settings.dimensions, settings.smoothing_dimensions)
        self._maps = [fit_projection(cells, wanted, settings.seed) for cells in (first, second)]
        scores = [each(cells.values) for each, cells in zip(self._maps, (first, second), strict=True)]
        self._smoothing = [part[:, : settings.smoothing_dimensions] for part in scores]
        batches = [cells.technical_batches for cells in (first, second)]
        self._scores = [
            centred_by(part[:, : settings.dimensions], names) for part, names in zip(scores, batches, strict=True)
        ]
        sides = (links.first, links.second)
        places = zip(self._cells, sides, self._smoothing, strict=True)
        fits = [smoothed(linked_values(cells, w), s) for cells, w, s in places]
        self._linked, self._quality = [fit[0] for fit in fits], np.sqrt(fits[0][1] * fits[1][1])

    def quality_of(self, links: Links) -> Array:
        """float64 [K]: geometric mean of the quality of both ends."""
        sides = zip(self._cells, (links.first, links.second), self._smoothing, strict=True)
        return np.sqrt(np.prod([smoothed(linked_values(cells, w), s)[1] for cells, w, s in sides], axis=0))

    def plans(self, space: SharedSpace | None) -> Iterator[tuple[tuple[Array, Array], Array, bool]]:
        """((rows of first, rows of second), plan [n, m] of unit sum, converged) of each block."""
        weight = 1.0 if space is None else self._settings.link_weight
        for block in self.blocks:
            pair = comparable(self._linked[0][block[0]], self._linked[1][block[1]], self._quality)
            cost = cosine_cost(*pair)
            if space is not None:
                a = self._scores[0][block[0]] @ space.first_axes
                b = self._scores[1][block[1]] @ space.second_axes
                cost = weight * cost + (1 - weight) * cosine_cost(a, b)
            yield block, *plan(cost, self._settings.epsilon)

    def shared_space(self, before: SharedSpace | None) -> SharedSpace:
        """One round: the plans of `before`, and CCA with them in the place of pairs."""
        cross = np.zeros((self._scores[0].shape[1], self._scores[1].shape[1]))
        total = sum(min(len(rows), len(others)) for rows, others in self.blocks)
        for (rows, others), coupling, _ in self.plans(before):
            weight = min(len(rows), len(others)) / total
            cross += weight * (self._scores[0][rows].T @ coupling @ self._scores[1][others])
        settings = self._settings
        axes = canonical_axes(self._scores[0], self._scores[1], cross, settings.cca_dimensions, settings.ridge)
        maps = [replace(each, components=each.components[: settings.dimensions]) for each in self._maps]
        return SharedSpace(maps[0], maps[1], *axes)


def _blocks(first: ModalityCells, second: ModalityCells, settings: PseudoPairSettings) -> Iterator[tuple[Array, Array]]:
    """Rows of both modalities that are matched with each other: technical batches, and one block of what is left."""
    batches = first.technical_batches, second.technical_batches
    both = np.intersect1d(*batches)
    pairs = [tuple(np.flatnonzero(names == batch) for names in batches) for batch in both]
    pairs.append(tuple(np.flatnonzero(~np.isin(names, both)) for names in batches))
    for rows, others in pairs:
        if not (len(rows) and len(others)):
            continue
        parts = -(-max(len(rows), len(others)) // settings.largest_block)
        rng = np.random.default_rng(settings.seed)
        # Cut by the order of the cells' own drawn numbers, each modality for itself.
        cut = [np.array_split(side[rng.permutation(len(side))], parts) for side in (rows, others)]
        for left, right in zip(*cut, strict=True):
            if len(left) >= 2 and len(right) >= 2:
                yield np.sort(left), np.sort(right)


def _correlation(a: Array, b: Array) -> Array:
    """float64 [K]: Pearson of each column over the rows; 0 where one side is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.where(scale > 1e-12, (a * b).sum(0) / np.maximum(scale, 1e-12), 0.0)
