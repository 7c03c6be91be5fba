"""From the embedding of a cell to all that was measured of it: every feature's count, zeros included.

Nearly all features of a cell are zeros, and those that are not are listed. So the negative log-likelihood of a profile
is computed as

    sum over the measured features of nll(0)  +  sum over the expressed ones of nll(count) - nll(0)

in which only the first sum is over everything, and nll(0) needs no gamma function.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from scmbert_jax.batch import CellProfile, ModalityTokens
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.models.bounds import within
from scmbert_jax.models.embeddings import covariate_embedding, padded_rows
from scmbert_jax.models.heads import ROW_SCALE, marginal_model
from scmbert_jax.models.likelihoods import LOG_DISPERSION_BOUNDS, Truth, make_likelihood
from scmbert_jax.models.parameters import filled, parameter, weight
from scmbert_jax.parallel.mesh import constrain
from scmbert_jax.parallel.table_rows import whole

# Counts of one cell share its library, where all of them are predicted.
_OF_WHOLE_CELLS = {"negative_binomial": "negative_binomial_of_cell"}


class DrawnFeatures(NamedTuple):
    """Some of the F features of a modality.

    Attributes:
      places: int32 [M], ascending and distinct, below F.
      weights: float32 [M], how many of the F each stands for.
    """

    places: jax.Array
    weights: jax.Array


def draw_features(key: jax.Array, num_features: int, most: int) -> DrawnFeatures | None:
    """One of each of `most` equal stretches of the features, at random; None (all) where there are no more, or 0 asked.

    Stretches, not a permutation: a million regions would be sorted in every step.
    """
    if most == 0 or num_features <= most:
        return None
    small, rest = divmod(num_features, most)
    widths = small + (jnp.arange(most) < rest).astype(jnp.int32)
    draw = jax.random.uniform(key, (most,))
    inside = jnp.minimum((draw * widths).astype(jnp.int32), widths - 1)
    return DrawnFeatures(jnp.cumsum(widths) - widths + inside, widths.astype(jnp.float32))


class ProfileHead(nnx.Module):
    """Cell embeddings [B, D] -> for all features of a modality, what is predicted of their counts.

    One hidden layer, then a row of numbers, a bias and a log dispersion for each feature. The rows are the head's own:
    with those of the feature table in their place, a model learned a fraction as fast.
    """

    def __init__(self, config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs):
        dim, hidden_dim = config.model.embed_dim, config.objectives.whole_profile.hidden_dim
        self.dtype = jnp.dtype(config.model.compute_dtype)
        self.slices = {name: layout.slices[name] for name in config.modalities.in_use()}
        self.likelihoods = {
            name: make_likelihood(
                _OF_WHOLE_CELLS.get(likelihood, likelihood),
                name,
                config.modalities.in_use()[name],
                layout.statistics,
                layout.slices[name],
            )
            for name, likelihood in config.modalities.target_likelihoods().items()
        }
        self.covariates = covariate_embedding("heads", config, layout, rngs)
        self.hidden = weight(rngs, (dim, hidden_dim), dim, ("embed", None))
        self.hidden_bias = filled(0.0, (hidden_dim,), (None,), "bias")
        # Zero: the first prediction is the marginal model.
        self.rows = filled(0.0, (padded_rows(layout), hidden_dim), ("features", None), "matrix")
        # Output 0 is a row times the hidden layer; what further outputs a likelihood has, times a product with it.
        self.further: Any = nnx.Dict(
            {
                name: filled(0.0, (hidden_dim, own.num_outputs - 1, hidden_dim), (None, None, None), "matrix")
                for name, own in self.likelihoods.items()
                if own.num_outputs > 1
            }
        )
        bias, log_dispersion = marginal_model(self.likelihoods, layout, of_cells=True)
        self.feature_bias = parameter(bias, ("features", None), "bias")
        self.spread = parameter(log_dispersion / ROW_SCALE, ("features",), "dispersion")

    def outputs(
        self,
        name: str,
        cell: jax.Array,
        covariates: dict[str, jax.Array],
        drawn: DrawnFeatures | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Outputs float32 [B, F, K] and log dispersions float32 [F] of the modality's features, or of those drawn.

        Args: cell [B, D], cell embeddings; covariates int32 [B] each.
        """
        cell = constrain(cell.astype(jnp.float32), "batch", None)
        if self.covariates is not None:
            cell = cell + self.covariates(covariates)
        hidden = jax.nn.gelu(cell @ self.hidden[...] + self.hidden_bias[None])
        vectors = hidden[:, None]  # [B, K, H]
        if name in self.further:
            further = jnp.einsum("bh,hkg->bkg", hidden, self.further[name][...])
            vectors = jnp.concatenate([vectors, further], axis=1)
        rows, bias, log_dispersion = (
            self._of_features(name, own[...], drawn) for own in (self.rows, self.feature_bias, self.spread)
        )
        outputs = jnp.einsum(
            "bkh,fh->bkf", vectors.astype(self.dtype), rows.astype(self.dtype), preferred_element_type=jnp.float32
        )
        outputs = jnp.swapaxes(outputs, 1, 2) + bias[None, :, : outputs.shape[1]]
        return constrain(outputs, "batch", None, None), within(log_dispersion * ROW_SCALE, *LOG_DISPERSION_BOUNDS)

    def nll(
        self,
        name: str,
        cell: jax.Array,
        tokens: ModalityTokens,
        profile: CellProfile,
        covariates: dict[str, jax.Array],
        drawn: DrawnFeatures | None = None,
    ) -> jax.Array:
        """Negative log-likelihoods float32 [B] of all measured features of the cells; 0 where there are none.

        Args:
          name: modality.
          cell: [B, D], cell embeddings.
          tokens: of the modality, for what it says of the cells as a whole.
          profile: of the modality.
          covariates: int32 [B] each.
          drawn: estimate the sum from these features; None: of all.
        """
        likelihood = self.likelihoods[name]
        assert drawn is None or not likelihood.shares_library
        first, stop = self.slices[name]
        outputs, log_dispersion = self.outputs(name, cell, covariates, drawn)
        places = jnp.arange(stop - first) if drawn is None else drawn.places
        bits = jnp.take(profile.panel, places >> 3, axis=1) >> (places & 7).astype(jnp.uint8)[None]
        measured = bits & 1 > 0  # [B, F]
        outputs = likelihood.of_cell(outputs, measured)
        library_size, mean_log_count = tokens.library_size[:, None], tokens.mean_log_count[:, None]
        nothing = Truth(jnp.zeros(()), library_size, mean_log_count)
        of_zeros = likelihood.nll_of_zero(outputs, log_dispersion[None], nothing)
        stands_for = measured if drawn is None else measured * drawn.weights[None]
        total = (of_zeros * stands_for).sum(axis=1)

        place = jnp.clip(profile.feature_ids - first, 0, stop - first - 1)  # [B, P]
        is_there = jnp.arange(place.shape[1])[None] < profile.lengths[:, None]
        stands_for = (tokens.num_expressed / jnp.maximum(profile.lengths, 1))[:, None]
        if drawn is not None:
            number = jnp.full(stop - first, -1, jnp.int32).at[drawn.places].set(jnp.arange(len(drawn.places)))
            place = number[place]
            is_there, place = is_there & (place >= 0), jnp.maximum(place, 0)
            stands_for = stands_for * drawn.weights[place]
        truth = Truth(profile.counts.astype(jnp.float32), library_size, mean_log_count)
        at = jnp.take_along_axis(outputs, place[..., None], axis=1)  # [B, P, K]
        more = likelihood.nll(at, log_dispersion[place], truth) - jnp.take_along_axis(of_zeros, place, axis=1)
        return total + jnp.where(is_there, more * stands_for, 0.0).sum(axis=1)

    def _of_features(self, name: str, table: jax.Array, drawn: DrawnFeatures | None) -> jax.Array:
        first, stop = self.slices[name]
        mine = whole(table)[first:stop]
        return mine if drawn is None else mine[drawn.places]
