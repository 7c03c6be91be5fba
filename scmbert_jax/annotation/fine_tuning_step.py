"""A step of fine-tuning: cells of a step in parts of like length, the loss of their labels, AdamW.

Loss of a cell whose label covers the leaves S:

    nll = -log sum_{l in S} p_l        p = softmax(logits + tau log prior)       a coarse label is marginalised
    loss = (1 - exp(-nll)) ** gamma * nll

tau, gamma: those of `Imbalance`. Logit adjustment (Menon et al. 2021, arXiv 2007.07314, equation 10) makes up for rare
types, by the prior of the cells as they are drawn; focal loss (Lin et al. 2017, arXiv 1708.02002, equation 4) looks at
cells that are hard.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scmbert_jax.annotation.linear_head import Imbalance
from scmbert_jax.annotation.minibatches import CellOrder, HeldCells
from scmbert_jax.annotation.trained_part import TrainedPart
from scmbert_jax.models.token_sequence import CutBatch
from scmbert_jax.pretrained import PretrainedModel

Array = np.ndarray

LEARNING_RATES = {"full": 3e-4, "last": 3e-4, "lora": 1e-3, "scbert": 1e-4}  # of the encoder, by `TrainedPart.kind`
_MOST_CELLS_AT_A_TIME = 32  # of a device call: half of a minibatch of 64, of cells of like length


class Rates(NamedTuple):
    """What AdamW is told; `of_encoder` and `of_head` are the learning rates at their peak."""

    of_encoder: float
    of_head: float
    warmup_steps: int
    num_steps: int
    weight_decay: float
    max_grad_norm: float


class Targets(NamedTuple):
    """Labels of the cells of a batch: bool [B, L] leaves, float32 [B] weights; float32 [L], added to the logits."""

    membership: Any
    weights: Any
    adjustment: Any


def nll_of_logits(logits: jax.Array, membership: jax.Array) -> jax.Array:
    """float32 [B] of logits [B, L]: -log of the probability of all leaves that a label covers, bool [B, L].

    `linear_head.losses_of_logits` for JAX.
    """
    return jax.nn.logsumexp(logits, axis=1) - jax.nn.logsumexp(logits, axis=1, where=membership)


class FineTuningStep:
    """(trained, opt_state, step) -> the next: a pure function of its arguments and of what it was made with.

    `trained`: {"part": what `TrainedPart.start` gives, "head": {"weight" [D, L], "bias" [L]}}, float32.

    Args:
      part: what is trained of the model.
      held: the training cells, n of them.
      membership: bool [n, L], the leaves that the label of each covers.
      order: which of them a step shows.
      num_tokens: of a cell, of each modality; None: as in an embedding.
      rates: of AdamW; imbalance: of the loss.
    """

    def __init__(
        self,
        part: TrainedPart,
        held: HeldCells,
        membership: Array,
        order: CellOrder,
        num_tokens: int | None,
        rates: Rates,
        imbalance: Imbalance,
    ):
        self._part, self._held, self._membership, self._order = part, held, membership, order
        self._num_tokens, self._rates, self._focal = num_tokens, rates, imbalance.focal
        fractions = np.average(membership / membership.sum(axis=1, keepdims=True), axis=0, weights=order.weights)
        # Of the cells as they are drawn; a leaf that nothing covers has a fraction that a logarithm can take.
        fractions = np.maximum(fractions, 0.5 / len(membership))
        self._adjustment = (imbalance.logit_adjustment * np.log(fractions)).astype(np.float32)

    def first_opt_state(self, trained: Any) -> Any:
        return {name: own.init(trained[name]) for name, own in optimizers(self._part, self._rates).items()}

    def __call__(
        self, model: PretrainedModel, scale: Any, trained: Any, opt_state: Any, step: int
    ) -> tuple[Any, Any, jax.Array]:
        """Of `model`, whose parameters are where `trained` has none: (trained, opt_state, mean loss of the cells).

        `scale`: {"mean" [D], "scale" []}, what embeddings are brought to before the head.
        """
        cells = self._order.at(step)
        batches = self._held.batches(
            cells,
            self._num_tokens,
            min(_MOST_CELLS_AT_A_TIME, len(cells)),
            self._order.token_seed(step),
            np.arange(len(cells), dtype=np.uint64),
        )
        sums = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), trained))
        for places, batch in batches:
            mine = np.resize(places, len(batch.row))  # as the rows of the batch: the first are repeated to fill it
            weights = (np.arange(len(mine)) < len(places)).astype(np.float32)
            targets = Targets(self._membership[cells[mine]], weights, self._adjustment)
            sums = _add_gradients(
                self._part, self._focal, sums, trained, scale, model.params, model.constants, batch, targets
            )
        return _updated(self._part, self._rates, sums, len(cells), opt_state, trained)


# Compiled once per method and batch shape: every fit of the model uses the same program.
@partial(jax.jit, static_argnums=(0, 1))
def _add_gradients(
    part: TrainedPart,
    focal: float,
    sums: tuple[jax.Array, Any],
    trained: Any,
    scale: Any,
    params: Any,
    constants: Any,
    batch: CutBatch,
    targets: Targets,
) -> tuple[jax.Array, Any]:
    """`sums` (of losses, of their gradients by `trained`) and those of a batch."""

    def loss(trained: Any) -> jax.Array:
        merged = part.definition.merge(part.merged(params, trained["part"]), constants)
        embedding = merged.cell_embedding(merged.feature_table(), batch)
        scaled = (embedding - scale["mean"][None]) / scale["scale"]
        logits = scaled @ trained["head"]["weight"] + trained["head"]["bias"][None]
        nll = nll_of_logits(logits + targets.adjustment[None], targets.membership)
        if focal:
            # Never 0, where the power has no slope.
            nll = jnp.maximum(-jnp.expm1(-nll), 1e-12) ** focal * nll
        return (targets.weights * nll).sum()

    return jax.tree.map(jnp.add, sums, jax.value_and_grad(loss)(trained))


@partial(jax.jit, static_argnums=(0, 1))
def _updated(
    part: TrainedPart, rates: Rates, sums: tuple[jax.Array, Any], number: int, opt_state: Any, trained: Any
) -> tuple[Any, Any, jax.Array]:
    loss, gradients = jax.tree.map(lambda x: x / number, sums)
    gradients, _ = optax.clip_by_global_norm(rates.max_grad_norm).update(gradients, optax.EmptyState())
    new, states = {}, {}
    for name, own in optimizers(part, rates).items():
        updates, states[name] = own.update(gradients[name], opt_state[name], trained[name])
        new[name] = optax.apply_updates(trained[name], updates)
    return new, states, loss


def optimizers(part: TrainedPart, rates: Rates) -> dict[str, optax.GradientTransformation]:
    """AdamW with a learning rate for what `part` trains, and with another one for the head."""

    def adamw(peak: float, mask: Any) -> optax.GradientTransformation:
        rate = optax.warmup_cosine_decay_schedule(
            peak / (rates.warmup_steps + 1), peak, rates.warmup_steps, max(rates.num_steps, rates.warmup_steps + 1)
        )
        return optax.adamw(rate, weight_decay=rates.weight_decay, mask=mask)

    return {
        "part": adamw(rates.of_encoder, part.decayed),
        "head": adamw(rates.of_head, {"weight": True, "bias": False}),
    }
