"""What the decoder of `whole_profile` says of masked tokens: of cells it speaks, and tokens are drawn for their counts.

From the visible tokens the encoder makes the cell embedding, from that the decoder says how likely each count of a
feature is in the cell. Among tokens zeros are rarer than in the cell, by a factor r that is the same for all zeros of
it (how many of its zeros and of its expressed features are shown). So of a token, by Bayes' rule,

    P(0 | token) = r P(0) / (r P(0) + 1 - P(0)),    P(c | token) = P(c) / (r P(0) + 1 - P(0)) for c > 0.
"""

import jax
import jax.numpy as jnp

from scmbert_jax.batch import CellBatch
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.models.likelihoods import Likelihood, Truth
from scmbert_jax.models.token_sequence import TokenSequence, kept_tokens
from scmbert_jax.scmbert import ScMbert

# (`likelihood`, `target_likelihood`) of a modality for which the two speak of the same thing; a density does not.
_COMPARABLE = (
    ("negative_binomial", "negative_binomial"),
    ("negative_binomial", "negative_binomial_background"),
    ("bernoulli", "bernoulli"),
)


def profiled_modalities(config: ExperimentConfig) -> tuple[str, ...]:
    """Modalities whose masked values the decoder can be asked for; none without `whole_profile`."""
    if config.objectives.whole_profile.weight == 0:
        return ()
    targets = config.modalities.target_likelihoods()
    return tuple(
        name for name, own in config.modalities.in_use().items() if (own.likelihood, targets[name]) in _COMPARABLE
    )


def profile_nll(
    config: ExperimentConfig,
    model: ScMbert,
    table: jax.Array,
    batch: CellBatch,
    tokens: TokenSequence,
    masked: jax.Array,
) -> jax.Array:
    """float32 [B, S], nats, of the masked tokens of `profiled_modalities`; 0 elsewhere.

    Args:
      table: the model's feature table.
      batch: with profiles, of which only the panels are read.
      tokens, masked: of the batch, packed, bool [B, S]. Masked tokens are taken out: this objective never sees any.
    """
    assert batch.profiles is not None
    visible = kept_tokens(tokens, tokens.valid & ~masked, tokens.valid.shape[1])
    cell = model.encode(table, visible, covariates=batch.covariates, cell_only=True)[:, 0]
    found = jnp.zeros(tokens.valid.shape, jnp.float32)
    for name in profiled_modalities(config):
        head, (first, stop) = model.profile_head, model.profile_head.slices[name]
        likelihood, every = head.likelihoods[name], jnp.arange(stop - first)
        outputs, log_dispersion = head.outputs(name, cell, batch.covariates)
        bits = jnp.take(batch.profiles[name].panel, every >> 3, axis=1) >> (every & 7).astype(jnp.uint8)[None]
        measured = bits & 1 > 0
        place = jnp.clip(tokens.feature_ids - first, 0, stop - first - 1)  # [B, S]
        at = jnp.take_along_axis(likelihood.of_cell(outputs, measured), place[..., None], axis=1)  # [B, S, K]
        mine = tokens.modality == MODALITIES.index(name)
        truth = Truth(jnp.where(mine, tokens.counts, 0.0), tokens.library_size, tokens.mean_log_count)
        log_rarer = log_rarer_zeros(tokens, mine, config.objectives.masked_modeling.mask_zeros)[:, None]
        found = jnp.where(mine & masked, nll_of_token(likelihood, at, log_dispersion[place], truth, log_rarer), found)
    return found


def nll_of_token(
    likelihood: Likelihood, outputs: jax.Array, log_dispersion: jax.Array, truth: Truth, log_rarer: jax.Array
) -> jax.Array:
    """`likelihood.nll` of counts, where the outputs speak of a cell and the counts are of its tokens; nats."""
    of_zero = jnp.maximum(likelihood.nll_of_zero(outputs, log_dispersion, truth), 1e-6)
    of_token = jnp.logaddexp(log_rarer - of_zero, jnp.log(-jnp.expm1(-of_zero)))
    return jnp.where(truth.counts > 0, likelihood.nll(outputs, log_dispersion, truth), of_zero - log_rarer) + of_token


def log_rarer_zeros(tokens: TokenSequence, mine: jax.Array, mask_zeros: bool) -> jax.Array:
    """float32 [B]: log of r, of one modality; very low where no zero can be masked."""
    real = tokens.valid & mine
    zeros, expressed = real & (tokens.counts == 0), real & (tokens.counts > 0)

    def stands_for(which: jax.Array) -> jax.Array:  # features of the cell for each token
        return (tokens.weight * which).sum(axis=1) / jnp.maximum(which.sum(axis=1), 1)

    ratio = jnp.maximum(stands_for(expressed), 1.0) / jnp.maximum(stands_for(zeros), 1e-6)
    possible = mask_zeros & zeros.any(axis=1)
    return jnp.where(possible, jnp.log(ratio), -60.0)
