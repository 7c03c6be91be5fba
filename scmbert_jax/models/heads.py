"""What is predicted at a masked token, and how likely the truth is under it.

A likelihood is a pair of functions of (head outputs, counts, library size): the negative log-likelihood of one token
and its expected value. Adding one is one class and one line in `LIKELIHOODS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.scipy.special import gammaln

from scmbert_jax.batch import MODALITIES, FeatureLayout
from scmbert_jax.config import ExperimentConfig, ModalityConfig
from scmbert_jax.models.embeddings import (
    covariate_embedding,
    expression_bins,
    padded_rows,
    relative_expression,
)
from scmbert_jax.models.encoder import LayerNorm, constant, weight

# Adam moves a parameter by about the learning rate a step, and a feature's own bias spans several units while it is
# seen in few tokens: stored at a tenth, it moves ten times as fast.
ROW_SCALE = 10.0


class Likelihood(NamedTuple):
    """How one kind of value is predicted.

    Attributes:
      num_outputs: numbers the head gives per token, from the modality's configuration.
      nll: (outputs [..., K], log_dispersion [...], counts [...], library_size [...], config) -> float32 [...].
      expected: (outputs, library_size, config) -> float32 [...], in the unit of `counts` (bins: of the bin index;
        bernoulli: the probability of a count above 0).
    """

    num_outputs: Callable[[ModalityConfig], int]
    nll: Callable[..., jax.Array]
    expected: Callable[..., jax.Array]


def _negative_binomial_mean(outputs: jax.Array, library_size: jax.Array) -> jax.Array:
    # A feature's share of the library lies in (0, 1), so the mean can neither overflow nor exceed the library.
    return jnp.maximum(library_size, 1.0) * jax.nn.sigmoid(outputs[..., 0])


def negative_binomial_nll(counts: jax.Array, mean: jax.Array, log_dispersion: jax.Array) -> jax.Array:
    """-log NB(counts; mean, theta = exp(log_dispersion)); variance mean + mean**2 / theta (Lopez et al. 2018)."""
    theta = jnp.exp(log_dispersion)
    log_total = jnp.log(theta + mean)
    return -(
        gammaln(counts + theta)
        - gammaln(theta)
        - gammaln(counts + 1.0)
        + theta * (log_dispersion - log_total)
        + counts * (jnp.log(mean + 1e-8) - log_total)
    )


def _negative_binomial(outputs, log_dispersion, counts, library_size, config):
    return negative_binomial_nll(counts, _negative_binomial_mean(outputs, library_size), log_dispersion)


def _bins(outputs, log_dispersion, counts, library_size, config):
    relative = relative_expression(counts, library_size, config.target_sum)
    bins = expression_bins(relative, config.num_bins)
    log_probability = jax.nn.log_softmax(outputs[..., : config.num_bins])
    return -jnp.take_along_axis(log_probability, bins[..., None], axis=-1)[..., 0]


def _bins_expected(outputs, library_size, config):
    return jax.nn.softmax(outputs[..., : config.num_bins]) @ jnp.arange(config.num_bins, dtype=jnp.float32)


def _bernoulli(outputs, log_dispersion, counts, library_size, config):
    logit = outputs[..., 0]
    return jax.nn.softplus(logit) - logit * (counts > 0)


LIKELIHOODS: dict[str, Likelihood] = {
    "negative_binomial": Likelihood(
        lambda config: 1, _negative_binomial, lambda outputs, library, config: _negative_binomial_mean(outputs, library)
    ),
    "bins": Likelihood(lambda config: config.num_bins, _bins, _bins_expected),
    "bernoulli": Likelihood(
        lambda config: 1, _bernoulli, lambda outputs, library, config: jax.nn.sigmoid(outputs[..., 0])
    ),
}


class ValueHead(nnx.Module):
    """Vectors that stand for (cell, feature) pairs [B, M, D] -> negative log-likelihood of the pair's count.

    Each modality has its own output layer; each feature its own output bias and, for counts, its own dispersion.
    """

    def __init__(self, config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs):
        dim = config.model.embed_dim
        self.modalities = config.modalities.in_use()
        self.dense = weight(rngs, (dim, dim), dim, ("embed", None))
        self.dense_bias = constant(0.0, (dim,), (None,))
        self.norm = LayerNorm(dim)
        self.covariates = covariate_embedding("heads", config, layout, rngs)
        self.outputs: Any = nnx.Dict({})
        biases = 0
        for name, modality in self.modalities.items():
            num_outputs = LIKELIHOODS[modality.likelihood].num_outputs(modality)
            # Zero: the first prediction is the marginal model, undisturbed by an encoder that knows nothing yet.
            self.outputs[name] = constant(0.0, (dim, num_outputs), ("embed", None))
            biases = max(biases, num_outputs)
        bias, log_dispersion = self._marginal_model(layout, padded_rows(layout), biases)
        self.feature_bias = nnx.Param(bias / ROW_SCALE, logical_axes=("features", None))
        self.log_dispersion = nnx.Param(log_dispersion / ROW_SCALE, logical_axes=("features",))

    def _marginal_model(self, layout: FeatureLayout, num_rows: int, num_outputs: int) -> tuple[jax.Array, jax.Array]:
        """Output biases [num_rows, num_outputs] and log dispersions [num_rows] that predict each feature by itself."""
        bias, log_dispersion = np.zeros((num_rows, num_outputs), np.float32), np.zeros(num_rows, np.float32)
        for name, modality in self.modalities.items():
            first, stop = layout.slices[name]
            if modality.likelihood == "negative_binomial":
                share = np.full(stop - first, 1.0 / max(stop - first, 2))
                if layout.statistics is not None:
                    share = layout.statistics.share[first:stop]
                    log_dispersion[first:stop] = layout.statistics.log_dispersion[first:stop]
                bias[first:stop, 0] = np.log(share) - np.log1p(-share)
            elif modality.likelihood == "bernoulli" and layout.statistics is not None:
                detection = layout.statistics.detection[first:stop]
                bias[first:stop, 0] = np.log(detection) - np.log1p(-detection)
        return jnp.asarray(bias), jnp.asarray(log_dispersion)

    def transform(self, x: jax.Array, covariates: dict[str, jax.Array]) -> jax.Array:  # [B, M, D] -> float32 [B, M, D]
        hidden = x @ self.dense[...].astype(x.dtype) + self.dense_bias[...].astype(x.dtype)
        if self.covariates is not None:
            hidden = hidden + self.covariates(covariates)[:, None].astype(x.dtype)
        return self.norm(jax.nn.gelu(hidden)).astype(jnp.float32)

    def nll(
        self,
        x: jax.Array,
        feature_ids: jax.Array,
        modality: jax.Array,
        counts: jax.Array,
        library_size: jax.Array,
        covariates: dict[str, jax.Array],
    ) -> jax.Array:
        """x [B, M, D], the others [B, M] -> float32 [B, M], each token by the likelihood of its modality."""
        hidden = self.transform(x, covariates)
        bias = self.feature_bias[...][feature_ids] * ROW_SCALE  # [B, M, K]
        log_dispersion = self.log_dispersion[...][feature_ids] * ROW_SCALE  # [B, M]
        result = jnp.zeros(counts.shape, jnp.float32)
        for name, config in self.modalities.items():
            outputs = hidden @ self.outputs[name][...]  # [B, M, K of this modality]
            outputs = outputs + bias[..., : outputs.shape[-1]]
            mine = modality == MODALITIES.index(name)
            # Tokens of other modalities get harmless numbers, so that no NaN can enter through the unused branch.
            safe_counts = jnp.where(mine, counts, 0.0)
            nll = LIKELIHOODS[config.likelihood].nll(outputs, log_dispersion, safe_counts, library_size, config)
            result = jnp.where(mine, nll, result)
        return result
