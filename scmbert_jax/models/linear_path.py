"""The linear path beside the transformer: principal components in, principal components out ("wide and deep").

With few cells, linear models of the whole profile are hard to beat: attention has to learn first what a sum over all
features says at once. So the cell embedding is what `[CLS]` gathered plus a projection of the cell's principal
component scores, and a translation is what the decoder says plus a linear map onto the target's components. Both start
from the components of the run's first cells and are trained with the rest.
"""

from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scmbert_jax.batch import LIBRARY_QUANTILES, MODALITIES, NUM_COMPONENTS, FeatureLayout
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.models.embeddings import padded_rows
from scmbert_jax.models.encoder import constant, weight
from scmbert_jax.models.token_sequence import TokenSequence
from scmbert_jax.value_scales import linear_values

# Scores of the first components span several units while Adam moves a weight by about the learning rate a step: stored
# at a third, the map onto them is learned three times as fast.
OUTPUT_SCALE = 3.0


class LinearPath(nnx.Module):
    """Scores of a cell [B, K] per modality, mapped into the cell embedding, and out of it onto a target's features."""

    def __init__(self, config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs):
        dim, rows, statistics = config.model.embed_dim, padded_rows(layout), layout.statistics
        self.modalities = tuple(config.modalities.in_use())
        loadings = np.zeros((rows, NUM_COMPONENTS), np.float32)
        offset = np.zeros((len(MODALITIES), NUM_COMPONENTS), np.float32)
        columns = np.stack([np.zeros(rows), np.ones(rows), np.ones(rows)]).astype(np.float32)
        if statistics is not None:
            number, offset = layout.num_features, statistics.component_offset
            loadings[:number] = statistics.loadings
            columns[0, :number], columns[1, :number] = statistics.linear_centre, statistics.linear_std
            for name in self.modalities:
                mine = slice(*layout.slices[name])
                if name == "rna":
                    quantiles = statistics.library_quantiles[MODALITIES.index(name)]
                    columns[2, mine] = quantiles[len(LIBRARY_QUANTILES) // 2]
                else:
                    columns[2, mine] = statistics.cell_detection[mine]
        self.loadings = nnx.Param(jnp.asarray(loadings), logical_axes=("features", None))
        self.offset: Any = nnx.Dict(
            {
                name: nnx.Param(jnp.asarray(offset[MODALITIES.index(name)]), logical_axes=(None,))
                for name in self.modalities
            }
        )
        # Centre and spread of the values, and what they are relative to (`linear_values`): of the corpus, not trained.
        self.scale = nnx.Param(jnp.asarray(columns.T), logical_axes=("features", None))
        self.into_cell: Any = nnx.Dict(
            {name: weight(rngs, (NUM_COMPONENTS, dim), NUM_COMPONENTS, (None, "embed")) for name in self.modalities}
        )
        # Zero: a translation starts from the mean of each feature.
        shape = (NUM_COMPONENTS, NUM_COMPONENTS)
        self.between: Any = nnx.Dict(
            {f"{a}>{b}": constant(0.0, shape, (None, None)) for a, b in permutations(self.modalities, 2)}
        )

    def scores(self, tokens: TokenSequence, hidden: jax.Array) -> dict[str, jax.Array]:
        """Modality of `tokens` -> component scores float32 [B, K] of its visible tokens; 0 where there is none."""
        visible = tokens.valid & ~hidden
        counts = jnp.where(visible, tokens.counts, 0.0)
        scale = jax.lax.stop_gradient(self.scale[...])[tokens.feature_ids]  # [B, S, 3]
        loadings = self.loadings[...][tokens.feature_ids]  # [B, S, K]
        found = {}
        for name in (name for name, _ in tokens.widths):
            mine = tokens.modality == MODALITIES.index(name)
            values = linear_values(name, counts, tokens.library_size, tokens.mean_log_count, scale[..., 2], jnp)
            # Hidden tokens are made up for by the others.
            shown, real = (visible & mine).sum(axis=1), (tokens.valid & mine).sum(axis=1)
            share = (real / jnp.maximum(shown, 1))[:, None]
            weights = jnp.where(visible & mine, tokens.weight * share, 0.0)
            total = jnp.einsum("bs,bsk->bk", weights * (values - scale[..., 0]), loadings)
            found[name] = jnp.where((shown > 0)[:, None], total - self.offset[name][...], 0.0)
        return found

    def __call__(self, tokens: TokenSequence, hidden: jax.Array) -> jax.Array:
        """float32 [B, D]: what the visible tokens' values say of the cell, the mean over its modalities."""
        total = sum(scores @ self.into_cell[name][...] for name, scores in self.scores(tokens, hidden).items())
        number = jnp.maximum((tokens.modality_lengths > 0).sum(axis=1), 1)
        return total / number[:, None]

    def outputs(self, tokens: TokenSequence, target: str, feature_ids: jax.Array) -> jax.Array:
        """From `tokens` of one modality to features int32 [B, M] of `target`: float32 [B, M], in units of their std."""
        ((source, _),) = tokens.widths
        scores = self.scores(tokens, jnp.zeros(tokens.valid.shape, bool))[source]
        scores = scores @ self.between[f"{source}>{target}"][...] * OUTPUT_SCALE  # [B, K]
        std = jax.lax.stop_gradient(self.scale[...])[feature_ids, 1]
        return jnp.einsum("bk,bmk->bm", scores, self.loadings[...][feature_ids]) / std
