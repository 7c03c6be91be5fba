"""From tokens to token vectors: the feature table and the value encodings.

A token is `table[feature_id] + value_encoding(count) + modality_embedding (+ covariates)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scmbert_jax.config import ExperimentConfig, ModalityConfig, ModelConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.models.layers import linear
from scmbert_jax.models.parameters import Constant, Role, filled, parameter, weight
from scmbert_jax.models.token_sequence import TokenSequence
from scmbert_jax.parallel.mesh import constrain
from scmbert_jax.parallel.table_rows import pick_rows, sum_of_linked_rows, whole
from scmbert_jax.value_scales import expression_bins, relative_expression

# Rows of the feature table are padded to a multiple of this, so that any FSDP size up to 256 divides them.
FEATURE_ROWS_MULTIPLE = 256


def padded_rows(layout: FeatureLayout) -> int:
    """Rows of every per-feature parameter: the features, padded up to `FEATURE_ROWS_MULTIPLE`."""
    return -(-layout.num_features // FEATURE_ROWS_MULTIPLE) * FEATURE_ROWS_MULTIPLE


def link_arrays(layout: FeatureLayout) -> dict[str, np.ndarray]:
    """Modality -> int32 [2, E] pairs (row of the modality, linked gene row), for modalities that have any."""
    return {
        name: np.stack(layout.links[name]).astype(np.int32)
        for name in MODALITIES
        if name in layout.links and len(layout.links[name][0])
    }


def linked_genes(layout: FeatureLayout) -> dict[str, np.ndarray]:
    """`link_arrays` by row, modality -> int32 [rows, K]: the gene rows linked to each row, -1 where it has fewer."""
    found = {}
    for name, (rows, genes) in link_arrays(layout).items():
        order = np.argsort(rows, kind="stable")
        rows, genes = rows[order], genes[order]
        place = np.arange(len(rows)) - np.searchsorted(
            rows, rows
        )  # 0 for the first link of its row, 1 for the second, ...
        table = np.full((padded_rows(layout), int(place.max()) + 1), -1, np.int32)
        table[rows, place] = genes
        found[name] = table
    return found


class FeatureTable(nnx.Module):
    """One row per feature of every modality, [num_rows, D], float32; computed once per step, then gathered.

    A gene's row is learned. A protein's or region's row is its own learned row plus a projection of the mean row of
    its linked genes, so that modalities meet in one space even where no cell is paired. Features without links have
    their own row alone. With `ModelConfig.graph`, what a row hears of its neighbours is added. With
    `ModelConfig.feature_rows` "frozen" own rows stay what they were at the start. With `ModelConfig.region_embeddings`
    a region's own row is made from its embedding.
    """

    def __init__(self, config: ModelConfig, layout: FeatureLayout, rngs: nnx.Rngs):
        embed_dim, self.frozen = config.embed_dim, config.feature_rows == "frozen"
        self.num_rows, self.slices = padded_rows(layout), dict(layout.slices)
        role: Role = "fixed" if self.frozen else "embedding"
        self.learned = weight(rngs, (self.num_rows, embed_dim), embed_dim, ("features", "embed"), role)
        if layout.start_rows is not None:
            start = np.full((self.num_rows, embed_dim), np.nan, np.float32)
            start[: layout.num_features] = layout.start_rows
            rows = jnp.where(np.isnan(start), self.learned[...], start)
            self.learned = parameter(rows, ("features", "embed"), role)
        self.link_projections: Any = nnx.Dict({})
        self.links: Any = nnx.Dict({})
        self.linked: Any = nnx.Dict({})
        by_row = linked_genes(layout)
        for name, pairs in link_arrays(layout).items():
            self.links[name] = Constant(pairs)
            self.linked[name] = Constant(by_row[name])
            self.link_projections[name] = weight(rngs, (embed_dim, embed_dim), embed_dim, ("embed", None))

    def __call__(
        self,
        further: Callable[[jax.Array], jax.Array] | None = None,
        made: Callable[[jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """`further`: of own rows [F, D], what else is added to them (models/network_rows.py); `made`: of learned rows
        [F, D], own rows, where some are not learned (models/region_rows.py)."""
        learned = jax.lax.stop_gradient(self.learned[...]) if self.frozen else self.learned[...]
        learned = learned if made is None else made(learned)
        table = learned
        for name, linked in self.linked.items():
            number = (linked[...] >= 0).sum(axis=1).astype(table.dtype)
            mean = sum_of_linked_rows(learned, linked[...]) / jnp.maximum(number, 1.0)[:, None]
            table = table + linear(constrain(mean, "features", None), self.link_projections[name][...])
        if further is not None:
            table = table + constrain(further(learned), "features", None)
        return whole(table)


class TokenValues(NamedTuple):
    """What a value encoding knows of each token.

    Attributes:
      relative: float32 [B, S], count / library size * the modality's target sum; 0 where the value must not be seen.
      feature_ids, modality: int32 [B, S], row of the feature table and index into `MODALITIES`.
      one_hot: float32 [B, S, M], of the modality.
      rows: float32 [B, S, D], rows of the feature table.
    """

    relative: jax.Array
    feature_ids: jax.Array
    modality: jax.Array
    one_hot: jax.Array
    rows: jax.Array


class ValueEncoding(Protocol):
    """Values of tokens -> float32 [B, S, D]; one line of `VALUE_ENCODINGS`.

    It is asked of all tokens of a row; what it says of tokens of other modalities than its own is not read.
    """

    def __init__(
        self, modalities: dict[str, ModalityConfig], layout: FeatureLayout, embed_dim: int, rngs: nnx.Rngs
    ) -> None:
        """modalities: those that are encoded like this."""
        ...

    @staticmethod
    def flops(embed_dim: int) -> float:
        """Of one value, in a forward pass."""
        ...

    def __call__(self, values: TokenValues) -> jax.Array: ...


class ContinuousValues(nnx.Module):
    """x = standardised log1p(relative expression) -> network(x) + x * (feature row @ gate), float32 [B, S, D].

    x is zero where a feature has its usual value and one at its usual spread, so that what differs between cells is
    not drowned by what all cells share. The product binds a value to its feature from the first layer on: a sum alone
    leaves that to the encoder, whose first attention would mix values of unknown features.
    """

    def __init__(self, modalities: dict[str, ModalityConfig], layout: FeatureLayout, embed_dim: int, rngs: nnx.Rngs):
        centre, spread = np.zeros(padded_rows(layout), np.float32), np.ones(padded_rows(layout), np.float32)
        if layout.statistics is not None:
            centre[: layout.num_features] = layout.statistics.value_centre
            spread[: layout.num_features] = layout.statistics.value_std
        self.centre = parameter(centre, ("features",), "bias")
        self.log_spread = parameter(np.log(spread), ("features",), "dispersion")
        self.scale = weight(rngs, (len(MODALITIES), embed_dim), 1, (None, None), "embedding")
        self.bias = filled(0.0, (len(MODALITIES), embed_dim), (None, None), "bias")
        # Of the size of a feature row (1 / sqrt(D) per number), or values would drown the identities.
        self.out = weight(rngs, (embed_dim, embed_dim), embed_dim**2, ("embed", None))
        self.gate = weight(rngs, (embed_dim, embed_dim), embed_dim, ("embed", None))

    @staticmethod
    def flops(embed_dim: int) -> float:
        return 2.0 * 2.0 * embed_dim**2  # `out` and `gate`

    def __call__(self, values: TokenValues) -> jax.Array:
        relative, feature_ids, one_hot, rows = values.relative, values.feature_ids, values.one_hot, values.rows
        centre, log_spread = (pick_rows(own[...], feature_ids) for own in (self.centre, self.log_spread))
        x = (jnp.log1p(relative) - centre) * jnp.exp(-log_spread)
        x = jnp.clip(x, -10.0, 10.0)[..., None]
        hidden = jax.nn.gelu(x * (one_hot @ self.scale[...]) + one_hot @ self.bias[...])
        return constrain(linear(hidden, self.out[...]) + x * linear(rows, self.gate[...]), "batch", "length", "embed")


class BinnedValues(nnx.Module):
    """One learned vector per modality and bin."""

    def __init__(self, modalities: dict[str, ModalityConfig], layout: FeatureLayout, embed_dim: int, rngs: nnx.Rngs):
        self.last_bins = {name: config.num_bins - 1.0 for name, config in modalities.items()}
        self.num_bins = max(config.num_bins for config in modalities.values())
        shape = (len(MODALITIES) * self.num_bins, embed_dim)
        self.table = weight(rngs, shape, embed_dim, (None, None), "embedding")

    @staticmethod
    def flops(embed_dim: int) -> float:
        return 0.0  # looked up

    def __call__(self, values: TokenValues) -> jax.Array:
        last_bin = (values.one_hot @ _per_modality(self.last_bins)).astype(jnp.int32)
        bins = jnp.minimum(expression_bins(values.relative, self.num_bins, jnp), last_bin)
        return self.table[...][values.modality * self.num_bins + bins]


class RankedValues(nnx.Module):
    """One learned vector per modality and rank among the cell's expressed features; of zeros, a vector of their own.

    Geneformer's ranks (Theodoris et al. 2023, Methods): counts relative to the library, divided by what is usual of the
    feature where it is expressed, in descending order. There, the usual value is the median over the cells of its
    corpus; here, the mean over those of the run. It orders tokens by rank and adds a learned vector of their place; the
    order of tokens means nothing here, so the vector is the value. Rank r has vector r, from 1; beyond `num_bins` - 1,
    the last.
    """

    def __init__(self, modalities: dict[str, ModalityConfig], layout: FeatureLayout, embed_dim: int, rngs: nnx.Rngs):
        self.num_bins = {name: config.num_bins for name, config in modalities.items()}
        usual = np.ones(padded_rows(layout), np.float32)
        if layout.statistics is not None:
            fraction, detection = layout.statistics.cell_fraction, layout.statistics.cell_detection
            usual[: layout.num_features] = fraction / detection
        self.usual = Constant(usual)
        self.table = _level_vectors(self.num_bins, embed_dim, rngs)

    @staticmethod
    def flops(embed_dim: int) -> float:
        return 0.0

    def __call__(self, values: TokenValues) -> jax.Array:
        ratio = values.relative / self.usual[...][values.feature_ids]

        def ranks(of_cell: jax.Array, num_bins: int) -> jax.Array:  # float32 [S], 0: not expressed -> int32 [S]
            # Stable, and tokens come in the order of their features, so features share no rank in any order of cells.
            place = jnp.argsort(jnp.argsort(-of_cell, stable=True))
            return jnp.where(of_cell > 0, jnp.minimum(1 + place, num_bins - 1), 0)

        return _vectors_of_levels(values, ratio, self.num_bins, ranks, self.table[...])


class QuantileValues(nnx.Module):
    """One learned vector per modality and bin between quantiles of the cell's own expressed values.

    scGPT's bins (Cui et al. 2024, Methods, "value binning"): 0 for zeros; else the number of the `num_bins` - 1
    quantiles of the cell's values above zero, from the smallest to the largest, that do not exceed the value. Equal
    values are in one bin (scGPT's training draws among those that would fit). No depth of sequencing shows in them.
    """

    def __init__(self, modalities: dict[str, ModalityConfig], layout: FeatureLayout, embed_dim: int, rngs: nnx.Rngs):
        self.num_bins = {name: config.num_bins for name, config in modalities.items()}
        self.table = _level_vectors(self.num_bins, embed_dim, rngs)

    @staticmethod
    def flops(embed_dim: int) -> float:
        return 0.0

    def __call__(self, values: TokenValues) -> jax.Array:
        def bins(of_cell: jax.Array, num_bins: int) -> jax.Array:  # float32 [S], 0: not expressed -> int32 [S]
            ascending, number = jnp.sort(of_cell), (of_cell > 0).sum()
            place = jnp.searchsorted(ascending, of_cell, side="right") - 1 - (len(of_cell) - number)  # among expressed
            # Quantile k lies at place k / (num_bins - 2) * (number - 1), between two values where that is no integer.
            exceeded = jnp.where(number > 1, place * (num_bins - 2) // jnp.maximum(number - 1, 1), num_bins - 2)
            return jnp.where(of_cell > 0, 1 + exceeded, 0)

        return _vectors_of_levels(values, values.relative, self.num_bins, bins, self.table[...])


def _level_vectors(num_bins: dict[str, int], embed_dim: int, rngs: nnx.Rngs) -> nnx.Param:
    """[modalities * levels, D]; of the modality with most levels, as many for each."""
    shape = (len(MODALITIES) * max(num_bins.values()), embed_dim)
    return weight(rngs, shape, embed_dim, (None, None), "embedding")


def _vectors_of_levels(
    values: TokenValues,
    numbers: jax.Array,
    num_bins: dict[str, int],
    levels: Callable[[jax.Array, int], jax.Array],
    table: jax.Array,
) -> jax.Array:
    """Rows of `table` at the levels of `numbers` [B, S], which `levels` finds in each cell's features of a modality.

    Called with numbers [S], in which other modalities' are 0, and the modality's `num_bins`.
    """
    level = jnp.zeros(numbers.shape, jnp.int32)
    for name, number in num_bins.items():
        mine = values.modality == MODALITIES.index(name)
        found = jax.vmap(lambda of_cell, number=number: levels(of_cell, number))(jnp.where(mine, numbers, 0.0))
        level = jnp.where(mine, found.astype(jnp.int32), level)
    return table[values.modality * (len(table) // len(MODALITIES)) + level]


# A name for `modalities.NAME.value_encoding` -> what encodes values so. Also the name of its parameters in a model.
VALUE_ENCODINGS: dict[str, type[ValueEncoding]] = {
    "continuous": ContinuousValues,
    "bins": BinnedValues,
    "ranks": RankedValues,
    "quantile_bins": QuantileValues,
}


def _per_modality(values: dict[str, float]) -> jax.Array:
    """Modality name -> number, as an array over `MODALITIES` (0 where not named); a constant of the program."""
    return jnp.asarray([values.get(name, 0.0) for name in MODALITIES], jnp.float32)


class TokenEmbedding(nnx.Module):
    """TokenSequence -> token vectors [B, 1 + S, D], `[CLS]` first."""

    def __init__(self, config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs):
        dim = config.model.embed_dim
        self.modalities = config.modalities.in_use()
        self.dtype = jnp.dtype(config.model.compute_dtype)
        # Zero: after the first layer it is what attention gathered of the cell, undiluted by a constant.
        self.cls = filled(0.0, (dim,), (None,), "embedding")
        self.modality = weight(rngs, (len(MODALITIES), dim), dim, (None, None), "embedding")
        self.mask = weight(rngs, (len(MODALITIES), dim), dim, (None, None), "embedding")
        for name, own in self.modalities.items():
            if own.value_encoding not in VALUE_ENCODINGS:
                raise ConfigError(
                    f"modalities.{name}.value_encoding is {own.value_encoding!r}; there are "
                    f"{', '.join(VALUE_ENCODINGS)}."
                )
        encoded = {
            encoding: {name: own for name, own in self.modalities.items() if own.value_encoding == encoding}
            for encoding in VALUE_ENCODINGS
        }
        self.encodings = tuple(encoding for encoding, own in encoded.items() if own)
        for encoding in self.encodings:
            setattr(self, encoding, VALUE_ENCODINGS[encoding](encoded[encoding], layout, dim, rngs))
        self.covariates = covariate_embedding("tokens", config, layout, rngs)

    def __call__(
        self, rows: jax.Array, tokens: TokenSequence, hidden: jax.Array, covariates: dict[str, jax.Array]
    ) -> jax.Array:
        """rows [B, S, D] of the feature table; `hidden` bool [B, S]: tokens whose value must not be seen; covariates
        int32 [B] each."""
        one_hot = jax.nn.one_hot(tokens.modality, len(MODALITIES))  # [B, S, M]
        target_sum = one_hot @ _per_modality({name: m.target_sum for name, m in self.modalities.items()})
        # Hidden counts are replaced before anything is computed from them.
        counts = jnp.where(hidden, 0.0, tokens.counts)
        relative = relative_expression(counts, tokens.library_size, target_sum, jnp)
        values = TokenValues(relative, tokens.feature_ids, tokens.modality, one_hot, rows)
        value = jnp.zeros(())
        for number, encoding in enumerate(self.encodings):
            vectors = getattr(self, encoding)(values)
            mine = {name: float(own.value_encoding == encoding) for name, own in self.modalities.items()}
            value = jnp.where((one_hot @ _per_modality(mine) > 0)[..., None], vectors, value) if number else vectors
        value = jnp.where(hidden[..., None], one_hot @ self.mask[...], value)
        x = rows + value + one_hot @ self.modality[...]  # [B, S, D]
        if self.covariates is not None:
            x = x + self.covariates(covariates)[:, None]
        x = jnp.where(tokens.valid[..., None], x, 0.0)
        cls = jnp.broadcast_to(self.cls[...], (x.shape[0], 1, x.shape[2]))
        return jnp.concatenate([cls, x], axis=1).astype(self.dtype)


class CovariateEmbedding(nnx.Module):
    """Sum of one learned vector per covariate; code -1 (unknown) has a vector of its own."""

    def __init__(self, config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs):
        dim = config.model.embed_dim
        self.tables: Any = nnx.Dict({})
        for name in config.model.covariates:
            shape = (layout.covariate_sizes[name] + 1, dim)
            self.tables[name] = weight(rngs, shape, dim, (None, None), "embedding")

    def __call__(self, covariates: dict[str, jax.Array]) -> jax.Array:  # int32 [B] each -> [B, D]
        return sum(table[...][covariates[name] + 1] for name, table in self.tables.items())


def covariate_embedding(
    place: str, config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs
) -> CovariateEmbedding | None:
    """The covariates' embedding if the configuration has any and they enter at `place` ("tokens" or "heads")."""
    wanted = config.model.covariates and config.model.covariates_at == place
    return CovariateEmbedding(config, layout, rngs) if wanted else None
