"""In-silico perturbation: a gene's count is set to 0, or to a multiple, and a model says what else changes.

A cell is perturbed in its tokens: the token of a removed gene is gone, that of a raised one has another count, and the
component scores of the linear path move by what the value of that one gene adds. All else stays, the library size and
the draw of zeros among it, so that what changes is what the model makes of this gene, not of the depth of the cell.

What is read, by what the model was trained for:

profile   (whole_profile)     predicted count of each gene, from the cell embedding
cell      (masked_modeling)   the same, from the cell embedding and the gene's row of the feature table
states    (any other)         1 - cosine of the gene's token state before and after; of genes that the cell expresses

Predictions are expected counts of a cell of the median library size, and their change is one of log1p of them.

The cells are encoded once; then for each (cell, gene) pair again, many pairs in a call, whichever genes they are of. A
gene costs as much as embedding the cells that are perturbed in it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.counter_hash import Purpose, hash_of
from data_pipelines.networks.parts import name_hashes
from scmbert_jax.annotation.representation import Reading
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.interpretation.attributions import in_float32
from scmbert_jax.interpretation.drawn_cells import DrawnCells
from scmbert_jax.models.token_sequence import CutBatch, pack_tokens
from scmbert_jax.objectives.base import Model
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.tasks.embed import feature_table
from scmbert_jax.tasks.model_cells import ModelCells, open_model_cells
from scmbert_jax.value_scales import linear_values

Array = np.ndarray
Progress = Callable[[int, int], None]

PROFILE, CELL, STATES = "profile", "cell", "states"
REMOVED = 0.0  # times its count

_CELLS_AT_A_TIME = 64  # whose unperturbed predictions are held: what bounds memory
_TARGETS_AT_A_TIME = 512  # that the cell decoder decodes


def read_out_of(model: PretrainedModel) -> str:
    """Which of PROFILE, CELL and STATES a model's responses are."""
    objectives = model.config.objectives
    if objectives.whole_profile.weight > 0:
        return PROFILE
    own = objectives.masked_modeling
    return CELL if own.weight > 0 and own.cell_weight > 0 else STATES


class Responses(NamedTuple):
    """Of P perturbed genes and T downstream genes.

    Attributes:
      mean, std: float32 [P, T], over cells, of the change (see above) from the cell as it is to the perturbed one; nan
        where no perturbed cell says anything of the downstream gene. The perturbed gene's own is among them.
      cells: int64 [P], cells that were perturbed; having: int64 [P], cells that have the gene, of those looked at.
      shift: float32 [P], mean over cells of 1 - cosine of the cell embedding before and after.
    """

    mean: Array
    std: Array
    cells: Array
    having: Array
    shift: Array


