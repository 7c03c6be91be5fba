"""The arrays that cross from data to model; nothing else does.

NamedTuples of arrays: JAX treats them as pytrees, and this file needs neither JAX nor TensorFlow.
"""

from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy on the host, jax.Array on the device


class ModalityTokens(NamedTuple):
    """The tokens of one modality. Real tokens come first; padding has feature id 0 and count 0.

    Attributes:
      feature_ids: int32 [B, L], rows of the feature table.
      counts: int32 [B, L], raw counts.
      lengths: int32 [B], number of real tokens; 0 where the modality was not measured.
      library_size: float32 [B], total counts of the cell over all mapped features of this modality.
      measured: bool [B], False where the modality was not measured in that cell. Not measured is not zero.
      num_expressed: int32 [B], features of the cell with a count above 0, whether they are tokens or not.
      num_measured: int32 [B], features that the cell's data set measures (M); M - num_expressed are zeros.
      mean_log_count: float32 [B], mean of log1p(count) over all measured features; its exp is what a CLR divides by.
    """

    feature_ids: Array
    counts: Array
    lengths: Array
    library_size: Array
    measured: Array
    num_expressed: Array
    num_measured: Array
    mean_log_count: Array


class CellProfile(NamedTuple):
    """All that was measured of one modality in each cell: its expressed features, and which of the others are zeros.

    Attributes:
      feature_ids: int32 [B, P], rows of the feature table with a count above 0; drawn of all, where there are more.
      counts: int32 [B, P], raw counts. Padding, at the end, has feature id 0 and count 0.
      lengths: int32 [B], how many are real; each stands for num_expressed / lengths of the cell's expressed features.
      panel: uint8 [B, ceil(F / 8)], a bit for each feature of the modality, lowest first: whether the cell's data set
        measures it. Bits, for a million regions; with the cell, so that no other data set can be taken for its own.
    """

    feature_ids: Array
    counts: Array
    lengths: Array
    panel: Array


def panel_bits(panels: np.ndarray) -> np.ndarray:
    """bool [..., F] -> `CellProfile.panel`, uint8 [..., ceil(F / 8)]."""
    return np.packbits(panels, axis=-1, bitorder="little")


class CellBatch(NamedTuple):
    """A minibatch of cells.

    Attributes:
      modalities: modality name -> tokens, in the order of `MODALITIES`, only those the run reads.
      covariates: covariate name (`technical_batch`, `assay`, ...) -> int32 [B] code; -1 where unknown.
      cell_index: int32 [B], position of the cell in its corpus (row of its obs table).
      row: int32 [B], position of the cell in the *global* batch: masks are keyed by it.
      scores: modality -> component scores float32 [B, K] of all counts of the cell, whatever its tokens show; 0 where
        it was not measured. None in training: a hidden count must not be seen, so scores are of the tokens there.
      profiles: modality -> what is predicted of the whole cell, whatever its tokens show; None where no objective asks.
    """

    modalities: dict[str, ModalityTokens]
    covariates: dict[str, Array]
    cell_index: Array
    row: Array
    scores: dict[str, Array] | None = None
    profiles: dict[str, CellProfile] | None = None


class GenomeBatch(NamedTuple):
    """A minibatch of DNA sequences, each of one region of a genome, with what is known of K regions around it.

    Attributes:
      codes: uint8 [B, L], 0..3 for A, C, G, T; 4 for N and padding.
      lengths: int32 [B], bases that are real.
      turned: bool [B], the sequence is the reverse complement of what stands on the forward strand.
      region: int32 [B], row of the region in its corpus.
      row: int32 [B], position in the *global* batch: masks are keyed by it.
      neighbours: int32 [B, K], rows of the K regions around it on the same chromosome, by position, itself at K // 2;
        -1 where the chromosome has none there.
      regulators: float32 [B, K, T], motif hits or binding of T regulators in each of them (0 where there is none);
        None where the corpus has none.
      accessibility: float32 [B, K, G], of each of them in G cell types; None where the corpus has none.
    """

    codes: Array
    lengths: Array
    turned: Array
    region: Array
    row: Array
    neighbours: Array
    regulators: Array | None = None
    accessibility: Array | None = None
