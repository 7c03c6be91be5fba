"""From vectors that stand for (cell, feature) pairs to likelihoods and predictions of their values."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scmbert_jax.config import ExperimentConfig, ModelConfig
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.models.bounds import within
from scmbert_jax.models.embeddings import covariate_embedding, padded_rows
from scmbert_jax.models.layers import LayerNorm, linear
from scmbert_jax.models.likelihoods import LOG_DISPERSION_BOUNDS, Likelihood, Truth, make_likelihood
from scmbert_jax.models.parameters import filled, parameter, weight
from scmbert_jax.parallel.mesh import constrain
from scmbert_jax.parallel.table_rows import pick_rows

# Adam moves a parameter by about the learning rate a step, and a feature's own bias spans several units while it is
# seen in few tokens: stored at a tenth, it moves ten times as fast.
ROW_SCALE = 10.0


def nll_of_tokens(
    likelihoods: Mapping[str, Likelihood],
    outputs_of: Callable[[str], tuple[jax.Array, jax.Array]],
    modality: jax.Array,
    truth: Truth,
) -> jax.Array:
    """Negative log-likelihoods float32 [B, M], each token by the likelihood of its modality (int32 [B, M]).

    `outputs_of` gives, for the name of a modality, outputs [B, M, K] and log dispersions [B, M] of all tokens.
    """
    result = jnp.zeros(truth.counts.shape, jnp.float32)
    for name, likelihood in likelihoods.items():
        mine = modality == MODALITIES.index(name)
        # Tokens of other modalities get harmless numbers, so that no NaN can enter through the unused branch.
        safe = truth._replace(counts=jnp.where(mine, truth.counts, 0.0))
        result = jnp.where(mine, likelihood.nll(*outputs_of(name), safe), result)
    return result


def marginal_model(
    likelihoods: Mapping[str, Likelihood], layout: FeatureLayout, of_cells: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Output biases float32 [rows, K] and log dispersions float32 [rows] that predict each feature by itself.

    `of_cells`: as it is among cells; False: among tokens.
    """
    num_rows, statistics = padded_rows(layout), layout.statistics
    num_outputs = max(own.num_outputs for own in likelihoods.values())
    bias, log_dispersions = np.zeros((num_rows, num_outputs), np.float32), np.zeros(num_rows, np.float32)
    for name, own in likelihoods.items():
        first, stop = layout.slices[name]
        mine = slice(first, stop)
        fraction = np.full(stop - first, 1.0 / max(stop - first, 2))
        log_dispersion, detection = np.zeros(stop - first), np.full(stop - first, 0.5)
        scale = {"log1p": (np.zeros(stop - first), np.ones(stop - first))}
        scale["clr"] = scale["log1p"]
        if statistics is not None:
            kind = "cell_" if of_cells else ""
            fraction = getattr(statistics, f"{kind}fraction")[mine]
            log_dispersion = getattr(statistics, f"{kind}log_dispersion")[mine]
            detection = getattr(statistics, f"{kind}detection")[mine]
            scale = {
                "log1p": (statistics.log1p_mean[mine], statistics.log1p_std[mine]),
                "clr": (statistics.clr_mean[mine], statistics.clr_std[mine]),
            }
        bias[mine, : own.num_outputs], log_dispersions[mine] = own.start(fraction, log_dispersion, detection, scale)
    return bias, log_dispersions