@dataclass(frozen=True)
class CellsToPerturb:
    """n cells of a file in memory, in an order that depends on their names and a seed, not on the file's.

    Attributes:
      model: computes in float32.
      cells: how they are made into batches.
      drawn: their counts; genes are the G features of the model's "rna".
      rows: int64 [n], which cells of the file they are.
      reading: how they were opened and become tokens.
    """

    model: PretrainedModel
    cells: ModelCells
    drawn: DrawnCells
    rows: Array
    reading: Reading

    @classmethod
    def open(
        cls,
        model: PretrainedModel,
        cells: Any,
        *,
        groups: Callable[[Any], Array] | None = None,
        most: int = 2000,
        seed: int = 0,
        reading: Reading | None = None,
    ) -> "CellsToPerturb":
        """Reads at most `most` cells of each group.

        Args:
          model: knows genes.
          cells: whatever `open_dataset` takes.
          groups: data set -> str [cells], cells of "" are left out; None: all are of one group.
          most: cells that are drawn of each group.
          seed: of the draw.
          reading: how cells are opened and made into tokens.

        Raises `InputError` as `open_model_cells`, or where the model or the file has no genes.
        """
        reading = reading or Reading()
        model = replace(in_float32(model), allow_low_coverage=model.allow_low_coverage or reading.allow_low_coverage)
        opened = open_model_cells(model, cells, None, reading.organism, reading.assembly)
        if "rna" not in opened.overlaps:
            raise InputError(
                f"{opened.report.path}: no RNA that the model reads; what is perturbed is the count of a gene."
            )
        names = np.asarray(opened.dataset.cell_ids, str)
        order = np.lexsort((names, name_hashes(names, hash_of(seed, Purpose.PERTURBED_CELLS))))
        of_cells = np.full(len(names), "all") if groups is None else groups(opened.dataset)
        kept = [order[of_cells[order] == group][:most] for group in sorted(set(of_cells.tolist()) - {""})]
        chosen = np.isin(order, np.concatenate([*kept, np.zeros(0, np.int64)]))
        rows, definition = np.sort(order[chosen]), model.definition
        drawn = DrawnCells.read(opened, rows, definition.layout.slices, definition.layout.num_features)
        place = np.argsort(np.argsort(order[chosen]))  # of each cell in that order, among the ascending rows
        return cls(model, opened, drawn.of(place), rows[place], reading)

    @property
    def measured(self) -> Array:
        """bool [G], genes that the file measures."""
        return self.cells.overlaps["rna"].measured

    def responses(
        self,
        genes: Array,
        *,
        targets: Array | None = None,
        rows: Array | None = None,
        times: float = REMOVED,
        cells_per_gene: int = 100,
        progress: Progress | None = None,
    ) -> Responses:
        """The responses of downstream genes to each perturbed gene, one gene at a time.

        Args:
          genes: int [P], places among the G genes, none twice.
          targets: int [T], places of downstream genes; None: all G.
          rows: int, which of the n cells are looked at; None: all.
          times: what the count is multiplied by; 0 removes the gene, above 1 raises it.
          cells_per_gene: cells that are perturbed of each gene, the first that have it and another gene.
          progress: called with (pairs done, pairs in all).

        Raises `ConfigError` for times that change nothing.
        """
        if times < 0 or times == 1:
            raise ConfigError(
                f"times {times:g}: expected 0, which removes the gene, or a multiple of its count, not 1."
            )
        counts = self.drawn.counts["rna"].tocsc()
        targets = np.arange(counts.shape[1]) if targets is None else np.asarray(targets)
        looked_at = np.zeros(self.drawn.number, bool)
        looked_at[slice(None) if rows is None else rows] = True
        looked_at &= sum(own.getnnz(axis=1) for own in self.drawn.counts.values()) > 1  # or nothing would be left
        pairs, having = [], np.zeros(len(genes), np.int64)
        for number, gene in enumerate(genes):
            own = slice(*counts.indptr[gene : gene + 2])
            order = np.argsort(counts.indices[own], kind="stable")
            cells, values = counts.indices[own][order], counts.data[own][order]
            mine = np.flatnonzero(looked_at[cells])
            having[number] = len(mine)
            mine = mine[:cells_per_gene]
            pairs.append(np.stack([cells[mine], np.full(len(mine), number), values[mine]], axis=1))
        all_pairs = np.concatenate([*pairs, np.zeros((0, 3), np.int64)]).astype(np.int64)
        total = self._total(np.asarray(genes), targets, all_pairs, times, progress)
        number_of = np.bincount(all_pairs[:, 1], minlength=len(genes))
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total.change / total.number
            variance = np.maximum(total.square / total.number - mean**2, 0.0)
            shift = total.shift / number_of
        return Responses(
            mean.astype(np.float32), np.sqrt(variance).astype(np.float32), number_of, having, shift.astype(np.float32)
        )

    def _total(self, genes: Array, targets: Array, pairs: Array, times: float, progress: Progress | None) -> "_Total":
        """Sums over `pairs` int64 [N, 3] of cell, place among `genes`, count."""
        model, first = self.model, self.model.definition.layout.slices["rna"][0]
        table = feature_table(model.definition, model.params, model.constants)
        where = jnp.asarray(self.measured), jnp.asarray(targets, jnp.int32)
        given = model.definition, read_out_of(model), model.params, model.constants, table, *where
        nothing = jnp.zeros((len(genes), len(targets)))
        total = _Total(nothing, nothing.copy(), nothing.copy(), jnp.zeros(len(genes)))
        cells, place = np.unique(pairs[:, 0], return_inverse=True)
        pairs_at_a_time, done = self.reading.batch_size, 0
        for mine, batch in self._batches(cells):
            before = _before(*given, batch)
            row = np.full(len(cells), -1, np.int32)
            row[mine] = np.arange(len(mine))
            here = np.flatnonzero(row[place] >= 0)
            for start in range(0, len(here), pairs_at_a_time):
                some = here[start : start + pairs_at_a_time]
                filled = np.resize(some, pairs_at_a_time)
                _, slots, counts = pairs[filled].T.astype(np.int32)
                features = (genes[slots] + first).astype(np.int32)
                which = _Pairs(row[place[filled]], features, slots, counts, np.arange(len(filled)) < len(some))
                total = _add(*given, times, batch, before, which, total)
                done += len(some)
                if progress is not None:
                    progress(done, len(pairs))
        return jax.tree.map(np.asarray, total)

    def _batches(self, cells: Array) -> Iterator[tuple[Array, CutBatch]]:
        """(places among `cells` int64 [m], batch whose first m rows are those); the longest first."""
        if len(cells):
            batch = self.cells.batch_of(self.drawn.of(cells).chunk(), self.cells.sampling(self.reading.num_tokens), 0)
            yield from self.cells.parts(batch, np.arange(len(cells)), min(_CELLS_AT_A_TIME, len(cells)))


