"""The linear path beside the transformer: principal components in, principal components out ("wide and deep").

With few cells, linear models of the whole profile are hard to beat: attention has to learn first what a sum over all
features says at once. So the cell embedding is what `[CLS]` gathered plus a projection of the cell's principal
component scores; a translation is what the decoder says plus a linear map onto the target's components; and the axes on
which modalities are compared are those of the alignment head plus linear ones. The components are of the run's first
cells and stay as they are. A translation starts from ridge regression of the pairs among those cells and from the pairs
nearest to the cell, blended as cross-fitting finds best; an alignment from canonical correlation; all are zero where
there are no pairs. What is added to them is trained with the rest. The transformer learns what these cannot say.
"""

from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import nnx

from scmbert_jax.config import ExperimentConfig
from scmbert_jax.feature_layout import (
    LIBRARY_QUANTILES,
    NEIGHBOUR_COMPONENTS,
    NUM_COMPONENTS,
    NUM_FOLDS,
    NUM_NEIGHBOURS,
    FeatureLayout,
    FeatureStatistics,
)
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.models.embeddings import padded_rows
from scmbert_jax.models.likelihoods import make_likelihood
from scmbert_jax.models.parameters import Constant, filled, parameter, weight
from scmbert_jax.models.token_sequence import TokenSequence
from scmbert_jax.value_scales import linear_values

# Adam moves a number by about the learning rate a step, whatever its size: what is added to a map is stored at ten
# times its size, because maps have entries of a few hundredths and are sums over 64 scores.
CHANGE_SCALE = 0.1


class LinearMap(nnx.Module):
    """x [B, K] -> x @ (start + change) [B, P]; `starts` [N, K, P] stay, `change` is trained, from zero."""

    def __init__(self, starts: np.ndarray):
        self.starts = Constant(starts)
        self.change = filled(0.0, starts.shape[1:], (None, None), "matrix")

    def __call__(self, x: jax.Array, which: jax.Array | None = None) -> jax.Array:
        """`which` int32 [B], the start of each row; None: the first."""
        starts = self.starts[...]
        if which is None:
            own = x @ starts[0]
        else:
            each = jnp.einsum("bk,nkp->bnp", x, starts)
            own = jnp.take_along_axis(each, which[:, None, None], axis=1)[:, 0]
        return own + x @ (self.change[...] * CHANGE_SCALE)


class NeighbourMean(nnx.Module):
    """x [B, K] -> mean of the values [n, P] of those cells whose keys [n, K'] are nearest to the first K' of x [B, P].

    None of it is trained.
    """

    def __init__(self, keys: np.ndarray, values: np.ndarray, folds: np.ndarray):
        self.keys = Constant(keys[:, :NEIGHBOUR_COMPONENTS])
        self.values, self.folds = Constant(values), Constant(folds)

    def __call__(self, x: jax.Array, hidden_folds: jax.Array | None = None) -> jax.Array:
        """`hidden_folds` int32 [B]: cells of this fold are passed over; None: none are."""
        keys, values, folds = self.keys[...], self.values[...], self.folds[...]
        x = jax.lax.stop_gradient(x[:, : keys.shape[1]])
        distance = (keys**2).sum(axis=1)[None] - 2.0 * (x @ keys.T)  # [B, n], but for |x|^2, which all share
        if hidden_folds is not None:
            distance = jnp.where(folds[None] == hidden_folds[:, None], jnp.inf, distance)
        _, nearest = jax.lax.top_k(-distance, min(NUM_NEIGHBOURS, len(keys)))
        return jnp.take(values, nearest, axis=0).mean(axis=1)


class TranslationMap(nnx.Module):
    """Scores [B, K] of one modality -> scores [B, P] of another.

    A `LinearMap` and the cell's neighbours among the pairs, each with a weight, and a perceptron of one hidden layer
    beside them that adds nothing at first. Cells come in types: what one modality says of another bends between them,
    and that is learned from component scores in a few steps, from tokens in many.
    """

    def __init__(
        self, starts: np.ndarray, neighbours: NeighbourMean | None, fraction: float, hidden: int, rngs: nnx.Rngs
    ):
        inputs, outputs = starts.shape[1:]
        self.linear = LinearMap(starts * (1.0 - fraction))
        self.neighbours: Any = nnx.data(neighbours)
        self.share = filled(fraction, (), (), "scalar")  # what checkpoints call it
        self.hidden = weight(rngs, (inputs, hidden), inputs, (None, None))
        self.hidden_bias = filled(0.0, (hidden,), (None,), "bias")
        self.out = filled(0.0, (hidden, outputs), (None, None), "matrix")

    def __call__(self, x: jax.Array, which: jax.Array | None = None) -> jax.Array:
        bent = jax.nn.gelu(x @ self.hidden[...] + self.hidden_bias[None]) @ (self.out[...] * CHANGE_SCALE)
        mapped = self.linear(x, which) + bent
        return mapped if self.neighbours is None else mapped + self.share[...] * self.neighbours(x, which)