class CellDecoder(nnx.Module):
    """(cell embedding [B, D], feature rows [B, M, D]) -> [B, M, D]: what the cell embedding says of each feature."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        dim = config.embed_dim
        self.from_cell = weight(rngs, (dim, dim), dim, ("embed", None))
        self.from_feature = weight(rngs, (dim, dim), dim, ("embed", None))
        self.gate = weight(rngs, (dim, dim), dim, ("embed", None))

    def __call__(self, cell: jax.Array, features: jax.Array) -> jax.Array:
        dtype = cell.dtype
        query = linear(features.astype(dtype), self.from_feature[...].astype(dtype))
        # The product lets the embedding act as coordinates on feature directions (a bilinear decoder); the sum keeps
        # what holds of the cell as a whole.
        product = linear(cell, self.gate[...].astype(dtype))[:, None] * query
        return product + query + linear(cell, self.from_cell[...].astype(dtype))[:, None]


class ValueHead(nnx.Module):
    """Vectors that stand for (cell, feature) pairs [B, M, D] -> what is predicted of the pair's value.

    Each modality has its own output layer; each feature its own output bias and its own log dispersion (of counts, log
    theta; of a normal, the log of its standard deviation). Checkpoints call it `spread`.

    Args:
      likelihoods: modality -> name in `LIKELIHOODS`.
      of_cells: start from the marginal model of cells; False: of tokens, among which zeros are a sample.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        layout: FeatureLayout,
        likelihoods: Mapping[str, str],
        of_cells: bool,
        rngs: nnx.Rngs,
    ):
        dim = config.model.embed_dim
        modalities = config.modalities.in_use()
        self.likelihoods = {
            name: make_likelihood(likelihood, name, modalities[name], layout.statistics, layout.slices[name])
            for name, likelihood in likelihoods.items()
        }
        self.dense = weight(rngs, (dim, dim), dim, ("embed", None))
        self.dense_bias = filled(0.0, (dim,), (None,), "bias")
        self.norm = LayerNorm(dim)
        self.covariates = covariate_embedding("heads", config, layout, rngs)
        # Zero: the first prediction is the marginal model, undisturbed by an encoder that knows nothing yet.
        self.outputs: Any = nnx.Dict(
            {
                name: filled(0.0, (dim, own.num_outputs), ("embed", None), "matrix")
                for name, own in self.likelihoods.items()
            }
        )
        bias, log_dispersion = marginal_model(self.likelihoods, layout, of_cells)
        # The means of cells are known better than a step can tell; and those of the technical batches that have pairs
        # are not those of all.
        self.bias_scale = 1.0 if of_cells else ROW_SCALE
        # An output is a sum over the width, each weight of which moves by the learning rate: ten times slower, or a
        # few steps on a few hundred pairs undo what the linear path knows.
        self.output_scale = 0.1 if of_cells else 1.0
        self.feature_bias = parameter(bias / self.bias_scale, ("features", None), "bias")
        self.spread = parameter(log_dispersion / ROW_SCALE, ("features",), "dispersion")

    def transform(self, x: jax.Array, covariates: dict[str, jax.Array]) -> jax.Array:  # [B, M, D] -> float32 [B, M, D]
        x = constrain(x, "batch", "length", "embed")
        hidden = linear(x, self.dense[...].astype(x.dtype)) + self.dense_bias[None, None].astype(x.dtype)
        if self.covariates is not None:
            hidden = hidden + self.covariates(covariates)[:, None].astype(x.dtype)
        return self.norm(jax.nn.gelu(hidden)).astype(jnp.float32)

    def _outputs(self, name: str, hidden: jax.Array, feature_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Outputs [B, M, K of this modality] and log dispersions [B, M]."""
        outputs = linear(hidden, self.outputs[name][...]) * self.output_scale
        bias = pick_rows(self.feature_bias[...], feature_ids) * self.bias_scale
        log_dispersion = within(pick_rows(self.spread[...], feature_ids) * ROW_SCALE, *LOG_DISPERSION_BOUNDS)
        return outputs + bias[..., : outputs.shape[-1]], log_dispersion

    def nll(
        self,
        x: jax.Array,
        feature_ids: jax.Array,
        modality: jax.Array,
        truth: Truth,
        covariates: dict[str, jax.Array],
    ) -> jax.Array:
        """x [B, M, D], the others [B, M] -> float32 [B, M], each token by the likelihood of its modality."""
        hidden = self.transform(x, covariates)
        return nll_of_tokens(self.likelihoods, lambda name: self._outputs(name, hidden, feature_ids), modality, truth)

    def __call__(
        self, name: str, x: jax.Array, feature_ids: jax.Array, covariates: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Outputs float32 [B, M, K] and log dispersions float32 [B, M] of pairs that are all of modality `name`."""
        return self._outputs(name, self.transform(x, covariates), feature_ids)

    def of_features(self, name: str, feature_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """As `__call__` for features int32 [B, M] of which no cell has said anything: biases and log dispersions."""
        nothing = jnp.zeros((*feature_ids.shape, self.dense_bias.shape[0]), jnp.float32)
        return self._outputs(name, nothing, feature_ids)