class _Total(NamedTuple):
    """Sums over pairs, float32 [P, T]: changes, their squares, how many say something; [P]: shifts of the embedding."""

    change: Any
    square: Any
    number: Any
    shift: Any


class _Pairs(NamedTuple):
    """Rows of a batch, of the feature table, of the totals, and counts, int32 [N]; real bool [N], or there to fill."""

    cells: Any
    features: Any
    slots: Any
    counts: Any
    real: Any


class _Before(NamedTuple):
    """What a read-out takes changes of: predictions [B, T] or token states [B, S, D]; the cell embedding [B, D]."""

    told: jax.Array
    cell: jax.Array


# Compiled once per definition and batch shape.
@partial(jax.jit, static_argnums=(0, 1))
def _before(
    definition: ModelDefinition,
    read_out: str,
    params: Any,
    constants: Any,
    table: jax.Array,
    measured: jax.Array,
    targets: jax.Array,
    batch: CutBatch,
) -> _Before:
    first = definition.layout.slices["rna"][0]
    return _told(definition.merge(params, constants), read_out, first, table, measured, targets, batch)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=11)
def _add(
    definition: ModelDefinition,
    read_out: str,
    params: Any,
    constants: Any,
    table: jax.Array,
    measured: jax.Array,
    targets: jax.Array,
    times: jax.Array,
    batch: CutBatch,
    before: _Before,
    pairs: _Pairs,
    total: _Total,
) -> _Total:
    model, first = definition.merge(params, constants), definition.layout.slices["rna"][0]
    own = jax.tree.map(lambda x: x[pairs.cells], batch)
    perturbed, place = _perturbed(model, own, pairs.features, pairs.counts, times)
    after = _told(model, read_out, first, table, measured, targets, perturbed)
    told, cell = before.told[pairs.cells], before.cell[pairs.cells]
    if read_out == STATES:
        # Tokens behind one that is gone have moved up.
        old = jnp.arange(told.shape[1])[None]
        old = jnp.minimum(old + (old >= place[:, None]), told.shape[1] - 1)
        told = jnp.take_along_axis(told, old[..., None], axis=1)
        tokens = pack_tokens(perturbed)
        of_token = 1.0 - jnp.sum(told * after.told, axis=2)  # [N, S]
        column = jnp.full(table.shape[0], len(targets)).at[first + targets].set(jnp.arange(len(targets)))
        column = jnp.where(tokens.valid, column[tokens.feature_ids], len(targets))
        at = jnp.arange(len(column))[:, None], column
        nothing = jnp.zeros((len(column), len(targets)))
        change = nothing.at[at].add(of_token, mode="drop")
        says = nothing.at[at].add(1.0, mode="drop")
    else:
        change = after.told - told
        says = jnp.ones_like(change)
    real = pairs.real.astype(jnp.float32)
    shift = 1.0 - jnp.sum(_unit(cell) * _unit(after.cell), axis=1)
    return _Total(
        total.change.at[pairs.slots].add(change * real[:, None]),
        total.square.at[pairs.slots].add(change * change * real[:, None]),
        total.number.at[pairs.slots].add(says * real[:, None]),
        total.shift.at[pairs.slots].add(shift * real),
    )


