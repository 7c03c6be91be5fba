"""The tokens of all modalities of a cell as one row of a fixed width: packing, taking apart, drawing a part of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from scmbert_jax.batch import CellBatch, CellProfile, ModalityTokens
from scmbert_jax.modalities import MODALITIES


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenSequence:
    """The tokens of a cell in one row; real tokens first, modality after modality, then padding.

    Attributes:
      feature_ids: int32 [B, S]; counts: float32 [B, S]; library_size: float32 [B, S] (of the token's modality).
      mean_log_count: float32 [B, S], of the token's modality (see `ModalityTokens`).
      weight: float32 [B, S], features of its cell that a token stands for: 1 unless drawn of more; 0: padding.
      modality: int32 [B, S], index into `MODALITIES`; valid: bool [B, S].
      modality_lengths: int32 [B, n], real tokens of each modality of `widths`, in its order.
      widths: ((modality, most tokens), ...): static, so that a modality's tokens can be cut out at a fixed width.
      scores: as those of `CellBatch`, of the modalities of `widths`.
    """

    feature_ids: jax.Array
    counts: jax.Array
    library_size: jax.Array
    mean_log_count: jax.Array
    weight: jax.Array
    modality: jax.Array
    valid: jax.Array
    modality_lengths: jax.Array
    widths: tuple[tuple[str, int], ...] = field(metadata={"static": True})
    scores: dict[str, jax.Array] = field(default_factory=dict)

    @property
    def lengths(self) -> jax.Array:
        """int32 [B]: real tokens of the row."""
        return self.modality_lengths.sum(axis=1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CutBatch:
    """A `CellBatch` none of whose cells has more than `most_tokens` tokens in all: rows are packed no wider than that.

    Attributes: those of `CellBatch`, and
      most_tokens: static.
    """

    modalities: dict[str, ModalityTokens]
    covariates: dict[str, jax.Array]
    cell_index: jax.Array
    row: jax.Array
    most_tokens: int = field(metadata={"static": True})
    scores: dict[str, jax.Array] | None = None
    profiles: dict[str, CellProfile] | None = None


def rows_of_lengths(lengths: jax.Array, width: int) -> TokenSequence:
    """Rows [B, width] of which an encoder that all modalities share needs to know no more than int32 [B] lengths."""
    valid = jnp.arange(width)[None] < lengths[:, None]
    zeros, ids = jnp.zeros(valid.shape), jnp.zeros(valid.shape, jnp.int32)
    return TokenSequence(ids, zeros, zeros, zeros, zeros, ids, valid, lengths[:, None], (("", width),))


def pack_tokens(batch: CellBatch | CutBatch, only: Iterable[str] | None = None) -> TokenSequence:
    """Joins the modalities of each cell (or those of `only`) and moves padding to the end.

    The work is on integers [B, S] before anything is embedded, so it costs nothing beside the encoder.
    """
    # Not in the order of the dict: JAX sorts its keys wherever a batch enters a jitted function.
    asked = tuple(MODALITIES if only is None else only)
    wanted = [name for name in MODALITIES if name in batch.modalities and name in asked]
    parts = []
    for name in wanted:
        tokens = batch.modalities[name]
        shape = tokens.feature_ids.shape
        parts.append(
            {
                "feature_ids": tokens.feature_ids,
                "counts": tokens.counts.astype(jnp.float32),
                "library_size": jnp.broadcast_to(tokens.library_size[:, None], shape),
                "mean_log_count": jnp.broadcast_to(tokens.mean_log_count[:, None], shape),
                "weight": cell_weights(tokens),
                "modality": jnp.full(shape, MODALITIES.index(name), jnp.int32),
                "valid": jnp.arange(shape[1])[None] < tokens.lengths[:, None],
            }
        )
    lengths = jnp.stack([batch.modalities[name].lengths for name in wanted], axis=1)
    widths = tuple((name, batch.modalities[name].feature_ids.shape[1]) for name in wanted)
    scores = {name: own for name, own in (batch.scores or {}).items() if name in wanted}
    if len(parts) == 1:
        return TokenSequence(**parts[0], modality_lengths=lengths, widths=widths, scores=scores)
    joined = {name: jnp.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
    order = jnp.argsort(~joined["valid"], axis=1, stable=True)
    if isinstance(batch, CutBatch):
        order = order[:, : batch.most_tokens]
    packed = {name: jnp.take_along_axis(values, order, axis=1) for name, values in joined.items()}
    return TokenSequence(**packed, modality_lengths=lengths, widths=widths, scores=scores)


def cell_weights(tokens: ModalityTokens) -> jax.Array:
    """float32 [B, L]: how many of its cell's features each token stands for; 0 for padding.

    Expressed features that are shown stand for all expressed ones, shown zeros for all measured zeros.
    """
    real = jnp.arange(tokens.feature_ids.shape[1])[None] < tokens.lengths[:, None]
    expressed = real & (tokens.counts > 0)
    shown_expressed, shown = expressed.sum(1), real.sum(1)
    of_expressed = tokens.num_expressed / jnp.maximum(shown_expressed, 1)
    of_zeros = (tokens.num_measured - tokens.num_expressed) / jnp.maximum(shown - shown_expressed, 1)
    return jnp.where(expressed, of_expressed[:, None], jnp.where(real, of_zeros[:, None], 0.0))


def split_modalities(x: jax.Array, tokens: TokenSequence) -> list[jax.Array]:
    """x [B, S, D] -> the tokens of each modality of `widths`, [B, width, D]; what follows them is unspecified."""
    if len(tokens.widths) == 1:
        return [x]
    starts = jnp.cumsum(tokens.modality_lengths, axis=1) - tokens.modality_lengths  # [B, n]
    parts = []
    for number, (_, width) in enumerate(tokens.widths):
        place = jnp.minimum(starts[:, number, None] + jnp.arange(width)[None], x.shape[1] - 1)
        parts.append(jnp.take_along_axis(x, place[..., None], axis=1))
    return parts


def join_modalities(parts: list[jax.Array], tokens: TokenSequence) -> jax.Array:
    """The inverse of `split_modalities` on real tokens; padding is unspecified but finite."""
    if len(parts) == 1:
        return parts[0]
    starts = jnp.cumsum(tokens.modality_lengths, axis=1) - tokens.modality_lengths  # [B, n]
    place = jnp.zeros(tokens.modality.shape, jnp.int32)
    offset = 0
    for number, (name, width) in enumerate(tokens.widths):
        within = jnp.clip(jnp.arange(place.shape[1])[None] - starts[:, number, None], 0, width - 1)
        place = jnp.where(tokens.modality == MODALITIES.index(name), offset + within, place)
        offset += width
    return jnp.take_along_axis(jnp.concatenate(parts, axis=1), place[..., None], axis=1)


def token_bits(tokens: TokenSequence, keys: jax.Array) -> jax.Array:
    """uint32 [B, S]: a random number per token that depends on (row key, feature id) only.

    Neither on padding nor on the order of tokens, nor on how rows are spread over devices.
    """

    def draw(key: jax.Array, feature_id: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(key, feature_id), (), jnp.uint32)

    return jax.vmap(jax.vmap(draw, in_axes=(None, 0)))(keys, tokens.feature_ids)


def subsample_tokens(tokens: TokenSequence, fraction: float, keys: jax.Array) -> TokenSequence:
    """A random part of each cell's tokens, whatever their modality: rows become ceil(S * fraction) wide; keys [B]."""
    if fraction >= 1.0:
        return tokens
    width = max(1, int(-(-tokens.valid.shape[1] * fraction // 1)))
    bits = jnp.where(tokens.valid, token_bits(tokens, keys) >> 1, jnp.uint32(2**32 - 1))
    rank = jnp.argsort(jnp.argsort(bits, axis=1, stable=True), axis=1)
    lengths = jnp.ceil(tokens.lengths * fraction).astype(jnp.int32)
    return kept_tokens(tokens, rank < lengths[:, None], width)


def kept_tokens(tokens: TokenSequence, kept: jax.Array, width: int) -> TokenSequence:
    """Those tokens for which `kept` bool [B, S] holds, at most `width` of a row, in their order; none of padding."""
    places = jnp.argsort(~kept, axis=1, stable=True)[:, :width]  # modality after modality, as they were
    valid = jnp.arange(width)[None] < kept.sum(axis=1)[:, None]
    modality_lengths, stands_for = [], jnp.zeros(())
    for number, (name, _) in enumerate(tokens.widths):
        mine = tokens.modality == MODALITIES.index(name)
        modality_lengths.append((kept & mine).sum(axis=1))
        fraction = tokens.modality_lengths[:, number] / jnp.maximum(modality_lengths[-1], 1)
        stands_for = jnp.where(mine, fraction[:, None], stands_for)

    def taken(values: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values, places, axis=1)

    return TokenSequence(
        feature_ids=jnp.where(valid, taken(tokens.feature_ids), 0),
        counts=jnp.where(valid, taken(tokens.counts), 0.0),
        library_size=taken(tokens.library_size),
        mean_log_count=taken(tokens.mean_log_count),
        weight=jnp.where(valid, taken(tokens.weight * stands_for), 0.0),
        modality=taken(tokens.modality),
        valid=valid,
        modality_lengths=jnp.stack(modality_lengths, axis=1),
        widths=tuple((name, min(most, width)) for name, most in tokens.widths),
    )