class LinearPath(nnx.Module):
    """Scores of a cell [B, K] per modality, mapped into the cell embedding, and out of it onto a target's features."""

    def __init__(self, config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs):
        dim, rows, statistics = config.model.embed_dim, padded_rows(layout), layout.statistics
        self.modalities = tuple(config.modalities.in_use())
        size, number_of_modalities = NUM_COMPONENTS, len(MODALITIES)
        loadings = np.zeros((rows, size), np.float32)
        offset = np.zeros((number_of_modalities, size), np.float32)
        maps = np.zeros((1 + NUM_FOLDS, number_of_modalities, number_of_modalities, size, size), np.float32)
        columns = np.zeros((rows, 3), np.float32)
        linear = None if statistics is None else statistics.linear
        if linear is not None:
            loadings[: layout.num_features] = linear.loadings
            offset, maps = linear.component_offset, linear.translation_maps
        if statistics is not None:
            columns[: layout.num_features, 0] = statistics.linear_centre
            for name, likelihood in config.modalities.target_likelihoods().items():
                mine = slice(*layout.slices[name])
                quantiles = statistics.library_quantiles[MODALITIES.index(name)]
                detection = statistics.cell_detection[mine]
                columns[mine, 1] = quantiles[len(LIBRARY_QUANTILES) // 2] if name == "rna" else detection
                in_use = make_likelihood(likelihood, name, config.modalities.in_use()[name], statistics, (0, 1))
                columns[mine, 2] = in_use.per_value(statistics.log1p_mean[mine], statistics.linear_std[mine], detection)
        # Not trained: moving each loading by the learning rate would drown the components in noise.
        self.loadings, self.offset = Constant(loadings), Constant(offset)
        # Centre of the values, what they are relative to (`linear_values`), what they are to an output (`per_value`).
        self.scale = Constant(columns)
        # Each modality has dimensions of its own, as in principal components laid side by side: on top of each other,
        # the noise of a weak modality would hide what a strong one says. The rotation leaves no dimension to one alone.
        own_size = min(size, dim // len(self.modalities))
        shape = (len(self.modalities) * own_size, dim)
        blocks = jax.nn.initializers.orthogonal()(rngs.params(), shape).reshape(-1, own_size, dim)
        self.into_cell: Any = nnx.Dict(
            {
                name: parameter(jnp.pad(block, ((0, size - own_size), (0, 0))), (None, "embed"), "matrix")
                for name, block in zip(self.modalities, blocks, strict=True)
            }
        )
        self.between: Any = nnx.Dict()
        translated = config.objectives.cross_modal_translation.weight > 0
        for source, target in permutations(self.modalities, 2) if translated else ():
            # Loadings of a modality are orthogonal and of one length: divided by its square, they turn scores back.
            first, stop = layout.slices[target]
            squared_length = (loadings[first:stop] ** 2).sum(axis=0).max()
            to_values = 1.0 / max(squared_length, 1e-8)
            here, there = MODALITIES.index(source), MODALITIES.index(target)
            starts, neighbours, fraction = maps[:, here, there] * to_values, None, 0.0
            # A run that uses no pairs (cycles alone) must not start from them either.
            if config.objectives.cross_modal_translation.pair_weight == 0:
                starts = np.zeros_like(starts)
            elif linear is not None:
                both = linear.memory_measured[:, here] & linear.memory_measured[:, there]
                fraction = float(linear.neighbour_fractions[here, there])
                if both.any():
                    cells, folds = linear.memory_scores[both], linear.memory_folds[both]
                    neighbours = NeighbourMean(cells[:, here], cells[:, there] * to_values, folds)
            self.between[f"{source}>{target}"] = TranslationMap(
                starts, neighbours, fraction, config.model.mlp_dim, rngs
            )

    def scores(self, tokens: TokenSequence, hidden: jax.Array | None = None) -> dict[str, jax.Array]:
        """Modality of `tokens` -> component scores float32 [B, K]; 0 where there is no visible token.

        Of all counts of the cell where the tokens come with those and nothing is hidden; or else estimated from the
        tokens that are seen, each standing for `weight` features.
        """
        if hidden is None and tokens.scores:
            return tokens.scores
        visible = tokens.valid if hidden is None else tokens.valid & ~hidden
        counts = jnp.where(visible, tokens.counts, 0.0)
        scale = jnp.take(self.scale[...], tokens.feature_ids, axis=0)  # [B, S, 3]
        loadings = jnp.take(self.loadings[...], tokens.feature_ids, axis=0)  # [B, S, K]
        found = {}
        for name in (name for name, _ in tokens.widths):
            mine = tokens.modality == MODALITIES.index(name)
            values = linear_values(name, counts, tokens.library_size, tokens.mean_log_count, scale[..., 1], jnp)
            # Hidden tokens are made up for by the others.
            shown, real = (visible & mine).sum(axis=1), (tokens.valid & mine).sum(axis=1)
            fraction = (real / jnp.maximum(shown, 1))[:, None]
            weights = jnp.where(visible & mine, tokens.weight * fraction, 0.0)
            total = jnp.einsum("bs,bsk->bk", weights * (values - scale[..., 0]), loadings)
            found[name] = jnp.where((shown > 0)[:, None], total - self.offset[MODALITIES.index(name), None], 0.0)
        return found

    def __call__(self, tokens: TokenSequence, hidden: jax.Array | None = None) -> jax.Array:
        """float32 [B, D]: what the visible tokens' values say of the cell, the sum over its modalities."""
        scores = self.scores(tokens, hidden)
        return sum((own @ self.into_cell[name][...] for name, own in scores.items()), jnp.zeros(()))

    def outputs(
        self, tokens: TokenSequence, target: str, feature_ids: jax.Array, folds: jax.Array | None = None
    ) -> jax.Array:
        """From `tokens` of one modality to features int32 [B, M] of `target`: float32 [B, M], in units of output 0.

        In training, `folds` int32 [B] (`fold_of`) chooses for each cell the map that started without it. A regression
        fits the cells it has seen too well, and the transformer would learn to mend errors that new cells do not have.
        """
        ((source, _),) = tokens.widths
        scores = self.between[f"{source}>{target}"](self.scores(tokens)[source], folds)  # [B, K]
        loadings = jnp.take(self.loadings[...], feature_ids, axis=0)
        return jnp.einsum("bk,bmk->bm", scores, loadings) * jnp.take(self.scale[...][:, 2], feature_ids)


def scores_of_counts(
    loadings: np.ndarray, statistics: FeatureStatistics, modality: str, rows: slice, counts: sp.csr_matrix, panel: Any
) -> np.ndarray:
    """Component scores float32 [n, K] of whole cells, on the host: what `LinearPath.scores` estimates from tokens.

    A feature that was not measured has its mean, as in the decomposition that the components are of.

    Args:
      loadings: float32 [F, K], those of the modality.
      statistics: of the model.
      rows: of the modality in the feature table.
      counts: CSR [n, F] over the modality's features.
      panel: bool [F], which of them were measured.
    """
    values = linear_values_of_counts(statistics, modality, rows, counts, panel)
    scores = values @ loadings
    scores -= (statistics.linear_mean[rows] * panel) @ loadings
    return np.where(np.asarray(counts.sum(axis=1, dtype=np.float64)) > 0, scores, 0.0).astype(np.float32)


def linear_values_of_counts(
    statistics: FeatureStatistics, modality: str, rows: slice, counts: sp.csr_matrix, panel: Any
) -> sp.csr_matrix:
    """The values CSR [n, F] that `scores_of_counts` takes scores of; 0 where a count is."""
    number_of_cells = counts.shape[0]
    library_size = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    of_cell = np.repeat(np.arange(number_of_cells), np.diff(counts.indptr))
    logs = np.bincount(of_cell, np.log1p(counts.data), minlength=number_of_cells) / max(int(panel.sum()), 1)
    median = statistics.library_quantiles[MODALITIES.index(modality), len(LIBRARY_QUANTILES) // 2]
    typical = median if modality == "rna" else statistics.cell_detection[rows][counts.indices]
    values = linear_values(modality, counts.data, library_size[of_cell], logs[of_cell], typical, np)
    return sp.csr_matrix((values, counts.indices, counts.indptr), counts.shape)


def alignment_start(layout: FeatureLayout, modality: str, projection_dim: int) -> np.ndarray:
    """float32 [K, P]: a modality's scores onto the first P axes on which the run's pairs correlate.

    Zero without pairs.
    """
    start = np.zeros((NUM_COMPONENTS, projection_dim), np.float32)
    if layout.statistics is not None and layout.statistics.linear is not None:
        axes = layout.statistics.linear.alignment_maps[MODALITIES.index(modality)][:, :projection_dim]
        start[:, : axes.shape[1]] = axes
    return start
