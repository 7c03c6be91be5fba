"""How much each feature of a cell adds to the logit of a type: a sum that is complete for the whole annotator.

What is explained is f = logit of the type minus the mean logit of all types: a constant on all logits says nothing of
the type. It is linear in the cell's vector, and the vector is the sum of two parts:

transformer     f has a gradient by each token's vector. Integrated gradients (Sundararajan et al. 2017, equation 1):
                (x - x0) . mean over a in [0, 1] of grad f(x0 + a (x - x0)), by Gauss-Legendre quadrature. The baseline
                x0 is the same tokens with the value embedding of a count of 0. Gradient x input: that at x alone.
linear path     linear in the values of all counts, so each feature's part is exact: value x (loadings @ map @ f).

The sum over features is f(cell) - f(baseline), where the baseline is the cell with each feature's value that of a count
of 0. A feature without a count has an attribution of 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from data_pipelines.batches.model_counts import Overlap
from scmbert_jax.annotation.annotator import Annotator
from scmbert_jax.annotation.linear_head import LinearHead
from scmbert_jax.annotation.pca import MappedCells, Pca, values_of_counts
from scmbert_jax.annotation.representation import ModelRepresentation, OpenCells, Reading
from scmbert_jax.interpretation.drawn_cells import DrawnCells
from scmbert_jax.interpretation.rollout import rollout_of_tokens
from scmbert_jax.models.linear_path import linear_values_of_counts
from scmbert_jax.models.token_sequence import CutBatch, pack_tokens
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.tasks.embed import embedding_function, feature_table
from scmbert_jax.tasks.model_cells import ModelCells

Array = np.ndarray
Progress = Callable[[int, int], None]

INTEGRATED_GRADIENTS, GRADIENT_X_INPUT, ROLLOUT = "integrated_gradients", "gradient_x_input", "attention_rollout"
EXACT = "exact_linear"  # of principal components
METHODS = (INTEGRATED_GRADIENTS, GRADIENT_X_INPUT, ROLLOUT)


class Direction(NamedTuple):
    """f of each type: vector @ weight + bias, by column.

    Attributes: weight float64 [D, L], bias float64 [L].
    """

    weight: Array
    bias: Array

    @classmethod
    def of(cls, head: LinearHead) -> "Direction":
        weight = (head.weight - head.weight.mean(axis=1, keepdims=True)) / head.scale.scale
        bias = head.bias - head.bias.mean()
        return cls(weight, bias - head.scale.mean @ weight)

    def values(self, vectors: Array, types: Array) -> Array:
        """float64 [n]: f of the type int64 [n] of each cell, of vectors [n, D]."""
        return np.einsum("nd,dn->n", np.asarray(vectors, np.float64), self.weight[:, types]) + self.bias[types]


class Attributed(NamedTuple):
    """Attributes:
    values: float64 CSR [n, F].
    found: float64 [n], f of the cells; baseline: float64 [n], f of their baselines. None: they are no parts of a sum.
    """

    values: sp.csr_matrix
    found: Array | None = None
    baseline: Array | None = None

    @property
    def errors(self) -> Array | None:
        """float64 [n]: sum of the attributions - (f(cell) - f(baseline))."""
        if self.found is None or self.baseline is None:
            return None
        return np.asarray(self.values.sum(axis=1)).ravel() - (self.found - self.baseline)

    def relative_error(self) -> float | None:
        """Sum over cells of |error|, of that of |f(cell) - f(baseline)|."""
        if self.errors is None or self.found is None or self.baseline is None:
            return None
        return float(np.abs(self.errors).sum() / max(float(np.abs(self.found - self.baseline).sum()), 1e-12))


class Explainer(Protocol):
    """A representation that can be explained."""

    @property
    def methods(self) -> tuple[str, ...]: ...

    def attributions(
        self, drawn: DrawnCells, method: str, direction: Direction, types: Array, progress: Progress | None = None
    ) -> Attributed:
        """Of f of the type int64 [n] of each cell; `progress`: called with (cells done, cells in all)."""
        ...

    def vectors(self, drawn: DrawnCells) -> Array:
        """float32 [n, D], what the representation gives of these counts; 0 for cells without any."""
        ...


def explainer(annotator: Annotator, opened: OpenCells, reading: Reading, steps: int) -> Explainer:
    """Of an annotator and the cells that its representation opened."""
    representation = annotator.representation
    if isinstance(representation, ModelRepresentation):
        assert isinstance(opened, ModelCells)
        return ModelExplainer(in_float32(representation.model), opened, reading, steps)
    assert isinstance(opened, MappedCells)
    return PcaExplainer(representation.pca, opened.overlaps)


def in_float32(model: PretrainedModel) -> PretrainedModel:
    """The same numbers, computed in float32: with 16 bits a sum over thousands of tokens is not complete."""
    if model.config.model.compute_dtype == "float32":
        return model
    definition = _definition_in_float32(model.definition)
    return replace(model, config=definition.config, definition=definition)


@lru_cache(maxsize=4)
def _definition_in_float32(definition: ModelDefinition) -> ModelDefinition:
    config = definition.config
    return ModelDefinition(replace(config, model=replace(config.model, compute_dtype="float32")), definition.layout)


# --- principal components --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PcaExplainer:
    """Principal components and a linear head: the attribution is exact, and there is nothing to integrate."""

    pca: Pca
    overlaps: dict[str, Overlap]
    methods: tuple[str, ...] = (EXACT,)

    def attributions(
        self, drawn: DrawnCells, method: str, direction: Direction, types: Array, progress: Progress | None = None
    ) -> Attributed:
        assert method == EXACT
        parts, baseline, first = {}, np.zeros((drawn.number, self.pca.width)), 0
        for name, part in self.pca.parts.items():
            if name in drawn.counts:
                counts, measured = drawn.counts[name], self.overlaps[name].measured
                values = values_of_counts(name, counts, measured, part)
                own = direction.weight[first : first + part.width] / part.scale
                parts[name] = _times(values, part.loadings_of(measured) @ own, types)
                of_mean = -(part.mean * measured) @ part.loadings / part.scale
                baseline[:, first : first + part.width] = np.where((counts.getnnz(axis=1) > 0)[:, None], of_mean, 0.0)
            first += part.width
        found = direction.values(self.vectors(drawn), types)
        return Attributed(drawn.side_by_side(parts), found, direction.values(baseline, types))

    def vectors(self, drawn: DrawnCells) -> Array:
        found, first = np.zeros((drawn.number, self.pca.width), np.float32), 0
        for name, part in self.pca.parts.items():
            if name in drawn.counts:
                rows = np.flatnonzero(drawn.counts[name].getnnz(axis=1) > 0)
                scores = part.scores(name, drawn.counts[name][rows], self.overlaps[name].measured)
                found[rows, first : first + part.width] = scores
            first += part.width
        return found


def _times(values: sp.csr_matrix, weights: Array, types: Array) -> sp.csr_matrix:
    """CSR [n, F]: each value of a cell times its feature's weight [F, L] for the cell's type."""
    of_cell = np.repeat(types, np.diff(values.indptr))
    return sp.csr_matrix((values.data * weights[values.indices, of_cell], values.indices, values.indptr), values.shape)


# --- a model ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelExplainer:
    """The cell embedding of a model.

    Attributes:
      model: computes in float32.
      cells: what its batches are made by.
      reading: tokens and cells of a device call.
      steps: Gauss-Legendre points of integrated gradients.
    """

    model: PretrainedModel
    cells: ModelCells
    reading: Reading
    steps: int

    @property
    def methods(self) -> tuple[str, ...]:
        shape = self.model.config.model
        return METHODS[:2] if shape.encoder_sharing == "per_modality" or shape.gene_head else METHODS

    def attributions(
        self, drawn: DrawnCells, method: str, direction: Direction, types: Array, progress: Progress | None = None
    ) -> Attributed:
        assert method in self.methods
        table = feature_table(self.model.definition, self.model.params, self.model.constants)
        given = self.model.definition, self.model.params, self.model.constants, table
        width = self.model.config.model.cell_dim
        vectors, baseline = (np.zeros((drawn.number, width), np.float32) for _ in range(2))
        positions, weights = _quadrature(method, self.steps)
        rows, columns, values, done = [], [], [], 0
        base_scores = self._baseline_scores(drawn)
        for mine, batch in self._batches(drawn):
            ids = np.resize(mine, len(batch.row))  # as the rows of the batch, which is filled with the first ones
            if method == ROLLOUT:
                found = np.asarray(rollout_of_tokens(*given, batch))[: len(mine)]
            else:
                towards = jnp.asarray(direction.weight.T[types[ids]], jnp.float32)
                scores = {name: own[ids] for name, own in base_scores.items()}
                parts = _integrated(*given, batch, positions, weights, towards, scores)
                found, vectors[mine], baseline[mine] = (np.asarray(own)[: len(mine)] for own in parts)
            tokens = jax.tree.map(np.asarray, _tokens(batch))
            shown = (tokens.valid & (tokens.counts > 0))[: len(mine)]
            row, place = np.nonzero(shown)
            rows.append(mine[row])
            columns.append(tokens.feature_ids[row, place])
            values.append(found[row, place].astype(np.float64))
            if progress is not None:
                done += len(mine)
                progress(done, drawn.number)
        shape = (drawn.number, drawn.num_features)
        of_tokens = sp.csr_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape)
        if method == ROLLOUT:
            return Attributed(of_tokens)
        whole = of_tokens + self._of_linear_path(drawn, direction, types)
        return Attributed(whole.tocsr(), direction.values(vectors, types), direction.values(baseline, types))

    def vectors(self, drawn: DrawnCells) -> Array:
        embed = embedding_function(self.model, "cell")
        found = np.zeros((drawn.number, self.model.config.model.cell_dim), np.float32)
        for mine, batch in self._batches(drawn):
            found[mine] = embed(batch)[: len(mine)]
        return found

    def _batches(self, drawn: DrawnCells) -> Any:
        """(cells int64 [m], batch whose first m rows are those), of cells with counts."""
        sampling = self.cells.sampling(self.reading.num_tokens)
        expressed = sum(own.getnnz(axis=1) for own in drawn.counts.values())
        for start in range(0, drawn.number, 2048):
            some = np.arange(start, min(start + 2048, drawn.number))
            some = some[expressed[some] > 0]
            if len(some):
                batch = self.cells.batch_of(drawn.of(some).chunk(), sampling, 0)
                for mine, part in self.cells.parts(batch, np.arange(len(some)), self.reading.batch_size):
                    yield some[mine], part

    def _baseline_scores(self, drawn: DrawnCells) -> dict[str, Array]:
        """Modality -> component scores float32 [n, K] of the cells with each value that of a count of 0."""
        statistics, found = self._statistics, {}
        for name, counts in drawn.counts.items() if statistics is not None else ():
            mine = slice(*self.model.definition.layout.slices[name])
            panel = self.cells.overlaps[name].measured
            of_mean = -(statistics.linear_mean[mine] * panel) @ self._loadings(mine)
            has = np.asarray(counts.sum(axis=1)) > 0
            found[name] = np.where(has, of_mean, 0.0).astype(np.float32)
        return found

    def _of_linear_path(self, drawn: DrawnCells, direction: Direction, types: Array) -> sp.csr_matrix:
        statistics, parts = self._statistics, {}
        for name, counts in drawn.counts.items() if statistics is not None else ():
            mine = slice(*self.model.definition.layout.slices[name])
            values = linear_values_of_counts(statistics, name, mine, counts, self.cells.overlaps[name].measured)
            into_cell = np.asarray(self.model.params["linear"]["into_cell"][name], np.float64)
            parts[name] = _times(values, self._loadings(mine) @ (into_cell @ direction.weight), types)
        return drawn.side_by_side(parts)

    @property
    def _statistics(self) -> Any:
        return self.model.definition.layout.statistics if self.model.config.model.linear_path else None

    def _loadings(self, mine: slice) -> Array:
        return np.asarray(self.model.constants["linear"]["loadings"][mine], np.float64)


def _quadrature(method: str, steps: int) -> tuple[Array, Array]:
    """Positions in [0, 1] and weights that sum to 1, float32."""
    if method == GRADIENT_X_INPUT:
        return np.ones(1, np.float32), np.ones(1, np.float32)
    positions, weights = np.polynomial.legendre.leggauss(steps)
    return ((positions + 1) / 2).astype(np.float32), (weights / 2).astype(np.float32)


_tokens = jax.jit(pack_tokens)


# Compiled once per definition, number of steps and batch shape.
@partial(jax.jit, static_argnums=0)
def _integrated(
    definition: ModelDefinition,
    params: Any,
    constants: Any,
    table: jax.Array,
    batch: CutBatch,
    positions: jax.Array,
    weights: jax.Array,
    towards: jax.Array,
    baseline_scores: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(attributions of tokens [B, S], cell embeddings [B, D], those of the baselines [B, D]), float32.

    `towards` [B, D]: what is explained is the transformer's part of the embedding, times this.
    """
    model = definition.merge(params, constants)
    tokens = pack_tokens(batch)
    rows, unseen = model.rows(table, tokens), jnp.zeros(tokens.valid.shape, bool)
    nothing = replace(tokens, counts=jnp.zeros_like(tokens.counts), scores=baseline_scores)
    x, start = (model.embedding(rows, own, unseen, batch.covariates) for own in (tokens, nothing))

    def cell(x: jax.Array) -> jax.Array:
        if model.gene_head is not None:
            return model.gene_head(model.encoder(x, tokens), tokens)
        return model.encoder(x, tokens, True)[:, 0].astype(jnp.float32)

    slope = jax.grad(lambda x: (cell(x) * towards).sum())

    def add(total: jax.Array, point: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        position, weight = point
        return total + weight * slope(start + position * (x - start)), None

    mean, _ = jax.lax.scan(add, jnp.zeros_like(x), (positions, weights))
    baseline = cell(start)
    if model.linear is not None:
        baseline = baseline + model.linear(nothing)
    return (mean * (x - start)).sum(axis=2)[:, 1:], model.cell_embedding(table, batch), baseline
