"""The project's transformer over DNA: bases, k-mers or pieces of a vocabulary, of one strand or of both.

    one_hot [B, L, 4] -- stem: convolutions, tokens of P bases --> [B, S, D] + places -- Encoder --> states [B, S, D]

Everything is differentiable in one_hot, also k-mers: their rows are looked up as the multilinear function that agrees
with the table where one_hot is one, so that integrated gradients along a line are complete.

Both strands. With R the reverse complement, h the encoder of one strand and m the order of tokens back to front:
`both` gives states h(x) and opposite m(h(Rx)); so those of Rx are m(opposite) and m(states), and the mean of what is
pooled is the same for x and Rx. In `equivariant` a token also hears, before the layers, what stands opposite to it.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipelines.genome.bases import UNKNOWN
from data_pipelines.genome.kmer_tokens import masked_kmers
from data_pipelines.genome.tokens import MASK, SPECIAL, UNK
from scmbert_jax.config import ModelConfig
from scmbert_jax.dna_config import SequenceConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.models.encoder import Encoder
from scmbert_jax.models.layers import LayerNorm, linear
from scmbert_jax.models.parameters import filled, parameter, weight
from scmbert_jax.models.token_sequence import rows_of_lengths
from scmbert_jax.parallel.mesh import constrain
from scmbert_jax.sequences.kmer_counts import words


class EncodedSequences(NamedTuple):
    """B sequences of S tokens.

    Attributes:
      states: float [B, S, D], of the tokens of the given strand; behind `lengths` unspecified but finite.
      pooled: float32 [B, D], of the whole sequence; of both strands where both are read.
      lengths: int32 [B], real tokens.
      opposite: float [B, S, D], states of the other strand's tokens, token i those that stand opposite to token i; None
        where it is not read.
      bases_per_token: token i begins at base i * bases_per_token; of k-mers at base i. Of a length that is no multiple,
        the other strand's tokens begin at its own end.
    """

    states: jax.Array
    pooled: jax.Array
    lengths: jax.Array
    opposite: jax.Array | None = None


def reverse_complement(one_hot: jax.Array, lengths: jax.Array) -> jax.Array:
    """[B, L, C]: rows back to front, padding behind them as before; the first four channels as those of the other
    strand, further ones as they are."""
    turned = mirrored(one_hot, lengths)
    return jnp.concatenate([turned[..., 3::-1], turned[..., 4:]], axis=-1)


def mirrored(x: jax.Array, lengths: jax.Array) -> jax.Array:
    """x [B, S, ...]: the first `lengths` places of each row back to front; padding stays behind them, unspecified."""
    place = (lengths[:, None] - 1 - jnp.arange(x.shape[1])[None]) % x.shape[1]
    return jnp.take_along_axis(x, place.reshape(*place.shape, *(1,) * (x.ndim - 2)), axis=1)


def _real(lengths: jax.Array, width: int) -> jax.Array:
    """bool [B, width, 1]."""
    return (jnp.arange(width)[None] < lengths[:, None])[..., None]


class Stem(nnx.Module):
    """Bases -> tokens of `stem_pool` bases each: convolutions, residual after the first, then a linear layer."""

    def __init__(self, config: SequenceConfig, embed_dim: int, rngs: nnx.Rngs):
        self.pool, self.by_max = config.stem_pool, config.stem_pooling == "max"
        channels, widths = 5, []
        for _ in range(config.stem_layers):
            widths.append((config.stem_kernel, channels, config.stem_channels))
            channels = config.stem_channels
        axes = (None, None, None)
        # The fifth channel of the first says that a base is hidden; of the five, one is not 0.
        fan_ins = [own[0] if number == 0 else own[0] * own[1] for number, own in enumerate(widths)]
        filters = [weight(rngs, own, fan_in, axes) for own, fan_in in zip(widths, fan_ins, strict=True)]
        self.filters: Any = nnx.List(filters)
        self.biases: Any = nnx.List([filled(0.0, own[2:], (None,), "bias") for own in widths])
        self.norms: Any = nnx.List([LayerNorm(own[1]) for own in widths[1:]])
        inputs = channels if self.by_max else channels * self.pool
        self.project = weight(rngs, (inputs, embed_dim), inputs, (None, "embed"))

    def __call__(self, bases: jax.Array, lengths: jax.Array) -> jax.Array:
        """bases float [B, L, 5], zeros behind `lengths` -> [B, ceil(L / P), D]."""
        x, real = bases, _real(lengths, bases.shape[1])
        for number, (filters, bias) in enumerate(zip(self.filters, self.biases, strict=True)):
            y = x if number == 0 else self.norms[number - 1](x)
            y = jnp.where(real, y, 0)  # what stands behind the end must not be seen by the last bases
            y = jax.lax.conv_general_dilated(
                y, filters[...].astype(y.dtype), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )
            y = jax.nn.gelu(y + bias[...].astype(y.dtype)[None, None])
            x = y if number == 0 else x + y
        missing = -x.shape[1] % self.pool
        if self.by_max:
            x = jnp.where(real, x, jnp.finfo(x.dtype).min)
            x = jnp.pad(x, ((0, 0), (0, missing), (0, 0)), constant_values=jnp.finfo(x.dtype).min)
            x = x.reshape(len(x), -1, self.pool, x.shape[-1]).max(axis=2)
            x = jnp.where(_real(-(-lengths // self.pool), x.shape[1]), x, 0)
        else:
            x = jnp.pad(jnp.where(real, x, 0), ((0, 0), (0, missing), (0, 0)))
            x = x.reshape(len(x), -1, self.pool * x.shape[-1])
        return linear(x, self.project[...].astype(x.dtype))


def kmer_ids(codes: jax.Array, k: int) -> jax.Array:
    """int32 [B, L - k + 1]: as `KmerTokeniser.tokens`, but for padding, which is `UNK`. codes: uint8 [B, L]."""
    total = codes.shape[1] - k + 1
    parts = [codes[:, place : place + total].astype(jnp.int32) for place in range(k)]
    number = reduce(lambda ids, bases: ids * 4 + bases, parts)
    unknown = reduce(jnp.logical_or, [bases > 3 for bases in parts])
    return jnp.where(unknown, UNK, number + len(SPECIAL))


class SequenceEncoder(nnx.Module):
    """DNA sequences of at most `sequence.most_bases` bases -> states of their tokens.

    Raises ConfigError: what `SequenceConfig.validate` refuses.
    """

    def __init__(self, model: ModelConfig, sequence: SequenceConfig, rngs: nnx.Rngs):
        sequence.validate("sequence")
        self.config, dim = sequence, model.embed_dim
        self.dtype = jnp.dtype(model.compute_dtype)
        self.stem: Any = nnx.data(None)
        self.table: Any = nnx.data(None)
        if sequence.tokens == "bases":
            self.stem = Stem(sequence, dim, rngs)
        else:
            size = sequence.bpe_vocabulary if sequence.tokens == "bpe" else 4**sequence.kmer + len(SPECIAL)
            rows = jax.random.normal(rngs.params(), (size, dim)) * 0.5
            self.table = parameter(rows, (None, "embed"), "embedding")
        self.places = parameter(
            jax.random.normal(rngs.params(), (1 + sequence.most_tokens, dim)) * 0.1, (None, "embed"), "embedding"
        )
        self.opposite: Any = nnx.data(None)
        if sequence.strands == "equivariant":
            self.opposite = weight(rngs, (dim, dim), dim, ("embed", None))
        self.encoder = Encoder(model, (), rngs)

    def token_lengths(self, lengths: jax.Array) -> jax.Array:
        """int32 [B]: real tokens of sequences of so many bases (not of `bpe`)."""
        if self.config.tokens == "kmers":
            return jnp.maximum(lengths - self.config.kmer + 1, 0)
        return -(-lengths // self.config.stem_pool)

    def __call__(
        self,
        one_hot: jax.Array,
        lengths: jax.Array,
        hidden: jax.Array | None = None,
        ids: jax.Array | None = None,
    ) -> EncodedSequences:
        """Args:
          one_hot: float [B, L, 4], channels A, C, G, T; N and padding are zeros.
          lengths: int32 [B], bases that are real; of `bpe`, tokens.
          hidden: bool [B, L], bases that must not be seen (of `bpe`, tokens [B, S]); None: all are seen.
          ids: int32 [B, S], the tokens of the same sequences (`Tokens.ids`): needed for `bpe`. `kmers` look them up
            where they are given, which is faster, and makes nothing differentiable in one_hot.

        Returns: `EncodedSequences`. Raises ConfigError: longer sequences than `most_bases`, or `bpe` without ids.
        """
        width = one_hot.shape[1] if self.config.tokens != "bpe" or ids is None else ids.shape[1]
        if width > self.config.most_bases:
            raise ConfigError(f"sequences of {width:,}: sequence.most_bases is {self.config.most_bases:,}")
        sizes = lengths if self.config.tokens == "bpe" else self.token_lengths(lengths)
        x = self._tokens(one_hot, lengths, hidden, ids)  # [B, S, D]
        if self.config.strands == "given":
            states, pooled = self._encode(x, sizes)
            return EncodedSequences(states, pooled, sizes)
        turned = None if hidden is None else mirrored(hidden, lengths)
        other = reverse_complement(one_hot, lengths)
        if ids is not None:
            ids = kmer_ids(jnp.where(other.any(-1), other.argmax(-1), UNKNOWN), self.config.kmer)
        y = self._tokens(other, lengths, turned, ids)
        if self.opposite is not None:
            across = self.opposite[...].astype(x.dtype)
            x, y = x + linear(mirrored(y, sizes), across), y + linear(mirrored(x, sizes), across)
        # Alternating, so that a row's two strands lie on one device.
        rows = jnp.stack([x, y], axis=1).reshape(-1, *x.shape[1:])
        states, pooled = self._encode(rows, jnp.repeat(sizes, 2))
        states, pooled = (own.reshape(-1, 2, *own.shape[1:]) for own in (states, pooled))
        opposite = mirrored(states[:, 1], sizes)
        return EncodedSequences(states[:, 0], pooled.mean(axis=1), sizes, opposite)

    def _tokens(
        self, one_hot: jax.Array, lengths: jax.Array, hidden: jax.Array | None, ids: jax.Array | None
    ) -> jax.Array:
        """[B, S, D], before places."""
        one_hot = one_hot.astype(self.dtype)
        if self.config.tokens == "bases":
            unseen = jnp.zeros(one_hot.shape[:2], bool) if hidden is None else hidden
            shown = jnp.where(unseen[..., None], 0, one_hot)
            bases = jnp.concatenate([shown, unseen[..., None].astype(self.dtype)], axis=-1)
            return self.stem(jnp.where(_real(lengths, bases.shape[1]), bases, 0), lengths)
        table = self.table[...].astype(self.dtype)
        masked = hidden
        if self.config.tokens == "kmers" and hidden is not None:
            masked = masked_kmers(hidden, self.config.kmer)
        if ids is not None:
            return table[ids if masked is None else jnp.where(masked, MASK, ids)]
        if self.config.tokens == "bpe":
            raise ConfigError("sequence.tokens is bpe: its tokens are made on the host; give their ids")
        weights = words(one_hot, self.config.kmer)  # a single 1 where all bases are known; nothing where one is N
        unknown = (1 - weights.sum(-1))[..., None]
        rows = linear(weights, table[len(SPECIAL) :]) + unknown * table[UNK][None, None]
        return rows if masked is None else jnp.where(masked[..., None], table[MASK][None, None], rows)

    def _encode(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [B, S, D] -> states [B, S, D], pooled float32 [B, D]."""
        places = self.places[...].astype(x.dtype)
        x = x + places[None, 1 : 1 + x.shape[1]]
        cls = jnp.broadcast_to(places[None, :1], (len(x), 1, x.shape[-1]))
        x = constrain(jnp.concatenate([cls, x], axis=1), "batch", "length", "embed")
        states = self.encoder(x, rows_of_lengths(lengths, x.shape[1] - 1))
        if self.config.pooled == "cls":
            return states[:, 1:], states[:, 0].astype(jnp.float32)
        real = _real(lengths, x.shape[1] - 1)
        total = jnp.where(real, states[:, 1:].astype(jnp.float32), 0).sum(axis=1)
        return states[:, 1:], total / jnp.maximum(lengths, 1)[:, None]


