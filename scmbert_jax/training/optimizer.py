"""AdamW or Muon with warm-up, cosine decay and global-norm clipping, as one optax transformation."""

from typing import Any

import jax
import optax
import optax.contrib

from scmbert_jax.config import ExperimentConfig


def learning_rate_schedule(config: ExperimentConfig) -> optax.Schedule:
    """step -> learning rate: linear from 0 to the peak, then cosine to its final share at `train.num_steps`."""
    optimizer, num_steps = config.optimizer, config.train.num_steps
    warmup = min(optimizer.warmup_steps, num_steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else optimizer.peak_learning_rate,
        peak_value=optimizer.peak_learning_rate,
        warmup_steps=warmup,
        decay_steps=max(num_steps, warmup + 1),
        end_value=optimizer.peak_learning_rate * optimizer.final_learning_rate_fraction,
    )


def decay_mask(logical_axes: dict[str, Any]) -> dict[str, Any]:
    """True for weight matrices of the encoder and the heads; False for norms, biases, embeddings, dispersions.

    Roles, not ranks, decide: scanned layers make every parameter one dimension larger. Decaying rows that are looked
    up by index would pull rare features to zero.
    """

    def is_matrix(path: tuple, axes: tuple[str | None, ...]) -> bool:
        in_embedding = path[0].key == "embedding" and path[1].key != "continuous"
        # What the corpus gave is not trained, so it must not decay either.
        given = path[-1].key in ("starts", "offset", "keys", "values")
        # By its name: a bias per expert has the shape of a matrix.
        is_bias = path[-1].key.endswith("bias")
        of_matrix = len([axis for axis in axes if axis != "layers"]) >= 2
        return of_matrix and "features" not in axes and not in_embedding and not given and not is_bias

    return jax.tree_util.tree_map_with_path(is_matrix, logical_axes, is_leaf=lambda x: isinstance(x, tuple))


# Of a layer's matrices: the logical axes that a product with it sums over, and those it gives. Other axes (stacked
# layers; query, key and value; experts) only count matrices, each of which is made orthogonal by itself.
_MUON_MATRICES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "qkv": (("embed",), ("heads", "head_dim")),
    "query": (("embed",), ("heads", "head_dim")),
    "key_value": (("embed",), ("heads", "head_dim")),
    "attention_out": (("heads", "head_dim"), ("embed",)),
    "mlp_in": (("embed",), ("mlp",)),
    "mlp_out": (("mlp",), ("embed",)),
}

# An update's root mean square that is AdamW's usual one (Liu et al. 2025, "Muon is scalable for LLM training").
_MUON_RMS = 0.2


def muon_dimensions(logical_axes: dict[str, Any]) -> dict[str, Any]:
    """`MuonDimensionNumbers` for the matrices of encoder and decoder layers; None for all that AdamW trains.

    Those are embeddings, heads, norms and biases (Jordan et al. 2024 leave them to AdamW for their sparse or one-
    dimensional gradients).
    """

    def dimensions(path: tuple, axes: tuple[str | None, ...]) -> optax.contrib.MuonDimensionNumbers | None:
        names = [part.key for part in path]
        if "blocks" not in names or names[-1] not in _MUON_MATRICES:
            return None
        summed, given = _MUON_MATRICES[names[-1]]
        return optax.contrib.MuonDimensionNumbers(
            tuple(axes.index(axis) for axis in summed), tuple(axes.index(axis) for axis in given)
        )

    return jax.tree_util.tree_map_with_path(dimensions, logical_axes, is_leaf=lambda x: isinstance(x, tuple))


def make_optimizer(config: ExperimentConfig, logical_axes: dict[str, Any]) -> optax.GradientTransformation:
    """The optimizer of a run; its state mirrors the parameters, so it is sharded as they are."""
    of_name = {"adamw": _adamw, "muon": _muon}
    return optax.chain(
        optax.clip_by_global_norm(config.optimizer.max_grad_norm), of_name[config.optimizer.name](config, logical_axes)
    )


def _adamw(config: ExperimentConfig, logical_axes: dict[str, Any]) -> optax.GradientTransformation:
    optimizer, decayed = config.optimizer, decay_mask(logical_axes)

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


def _muon(config: ExperimentConfig, logical_axes: dict[str, Any]) -> optax.GradientTransformation:
    dimensions = muon_dimensions(logical_axes)
    by_adamw = jax.tree.map(lambda own: own is None, dimensions, is_leaf=_is_dimensions)
    muon = optax.contrib.muon(
        learning_rate_schedule(config),
        beta=config.optimizer.muon_momentum,
        weight_decay=config.optimizer.weight_decay,
        muon_weight_dimension_numbers=dimensions,
        consistent_rms=_MUON_RMS,
    )
    labels = jax.tree.map(lambda adamw: "adamw" if adamw else "muon", by_adamw)
    return optax.partition({"muon": muon, "adamw": _adamw(config, logical_axes)}, labels)


def _is_dimensions(x: Any) -> bool:
    return x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)
