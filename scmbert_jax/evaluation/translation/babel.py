"""A BABEL-type network: small encoders and decoders that meet in 16 numbers, any encoder spliced to any decoder.

After the description of BABEL (Wu et al. 2021), in our own code. RNA: n -> 64 -> 16 and back, a negative binomial with
the cell's size factor. ATAC: a block n_c -> 32 -> 16 per chromosome, the blocks joined to 16, and back, a Bernoulli.
Loss: NB + 1.33 x BCE over both self paths and both cross paths. Adam 0.01, batches of 512, early stopping on validation
cells. RNA inputs: size factors, log1p, z-score, 0.5% tails clipped; peaks binarised, kept when open in at least 5 cells
and at most 10%. Protein, which BABEL does not have, is read and written by networks of the RNA kind.

What the description leaves open is ours: leaky ReLU between layers, output biases that start at the training means, and
point predictions that are the expected log1p value (not log1p of the expectation, which is too high in RMSE).
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scmbert_jax.models.negative_binomial import negative_binomial_nll

Array = np.ndarray
Params = dict[str, Any]


@dataclass(frozen=True)
class BabelSettings:
    """Sizes and training.

    Attributes:
      hidden_dim: of the RNA and protein networks.
      block_hidden_dim: of each chromosome's block.
      latent_dim: where all meet; also the width a chromosome's block ends in.
      peak_loss_weight: of the BCE against the NB.
      learning_rate: of Adam.
      batch_size: cells; all training cells where there are fewer.
      max_epochs, patience: epochs in all, and epochs without a better validation loss.
      validation_fraction: of the training cells.
    """

    hidden_dim: int = 64
    block_hidden_dim: int = 32
    latent_dim: int = 16
    peak_loss_weight: float = 1.33
    learning_rate: float = 0.01
    batch_size: int = 512
    max_epochs: int = 400
    patience: int = 20
    validation_fraction: float = 0.1


@dataclass(frozen=True)
class CountsSide:
    """RNA or protein. log_means: tuple of float [n], log of the mean training count, where the output bias starts."""

    log_means: tuple[float, ...]


@dataclass(frozen=True)
class PeaksSide:
    """ATAC, peaks ordered by chromosome.

    Attributes:
      blocks: number of peaks of each chromosome.
      logits: tuple of float [n], logit of the fraction of training cells with the peak open.
    """

    blocks: tuple[int, ...]
    logits: tuple[float, ...]


Side = CountsSide | PeaksSide


def init_params(sides: dict[str, Side], settings: BabelSettings, key: jax.Array) -> Params:
    """modality -> {"encoder": ..., "decoder": ...}; weights are Glorot normal, biases zero but the outputs'."""
    params = {}
    for name, side in sides.items():
        key, encoder_key, decoder_key = jax.random.split(key, 3)
        if isinstance(side, CountsSide):
            n, h, z = len(side.log_means), settings.hidden_dim, settings.latent_dim
            encoder = _layers(encoder_key, (n, h, z))
            decoder = _layers(decoder_key, (z, h)) | {"mean": _dense(decoder_key, h, n, jnp.array(side.log_means))}
            decoder["dispersion"] = _dense(jax.random.fold_in(decoder_key, 9), h, n)
        else:
            h, z = settings.block_hidden_dim, settings.latent_dim
            keys = jax.random.split(encoder_key, len(side.blocks))
            encoder = {
                f"block{i}": _layers(k, (n, h, z)) for i, (k, n) in enumerate(zip(keys, side.blocks, strict=True))
            }
            encoder["join"] = _dense(encoder_key, z * len(side.blocks), z)
            keys = jax.random.split(decoder_key, len(side.blocks))
            logits = jnp.split(jnp.array(side.logits), np.cumsum(side.blocks)[:-1])
            decoder = {
                f"block{i}": _layers(k, (z, z, h)) | {"open": _dense(k, h, len(bias), bias)}
                for i, (k, bias) in enumerate(zip(keys, logits, strict=True))
            }
        params[name] = {"encoder": encoder, "decoder": decoder}
    return params


def encode(params: Params, side: Side, inputs: jax.Array) -> jax.Array:
    """[B, n] inputs of one modality -> [B, latent]."""
    if isinstance(side, CountsSide):
        return _apply_layers(params, inputs, last_linear=True)
    parts = jnp.split(inputs, np.cumsum(side.blocks)[:-1], axis=1)
    blocks = [_apply_layers(params[f"block{i}"], part) for i, part in enumerate(parts)]
    return _apply(params["join"], jnp.concatenate(blocks, axis=1))


