"""Fine-tuning: the encoder and a linear head on the cell embedding learn the labels of a reference's training cells.

It starts where the linear probe of the frozen model ends, so what it adds can be told; its result is the step that was
best on the validation cells, step 0 among them. A step's cells and tokens are a function of (seed, step), so a fit that
was killed continues bit for bit (work_folder.py).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import f1_score

from scmbert_jax.annotation.fine_tuning_step import LEARNING_RATES, FineTuningStep, Rates
from scmbert_jax.annotation.linear_head import (
    C_GRID,
    Imbalance,
    LinearHead,
    cell_weights,
    fit_linear_head,
    marginal_nll,
)
from scmbert_jax.annotation.minibatches import CellOrder, HeldCells
from scmbert_jax.annotation.reference import Reference
from scmbert_jax.annotation.trained_part import TrainedPart
from scmbert_jax.annotation.work_folder import History, WorkFolder
from scmbert_jax.errors import TrainingError, require
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.embed import embedding_function
from scmbert_jax.tasks.label_transfer import OneScale
from scmbert_jax.training.state_digest import digests
from scmbert_jax.training.train_state import TrainState

Array = np.ndarray

_EMBEDDED_AT_A_TIME = 64


@dataclass(frozen=True)
class FineTuningOptions:
    """How a model is fine-tuned. Raises `ConfigError` naming the field that cannot be.

    Attributes:
      method: "full", "last:N", "lora:R" or "scbert" (trained_part.py).
      head_start: "probe": the head of the frozen model's linear probe; "zero".
      num_steps: minibatches at most; early stopping may end it before.
      batch_size: cells of a minibatch.
      learning_rate: of the encoder, at its peak; None: `LEARNING_RATES` of the method.
      head_learning_rate: of the head, at its peak.
      warmup: fraction of `num_steps` in which both rise; then they fall to 0 as a cosine.
      weight_decay: of matrices (AdamW).
      max_grad_norm: longer gradients are shortened to it.
      imbalance: what is done about types of few cells.
      num_tokens: of a cell in a step, of each modality; None: as an embedding shows it, nearly all. Fewer are faster,
        but cells are predicted with all: with 128, macro-F1 of a held-out donor of Kang et al. fell from .76 to .73.
      validate_every: steps between looks at the validation cells.
      patience: such looks without a better one, after which it stops.
      stop_by: what is best: macro-F1 (a tie is broken by the loss) or the loss of the validation cells.
      most_validation_cells: that are looked at, drawn from all; a pass over very many would take longer than the steps.
      seed: of the order of cells, of tokens, of the start of lora.
    """

    method: str = "last:1"
    head_start: Literal["probe", "zero"] = "probe"
    num_steps: int = 500
    batch_size: int = 64
    learning_rate: float | None = None
    head_learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    imbalance: Imbalance = field(default_factory=Imbalance)
    num_tokens: int | None = None
    validate_every: int = 50
    patience: int = 4
    stop_by: Literal["macro_f1", "loss"] = "macro_f1"
    most_validation_cells: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        def check(holds: Callable[[Any], bool], expected: str, *names: str) -> None:
            for name in names:
                require(holds(getattr(self, name)), f"fine-tuning option {name}", getattr(self, name), expected)

        counted = ("num_steps", "batch_size", "validate_every", "patience", "most_validation_cells")
        check(lambda x: x >= 1, "1 or more", *counted)
        check(lambda x: x is None or x >= 1, "1 or more", "num_tokens")
        check(lambda x: x is None or x > 0, "a number above 0", "learning_rate", "head_learning_rate", "max_grad_norm")
        check(lambda x: 0 <= x <= 1, "a number from 0 to 1", "warmup")
        check(lambda x: x >= 0, "0 or more", "weight_decay")
        check(lambda x: x in ("probe", "zero"), "probe or zero", "head_start")
        check(lambda x: x in ("macro_f1", "loss"), "macro_f1 or loss", "stop_by")


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned model with its head.

    Attributes:
      params: of the whole model, as a plain model's.
      head: on the cell embedding; its scale is of what the *frozen* model gave of the training cells.
      step: the best on the validation cells, whose numbers these are; the last where there are no such cells.
      history: a row per look at the validation cells: step, loss (mean since the last row, None at step 0),
        validation_loss, validation_accuracy, validation_macro_f1 (None without validation cells).
    """

    params: dict[str, Any]
    head: LinearHead
    step: int
    history: History


