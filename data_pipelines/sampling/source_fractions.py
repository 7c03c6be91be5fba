"""How often each of several groups of cells is drawn: by size, by temperature, by given weights, under caps.

A temperature T makes fractions proportional to n^(1/T) of the sizes n (Conneau et al. 2019, "Unsupervised cross-lingual
representation learning at scale", section 3.1, with alpha = 1/T): 1 is in proportion, infinity is equal.
"""

from collections.abc import Sequence

import numpy as np

from scmbert_jax.errors import ConfigError


def tempered(sizes: Sequence[int], temperature: float) -> np.ndarray:
    """float64 [groups], summing to 1: the fractions of groups of so many cells.

    Raises:
      ConfigError: a temperature that is not a positive number (infinity is one).
    """
    if not temperature > 0:
        raise ConfigError(f"temperature {temperature}: expected a positive number; 1 draws by size, inf equally")
    weights = np.asarray(sizes, np.float64) ** (1.0 / temperature)
    return weights / weights.sum()


def given(weights: Sequence[float], num_groups: int, what: str) -> np.ndarray:
    """float64 [groups], summing to 1.

    Raises:
      ConfigError: another number of weights than of groups, or a weight that is not a positive number.
    """
    if len(weights) != num_groups:
        raise ConfigError(f"{what}: {len(weights)} weights for {num_groups} corpora; give one for each, in their order")
    wrong = [weight for weight in weights if not 0 < weight < float("inf")]
    if wrong:
        raise ConfigError(
            f"{what}: weight {wrong[0]:g}; expected positive numbers (leave a corpus out that is never to be drawn)"
        )
    return np.asarray(weights, np.float64) / sum(weights)


def capped(fractions: np.ndarray, caps: np.ndarray, what: str) -> np.ndarray:
    """The fractions, none above its cap: what is cut goes to the others in proportion to their fractions.

    Args:
      fractions: float64 [groups], summing to 1.
      caps: float64 [groups].
      what: the option, for messages.

    Raises:
      ConfigError: caps that sum to less than 1.
    """
    if caps.sum() < 1 - 1e-9:
        raise ConfigError(
            f"{what}: the {len(fractions)} groups may have {caps.sum():.3g} of the draws together, which is less than "
            "all of them; raise it"
        )
    held = np.zeros(len(fractions), bool)
    result = fractions
    while True:  # each round holds one more group at its cap, or ends
        over = ~held & (result > caps * (1 + 1e-12))
        if not over.any():
            return result
        held |= over
        free = 1.0 - caps[held].sum()
        result = np.where(held, caps, fractions * (free / fractions[~held].sum() if not held.all() else 0.0))
