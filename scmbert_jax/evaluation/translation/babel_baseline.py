"""The BABEL-type network as a baseline of the translation suite: inputs from counts, training, prediction."""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from scmbert_jax.evaluation.data.value_scale import median_library_size
from scmbert_jax.evaluation.translation import babel
from scmbert_jax.evaluation.translation.babel import BabelSettings, CountsSide, PeaksSide, Side
from scmbert_jax.evaluation.translation.fold import TranslationFold

Array = np.ndarray

MIN_CELLS_OPEN = 5
MAX_SHARE_OPEN = 0.1
_TAIL = 0.005  # of the log1p values, clipped at either end
_PREDICTED_AT_A_TIME = 256


@dataclass(frozen=True)
class BabelBaseline:
    """Trained on the fold's pairs; the seed draws weights, validation cells and batches."""

    settings: BabelSettings = field(default_factory=BabelSettings)
    name: str = "BABEL-type network"
    uses: str = "pairs"
    num_trained: int = 0

    def predict(self, fold: TranslationFold, seed: int) -> Array:
        """float32 [m, F]. Peaks that the filter leaves out get the training mean."""
        prepared = {
            fold.source: _prepare(fold.source, fold.train_source, fold.source_features.chrom),
            fold.target: _prepare(fold.target, fold.train_target, fold.target_features.chrom),
        }
        params = _train(prepared, self.settings, seed)
        source, target = prepared[fold.source], prepared[fold.target]
        predicted = np.tile(fold.train_mean, (fold.num_test, 1))
        columns = target.columns
        for start in range(0, fold.num_test, _PREDICTED_AT_A_TIME):
            rows = slice(start, start + _PREDICTED_AT_A_TIME)
            latent = babel.encode(params[fold.source]["encoder"], source.side, source.inputs(fold.test_source[rows]))
            output, dispersion = babel.decode(params[fold.target]["decoder"], target.side, latent)
            predicted[rows, columns] = np.asarray(_values(fold, target, output, dispersion))
        return predicted


