"""AdamW or Muon with warm-up, cosine decay and global-norm clipping, as one optax transformation."""

from typing import Any

import jax
import optax
import optax.contrib

from scmbert_jax.dna_config import Experiment
from scmbert_jax.models.definition import Definition


def learning_rate_schedule(config: Experiment) -> optax.Schedule:
    """step -> learning rate: linear from 0 to the peak, then cosine to its final fraction at `train.num_steps`."""
    optimizer, num_steps = config.optimizer, config.train.num_steps
    warmup = min(optimizer.warmup_steps, num_steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else optimizer.peak_learning_rate,
        peak_value=optimizer.peak_learning_rate,
        warmup_steps=warmup,
        decay_steps=max(num_steps, warmup + 1),
        end_value=optimizer.peak_learning_rate * optimizer.final_learning_rate_fraction,
    )


def decay_mask(roles: dict[str, Any]) -> dict[str, Any]:
    """True for matrices: not for norms, biases, dispersions, rows that are looked up, or what the corpus gave."""
    return jax.tree.map(lambda role: role in ("matrix", "layer_matrix"), roles)


# An update's root mean square that is AdamW's usual one (Liu et al. 2025, "Muon is scalable for LLM training").
_MUON_RMS = 0.2


def muon_dimensions(model: Definition) -> dict[str, Any]:
    """`MuonDimensionNumbers` for the matrices of encoder and decoder layers; None for all that AdamW trains.

    Those are embeddings, heads, norms and biases (Jordan et al. 2024 leave them to AdamW for their sparse or one-
    dimensional gradients). A layer's matrix lies between `embed` and the layer's inside; the side that comes first is
    summed over. Axes of neither (stacked layers; query, key and value; experts) only count matrices, each of which is
    made orthogonal by itself.
    """

    def dimensions(role: str, axes: tuple[str | None, ...]) -> optax.contrib.MuonDimensionNumbers | None:
        if role != "layer_matrix":
            return None
        stream = axes.index("embed")
        inside = tuple(place for place, axis in enumerate(axes) if axis not in ("embed", "layers", None))
        return optax.contrib.MuonDimensionNumbers(*sorted([(stream,), inside]))

    return jax.tree.map(dimensions, model.roles, model.logical_axes)


def make_optimizer(config: Experiment, model: Definition) -> optax.GradientTransformation:
    """The optimizer of a run; its state mirrors the parameters, so it is sharded as they are."""
    of_name = {"adamw": _adamw, "muon": _muon}
    return optax.chain(
        optax.clip_by_global_norm(config.optimizer.max_grad_norm), of_name[config.optimizer.name](config, model)
    )


def _adamw(config: Experiment, model: Definition) -> optax.GradientTransformation:
    optimizer, decayed = config.optimizer, decay_mask(model.roles)

    def mask(params: Any) -> Any:
        # What another transformation trains is a `MaskedNode` here.
        return jax.tree.map(lambda own, leaf: leaf if isinstance(leaf, optax.MaskedNode) else own, decayed, params)

    return optax.adamw(
        learning_rate_schedule(config),
        b1=optimizer.beta1,
        b2=optimizer.beta2,
        eps=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
        mask=mask,
    )


def _muon(config: Experiment, model: Definition) -> optax.GradientTransformation:
    dimensions = muon_dimensions(model)
    by_adamw = jax.tree.map(lambda own: own is None, dimensions, is_leaf=_is_dimensions)
    muon = optax.contrib.muon(
        learning_rate_schedule(config),
        beta=config.optimizer.muon_momentum,
        weight_decay=config.optimizer.weight_decay,
        muon_weight_dimension_numbers=dimensions,
        consistent_rms=_MUON_RMS,
    )
    labels = jax.tree.map(lambda adamw: "adamw" if adamw else "muon", by_adamw)
    return optax.partition({"muon": muon, "adamw": _adamw(config, model)}, labels)


def _is_dimensions(x: Any) -> bool:
    return x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)
