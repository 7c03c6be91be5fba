"""What a model must know of a feature space: its rows, its links, and what cells say of them."""

import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy on the host, jax.Array on the device

# The library sizes of a modality over the cells of a run, as nine quantiles: expected values of a cell whose own depth
# is not known are averages over them.
LIBRARY_QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


# Principal components per modality of the linear path.
NUM_COMPONENTS = 64

# Of the cells in its memory, a translation looks at so many nearest ones, by so many components of the source: what
# erred least on cells left out of the training pairs of pbmc_mosaic, both ways (experiments/README.md).
NUM_NEIGHBOURS = 8
NEIGHBOUR_COMPONENTS = 20

# Parts of the cells, each of which has a translation map that has not seen it.
NUM_FOLDS = 5


def fold_of(cell_index: Array) -> Array:
    """int32 [B] in 1 .. `NUM_FOLDS`, of numpy or jax arrays int32 [B]: a hash, so that no order of the cells shows."""
    mixed = (cell_index.astype("uint32") * np.uint32(2654435761)) >> np.uint32(16)
    return (mixed % np.uint32(NUM_FOLDS)).astype("int32") + 1


class LinearStatistics(NamedTuple):
    """What the linear path starts from (models/linear_path.py): components of each modality, and maps between them.

    Attributes:
      loadings: float32 [F, K], principal components of each modality's linear values, over whole cells.
      component_offset: float32 [modalities, K], scores of a cell of nothing but means, values counted from the
        centres, by `MODALITIES`.
      translation_maps: float32 [1 + folds, modalities, modalities, K, K], scores of a source to scores of a target; of
        all pairs, then of all but those of each fold (`fold_of`).
      alignment_maps: float32 [modalities, K, K], scores to axes on which modalities correlate; of pairs.
      memory_scores: float32 [n, modalities, K], scores of some paired cells; 0 where one lacks the modality.
      memory_measured: bool [n, modalities].
      memory_folds: int32 [n] (`fold_of`).
      neighbour_fractions: float32 [modalities, modalities], how much of a translation the nearest of those cells say,
        and not the maps.
    """

    loadings: np.ndarray
    component_offset: np.ndarray
    translation_maps: np.ndarray
    alignment_maps: np.ndarray
    memory_scores: np.ndarray
    memory_measured: np.ndarray
    memory_folds: np.ndarray
    neighbour_fractions: np.ndarray


class FeatureStatistics(NamedTuple):
    """What each feature is like by itself; row i is row i of the feature table. float32 [F] unless said.

    Attributes:
      fraction: its fraction of a cell's counts of its modality, among tokens (of which zeros are a sample).
      log_dispersion: log of the negative binomial's inverse dispersion theta, among tokens.
      detection: fraction of its tokens with a count above 0.
      cell_fraction, cell_log_dispersion, cell_detection: the same among cells.
      value_centre: its usual log1p(count / library_size * target_sum): the mean over cells, 0 where most cells lack it.
      value_std: the standard deviation of that over cells.
      log1p_mean, log1p_std: over cells, of log1p(count / library_size * median library size of the modality).
      clr_mean, clr_std: over cells, of log1p(count / g), g = exp(mean over the measured features of log1p(count)).
      linear_mean, linear_std: over cells, of `linear_values`.
      linear_centre: what a token's value is compared with: `linear_mean`, or 0 in modalities of mostly zeros.
      library_quantiles: float32 [modalities, quantiles], library sizes at `LIBRARY_QUANTILES`, by `MODALITIES`.
      linear: of several features and cells together; None where the model has no linear path.
    """

    fraction: np.ndarray
    log_dispersion: np.ndarray
    detection: np.ndarray
    cell_fraction: np.ndarray
    cell_log_dispersion: np.ndarray
    cell_detection: np.ndarray
    value_centre: np.ndarray
    value_std: np.ndarray
    log1p_mean: np.ndarray
    log1p_std: np.ndarray
    clr_mean: np.ndarray
    clr_std: np.ndarray
    linear_mean: np.ndarray
    linear_std: np.ndarray
    linear_centre: np.ndarray
    library_quantiles: np.ndarray
    linear: LinearStatistics | None = None


# What an edge of a network says: a regulator regulates a gene, a region lies near a gene, a gene codes for a protein.
EDGE_KINDS = ("regulates", "near", "codes")


def digest_of(vectors: np.ndarray | None) -> str | None:
    """SHA-256, hex, of an array; None for none."""
    return None if vectors is None else hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest()


class NetworkEdges(NamedTuple):
    """E directed edges between rows of a feature table; no two have the same source, target and kind.

    Attributes:
      source, target: int32 [E], rows of the feature table.
      kind: int8 [E], index into `EDGE_KINDS`.
      sign: int8 [E]; 1: activates, -1: represses, 0: unknown.
      confidence: float32 [E], above 0, at most 1.
      part: int8 [E]; 0: trains, 1: validation, 2: test, -1: none of these. Only those that train pass messages.
    """

    source: np.ndarray
    target: np.ndarray
    kind: np.ndarray
    sign: np.ndarray
    confidence: np.ndarray
    part: np.ndarray

    @property
    def digest(self) -> str:
        """SHA-256, hex."""
        digest = hashlib.sha256()
        for own in self:
            digest.update(np.ascontiguousarray(own).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class FeatureLayout:
    """What the model must know of a feature space: how many rows, which rows are whose, which are linked.

    Attributes:
      slices: modality -> (first row, one past the last row) of the feature table.
      links: modality -> (int32 [E] rows of that modality, int32 [E] linked gene rows); protein -> coding genes,
        region -> genes near it. Only links whose two ends are in the space.
      covariate_sizes: covariate name -> number of categories (codes 0 .. n-1).
      statistics: where the output biases of a new model start; None: at equal fractions.
      start_rows: float32 [F, D], where the rows of the table of a new model start (`ModelConfig.feature_embeddings`);
        nan, or None: at random.
      region_vectors: float32 [M, W], embeddings of the rows of `slices["atac"]` (`ModelConfig.region_embeddings`); nan
        where a region has none; None: without.
      network: the edges of `ModelConfig.networks`, and those of `links`; None: without networks.
      messages: what rows hear along (`ModelConfig.graph`): those of `network` that train, or the same shuffled, without
        what is held out and its reverse; None: rows hear nothing.
      negatives: int32 [M, 2], rows of pairs that are no edge, for `link_prediction`.
    """

    slices: dict[str, tuple[int, int]]
    links: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    covariate_sizes: dict[str, int] = field(default_factory=dict)
    statistics: FeatureStatistics | None = None
    start_rows: np.ndarray | None = None
    region_vectors: np.ndarray | None = None
    network: NetworkEdges | None = None
    messages: NetworkEdges | None = None
    negatives: np.ndarray | None = None

    @property
    def num_features(self) -> int:
        return max((stop for _, stop in self.slices.values()), default=0)
