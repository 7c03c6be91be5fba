"""Masked values of held-out cells: which tokens are hidden, how many bits each costs a method, and where it costs them.

All methods are scored on the same hidden tokens of the same cells. Bits are -log2 of the probability that a method gave
to what was measured, so a difference of one bit per token halves that probability. They are summed by cell and by
expression level; means are made last, so that levels add up to the whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scmbert_jax.batch import CellBatch
from scmbert_jax.config import ExperimentConfig, ModalityConfig
from scmbert_jax.evaluation.baselines import LINEAR_PATH_ALONE
from scmbert_jax.evaluation.intervals import CellInterval, bootstrap_weights, percentile_interval
from scmbert_jax.evaluation.pretraining.profile_tokens import log_rarer_zeros, profile_nll, profiled_modalities
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.models.token_sequence import pack_tokens
from scmbert_jax.objectives.masked_modeling.objective import MaskedModeling, choose_masked
from scmbert_jax.random_keys import row_keys
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.value_scales import expression_bins, relative_expression

Array = np.ndarray

MODEL, MODEL_FROM_CLS, MODEL_PROFILE = "model", "model, from [CLS] alone", "model, its whole profile"
_DOUBLINGS = 8  # counts of 128 and more are one level
_RESAMPLES = 1000


class CellTokens(NamedTuple):
    """The tokens of one modality of some cells; [n] each.

    Attributes:
      cells: int64, which of the cells, from 0.
      features: int64, from 0 within the modality.
      counts, library_size, mean_log_count: float32; see `ModalityTokens`.
      log_rarer: float32, of its cell: log of how much rarer zeros are among tokens than in the cell (profile_tokens).
      num_measured: float32, of its cell: features of the modality that were measured.
      masked: bool, hidden and to be predicted; the others are what a method may look at.
    """

    cells: Array
    features: Array
    counts: Array
    library_size: Array
    mean_log_count: Array
    log_rarer: Array
    num_measured: Array
    masked: Array

    def at(self, where: Array) -> "CellTokens":
        return CellTokens(*(column[where] for column in self))


def masked_objective(config: ExperimentConfig) -> MaskedModeling:
    """Masks as in training, but every masked value is hidden, and covariates are given where they are known."""
    objectives = config.objectives
    masked = replace(objectives.masked_modeling, keep_fraction=0.0, covariate_dropout=0.0)
    return MaskedModeling(replace(config, objectives=replace(objectives, masked_modeling=masked)))


def model_methods(config: ExperimentConfig) -> dict[str, tuple[str, ...]]:
    """Method -> modalities: what a model of this configuration was trained to say of values it does not see."""
    masked, every = config.objectives.masked_modeling, tuple(config.modalities.in_use())
    found = {MODEL: every} if masked.weight > 0 else {}
    if masked.weight > 0 and masked.cell_weight > 0:
        found[MODEL_FROM_CLS] = every
        if config.model.linear_path:
            found[LINEAR_PATH_ALONE] = every
    profiled = profiled_modalities(config)
    return found | ({MODEL_PROFILE: profiled} if profiled else {})


class ScoredTokens(NamedTuple):
    """The tokens of B cells, [B, S] each, and what a model says of those that are masked; of numpy or jax arrays.

    Attributes:
      feature_ids, counts, library_size, mean_log_count, modality, valid: see `TokenSequence`.
      log_rarer, num_measured, masked: see `CellTokens`.
      nll: method -> float32, negative log-likelihood in nats; 0 where not masked.
    """

    feature_ids: Any
    counts: Any
    library_size: Any
    mean_log_count: Any
    modality: Any
    valid: Any
    log_rarer: Any
    num_measured: Any
    masked: Any
    nll: dict[str, Any]


@partial(jax.jit, static_argnums=0)
def masked_tokens(config: ExperimentConfig, batch: CellBatch, key: jax.Array) -> ScoredTokens:
    """Tokens and masks alone. A mask is a function of `key`, the row's number (`batch.row`) and the features."""
    tokens = pack_tokens(batch)
    masked = choose_masked(tokens, masked_objective(config).config, row_keys(key, batch.row)).hidden
    log_rarer = num_measured = jnp.zeros(tokens.valid.shape, jnp.float32)
    for name in config.modalities.in_use():
        mine = tokens.modality == MODALITIES.index(name)
        rarer = log_rarer_zeros(tokens, mine, config.objectives.masked_modeling.mask_zeros)
        log_rarer = jnp.where(mine, rarer[:, None], log_rarer)
        num_measured = jnp.where(mine, (tokens.weight * mine).sum(axis=1, keepdims=True), num_measured)
    columns = (tokens.feature_ids, tokens.counts, tokens.library_size, tokens.mean_log_count)
    return ScoredTokens(*columns, tokens.modality, tokens.valid, log_rarer, num_measured, masked, {})


