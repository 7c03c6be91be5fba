"""Multinomial logistic regression with L2, for labels that may be coarse: what every method ends with.

The loss of a cell is -log of the summed probability of the leaves that its label covers: for a label of one leaf, the
cross-entropy.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from scmbert_jax.errors import ConfigError
from scmbert_jax.tasks.label_transfer import OneScale

Array = np.ndarray

# Inverse L2 strengths that are tried, strongest first.
C_GRID = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_MOST_TO_CHOOSE_BY = 4_000  # cells; more change the choice little, and cost in proportion


@dataclass(frozen=True)
class Imbalance:
    """What is done about types of few cells. Each is 0 where nothing is.

    Attributes:
      balance: 0 to 1; a cell's weight (of a linear head), or how often it is drawn (fine-tuning), is in proportion to
        (cells of its type) ** -balance: at 1, all types have equal say.
      logit_adjustment: tau of Menon et al. 2021: tau x log(fraction of the type) is added to logits of the loss, and
        left off afterwards, so that rare types are not outvoted.
      focal: gamma of Lin et al. 2017: the loss of a cell times (1 - p) ** gamma.

    Raises `ConfigError` for what is out of range.
    """

    balance: float = 0.0
    logit_adjustment: float = 0.0
    focal: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.balance <= 1:
            raise ConfigError(f"balance {self.balance}: expected 0 (types as they are) to 1 (all types equal).")
        for name in ("logit_adjustment", "focal"):
            if not 0 <= getattr(self, name) <= 10:
                raise ConfigError(f"{name} {getattr(self, name)}: expected 0 (off) to 10.")


class LinearHead(NamedTuple):
    """logits = scale(x) @ weight + bias."""

    weight: Array  # [D, L]
    bias: Array  # [L]
    scale: OneScale

    def logits(self, x: Array) -> Array:
        """float64 [n, L] of vectors float [n, D]."""
        return self.scale(np.asarray(x, np.float64)) @ self.weight + self.bias


def class_shares(membership: Array) -> Array:
    """float64 [L]: the fraction of the cells that each leaf has; a coarse label's cell counts for its leaves in parts.

    Leaves have one cell at least, in this reckoning: the logarithm is finite."""
    numbers = (membership / np.maximum(membership.sum(1, keepdims=True), 1)).sum(0)
    return np.maximum(numbers, 1.0) / max(len(membership), 1)


def cell_weights(membership: Array, balance: float) -> Array:
    """float64 [n], of mean 1: what `Imbalance.balance` says; of a coarse label the mean of its leaves' weights."""
    of_leaf = class_shares(membership) ** -balance
    weights = (membership @ of_leaf) / np.maximum(membership.sum(1), 1)
    return weights / weights.mean()


def fit_linear_head(
    x: Array,
    membership: Array,
    *,
    c: float = 1.0,
    weights: Array | None = None,
    imbalance: Imbalance | None = None,
    scale: OneScale | None = None,
    start: LinearHead | None = None,
) -> LinearHead:
    """The minimum of c x (sum of the cells' weighted losses) + |W|^2 / 2, by L-BFGS; the bias is not penalised.

    On labels of one leaf each, that of scikit-learn's `LogisticRegression(C=c)` on `OneScale` vectors.

    Args:
      x: float [n, D]; membership: bool [n, L], no row all False.
      c: inverse strength of L2.
      weights: float [n], times those of `imbalance.balance`.
      imbalance: see there.
      scale: None: that of `x`.
      start: where the search begins; changes how long it takes.

    Raises ValueError for a cell without a leaf.
    """
    with threadpool_limits(1):  # sums that repeat
        return _fit(x, membership, c, weights, imbalance, scale, start)


