"""The network of a regulatory model: our sequence encoder, beside it a branch that reads motifs, and a head.

    one_hot [B, L, 4] -- SequenceEncoder --> states [B, S, D] -- maximum and mean over S --> [B, 2 D] --+
    motifs [B, 2 M] (scores of the sequence, in units of their deviation) -- linear, gelu ----> [B, E] --+--> [B, K]

The motif branch may stand alone.

Motif scores are those of both strands, so they are computed once for the training sequences, whichever strand is shown.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scmbert_jax.config import ModelConfig
from scmbert_jax.dna_config import SequenceConfig
from scmbert_jax.errors import require
from scmbert_jax.models.dna.sequence_encoder import SequenceEncoder, reverse_complement
from scmbert_jax.models.layers import LayerNorm, linear
from scmbert_jax.models.parameters import filled, weight
from scmbert_jax.regulation.linear_part import motif_features
from scmbert_jax.sequences.motif_scanner import MotifScanner

ENCODER = ModelConfig(
    embed_dim=64, num_layers=1, num_heads=4, head_dim=16, mlp_dim=128, linear_path=False, scan_layers=False
)
SEQUENCE = SequenceConfig(stem_channels=128, stem_kernel=15, stem_pool=8, stem_pooling="max")


@dataclass(frozen=True)
class NetworkOptions:
    """The network and how it is trained.

    Attributes:
      encoder, sequence: of the sequence encoder (`sequence.most_bases` is that of the data); its strands are "given":
        which are read, `strands` says. Without an encoder (None) the motif branch stands alone.
      strands: both: half of the sequences that are trained on are turned, and what is predicted is the mean of both
        strands. given: neither. auto: what the k-mers of dev say.
      motif_dim: width of the motif branch; 0: none. It needs a motif file.
      motif_filters: filters of the stem begin as motifs that are chosen for the labels, where there is a motif file.
      hidden: width of the head.
      dropout: of what the head reads; motif_dropout: of the motif scores.
      epochs: at most; the weights of the epoch with the least loss on dev are kept.
      patience: epochs without a better one after which training ends.
      batch_size: sequences of a step.
      learning_rate: at its peak; weight_decay: of matrices; averaging: decay of the mean of the weights, which is what
        is kept.
      shift: bases by which a sequence that is trained on is moved, at most; N takes the place of what is moved out.
      fewest_steps: of a small data set, whatever its epochs.
    """

    encoder: ModelConfig | None = ENCODER
    sequence: SequenceConfig = field(default=SEQUENCE)
    strands: Literal["auto", "both", "given"] = "auto"
    motif_dim: int = 64
    motif_filters: bool = True
    hidden: int = 64
    dropout: float = 0.3
    motif_dropout: float = 0.3
    epochs: int = 10
    patience: int = 4
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    averaging: float = 0.99
    shift: int = 0
    fewest_steps: int = 400

    def __post_init__(self) -> None:
        for name in ("hidden", "epochs", "patience", "batch_size", "fewest_steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("dropout", "motif_dropout", "averaging"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 to below 1")
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0")
        require(self.shift >= 0 and self.motif_dim >= 0, "shift, motif_dim", (self.shift, self.motif_dim), "0 or more")


# A prototype of it, of 1,510 scores of 755 motifs: AUROC .885 on held-out training sequences of GUE's tf/2 after 9 s of
# one core; the encoder alone .882 after 48 s, a logistic regression of the same scores .872.
MOTIF_NETWORK = NetworkOptions(
    encoder=None, motif_dim=128, batch_size=256, learning_rate=3e-3, weight_decay=0.3, epochs=8, patience=12
)


class NetworkShape(NamedTuple):
    """What the parameters of a network depend on; `num_motifs`: 2 M, or 0: no branch. Others as of `NetworkOptions`."""

    encoder: ModelConfig | None
    sequence: SequenceConfig
    hidden: int
    motif_dim: int
    num_motifs: int
    num_outputs: int


class RegulatoryNetwork(nnx.Module):
    """See above."""

    def __init__(self, shape: NetworkShape, rngs: nnx.Rngs):
        hidden, motif_dim, num_motifs = shape.hidden, shape.motif_dim, shape.num_motifs
        width, outputs = 0, shape.num_outputs
        self.sequence: Any = nnx.data(None)
        if shape.encoder is not None:
            self.sequence = SequenceEncoder(shape.encoder, shape.sequence, rngs)
            width = 2 * shape.encoder.embed_dim
        self.motifs: Any = nnx.data(None)
        if num_motifs:
            self.motifs = weight(rngs, (num_motifs, motif_dim), num_motifs, (None, None))
            self.motif_bias = filled(0.0, (motif_dim,), (None,), "bias")
            width += motif_dim
        self.norm = LayerNorm(width)
        self.inner = weight(rngs, (width, hidden), width, (None, None))
        self.inner_bias = filled(0.0, (hidden,), (None,), "bias")
        self.out = weight(rngs, (hidden, outputs), 100 * hidden, (None, None))
        self.out_bias = filled(0.0, (outputs,), (None,), "bias")

    def embedding(self, one_hot: jax.Array, lengths: jax.Array) -> jax.Array:
        """float32 [B, 2 D]: maximum and mean of the states of a sequence."""
        found = self.sequence(one_hot, lengths)
        real = (jnp.arange(found.states.shape[1])[None] < found.lengths[:, None])[..., None]
        states = found.states.astype(jnp.float32)
        highest = jnp.where(real, states, -jnp.inf).max(1)
        mean = jnp.where(real, states, 0).sum(1) / jnp.maximum(found.lengths, 1)[:, None]
        return jnp.concatenate([jnp.where(found.lengths[:, None] > 0, highest, 0), mean], axis=1)

    def of_motifs(self, motifs: jax.Array) -> jax.Array:
        """float32 [B, E]."""
        return jax.nn.gelu(linear(motifs, self.motifs[...]) + self.motif_bias[...][None])

    def __call__(
        self,
        one_hot: jax.Array,
        lengths: jax.Array,
        motifs: jax.Array | None,
        key: jax.Array | None = None,
        dropout: tuple[float, float] = (0.0, 0.0),
    ) -> jax.Array:
        """float32 [B, K]; `key` and `dropout` (of the head, of motifs) while it is trained."""
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        parts = [] if self.sequence is None else [self.embedding(one_hot, lengths)]
        if motifs is not None:
            parts.append(self.of_motifs(dropped(motifs, dropout[1], keys[0])))
        x = jnp.concatenate(parts, axis=1)
        x = dropped(self.norm(x), dropout[0], keys[1])
        x = dropped(jax.nn.gelu(linear(x, self.inner[...]) + self.inner_bias[...][None]), dropout[0], keys[2])
        return linear(x, self.out[...]) + self.out_bias[...][None]


def dropped(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """x with each number 0 at this rate, the others larger by as much."""
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def real_lengths(one_hot: jax.Array) -> jax.Array:
    """int32 [B]: up to the last base that is not N; all L where all are, so that an empty baseline has a length."""
    width = one_hot.shape[1]
    last = width - jnp.argmax(one_hot.any(-1)[:, ::-1], axis=1)
    return jnp.where(one_hot.any((1, 2)), last, width).astype(jnp.int32)


@dataclass(frozen=True)
class NetworkDefinition:
    """A network without its numbers, which are {"network": nested dict of float32, "mean", "scale": [2 M] of motifs}.

    Attributes: as of `NetworkOptions`, and
      num_outputs: K.
      both: it reads both strands.
      scanner: None: no motif branch.
    """

    encoder: ModelConfig | None
    sequence: SequenceConfig
    hidden: int
    motif_dim: int
    num_outputs: int
    both: bool
    scanner: MotifScanner | None = None

    @property
    def num_motifs(self) -> int:
        return 2 * self.scanner.num_motifs if self.scanner is not None else 0

    @property
    def shape(self) -> NetworkShape:
        sizes = (self.hidden, self.motif_dim, self.num_motifs, self.num_outputs)
        return NetworkShape(self.encoder, self.sequence, *sizes)

    def init(self, key: jax.Array) -> Any:
        """Random parameters of the network."""
        with nnx.use_eager_sharding(False):
            return nnx.to_pure_dict(nnx.split(RegulatoryNetwork(self.shape, nnx.Rngs(params=key)), nnx.Param, ...)[1])

    def merge(self, network: Any) -> RegulatoryNetwork:
        """The module with these numbers; inside a jitted function."""
        graph, params, rest = _graph(self.shape)
        return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(network)), rest)

    def decayed(self) -> Any:
        """1 for what weight decay pulls to zero, else 0: nested dict of float32."""
        shapes, roles = self.abstract_params(), _metadata(self.shape, "role")
        return jax.tree.map(lambda own, role: jnp.full(own.shape, float(role.endswith("matrix"))), shapes, roles)

    def rates(self, of_encoder: float) -> Any:
        """Factors of the learning rate: `of_encoder` for the sequence encoder, else 1; nested dict of float32."""
        ones = jax.tree.map(lambda own: jnp.ones(own.shape), self.abstract_params())
        if self.encoder is None:
            return ones
        return {**ones, "sequence": jax.tree.map(lambda own: own * of_encoder, ones["sequence"])}

    def ravelled(self, network: Any) -> jax.Array:
        """float32 [P]: all numbers as one vector."""
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(network)])

    def unravelled(self, vector: jax.Array) -> Any:
        """The inverse of `ravelled`."""
        leaves, structure = jax.tree.flatten(self.abstract_params())
        parts = jnp.split(vector, np.cumsum([leaf.size for leaf in leaves])[:-1].tolist())
        shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return jax.tree.unflatten(structure, shaped)

    def abstract_params(self) -> Any:
        """Nested dict of shapes and dtypes."""
        return nnx.to_pure_dict(_graph(self.shape)[1])

    def __call__(self, params: Any, one_hot: jax.Array) -> jax.Array:
        """float32 [N, K], differentiable in one_hot [N, L, 4]."""
        motifs = None if self.scanner is None else motif_features(self.scanner, one_hot)
        return self.outputs(params, one_hot, motifs)

    def outputs(self, params: Any, one_hot: jax.Array, motifs: jax.Array | None) -> jax.Array:
        """float32 [N, K], where the motif scores [N, 2 M], bits, of the sequences are known."""
        network, lengths = self.merge(params["network"]), real_lengths(one_hot)
        scaled = None if motifs is None else (motifs - params["mean"][None]) / params["scale"][None]
        found = network(one_hot, lengths, scaled)
        if not self.both or self.encoder is None:
            return found
        return (found + network(reverse_complement(one_hot, lengths), lengths, scaled)) / 2

    def embedding(self, params: Any, one_hot: jax.Array) -> jax.Array:
        """float32 [N, 2 D]: what the sequence encoder says; the mean of both strands where it reads both. Without an
        encoder [N, E], what the motif branch says."""
        if self.encoder is None:
            scaled = (motif_features(self.scanner, one_hot) - params["mean"][None]) / params["scale"][None]
            return self.merge(params["network"]).of_motifs(scaled)
        network, lengths = self.merge(params["network"]), real_lengths(one_hot)
        found = network.embedding(one_hot, lengths)
        if not self.both:
            return found
        return (found + network.embedding(reverse_complement(one_hot, lengths), lengths)) / 2

    def name(self) -> str:
        if self.encoder is None:
            return "network of motifs"
        return "network" + (", both strands" if self.both else "") + (", motifs" if self.scanner is not None else "")


@cache
def _graph(shape: NetworkShape) -> Any:
    """(definition of the graph, structure of its parameters, what is no parameter)."""
    with nnx.use_eager_sharding(False):
        abstract = nnx.eval_shape(lambda: RegulatoryNetwork(shape, nnx.Rngs(params=0)))
    parts: Any = nnx.split(abstract, nnx.Param, ...)
    return parts


def _metadata(shape: NetworkShape, name: str) -> Any:
    """Nested dict of what the parameters say of themselves."""
    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    found = jax.tree.map(lambda own: own.get_metadata(name), _graph(shape)[1], is_leaf=is_variable)
    return nnx.to_pure_dict(found)
