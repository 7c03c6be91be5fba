"""What a run's first tokens say of each feature by itself: where a model starts, so that no step is spent on means.

A model without any encoder can know each feature's share of the counts, its spread and how often it is seen. Training
starts from exactly that (the marginal model), and its loss at step 0 is the baseline that the encoder has to beat.

There are two marginal models. Masked modelling predicts *tokens*, among which zeros are fewer than in the cells because
they are sampled. Translation predicts *cells*: there a token stands for all those features that were not drawn with it,
which is its weight here (`cell_weights`).
"""

import zipfile
from collections.abc import Iterable, Mapping
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.special import gammaln

from data_pipelines.linear_maps import Scores, alignment_maps, memory_of_pairs, translation_maps
from data_pipelines.principal_components import principal_components
from scmbert_jax.batch import (
    LIBRARY_QUANTILES,
    MODALITIES,
    NUM_COMPONENTS,
    CellBatch,
    FeatureLayout,
    FeatureStatistics,
    ModalityTokens,
    fold_of,
)
from scmbert_jax.errors import InputError
from scmbert_jax.value_scales import linear_values

MAX_TOKENS = 1_000_000
# log of the negative binomial's inverse dispersion: the values among which the likelihood of the tokens chooses.
_LOG_DISPERSIONS = np.linspace(-3.0, 5.0, 17)


class _Tokens(NamedTuple):
    """All real tokens of some batches, [n] each; float64 but for the ids and the cells they are of."""

    ids: np.ndarray
    counts: np.ndarray
    libraries: np.ndarray
    mean_log_counts: np.ndarray
    weights: np.ndarray
    cells: np.ndarray
    folds: np.ndarray
    technical_batches: np.ndarray
    num_measured: np.ndarray


def feature_statistics(
    batches: Iterable[CellBatch],
    layout: FeatureLayout,
    target_sums: Mapping[str, float],
    whole_cells: Iterable[CellBatch] | None = None,
    max_tokens: int = MAX_TOKENS,
) -> FeatureStatistics:
    """Statistics over the tokens of `batches` and `whole_cells`; a pure function of them.

    A feature without a token gets half a count of share, half a token of detection, and the median of the others'
    dispersion, centre and spread.

    Args:
      batches: as in training, in any number, read until `max_tokens` are seen: statistics of tokens.
      whole_cells: the same with more tokens of each cell, read until four times `max_tokens` are seen: statistics of
        cells and components, which the choice of tokens would only blur. A cell that comes again is left out. None:
        `batches`.
      layout: of the features.
      target_sums: modality -> the library size that values are scaled to (`ModalityConfig.target_sum`).
    """
    tokens, libraries = _read(batches, max_tokens)
    rows = layout.num_features
    of_tokens = _marginal(tokens, np.ones(len(tokens.ids)), rows)
    _fill_unseen(of_tokens[1:2], tokens, rows)
    if whole_cells is not None:
        tokens, libraries = _read(map(_without_seen, whole_cells, repeat(set())), 4 * max_tokens)
    ids = tokens.ids
    target, median_library = np.ones(rows), np.ones(rows)
    for name, (first, stop) in layout.slices.items():
        target[first:stop] = target_sums.get(name, 1.0)
        median_library[first:stop] = libraries[MODALITIES.index(name), len(LIBRARY_QUANTILES) // 2]
    in_components = tokens.weights
    tokens = tokens._replace(weights=_calibrated_weights(tokens, layout))
    of_cells = _marginal(tokens, tokens.weights, rows)
    relative = tokens.counts / np.maximum(tokens.libraries, 1.0)
    value = _moments(np.log1p(relative * target[ids]), tokens, rows)
    log1p = _moments(np.log1p(relative * median_library[ids]), tokens, rows)
    clr = _moments(np.log1p(tokens.counts * np.exp(-tokens.mean_log_counts)), tokens, rows)
    # The usual value of a feature that most cells lack is zero. Its mean would be no better a centre: the zeros that
    # are shown are a sample, and each would carry a little noise into the cell.
    centre = np.where(of_cells[2] >= 0.5, value[0], 0.0)
    in_linear = _linear_values(tokens, layout, median_library, of_cells[2])
    linear_mean, linear_std = _moments(in_linear, tokens, rows)
    # Here the same is asked of the modality: without centres, cells whose expressed features are all shown have exact
    # scores whatever zeros were drawn; with them, antibodies, seen in almost every cell, can be drawn too.
    linear_centre = np.zeros(rows)
    for first, stop in layout.slices.values():
        if of_cells[2][first:stop].mean() >= 0.5:
            linear_centre[first:stop] = linear_mean[first:stop]
    _fill_unseen((of_cells[1], centre, value[1], *log1p, *clr, linear_centre, linear_std), tokens, rows)
    columns = (*of_tokens, *of_cells, centre, value[1], *log1p, *clr, linear_centre, linear_std)
    tokens = tokens._replace(weights=in_components)
    loadings, offset, scores = _components(in_linear - linear_centre[ids], tokens, layout)
    maps = translation_maps(scores)
    memory = memory_of_pairs(scores, maps)
    named = zip(FeatureStatistics._fields, columns, strict=False)
    return FeatureStatistics(
        **{name: column.astype(np.float32) for name, column in named},
        loadings=loadings,
        component_offset=offset,
        translation_maps=maps,
        alignment_maps=alignment_maps(scores),
        memory_scores=memory.scores,
        memory_measured=memory.measured,
        memory_folds=memory.folds,
        neighbour_shares=memory.shares,
        library_quantiles=libraries,
    )


def cell_weights(tokens: ModalityTokens) -> np.ndarray:
    """float64 [B, L]: how many of its cell's features each token stands for; 0 for padding.

    Expressed features that are shown stand for all expressed ones, shown zeros for all measured zeros; they add up to
    the measured features of the cell.
    """
    real = np.arange(tokens.feature_ids.shape[1]) < tokens.lengths[:, None]
    expressed = real & (tokens.counts > 0)
    shown_expressed, shown = expressed.sum(1), real.sum(1)
    of_expressed = tokens.num_expressed / np.maximum(shown_expressed, 1)
    of_zeros = (tokens.num_measured - tokens.num_expressed) / np.maximum(shown - shown_expressed, 1)
    return np.where(expressed, of_expressed[:, None], np.where(real, of_zeros[:, None], 0.0))


def save_statistics(statistics: FeatureStatistics, path: Path) -> None:
    """Writes an .npz."""
    np.savez_compressed(path, **statistics._asdict())


def load_statistics(path: Path, num_features: int) -> FeatureStatistics:
    """Raises `InputError` when the file is missing, damaged or of another number of features."""
    try:
        with np.load(path) as arrays:
            statistics = FeatureStatistics(**{name: arrays[name] for name in FeatureStatistics._fields})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path}: cannot be read as feature statistics ({error}); make its folder again.") from error
    of_features = statistics[: FeatureStatistics._fields.index("loadings") + 1]
    if any(len(array) != num_features for array in of_features):
        raise InputError(f"{path}: is of {len(statistics.share)} features, expected {num_features}; files were mixed.")
    return statistics