def _fit(
    x: Array,
    membership: Array,
    c: float,
    weights: Array | None = None,
    imbalance: Imbalance | None = None,
    scale: OneScale | None = None,
    start: LinearHead | None = None,
) -> LinearHead:
    membership = np.asarray(membership, bool)
    if not membership.any(1).all():
        raise ValueError("a cell of no leaf has no loss; leave unlabelled cells out")
    imbalance = imbalance or Imbalance()
    scale = scale or OneScale.of(np.asarray(x, np.float64))
    scaled = scale(np.asarray(x, np.float64))
    of_cells = cell_weights(membership, imbalance.balance) * (1.0 if weights is None else np.asarray(weights))
    offset = imbalance.logit_adjustment * np.log(class_shares(membership))
    shape = (scaled.shape[1], membership.shape[1])
    first = np.zeros((shape[0] + 1) * shape[1])
    if start is not None:
        first = np.concatenate([start.weight.ravel(), start.bias])

    def loss(theta: Array) -> tuple[float, Array]:
        weight, bias = theta[: shape[0] * shape[1]].reshape(shape), theta[shape[0] * shape[1] :]
        losses, slopes = losses_of_logits(scaled @ weight + bias + offset, membership, imbalance.focal)
        slopes *= c * of_cells[:, None]
        value = c * float(of_cells @ losses) + 0.5 * float((weight**2).sum())
        return value, np.concatenate([(scaled.T @ slopes + weight).ravel(), slopes.sum(0)])

    # The bound on the gradient is of sums over cells: per cell it is as sharp for many cells as for few.
    bounds = {"maxiter": 2000, "gtol": 1e-6 * max(len(x) * c, 1.0)}
    found = minimize(loss, first, jac=True, method="L-BFGS-B", options=bounds)
    weight, bias = found.x[: shape[0] * shape[1]].reshape(shape), found.x[shape[0] * shape[1] :]
    return LinearHead(weight, bias - bias.mean(), scale)  # a constant on all logits says nothing


def losses_of_logits(logits: Array, membership: Array, focal: float = 0.0) -> tuple[Array, Array]:
    """(losses float64 [n], their derivatives float64 [n, L] by the logits) of logits [n, L], membership bool [n, L]."""
    probabilities, total = _softmax(logits)
    within, covered = _softmax(np.where(membership, logits, -np.inf))
    log_p = (covered - total)[:, 0]
    towards = within - probabilities  # of log p by the logits
    if focal == 0:
        return -log_p, -towards
    rest = np.maximum(-np.expm1(log_p), 1e-12)
    slope = -(rest**focal) + focal * rest ** (focal - 1) * np.exp(log_p) * log_p
    return -(rest**focal) * log_p, slope[:, None] * towards


def _softmax(logits: Array) -> tuple[Array, Array]:
    """(softmax [n, L], logsumexp [n, 1]); several times as fast as scipy's, which matters in a fit."""
    top = logits.max(axis=1, keepdims=True)
    powers = np.exp(logits - top)
    total = powers.sum(axis=1, keepdims=True)
    powers /= total
    return powers, top + np.log(total)


def marginal_nll(logits: Array, membership: Array) -> float:
    """Mean of -log(summed probability of the leaves that a label covers), in nats."""
    return float(losses_of_logits(logits, membership)[0].mean())


class ChosenHead(NamedTuple):
    """Attributes:
    head: fitted to all cells.
    c: the inverse L2 strength that was chosen.
    held_out: float64 [n, L], logits of each cell by a head that was fitted without the cells of its fold.
    """

    head: LinearHead
    c: float
    held_out: Array


def choose_linear_head(
    x: Array,
    membership: Array,
    folds: Array,
    imbalance: Imbalance | None = None,
    grid: tuple[float, ...] = C_GRID,
    judged: Array | None = None,
) -> ChosenHead:
    """The head of that `c` whose logits of held-out folds have the least `marginal_nll`.

    Args:
      x: float [n, D]; membership: bool [n, L], no row all False.
      folds: int [n], 0 to K - 1, K above 1.
      imbalance: of the fits; the choice counts each cell once.
      judged: bool [n], the cells by which `c` is chosen, not all False; None: all.
    """
    with threadpool_limits(1):  # once: to find the libraries takes longer than a small fit
        return _choose(x, membership, folds, imbalance, grid, np.ones(len(x), bool) if judged is None else judged)


def _choose(
    x: Array, membership: Array, folds: Array, imbalance: Imbalance | None, grid: tuple[float, ...], judged: Array
) -> ChosenHead:
    numbers = np.unique(folds)
    step = max(1, len(x) // _MOST_TO_CHOOSE_BY)
    few = np.arange(0, len(x), step)
    losses = np.zeros((len(numbers), len(grid)))
    for row, fold in enumerate(numbers):
        train, held = few[folds[few] != fold], few[(folds[few] == fold) & judged[few]]
        head = None
        for column, c in enumerate(grid):
            head = _fit(x[train], membership[train], c, imbalance=imbalance, start=head)
            losses[row, column] = losses_of_logits(head.logits(x[held]), membership[held])[0].sum()
    c = grid[int(losses.sum(0).argmin())]
    held_out = np.zeros(membership.shape)
    for fold in numbers:
        mine = folds == fold
        head = _fit(x[~mine], membership[~mine], c, imbalance=imbalance)
        held_out[mine] = head.logits(x[mine])
    return ChosenHead(_fit(x, membership, c, imbalance=imbalance), c, held_out)
