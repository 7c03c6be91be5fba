"""What the tokens of a run say of each feature by itself: where a model starts, so that no step is spent on means.

A model without any encoder can know each feature's share of the counts, its spread and how often it is seen. Training
starts from exactly that (the marginal model), and its loss at step 0 is the baseline that the encoder has to beat. The
statistics are of tokens, not of cells: zeros are sampled, so a token of a feature is above zero more often than a cell.
"""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from scipy.special import gammaln

from scmbert_jax.batch import CellBatch, FeatureLayout, FeatureStatistics
from scmbert_jax.errors import InputError

MAX_TOKENS = 1_000_000
# log of the negative binomial's inverse dispersion: the values among which the likelihood of the tokens chooses.
_LOG_DISPERSIONS = np.linspace(-3.0, 5.0, 17)


def feature_statistics(
    batches: Iterable[CellBatch],
    layout: FeatureLayout,
    target_sums: Mapping[str, float],
    max_tokens: int = MAX_TOKENS,
) -> FeatureStatistics:
    """Statistics over the tokens of `batches`, as many as make up `max_tokens`; a pure function of them.

    A feature without a token gets half a count of share, half a token of detection, and the median of the others'
    dispersion, mean and spread.

    Args:
      batches: in any number; read until `max_tokens` are seen.
      layout: of the features.
      target_sums: modality -> the library size that values are scaled to (`ModalityConfig.target_sum`).
    """
    ids, counts, libraries = _tokens(batches, max_tokens)
    rows = layout.num_features

    def sum_by_feature(values: np.ndarray) -> np.ndarray:
        return np.bincount(ids, values, minlength=rows)

    tokens = sum_by_feature(np.ones(len(ids)))
    share = (sum_by_feature(counts) + 0.5) / (sum_by_feature(libraries) + max(libraries.mean(), 1.0))
    share = np.minimum(share, 0.5)
    mean = np.maximum(libraries * share[ids], 1e-8)
    nll = np.stack([sum_by_feature(_nll(counts, mean, np.exp(value))) for value in _LOG_DISPERSIONS])
    log_dispersion = _LOG_DISPERSIONS[nll.argmin(0)]
    seen = tokens > 0
    target = np.ones(rows)
    for name, (first, stop) in layout.slices.items():
        target[first:stop] = target_sums.get(name, 1.0)
    value = np.log1p(counts / np.maximum(libraries, 1.0) * target[ids])
    value_mean = sum_by_feature(value) / np.maximum(tokens, 1.0)
    # Two tokens of the average spread are added, so that a feature seen once or twice is not blown up.
    spread = np.var(value - value_mean[ids])
    value_std = np.sqrt((sum_by_feature((value - value_mean[ids]) ** 2) + 2 * spread) / (tokens + 2.0) + 1e-4)
    for of_feature in (log_dispersion, value_mean, value_std):
        of_feature[~seen] = np.median(of_feature[seen])
    return FeatureStatistics(
        share=share.astype(np.float32),
        log_dispersion=log_dispersion.astype(np.float32),
        detection=((sum_by_feature(counts > 0) + 0.5) / (tokens + 1.0)).astype(np.float32),
        value_mean=value_mean.astype(np.float32),
        value_std=value_std.astype(np.float32),
    )


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
    if any(array.shape != (num_features,) for array in statistics):
        raise InputError(f"{path}: is of {len(statistics.share)} features, expected {num_features}; files were mixed.")
    return statistics


def _tokens(batches: Iterable[CellBatch], max_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Feature ids int64, counts and libraries float64 of all real tokens, [n] each."""
    ids, counts, libraries, number = [], [], [], 0
    for batch in batches:
        for tokens in batch.modalities.values():
            real = np.arange(tokens.feature_ids.shape[1]) < tokens.lengths[:, None]
            ids.append(tokens.feature_ids[real].astype(np.int64))
            counts.append(tokens.counts[real].astype(np.float64))
            libraries.append(np.repeat(tokens.library_size.astype(np.float64), tokens.lengths))
            number += len(ids[-1])
        if number >= max_tokens:
            break
    return np.concatenate(ids), np.concatenate(counts), np.concatenate(libraries)


def _nll(counts: np.ndarray, mean: np.ndarray, theta: float) -> np.ndarray:
    """-log NB(counts; mean, theta) without the terms that do not depend on theta."""
    total = np.log(theta + mean)
    return gammaln(theta) - gammaln(counts + theta) - theta * np.log(theta) + (theta + counts) * total
