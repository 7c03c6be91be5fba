"""Which numbers of a pre-trained model fine-tuning changes, and how a plain model is put together from them again.

    full      all that a cell embedding depends on: feature table, token embedding, encoder, the linear path's matrix
    last:N    the last N blocks of the encoder, its final norm, and the linear path's matrix into the cell embedding
    lora:R    two thin matrices of R beside each matrix of the encoder's blocks, whose product is added to it (Hu et al.
              2021, "LoRA"). One of them starts at zero, so that the model starts as it is.
    scbert    as the published scBERT: the last block but one of the encoder, its final norm, and the gene head

A gene head, where the model has one (scbert_head.py), is trained by `full` and `last:N`, too. Heads of the
pre-training's objectives are never touched. What is trained is a tree of its own, so gradients and moments
exist of nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from scmbert_jax.errors import ConfigError
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.optimizer import decay_mask, muon_dimensions

METHODS = ("full", "last:N", "lora:R", "scbert")


@dataclass(frozen=True)
class TrainedPart:
    """The numbers that one of `METHODS` trains; compared by value, so that a compiled step serves the next fit.

    Attributes:
      definition: the model.
      kind: "full", "last", "lora" or "scbert".
      number: N blocks or rank R; 0 for the others.
    """

    definition: ModelDefinition
    kind: str
    number: int = 0

    @classmethod
    def of(cls, method: str, definition: ModelDefinition) -> "TrainedPart":
        """Raises `ConfigError` where there is no such method, or the model has fewer than N blocks."""
        kind, _, text = method.partition(":")
        if method == "scbert" and not definition.config.model.gene_head:
            raise ConfigError(
                f"method {method!r}: the model has no gene head; scbert_head.with_gene_head gives it one."
            )
        if method in ("full", "scbert"):
            return cls(definition, method)
        if kind not in ("last", "lora") or not text.isdecimal() or int(text) < 1:
            raise ConfigError(
                f"method {method!r}: expected one of {', '.join(METHODS)}, such as last:1 (the last block of the "
                "encoder) or lora:8 (rank 8)."
            )
        blocks = definition.config.model.num_layers
        if kind == "last" and int(text) > blocks:
            raise ConfigError(
                f"method {method!r}: the model's encoder has {blocks} blocks; give last:1 to last:{blocks}."
            )
        return cls(definition, kind, int(text))

    def start(self, params: Any, seed: int) -> dict[str, Any]:
        """What is trained, as it is at step 0: name of a parameter -> float32 array, or the two of an addition.

        `params`: the pre-trained model's. `seed`: of the additions of lora.
        """
        found: dict[str, Any] = {}
        for place, (name, leaf) in enumerate(self._leaves(params)):
            if self.kind == "lora":
                found[name] = self._addition(name, leaf, jax.random.fold_in(jax.random.key(seed), place))
            else:
                found[name] = jnp.asarray(leaf[self._blocks] if self._is_cut(name) else leaf)
        return found

    def merged(self, params: Any, trained: dict[str, Any]) -> Any:
        """`params` of the pre-trained model with what was trained in its place: parameters of a plain model."""

        def one(path: tuple, leaf: jax.Array) -> jax.Array:
            name = _name(path)
            if name not in trained:
                return leaf
            if self.kind == "lora":
                down, up = trained[name]["down"], trained[name]["up"]
                return leaf + jnp.einsum(self._product(name), down, up)
            if self._is_cut(name):
                return jnp.concatenate([leaf[: self._blocks.start], trained[name], leaf[self._blocks.stop :]])
            return trained[name]

        return jax.tree_util.tree_map_with_path(one, params)

    def decayed(self, trained: dict[str, Any]) -> dict[str, Any]:
        """True for what weight decay pulls to zero: matrices."""
        mask = dict(_leaves(decay_mask(self.definition.roles)))
        return {name: jax.tree.map(lambda _, own=mask[name]: own, value) for name, value in trained.items()}

    def _leaves(self, params: Any) -> Iterator[tuple[str, Any]]:
        roles, is_mine = dict(_leaves(self.definition.roles)), _IS_TRAINED[self.kind]
        for name, leaf in _leaves(params):
            if is_mine(name, roles[name]):
                yield name, leaf

    @property
    def _blocks(self) -> slice:
        """Those of the encoder that are trained, where not all are."""
        blocks = self.definition.config.model.num_layers
        if self.kind == "scbert":
            last = max(blocks - 1, 1)  # a single block is the one
            return slice(last - 1, last)
        return slice(blocks - self.number, blocks)

    def _is_cut(self, name: str) -> bool:
        return self.kind in ("last", "scbert") and self._axes(name)[:1] == ("layers",)

    def _axes(self, name: str) -> tuple[str | None, ...]:
        return dict(_leaves(self.definition.logical_axes, is_leaf=lambda x: isinstance(x, tuple)))[name]

    def _sides(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Axes that a matrix sums over, and those of what comes out."""
        dimensions = muon_dimensions(self.definition)
        found = dict(_leaves(dimensions, is_leaf=lambda x: hasattr(x, "reduction_axis")))[name]
        return tuple(found.reduction_axis), tuple(found.output_axis)

    def _letters(self, name: str) -> tuple[str, str, str]:
        """Of a matrix's axes, of those of `down` and of `up`; r is the rank."""
        inputs, outputs = self._sides(name)
        whole = "abcdefgh"[: len(self._axes(name))]
        down = "".join(letter for place, letter in enumerate(whole) if place not in outputs) + "r"
        up = "r" + "".join(letter for place, letter in enumerate(whole) if place not in inputs)
        return whole, down, up

    def _product(self, name: str) -> str:
        whole, down, up = self._letters(name)
        return f"{down},{up}->{whole}"

    def _addition(self, name: str, leaf: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        whole, down, up = self._letters(name)
        sizes = {**dict(zip(whole, leaf.shape, strict=True)), "r": self.number}
        fan_in = 1
        for place in self._sides(name)[0]:
            fan_in *= leaf.shape[place]
        shape = [sizes[letter] for letter in down]
        return {
            "down": jax.random.normal(key, shape, jnp.float32) * fan_in**-0.5,
            "up": jnp.zeros([sizes[letter] for letter in up], jnp.float32),
        }


def _of_cell(name: str, role: str) -> bool:
    return name.split(".")[0] in ("table", "embedding", "encoder", "gene_head") or name.startswith("linear.into_cell.")


def _of_last_blocks(name: str, role: str) -> bool:
    return name.startswith(("encoder.", "linear.into_cell.", "gene_head."))


def _of_matrices(name: str, role: str) -> bool:
    return name.startswith("encoder.") and role == "layer_matrix"


_IS_TRAINED = {"full": _of_cell, "last": _of_last_blocks, "lora": _of_matrices, "scbert": _of_last_blocks}


def _leaves(tree: Any, is_leaf: Any = None) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        yield _name(path), leaf


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