def _read(batches: Iterable[CellBatch], max_tokens: int) -> tuple[_Tokens, np.ndarray]:
    """The tokens, and the quantiles of library sizes of the cells that measured each modality."""
    parts: list[tuple[np.ndarray, ...]] = []
    libraries: dict[str, list[np.ndarray]] = {}
    number = number_of_cells = 0
    for batch in batches:
        technical_batches = batch.covariates.get("technical_batch", np.zeros(len(batch.row), np.int64))
        for name, tokens in batch.modalities.items():
            real = np.arange(tokens.feature_ids.shape[1]) < tokens.lengths[:, None]
            of_cell = (
                np.repeat(x.astype(np.float64), tokens.lengths) for x in (tokens.library_size, tokens.mean_log_count)
            )
            parts.append(
                (
                    tokens.feature_ids[real].astype(np.int64),
                    tokens.counts[real].astype(np.float64),
                    *of_cell,
                    cell_weights(tokens)[real],
                    np.repeat(number_of_cells + np.arange(len(tokens.lengths)), tokens.lengths),
                    np.repeat(fold_of(batch.cell_index), tokens.lengths),
                    np.repeat(technical_batches, tokens.lengths),
                    np.repeat(tokens.num_measured, tokens.lengths),
                )
            )
            libraries.setdefault(name, []).append(tokens.library_size[tokens.measured])
            number += len(parts[-1][0])
        number_of_cells += len(batch.row)
        if number >= max_tokens:
            break
    quantiles = np.ones((len(MODALITIES), len(LIBRARY_QUANTILES)), np.float32)
    for name, found in libraries.items():
        sizes = np.concatenate(found)
        if len(sizes):
            quantiles[MODALITIES.index(name)] = np.maximum(np.quantile(sizes, LIBRARY_QUANTILES), 1.0)
    return _Tokens(*(np.concatenate(column) for column in zip(*parts, strict=True))), quantiles


def _calibrated_weights(tokens: _Tokens, layout: FeatureLayout) -> np.ndarray:
    """`tokens.weights`, those of zeros scaled such that each feature's tokens stand for as many cells as measured it.

    How often a zero of a feature was drawn is chance, and a mean of a few hundred cells would carry it. What is known
    is how many cells measured a feature, where a cell measured all features of its modality; other cells keep theirs.
    """
    weights = tokens.weights.copy()
    for first, stop in layout.slices.values():
        whole = (tokens.ids >= first) & (tokens.ids < stop) & (tokens.num_measured == stop - first)
        number = len(np.unique(tokens.cells[whole]))
        expressed, zero = whole & (tokens.counts > 0), whole & (tokens.counts == 0)
        rows = layout.num_features
        of_expressed = np.bincount(tokens.ids[expressed], weights[expressed], minlength=rows)
        of_zeros = np.bincount(tokens.ids[zero], weights[zero], minlength=rows)
        scale = np.maximum(number - of_expressed, 0.0) / np.maximum(of_zeros, 1e-8)
        weights[zero] *= scale[tokens.ids[zero]]
    return weights


