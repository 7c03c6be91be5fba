"""What an objective is, and how sums of losses are put together."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from scmbert_jax.config import ExperimentConfig
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.models.flops import TokenCounts
from scmbert_jax.random_keys import KeyPurpose, key_for

# `scmbert.ScMbert`, which has the heads of its objectives and so stands above them.
Model: TypeAlias = Any


class LossSum(NamedTuple):
    """Sums over a batch or part of one; never means, so that accumulation and sharding cannot bias a masked loss.

    Attributes:
      total: float32 [], sum of weighted losses.
      weight: float32 [], sum of the weights; the loss is total / weight.
      metrics: name -> (sum, weight), each float32 []; the reported value is sum / weight.
    """

    total: jax.Array
    weight: jax.Array
    metrics: dict[str, tuple[jax.Array, jax.Array]]


class AnyObjective(ABC):
    """What training asks of an objective, of cells or of DNA.

    Pure: the same arguments give the same sums, on any mesh and in any microbatch.

    Attributes:
      needs_whole_batch: its loss compares rows of the batch with each other, so that microbatches would change it; it
        bounds its memory itself.
      reads_table: its loss looks at the feature table that it is given; else no gradient is sent through that one.
      used_by: a line of the model card: what a model can do that was trained for it.
    """

    needs_whole_batch: bool = False
    reads_table: bool = True
    used_by: ClassVar[str] = ""

    @abstractmethod
    def loss(self, model: Model, feature_table: jax.Array, batch: Any, key: jax.Array) -> LossSum:
        """Args: model (ScMbert, DnaModel), feature_table float32 [F, D], a batch, and the key of (seed, step).

        Randomness of a row must come from `random_keys.row_keys(key, batch.row)`, so that it does not depend on how
        rows are spread over devices and microbatches; what all rows share, from `key_for(key, KeyPurpose...)`.
        """


class Objective(AnyObjective):
    """One training task of cells: what it adds to a model, what a step costs, and the loss. A class of these is one
    line of `objectives.mixture.OBJECTIVES`; it is made once per run, of the run's `ExperimentConfig`.

    Attributes: those of `AnyObjective`, and
      shaped_by: fields of the configuration that its heads take their shape from. Two models that trained it differ
        in none of them where one starts from the other (--init-from).
    """

    shaped_by: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __init__(self, config: ExperimentConfig): ...

    @staticmethod
    def heads(config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """Attribute of the model -> module: parameters that exist only in models that are trained for this objective.

        The attributes are those of no other objective; a model's parameters are called by them.
        """
        return {}

    @staticmethod
    @abstractmethod
    def flops(config: ExperimentConfig, tokens: TokenCounts) -> dict[str, float]:
        """Operations of one forward pass over cells with so many tokens, by part (`models.flops.PARTS`)."""


def drop_covariates(covariates: dict[str, jax.Array], fraction: float, keys: jax.Array) -> dict[str, jax.Array]:
    """Hides all covariates of a fraction of the cells, so that `unknown` (-1) is a trained case. keys [B] of rows."""

    def drop(key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(key_for(key, KeyPurpose.COVARIATES), fraction)

    if not covariates or fraction == 0:
        return covariates
    dropped = jax.vmap(drop)(keys)
    return {name: jnp.where(dropped, -1, codes) for name, codes in covariates.items()}
