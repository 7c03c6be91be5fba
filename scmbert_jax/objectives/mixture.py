"""The table of objectives, and which of them trains at which step."""

from collections.abc import Callable

import numpy as np

from scmbert_jax.config import ExperimentConfig
from scmbert_jax.objectives.base import Objective
from scmbert_jax.objectives.contrastive_alignment import ContrastiveAlignment
from scmbert_jax.objectives.cross_modal_translation import CrossModalTranslation
from scmbert_jax.objectives.masked_modeling import MaskedModeling
from scmbert_jax.objectives.whole_profile import WholeProfile

OBJECTIVES: dict[str, Callable[[ExperimentConfig], Objective]] = {
    "masked_modeling": MaskedModeling,
    "cross_modal_translation": CrossModalTranslation,
    "contrastive_alignment": ContrastiveAlignment,
    "whole_profile": WholeProfile,
}


def objectives_of(config: ExperimentConfig) -> dict[str, Objective]:
    """The objectives this run trains, by name."""
    return {name: OBJECTIVES[name](config) for name in config.objectives.weights()}


def objective_at(config: ExperimentConfig, step: int) -> str:
    """The objective of a step: a pure function of (seed, step); each is drawn with its share of the weights."""
    weights = config.objectives.weights()
    names, shares = list(weights), np.asarray(list(weights.values()), np.float64)
    draw = np.random.Generator(np.random.Philox(key=config.seed, counter=step)).random()
    return names[int(np.searchsorted(np.cumsum(shares / shares.sum())[:-1], draw, side="right"))]