class _Prepared(NamedTuple):
    """One modality: what the network sees of it.

    Attributes:
      columns: the features taken, in the network's order: a slice, or int64 of the kept peaks by chromosome.
      counts: CSR [n, taken], raw, or 0/1 for peaks.
      median: library size of size factor 1 (counts).
      low, high, mean, spread: float [taken], of the log1p inputs (counts).
    """

    side: Side
    columns: slice | Array
    counts: sp.csr_matrix
    median: float
    low: Array
    high: Array
    mean: Array
    spread: Array

    def taken(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        part = counts[:, self.columns]
        return sp.csr_matrix(part > 0) if isinstance(self.side, PeaksSide) else part

    def inputs(self, counts: sp.csr_matrix) -> jax.Array:
        """float32 [B, taken] of raw counts [B, F]."""
        part = self.taken(counts).toarray().astype(np.float32)
        if isinstance(self.side, PeaksSide):
            return jnp.asarray(part)
        values = np.clip(np.log1p(part / self.sizes(counts)[:, None]), self.low, self.high)
        return jnp.asarray((values - self.mean) / self.spread)

    def sizes(self, counts: sp.csr_matrix) -> Array:
        """float32 [B] size factors: library size over the training median; 1 for peaks."""
        totals = np.asarray(counts.sum(1), np.float32).ravel()
        if isinstance(self.side, PeaksSide):
            return np.ones_like(totals)
        return np.maximum(totals, 1) / np.float32(self.median)


def _prepare(modality: str, counts: sp.csr_matrix, chrom: Array) -> _Prepared:
    nothing = np.zeros(0, np.float32)
    if modality == "atac":
        number = np.asarray((counts > 0).sum(0)).ravel()
        kept = np.flatnonzero((number >= MIN_CELLS_OPEN) & (number <= MAX_SHARE_OPEN * counts.shape[0]))
        if kept.size == 0:  # a tiny or very dense data set
            kept = np.flatnonzero(number > 0)
        kept = kept[np.argsort(chrom[kept], kind="stable")]
        _, blocks = np.unique(chrom[kept], return_counts=True)
        fraction = (number[kept] + 0.5) / (counts.shape[0] + 1)
        side: Side = PeaksSide(tuple(blocks.tolist()), tuple(np.log(fraction / (1 - fraction)).tolist()))
        return _Prepared(side, kept, counts, 1.0, nothing, nothing, nothing, nothing)
    median = median_library_size(counts)
    totals = np.maximum(np.asarray(counts.sum(1), np.float32).ravel(), 1)
    scaled = np.asarray((sp.diags(median / totals) @ counts).toarray(), np.float32)
    means = np.log(np.maximum(scaled.mean(0), 1e-4))
    values = np.log1p(scaled)
    low, high = np.quantile(values, [_TAIL, 1 - _TAIL], axis=0).astype(np.float32)
    high = np.where(high > low, high, values.max(0))  # a gene seen in fewer than 0.5% of cells keeps its values
    values = np.clip(values, low, high)
    spread = values.std(0)
    side = CountsSide(tuple(means.tolist()))
    return _Prepared(side, slice(None), counts, median, low, high, values.mean(0), np.where(spread > 0, spread, 1))


def _train(prepared: dict[str, _Prepared], settings: BabelSettings, seed: int) -> babel.Params:
    """The parameters with the smallest validation loss."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(next(iter(prepared.values())).counts.shape[0])
    num_validation = max(1, round(settings.validation_fraction * len(order)))
    validation, train = order[:num_validation], order[num_validation:]
    sides = tuple((name, part.side) for name, part in prepared.items())
    batch_size = min(settings.batch_size, len(train))

    def arrays(rows: Array) -> tuple[dict, dict, dict]:
        counts = {name: part.counts[rows] for name, part in prepared.items()}
        inputs = {name: part.inputs(counts[name]) for name, part in prepared.items()}
        targets = {name: part.taken(counts[name]).toarray().astype(np.float32) for name, part in prepared.items()}
        return inputs, targets, {name: part.sizes(counts[name]) for name, part in prepared.items()}

    params = babel.init_params(dict(sides), settings, jax.random.key(seed))
    opt_state = babel.optimizer(settings).init(params)
    held_back = [arrays(rows) for rows in np.array_split(validation, max(1, len(validation) // settings.batch_size))]
    best, best_loss, waited = params, np.inf, 0
    for _ in range(settings.max_epochs):
        shuffled = rng.permutation(train)
        for start in range(0, len(shuffled) - batch_size + 1, batch_size):
            batch = arrays(shuffled[start : start + batch_size])
            params, opt_state, _ = babel.train_step(params, opt_state, sides, settings, *batch)
        found = float(np.mean([babel.validation_loss(params, sides, settings, *part) for part in held_back]))
        waited += 1
        if found < best_loss:
            # The step donates its parameters: the best ones are kept as copies.
            best, best_loss, waited = jax.tree.map(jnp.copy, params), found, 0
        if waited >= settings.patience or not np.isfinite(found):
            break
    return best


def _values(
    fold: TranslationFold, target: _Prepared, output: jax.Array, dispersion: jax.Array | None
) -> jax.Array | Array:
    """Decoder outputs in the units of the fold's scale."""
    if dispersion is None:
        return jax.nn.sigmoid(output)
    if fold.target == "rna":
        log_mean = output + float(np.log(float(fold.scale.target_sum or 1.0) / target.median))
        return babel.expected_log1p(log_mean, dispersion, jnp.ones(()))
    # CLR of a cell of median depth: the divisor is exp of the mean expected log1p count.
    divisor = jnp.exp(babel.expected_log1p(output, dispersion, jnp.ones(())).mean(1, keepdims=True))
    return babel.expected_log1p(output, dispersion, divisor)