def score_tokens(
    definition: ModelDefinition, params: Any, constants: Any, batch: CellBatch, key: jax.Array
) -> ScoredTokens:
    """What a model says by each of `model_methods`; its linear path alone, too: from `[CLS]`, as nothing else of a
    masked value depends on that path. To be jitted."""
    config = definition.config
    methods, scored = model_methods(config), masked_tokens(config, batch, key)
    rows = jnp.arange(batch.row.shape[0])[:, None]
    nothing = jnp.zeros(scored.valid.shape, jnp.float32)

    def values(definition: ModelDefinition) -> tuple[jax.Array, jax.Array]:
        model = definition.merge(params, constants)
        found = masked_objective(config).values(model, model.feature_table(), batch, key)

        def in_place(nll: jax.Array) -> jax.Array:  # [B, M] -> [B, S]
            return nothing.at[rows, found.masked.positions].set(jnp.where(found.masked.chosen, nll, 0.0))

        return in_place(found.nll), in_place(found.cell_nll)

    nll: dict[str, jax.Array] = {}
    if MODEL in methods:
        nll[MODEL], nll[MODEL_FROM_CLS] = values(definition)
    if LINEAR_PATH_ALONE in methods:
        nll[LINEAR_PATH_ALONE] = values(definition.linear_path_alone)[1]
    if MODEL_PROFILE in methods:
        model = definition.merge(params, constants)
        tokens = pack_tokens(batch)
        nll[MODEL_PROFILE] = profile_nll(config, model, model.feature_table(), batch, tokens, scored.masked)
    return scored._replace(nll={method: nll[method] for method in methods})


def by_modality(
    scored: ScoredTokens, config: ExperimentConfig, layout: FeatureLayout, first_cell: int = 0
) -> dict[str, tuple[CellTokens, dict[str, Array]]]:
    """Modality -> (all its tokens, method -> nats [masked tokens] in their order); of numpy arrays.

    `first_cell` is the number of the first row's cell. Only modalities of which a token is masked.
    """
    number = first_cell + np.broadcast_to(np.arange(len(scored.valid))[:, None], scored.valid.shape)
    methods, found = model_methods(config), {}
    for name in config.modalities.in_use():
        mine = scored.valid & (scored.modality == MODALITIES.index(name))
        features = scored.feature_ids[mine].astype(np.int64) - layout.slices[name][0]
        counts = (scored.counts, scored.library_size, scored.mean_log_count)
        columns = (*counts, scored.log_rarer, scored.num_measured, scored.masked)
        tokens = CellTokens(number[mine], features, *(column[mine] for column in columns))
        nll = {method: of[mine][tokens.masked] for method, of in scored.nll.items() if name in methods[method]}
        found[name] = tokens, nll
    return {name: own for name, own in found.items() if own[0].masked.any()}


def joined_tokens(parts: Sequence[CellTokens]) -> CellTokens:
    return CellTokens(*(np.concatenate(column) for column in zip(*parts, strict=True)))


# ------------------------------------------------------------------------------------------------- expression levels