def _without_seen(batch: CellBatch, seen: set[int]) -> CellBatch:
    """`batch` with nothing of the cells in `seen`, to which its cells are added."""
    again = np.isin(batch.cell_index, list(seen))
    seen.update(batch.cell_index.tolist())
    modalities = {
        name: tokens._replace(lengths=np.where(again, 0, tokens.lengths), measured=tokens.measured & ~again)
        for name, tokens in batch.modalities.items()
    }
    return batch._replace(modalities=modalities)


def _linear_values(
    tokens: _Tokens, layout: FeatureLayout, median_library: np.ndarray, detection: np.ndarray
) -> np.ndarray:
    """`linear_values` of every token, float64 [n]."""
    values = np.zeros(len(tokens.ids))
    for name, (first, stop) in layout.slices.items():
        mine = (tokens.ids >= first) & (tokens.ids < stop)
        typical = (median_library if name == "rna" else detection)[tokens.ids[mine]]
        of_tokens = (tokens.counts[mine], tokens.libraries[mine], tokens.mean_log_counts[mine])
        values[mine] = linear_values(name, *of_tokens, typical, np)
    return values


def _components(
    values: np.ndarray, tokens: _Tokens, layout: FeatureLayout
) -> tuple[np.ndarray, np.ndarray, dict[str, Scores]]:
    """Loadings float32 [F, K], mean scores float32 [modalities, K] and each modality's scores, of token values [n]."""
    loadings = np.zeros((layout.num_features, NUM_COMPONENTS), np.float32)
    offset = np.zeros((len(MODALITIES), NUM_COMPONENTS), np.float32)
    scores: dict[str, Scores] = {}
    for name, (first, stop) in layout.slices.items():
        mine = (tokens.ids >= first) & (tokens.ids < stop)
        cells, firsts, rows = np.unique(tokens.cells[mine], return_index=True, return_inverse=True)
        # Tokens that were drawn of more features stand for those; features that were not drawn have their usual value.
        data = values[mine] * tokens.weights[mine]
        matrix = sp.csr_matrix((data, (rows, tokens.ids[mine] - first)), shape=(len(cells), stop - first))
        place = MODALITIES.index(name)
        loadings[first:stop], offset[place] = principal_components(matrix)
        own_scores = matrix @ loadings[first:stop] - offset[place]
        scores[name] = Scores(cells, own_scores, tokens.folds[mine][firsts], tokens.technical_batches[mine][firsts])
    return loadings, offset, scores


def _marginal(tokens: _Tokens, weights: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share, log dispersion and detection of each feature, [rows] each, over weighted tokens."""

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(tokens.ids, weights * values, minlength=rows)

    number = sums(np.ones(len(weights)))
    libraries = tokens.libraries
    share = (sums(tokens.counts) + 0.5) / (sums(libraries) + max(libraries.mean(), 1.0))
    share = np.minimum(share, 0.5)
    mean = np.maximum(libraries * share[tokens.ids], 1e-8)
    nll = np.stack([sums(_nll(tokens.counts, mean, np.exp(value))) for value in _LOG_DISPERSIONS])
    detection = (sums(tokens.counts > 0) + 0.5) / (number + 1.0)
    return share, _LOG_DISPERSIONS[nll.argmin(0)], detection


def _fill_unseen(columns: Iterable[np.ndarray], tokens: _Tokens, rows: int) -> None:
    """Gives features without a token the median of the others, in place."""
    seen = np.bincount(tokens.ids, minlength=rows) > 0
    for column in columns:
        column[~seen] = np.median(column[seen])


def _moments(values: np.ndarray, tokens: _Tokens, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of each feature's values over the cells, [rows] each."""

    def sums(of_token: np.ndarray) -> np.ndarray:
        return np.bincount(tokens.ids, tokens.weights * of_token, minlength=rows)

    number = sums(np.ones(len(values)))
    mean = sums(values) / np.maximum(number, 1e-8)
    squares = (values - mean[tokens.ids]) ** 2
    # Two tokens of the average spread are added, so that a feature seen once or twice is not blown up.
    average = np.average(squares, weights=tokens.weights) if tokens.weights.any() else 1.0
    return mean, np.sqrt((sums(squares) + 2 * average) / (number + 2.0) + 1e-4)


def _nll(counts: np.ndarray, mean: np.ndarray, theta: float) -> np.ndarray:
    """-log NB(counts; mean, theta) without the terms that do not depend on theta."""
    total = np.log(theta + mean)
    return gammaln(theta) - gammaln(counts + theta) - theta * np.log(theta) + (theta + counts) * total