def base_logits(
    encoded: EncodedSequences, lengths: jax.Array, width: int, head: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """float32 [B, L, 4]: what the states say of each base: `head` takes states [B, S, D] to [B, S, P * 4].

    Where both strands were read, what each says in its own letters is added up, base by base.
    """

    def of_strand(states: jax.Array) -> jax.Array:
        logits = head(states).astype(jnp.float32)
        return logits.reshape(len(states), -1, 4)[:, :width]

    own = of_strand(encoded.states)
    if encoded.opposite is None:
        return own
    other = of_strand(mirrored(encoded.opposite, encoded.lengths))
    return own + reverse_complement(other, lengths)


def bases_of_kmers(logits: jax.Array, k: int, width: int) -> jax.Array:
    """float32 [B, L, 4], L = `width`: log-probabilities of each base, the mean over the k-mers that cover it, out of
    logits [B, L - k + 1, 4^k]; not normalised where they disagree. Bases that no k-mer covers: log 1/4."""
    number, total = logits.shape[:2]
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(number, total, *(4,) * k)
    sums, counts = jnp.zeros((number, width, 4)), jnp.zeros(width)
    for place in range(k):
        others = tuple(2 + axis for axis in range(k) if axis != place)
        sums = sums.at[:, place : place + total].add(jax.nn.logsumexp(log_p, axis=others))
        counts = counts.at[place : place + total].add(1)
    mean = sums / jnp.maximum(counts, 1)[None, :, None]
    return jnp.where(counts[None, :, None] > 0, mean, -jnp.log(4.0))