def fine_tune(
    model: PretrainedModel,
    reference: Reference,
    options: FineTuningOptions,
    *,
    work_folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FineTuned:
    """Trains `options.method` of `model` and a head to tell the leaves of `reference` apart.

    Args:
      model: that of `reference.cells`, or one with the same features (controls.py).
      reference: only cells of `train` and `validation` are read.
      work_folder: where it leaves checkpoints, and continues from them. None: it cannot be continued.
      progress: called with (steps done, steps at most).

    Raises:
      ConfigError: a method that the model cannot be trained by.
      CheckpointError: the work folder is of another fine-tuning (says what differs), or cannot be read or written.
      TrainingError: the loss is no longer finite.
    """
    fit = _Fit(model, reference, options)
    work = None if work_folder is None else WorkFolder(work_folder, fit.identity())
    try:
        begun = None if work is None else work.restore(fit.abstract_state())
        state, history = fit.begin() if begun is None else begun
        losses: list[jax.Array] = []
        done = int(state.step)
        while done < options.num_steps and not _is_out_of_patience(history, options):
            state, of_step = fit.step(state)
            losses.append(of_step)
            done += 1
            if done % options.validate_every == 0 or done == options.num_steps:
                loss = float(np.mean(losses))
                if not np.isfinite(loss):
                    raise TrainingError(
                        f"fine-tuning: the loss is {loss} before step {done}; lower learning_rate "
                        f"({fit.rates.of_encoder:g}) or head_learning_rate ({fit.rates.of_head:g})."
                    )
                history, losses = [*history, {"step": done, "loss": loss, **fit.scores(state)}], []
                if _best(history, options) is history[-1]:
                    state = state._replace(params={**state.params, "best": state.params["trained"]})
                if work is not None:
                    work.save(state, history)
            if progress is not None:
                progress(done, options.num_steps)
    finally:
        if work is not None:
            work.close()
    if progress is not None:
        progress(options.num_steps, options.num_steps)
    best, scale = jax.device_get((state.params["best"], state.params["scale"]))
    return FineTuned(
        params=fit.part.merged(model.params, state.params["best"]["part"]),
        head=_head(best["head"], scale),
        step=_best(history, options)["step"],
        history=history,
    )


class _Fit:
    """What `fine_tune` does, in pieces; its state's `params` are what is trained, the best of it, and the scale."""

    def __init__(self, model: PretrainedModel, reference: Reference, options: FineTuningOptions):
        self.model, self.options, self.reference = model, options, reference
        self.part = TrainedPart.of(options.method, model.definition)
        train, validation = reference.train, _drawn(reference.validation, options.most_validation_cells)
        rows = np.concatenate([train, validation])
        self.held = HeldCells.read(replace(reference.cells, model=model), rows)
        self.membership = reference.membership[rows]
        self._train, self._validation = np.split(np.arange(len(rows)), [len(train)])
        imbalance, of_train = options.imbalance, self.membership[self._train]
        weights = cell_weights(of_train, imbalance.balance) if imbalance.balance else None
        self.rates = Rates(
            options.learning_rate or LEARNING_RATES[self.part.kind],
            options.head_learning_rate,
            round(options.warmup * options.num_steps),
            options.num_steps,
            options.weight_decay,
            options.max_grad_norm,
        )
        order = CellOrder(len(train), options.batch_size, options.seed, weights)
        self._step = FineTuningStep(self.part, self.held, of_train, order, options.num_tokens, self.rates, imbalance)

    def begin(self) -> tuple[TrainState, History]:
        """Step 0: the frozen model and the head of its linear probe, or of zeros."""
        head = self._first_head()
        state = self._state(head.weight, head.bias, head.scale.mean, head.scale.scale)
        return state, [{"step": 0, "loss": None, **self.scores(state)}]

    def abstract_state(self) -> TrainState:
        """The shapes of `begin`'s state, on one device."""
        size, number = self.model.config.model.cell_dim, self.membership.shape[1]
        shapes = jax.eval_shape(self._state, jnp.zeros((size, number)), jnp.zeros(number), jnp.zeros(size), 1.0)
        where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes)

    def _state(self, weight: Any, bias: Any, mean: Any, scale: Any) -> TrainState:
        head, of_scale = {"weight": weight, "bias": bias}, {"mean": mean, "scale": scale}
        head, of_scale = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (head, of_scale))
        trained = {"part": self.part.start(self.model.params, self.options.seed), "head": head}
        params = {"trained": trained, "best": trained, "scale": of_scale}
        return TrainState(params, self._step.first_opt_state(trained), jnp.zeros((), jnp.int32))

    def step(self, state: TrainState) -> tuple[TrainState, jax.Array]:
        """The next state, and the mean loss of the step's cells."""
        params = state.params
        trained, opt_state, loss = self._step(
            self.model, params["scale"], params["trained"], state.opt_state, int(state.step)
        )
        return TrainState({**params, "trained": trained}, opt_state, state.step + 1), loss

    def scores(self, state: TrainState) -> dict[str, float | None]:
        """Of the validation cells, as a user's cells would be predicted: all their tokens are shown."""
        names = ("validation_loss", "validation_accuracy", "validation_macro_f1")
        if not len(self._validation):
            return dict.fromkeys(names)
        trained, scale = state.params["trained"], state.params["scale"]
        vectors = self._vectors(self.part.merged(self.model.params, trained["part"]), self._validation)
        logits = _head(*jax.device_get((trained["head"], scale))).logits(vectors)
        membership = self.membership[self._validation]
        loss = marginal_nll(logits, membership)
        return dict(zip(names, (loss, *accuracy_and_macro_f1(logits.argmax(1), membership)), strict=True))

    def identity(self) -> dict[str, Any]:
        """What must be the same for a fit to continue."""
        arrays = {
            "labels": self.reference.membership,
            "training cells": self.reference.train,
            "validation cells": self.reference.validation,
            "model": digests((self.model.params, self.model.constants)),
        }
        return {
            **{f"options.{name}": value for name, value in asdict(self.options).items()},
            **{name: sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for name, array in arrays.items()},
            "types": list(self.reference.tree.leaves),
            "counts": self.held.digest(),
        }

    def _first_head(self) -> LinearHead:
        """That of the frozen model's linear probe: the C of `C_GRID` whose loss on the validation cells is least."""
        x, membership = self._vectors(self.model.params, self._train), self.membership[self._train]
        if self.options.head_start == "zero":
            shape = x.shape[1], membership.shape[1]
            return LinearHead(np.zeros(shape), np.zeros(shape[1]), OneScale.of(x))
        if not len(self._validation):
            return fit_linear_head(x, membership, imbalance=self.options.imbalance)
        held, of_held = self._vectors(self.model.params, self._validation), self.membership[self._validation]
        heads: list[LinearHead] = []
        for c in C_GRID:
            start = heads[-1] if heads else None
            heads.append(fit_linear_head(x, membership, c=c, imbalance=self.options.imbalance, start=start))
        return min(heads, key=lambda head: marginal_nll(head.logits(held), of_held))

    def _vectors(self, params: Any, rows: Array) -> Array:
        """Cell embeddings float32 [n, D] of cells that are held."""
        embed = embedding_function(replace(self.model, params=params), "cell")
        found = np.empty((len(rows), self.model.config.model.cell_dim), np.float32)
        for first in range(0, len(rows), 2048):
            mine = rows[first : first + 2048]
            for places, batch in self.held.batches(mine, None, _EMBEDDED_AT_A_TIME, 0):
                found[first + places] = embed(batch)[: len(places)]
        return found


