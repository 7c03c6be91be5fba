"""AdamW with warm-up, cosine decay and global-norm clipping, as one optax transformation."""

from typing import Any

import jax
import optax

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


def make_optimizer(config: ExperimentConfig, logical_axes: dict[str, Any]) -> optax.GradientTransformation:
    """The optimizer of a run; its state mirrors the parameters, so it is sharded as they are."""
    optimizer = config.optimizer
    return optax.chain(
        optax.clip_by_global_norm(optimizer.max_grad_norm),
        optax.adamw(
            learning_rate_schedule(config),
            b1=optimizer.beta1,
            b2=optimizer.beta2,
            eps=optimizer.epsilon,
            weight_decay=optimizer.weight_decay,
            mask=decay_mask(logical_axes),
        ),
    )