def _perturbed(
    model: Model, batch: CutBatch, features: jax.Array, counts: jax.Array, times: jax.Array
) -> tuple[CutBatch, jax.Array]:
    """The cells with their counts of features int32 [B] times that, and where a token is gone int32 [B] (or the width).

    `counts` int32 [B], the cells' own of these features: of a cell with more features than tokens it may be no token.
    """
    tokens = batch.modalities["rna"]
    width = tokens.feature_ids.shape[1]
    column = jnp.arange(width)[None]  # [1, L]
    is_it = (tokens.feature_ids == features[:, None]) & (column < tokens.lengths[:, None])
    changed = jnp.round(counts * times)
    gone = is_it.any(axis=1) & (changed == 0)
    place = jnp.where(gone, jnp.argmax(is_it, axis=1), width)
    source = jnp.minimum(column + (column >= place[:, None]), width - 1)
    lengths = tokens.lengths - gone
    real = column < lengths[:, None]
    new_counts = jnp.where(is_it, changed[:, None].astype(jnp.int32), tokens.counts)
    own = tokens._replace(
        feature_ids=jnp.where(real, jnp.take_along_axis(tokens.feature_ids, source, axis=1), 0),
        counts=jnp.where(real, jnp.take_along_axis(new_counts, source, axis=1), 0),
        lengths=lengths,
        num_expressed=tokens.num_expressed - (changed == 0),
    )
    scores = batch.scores
    if scores is not None and "rna" in scores:
        typical = jnp.take(model.linear.scale[...][:, 1], features)

        def value(count: jax.Array) -> jax.Array:
            return linear_values("rna", count, tokens.library_size, tokens.mean_log_count, typical, jnp)

        moved = value(changed) - value(counts.astype(jnp.float32))
        scores = {
            **scores,
            "rna": scores["rna"] + moved[:, None] * jnp.take(model.linear.loadings[...], features, axis=0),
        }
    return replace(batch, modalities={**batch.modalities, "rna": own}, scores=scores), place


def _told(
    model: Model,
    read_out: str,
    first: int,
    table: jax.Array,
    measured: jax.Array,
    targets: jax.Array,
    batch: CutBatch,
) -> _Before:
    """`first`: row of the table that is gene 0."""
    tokens = pack_tokens(batch)
    states = model.encode(table, tokens, covariates=batch.covariates, cell_only=read_out != STATES)
    cell = states[:, 0].astype(jnp.float32)
    if read_out == PROFILE:
        head = model.profile_head
        likelihood = head.likelihoods["rna"]
        outputs, log_dispersion = head.outputs("rna", cell, batch.covariates)
        outputs = likelihood.of_cell(outputs, jnp.broadcast_to(measured, outputs.shape[:2]))
        counts = likelihood.expected_counts(outputs[:, targets], log_dispersion[targets])
        return _Before(jnp.log1p(counts), cell)
    if read_out == CELL:
        return _Before(_of_cell_decoder(model, table, first + targets, cell, batch), cell)
    of_tokens = _unit(states[:, 1:].astype(jnp.float32))
    whole = model.gene_head(states, tokens) if model.gene_head is not None else cell
    return _Before(of_tokens, whole)


def _of_cell_decoder(
    model: Model, table: jax.Array, features: jax.Array, cell: jax.Array, batch: CutBatch
) -> jax.Array:
    """float32 [B, T] of rows `features` int32 [T] of the table: log1p of expected counts.

    Some features after others: what bounds memory.
    """
    (number,) = features.shape
    width = min(number, _TARGETS_AT_A_TIME)
    parts = jnp.resize(features, (-(-number // width), width))

    def counts(ids: jax.Array) -> jax.Array:  # [M] -> [B, M]
        vectors = model.cell_decoder(cell, table[ids][None])  # [B, M, D]
        each = jnp.broadcast_to(ids, vectors.shape[:2])
        outputs, log_dispersion = model.cell_head("rna", vectors, each, batch.covariates)
        return model.cell_head.likelihoods["rna"].expected_counts(outputs, log_dispersion)

    found = jnp.moveaxis(jax.lax.map(counts, parts), 0, 1).reshape(len(cell), -1)  # [B, C, M]
    return jnp.log1p(found[:, :number])


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