def _head(head: dict[str, Array], scale: dict[str, Array]) -> LinearHead:
    return LinearHead(head["weight"], head["bias"], OneScale(scale["mean"], float(scale["scale"])))


def accuracy_and_macro_f1(predicted: Array, membership: Array) -> tuple[float, float]:
    """Of predicted leaves int [n], for labels that cover the leaves bool [n, L].

    A leaf that the label covers is right. For macro-F1, the mean over labels that a cell has, a wrong leaf counts
    against the finest label that covers it.
    """
    labels, truth = np.unique(membership, axis=0, return_inverse=True)
    truth, is_right = truth.ravel(), membership[np.arange(len(predicted)), predicted]
    sizes = np.where(labels, labels.sum(axis=1, keepdims=True), np.iinfo(np.int64).max)  # [labels, L]
    finest = np.where(labels.any(axis=0), sizes.argmin(axis=0), -1)
    called = np.where(is_right, truth, finest[predicted])
    macro = f1_score(truth, called, labels=np.arange(len(labels)), average="macro", zero_division=0.0)
    return float(is_right.mean()), float(macro)


def _drawn(rows: Array, most: int) -> Array:
    """At most so many of the rows, evenly spread over them."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _merit(row: dict[str, Any], options: FineTuningOptions) -> tuple[float, ...]:
    """Greater is better; of rows without validation cells, the later one is."""
    if row["validation_loss"] is None:
        return (row["step"],)
    if options.stop_by == "loss":
        return (-row["validation_loss"],)
    return row["validation_macro_f1"], -row["validation_loss"]


def _best(history: History, options: FineTuningOptions) -> dict[str, Any]:
    return max(history, key=lambda row: _merit(row, options))  # the first of equals


def _is_out_of_patience(history: History, options: FineTuningOptions) -> bool:
    best = next(place for place, row in enumerate(history) if row is _best(history, options))
    return len(history) - 1 - best >= options.patience
