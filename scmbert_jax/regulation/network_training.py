"""Trains the network of a regulatory model: minibatches by (seed, step), AdamW, averaged weights.

A step is a pure function of its arguments; what it shows is a function of (seed, step), so a fit repeats bit for bit on
the same machine.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scmbert_jax.annotation.minibatches import CellOrder
from scmbert_jax.models.dna.sequence_encoder import reverse_complement
from scmbert_jax.regulation.labelled import Kind, LabelledSequences
from scmbert_jax.regulation.linear_part import Part
from scmbert_jax.regulation.losses import row_losses, row_weights
from scmbert_jax.regulation.network import NetworkDefinition, NetworkOptions, real_lengths

Array = np.ndarray

_LEAST_BATCH = 16
_ROWS_AT_ONCE = 512  # of predictions
_PRETRAINED_RATE = 0.25  # learning rate of a pre-trained encoder, as a fraction of that of the rest
_WARMUP = 0.05  # of the steps


class Start(NamedTuple):
    """Parameters of a pre-trained sequence encoder, and whether they stay as they are."""

    encoder: Any
    frozen: bool


class Shown(NamedTuple):
    """Training sequences: codes uint8 [N, L], targets float32 [N, T], weights float32 [N], motifs float32 [N, 2 M] in
    bits, or None."""

    codes: Any
    targets: Any
    weights: Any
    motifs: Any

    def take(self, rows: Array) -> "Shown":
        return Shown(*(None if own is None else own[rows] for own in self))


def fit_network(
    definition: NetworkDefinition,
    options: NetworkOptions,
    train: LabelledSequences,
    dev: LabelledSequences,
    targets: tuple[Array, Array],
    motifs: tuple[Array, Array] | None,
    seed: int,
    balance: float = 0.0,
    start: Start | None = None,
    filters: Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Part, Array]:
    """(the network with the averaged weights of the round with the least loss on dev, its outputs [m, K] there).

    Args:
      targets: of train and dev, float32 [N, T]; of values standardised.
      motifs: of train and dev, float32 [N, 2 M], bits; None without a motif branch.
      seed: of the first parameters, of the order, of what is dropped.
      balance: see `row_weights`.
      start: of the encoder.
      filters: float32 [width, 4, m], with which the first m filters of the stem begin.
      progress: told (steps done, of all).
    """
    kind = train.task.kind
    batch = min(options.batch_size, max(_LEAST_BATCH, len(train) // 8), len(train))
    total = max(options.epochs * (len(train) // batch), options.fewest_steps)
    rounds = np.unique(np.linspace(0, total, options.epochs + 1).astype(int))[1:]
    scale = {} if motifs is None else {"mean": motifs[0].mean(0), "scale": np.maximum(motifs[0].std(0), 1e-6)}
    network = definition.init(jax.random.key(seed))
    if start is not None:
        network = {**network, "sequence": start.encoder}
    elif filters is not None:
        network["sequence"]["stem"]["filters"][0] = _with_filters(network["sequence"]["stem"]["filters"][0], filters)
    frozen = start is not None and start.frozen
    of_encoder = 1.0 if start is None else 0.0 if frozen else _PRETRAINED_RATE
    decayed, rates = definition.decayed(), definition.rates(of_encoder)
    constants = _Constants(definition.ravelled(decayed), definition.ravelled(rates), scale)
    trainer = _Trainer(definition, options, kind, total, frozen)
    params = definition.ravelled(network)
    state = (params, trainer.optimizer(constants.decayed, constants.rates).init(params), jnp.copy(params))
    shown = Shown(train.codes, targets[0], row_weights(train, balance), None if motifs is None else motifs[0])
    key = jax.random.key(seed + 1)
    order, best, waited, losses = CellOrder(len(train), batch, seed), None, 0, []
    for step in range(total):
        state = _step(trainer, state, constants, shown.take(order.at(step)), key, step)
        if progress is not None:
            progress(step + 1, total)
        if step + 1 not in rounds:
            continue
        fitted = {"network": definition.unravelled(state[2]), **scale}
        outputs = outputs_of(definition, fitted, dev.codes, None if motifs is None else motifs[1])
        losses.append(float(row_losses(kind, jnp.asarray(outputs), jnp.asarray(targets[1])).mean()))
        if best is None or losses[-1] < best[0]:
            best, waited = (losses[-1], jax.tree.map(np.asarray, fitted), outputs, step + 1), 0
        else:
            waited += 1
            if waited >= options.patience:
                break
    assert best is not None
    numbers = sum(leaf.size for leaf in jax.tree.leaves(best[1]["network"]))
    info = {"name": definition.name(), "dev_loss": best[0], "dev_losses": losses, "steps": best[3], "seed": seed}
    return Part(definition, best[1], info | {"parameters": int(numbers)}), best[2]


def _with_filters(first: jax.Array, filters: Array) -> jax.Array:
    """Filters [width, channels, n] of a stem, the first of which are `filters` [width, 4, m]."""
    number = min(filters.shape[2], first.shape[2])
    begun = jnp.zeros((*first.shape[:2], number)).at[:, :4].set(filters[:, :, :number])
    return first.at[:, :, :number].set(begun)


class _Trainer(NamedTuple):
    """What a compiled step depends on.

    Attributes:
      definition, options: as of `fit_network`.
      kind: of the task.
      steps: of the whole training.
      frozen: the encoder stays as it is.
    """

    definition: NetworkDefinition
    options: NetworkOptions
    kind: Kind
    steps: int
    frozen: bool

    def optimizer(self, decayed: jax.Array, rates: jax.Array) -> optax.GradientTransformation:
        """AdamW of all parameters as one vector [P]: of 70 leaves, XLA would compile 70 updates, for half a minute.

        `decayed`: 1 for what weight decay pulls to zero. `rates`: factors of the learning rate. float32 [P] each.
        """
        options, steps = self.options, self.steps
        rate = optax.warmup_cosine_decay_schedule(
            0.0, options.learning_rate, max(1, int(_WARMUP * steps)), steps, options.learning_rate / 100
        )
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.scale_by_adam(b2=0.99),
            optax.stateless(lambda updates, params: rates * (updates + options.weight_decay * decayed * params)),
            optax.scale_by_learning_rate(rate),
        )


class _Constants(NamedTuple):
    """float32 [P] each: see `_Trainer.optimizer`; and mean and deviation of motif scores [2 M], or nothing."""

    decayed: jax.Array
    rates: jax.Array
    motifs: dict[str, jax.Array]


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _step(trainer: _Trainer, state: Any, constants: _Constants, shown: Shown, key: jax.Array, step: jax.Array) -> Any:
    """(parameters [P], state of the optimizer, averaged parameters [P]) after one more step."""
    params, opt_state, averaged = state
    options, definition = trainer.options, trainer.definition
    strand, moved, rest = jax.random.split(jax.random.fold_in(key, step), 3)
    one_hot = jax.nn.one_hot(shown.codes, 4)
    if options.shift:
        one_hot = _moved(one_hot, jax.random.randint(moved, (len(one_hot),), -options.shift, options.shift + 1))
    lengths = real_lengths(one_hot)
    if definition.both and definition.encoder is not None:
        turned = jax.random.bernoulli(strand, 0.5, (len(one_hot), 1, 1))
        one_hot = jnp.where(turned, reverse_complement(one_hot, lengths), one_hot)
    motifs, scale = None, constants.motifs
    if shown.motifs is not None:
        motifs = (shown.motifs - scale["mean"][None]) / scale["scale"][None]

    def loss(params: jax.Array) -> jax.Array:
        network = definition.unravelled(params)
        if trainer.frozen:
            network = {**network, "sequence": jax.lax.stop_gradient(network["sequence"])}
        rates = (options.dropout, options.motif_dropout)
        outputs = definition.merge(network)(one_hot, lengths, motifs, rest, rates)
        return (shown.weights * row_losses(trainer.kind, outputs, shown.targets)).mean()

    optimizer = trainer.optimizer(constants.decayed, constants.rates)
    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
    params = optax.apply_updates(params, updates)
    decay = jnp.minimum(options.averaging, (1 + step) / (10 + step))
    return params, opt_state, decay * averaged + (1 - decay) * params


def _moved(one_hot: jax.Array, offsets: jax.Array) -> jax.Array:
    """Every sequence [L, 4] moved on by its offset, with N where nothing is left."""
    places = jnp.arange(one_hot.shape[1])[None] - offsets[:, None]
    inside = (places >= 0) & (places < one_hot.shape[1])
    found = jnp.take_along_axis(one_hot, jnp.clip(places, 0, one_hot.shape[1] - 1)[..., None], axis=1)
    return jnp.where(inside[..., None], found, 0)


def outputs_of(definition: NetworkDefinition, params: Any, codes: Array, motifs: Array | None) -> Array:
    """float32 [N, K] of a network, in batches of one shape."""
    parts, rows = [], min(_ROWS_AT_ONCE, len(codes))
    for first in range(0, len(codes), rows):
        part = codes[first : first + rows]
        missing = rows - len(part)
        own = None if motifs is None else np.pad(motifs[first : first + rows], ((0, missing), (0, 0)))
        found = _outputs(definition, params, np.pad(part, ((0, missing), (0, 0)), constant_values=4), own)
        parts.append(np.asarray(found)[: len(part)])
    return np.concatenate(parts)


@partial(jax.jit, static_argnums=0)
def _outputs(definition: NetworkDefinition, params: Any, codes: jax.Array, motifs: jax.Array | None) -> jax.Array:
    return definition.outputs(params, jax.nn.one_hot(codes, 4), motifs)