def decode(params: Params, side: Side, latent: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """[B, latent] -> (log mean [B, n] at size factor 1, dispersion [B, n]); for peaks (logits [B, n], None)."""
    if isinstance(side, CountsSide):
        hidden = _apply_layers(params, latent)
        # Bounds keep exp() finite in the first steps, when Adam's 0.01 is large.
        log_mean = jnp.clip(_apply(params["mean"], hidden), -15.0, 15.0)
        return log_mean, jax.nn.softplus(_apply(params["dispersion"], hidden)) + 1e-4
    parts = [params[f"block{i}"] for i in range(len(side.blocks))]
    return jnp.concatenate([_apply(part["open"], _apply_layers(part, latent)) for part in parts], axis=1), None


def loss(
    params: Params, sides: dict[str, Side], settings: BabelSettings, inputs: Params, targets: Params, sizes: Params
) -> jax.Array:
    """Sum over the paths (every encoder into every decoder) of NB or 1.33 x BCE, each a mean over cells x features.

    Args:
      inputs, targets, sizes: modality -> float [B, n], [B, n] counts or 0/1, [B] size factors (1 for peaks).
    """
    total = jnp.zeros(())
    latents = {name: encode(params[name]["encoder"], side, inputs[name]) for name, side in sides.items()}
    for latent in latents.values():
        for name, side in sides.items():
            output, dispersion = decode(params[name]["decoder"], side, latent)
            if dispersion is None:
                bce = optax.sigmoid_binary_cross_entropy(output, targets[name]).mean()
                total += settings.peak_loss_weight * bce
            else:
                log_mean = output + jnp.log(sizes[name])[:, None]
                total += negative_binomial_nll(targets[name], log_mean, jnp.log(dispersion)).mean()
    return total


def expected_log1p(log_mean: jax.Array, dispersion: jax.Array, divisor: jax.Array, terms: int = 48) -> jax.Array:
    """E log1p(x / divisor) for x ~ NB: summed over x < `terms` where the mean is small, else to second order.

    Args:
      log_mean, dispersion: [B, n]; divisor: [B, 1] or a scalar.
    """
    mean = jnp.exp(log_mean)
    success = mean / (mean + dispersion)

    def add(x, state):
        probability, total = state
        total = total + probability * jnp.log1p(x / divisor)
        return probability * success * (x + dispersion) / (x + 1.0), total

    nothing = jnp.exp(dispersion * jnp.log1p(-success))  # P(x = 0)
    _, summed = jax.lax.fori_loop(0, terms, add, (nothing, jnp.zeros_like(mean)))
    variance = mean + mean**2 / dispersion
    expanded = jnp.log1p(mean / divisor) - variance / (2 * (divisor + mean) ** 2)
    # A long tail beyond the terms is missing from the sum: the mean must be well below them, tail included.
    return jnp.where(mean + 4 * jnp.sqrt(variance) < terms, summed, jnp.maximum(expanded, 0.0))


# Sides and settings are hashable, so that subsamples of one shape share a compiled step.
@partial(jax.jit, static_argnames=("sides", "settings"), donate_argnames=("params", "opt_state"))
def train_step(params, opt_state, sides, settings, inputs, targets, sizes):
    """One Adam step; (params, opt_state, loss before it)."""
    value, gradient = jax.value_and_grad(loss)(params, dict(sides), settings, inputs, targets, sizes)
    updates, opt_state = optimizer(settings).update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state, value


@partial(jax.jit, static_argnames=("sides", "settings"))
def validation_loss(params, sides, settings, inputs, targets, sizes):
    return loss(params, dict(sides), settings, inputs, targets, sizes)


def optimizer(settings: BabelSettings) -> optax.GradientTransformation:
    return optax.adam(settings.learning_rate)


def _dense(key: jax.Array, inputs: int, outputs: int, bias: jax.Array | None = None) -> Params:
    kernel = jax.nn.initializers.glorot_normal()(key, (inputs, outputs))
    return {"kernel": kernel, "bias": jnp.zeros(outputs) if bias is None else bias}


def _layers(key: jax.Array, sizes: tuple[int, ...]) -> Params:
    return {f"layer{i}": _dense(jax.random.fold_in(key, i), a, b) for i, (a, b) in enumerate(pairwise(sizes))}


def _apply(layer: Params, x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"][None]


def _apply_layers(params: Params, x: jax.Array, last_linear: bool = False) -> jax.Array:
    names = sorted(name for name in params if name.startswith("layer"))
    for name in names:
        x = _apply(params[name], x)
        if not (last_linear and name == names[-1]):
            x = jax.nn.leaky_relu(x)
    return x