def level_names(config: ModalityConfig) -> tuple[str, ...]:
    """The classes of what was measured: of counts 0, 1, 2-3, 4-7, ...; of bins each; closed and open."""
    if config.likelihood == "bernoulli":
        return ("closed", "open")
    if config.likelihood == "bins":
        return tuple(f"bin {number}" for number in range(config.num_bins))
    between = [f"{1 << power}-{(2 << power) - 1}" for power in range(1, _DOUBLINGS - 1)]
    return ("0", "1", *between, f"{1 << (_DOUBLINGS - 1)}+")


def levels_of(config: ModalityConfig, tokens: CellTokens) -> Array:
    """int64 [n], places in `level_names`."""
    if config.likelihood == "bernoulli":
        return (tokens.counts > 0).astype(np.int64)
    if config.likelihood == "bins":
        counts, library_size = jnp.asarray(tokens.counts), jnp.asarray(tokens.library_size)
        relative = relative_expression(counts, library_size, config.target_sum, jnp)
        return np.asarray(expression_bins(relative, config.num_bins, jnp), np.int64)
    return np.minimum(np.frexp(tokens.counts)[1], _DOUBLINGS).astype(np.int64)


# ------------------------------------------------------------------------------------------------------------- sums


@dataclass(frozen=True)
class MaskedBits:
    """What each method paid for the masked tokens of one modality.

    Attributes:
      modality: which.
      levels: their names.
      bits: method -> float64 [cells, levels], summed over the masked tokens.
      tokens: float64 [cells, levels], how many there are.
      groups: int64 [cells], what is drawn together in the bootstrap (donors); each cell its own where it is arange.
    """

    modality: str
    levels: tuple[str, ...]
    bits: dict[str, Array]
    tokens: Array
    groups: Array

    @property
    def used_levels(self) -> list[int]:
        """Those that any token is of."""
        return np.flatnonzero(self.tokens.sum(axis=0)).tolist()

    def mean(self, method: str, level: int | None = None) -> float:
        """Bits per masked token, of all levels or of one (which has a token)."""
        chosen = slice(None) if level is None else level
        return float(self.bits[method][:, chosen].sum() / self.tokens[:, chosen].sum())

    def interval(self, method: str, minus: str | None = None) -> CellInterval:
        """Bits per masked token (less those of another method, on the same resampled cells) with its 95% interval."""
        bits = self.bits[method] if minus is None else self.bits[method] - self.bits[minus]
        sums, numbers = self._of_groups(bits), self._of_groups(self.tokens)
        point = sums.sum() / numbers.sum()
        if len(sums) < 2:
            return CellInterval(float(point), float("nan"), float("nan"))
        return percentile_interval(point, (self._weights @ sums) / (self._weights @ numbers))

    def _of_groups(self, values: Array) -> Array:
        sums = np.bincount(self.groups, values.sum(axis=1))
        return sums[np.bincount(self.groups, self.tokens.sum(axis=1)) > 0]

    @cached_property
    def _weights(self) -> Array:
        number = len(self._of_groups(self.tokens))
        return bootstrap_weights(number, _RESAMPLES, np.random.default_rng(0))


def masked_bits(
    modality: str, config: ModalityConfig, tokens: CellTokens, nll: dict[str, Array], groups: Array
) -> MaskedBits:
    """Sums of what methods paid.

    Args:
      tokens: all of them masked, n.
      nll: method -> [n], nats.
      groups: int64 [cells]; see `MaskedBits`.
    """
    names, num_cells = level_names(config), len(groups)
    place = tokens.cells * len(names) + levels_of(config, tokens)

    def sums(values: Array | None) -> Array:
        return np.bincount(place, values, minlength=num_cells * len(names)).reshape(num_cells, len(names)) * 1.0

    bits = {method: sums(np.asarray(values, np.float64) / np.log(2.0)) for method, values in nll.items()}
    return MaskedBits(modality, names, bits, sums(None), groups)
