"""The table of objectives, which of them trains at which step, and what their steps cost."""

import numpy as np

from scmbert_jax.config import ExperimentConfig
from scmbert_jax.dna_config import DnaExperiment, Experiment
from scmbert_jax.models.flops import FORWARD_AND_BACKWARD, TokenCounts
from scmbert_jax.objectives.base import AnyObjective, Objective
from scmbert_jax.objectives.contrastive_alignment.objective import ContrastiveAlignment
from scmbert_jax.objectives.cross_modal_translation.objective import CrossModalTranslation
from scmbert_jax.objectives.link_prediction.objective import LinkPrediction
from scmbert_jax.objectives.masked_modeling.objective import MaskedModeling
from scmbert_jax.objectives.sequence_region.base import DnaObjective
from scmbert_jax.objectives.sequence_region.masked_regions import MaskedRegions
from scmbert_jax.objectives.sequence_region.masked_sequence import MaskedSequence
from scmbert_jax.objectives.sequence_region.matching import Matching
from scmbert_jax.objectives.sequence_region.motif_occurrence import MotifOccurrence
from scmbert_jax.objectives.whole_profile.objective import WholeProfile

# A field of `config.ObjectivesConfig` -> what it configures (docs/extending.md).
OBJECTIVES: dict[str, type[Objective]] = {
    "masked_modeling": MaskedModeling,
    "cross_modal_translation": CrossModalTranslation,
    "contrastive_alignment": ContrastiveAlignment,
    "whole_profile": WholeProfile,
    "link_prediction": LinkPrediction,
}

# The same of `dna_config.DnaObjectivesConfig`.
DNA_OBJECTIVES: dict[str, type[DnaObjective]] = {
    "masked_sequence": MaskedSequence,
    "masked_regions": MaskedRegions,
    "matching": Matching,
    "motif_occurrence": MotifOccurrence,
}


def objectives_of(config: Experiment) -> dict[str, AnyObjective]:
    """The objectives this run trains, by name."""
    if isinstance(config, DnaExperiment):
        return {name: DNA_OBJECTIVES[name](config) for name in config.objectives.weights()}
    return {name: OBJECTIVES[name](config) for name in config.objectives.weights()}


def objective_at(config: Experiment, step: int) -> str:
    """The objective of a step: a pure function of (seed, step); each is drawn with its fraction of the weights."""
    weights = config.objectives.weights()
    names, fractions = list(weights), np.asarray(list(weights.values()), np.float64)
    draw = np.random.Generator(np.random.Philox(key=config.seed, counter=step)).random()
    return names[int(np.searchsorted(np.cumsum(fractions / fractions.sum())[:-1], draw, side="right"))]


def step_flops(config: ExperimentConfig, objective: str, tokens: TokenCounts) -> dict[str, float]:
    """What one training step of an objective (its name in the mixture) needs, by part; MFU is of their sum.

    Parts: `embedding`, `encoder` (its matrices), `attention` (its products of tokens), `heads` (all that predicts).
    The feature table is not among them (`models.flops.feature_table_flops`): its cost does not grow with the cells.

    Raises:
      KeyError: an objective that is not in `OBJECTIVES`.
    """
    parts = OBJECTIVES[objective].flops(config, tokens)
    return {name: FORWARD_AND_BACKWARD * flops for name, flops in parts.items()}


def mixture_flops(config: ExperimentConfig, tokens: TokenCounts) -> float:
    """The mean over the steps of a run, whose objectives are drawn by their weights."""
    weights = config.objectives.weights()
    total = sum(weight * sum(step_flops(config, name, tokens).values()) for name, weight in weights.items())
    return total / sum(weights.values())
