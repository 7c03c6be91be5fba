"""Cells of any length become tokens of one shape: sample expressed features and measured zeros, pad the rest.

For a cell with n expressed features of the M its dataset measured, `num_tokens` L and `zero_fraction` z:

    expressed tokens   min(n, L - floor(L z))
    zero tokens        min(round(expressed * z / (1 - z)), M - n, L - expressed)

except that where L holds the whole panel (L >= M, z > 0) the cell is read whole: n expressed and M - n zeros (224
antibodies in 224 tokens). Both kinds are drawn uniformly without replacement. A feature that was not measured is no
zero and never a token. Tokens are ordered by feature id, so that their order says nothing.

Randomness is counter-based: an expressed feature is kept if its hash of (seed, epoch, cell, modality, feature) is among
the smallest; zeros come from the sequence of hashes of (seed, epoch, cell, modality, t), t = 0, 1, ..., skipping what
is expressed or drawn already (hashing all M features instead would cost 50 us a cell). Thus the tokens of a cell depend
on nothing but the cell and its place in the run: not on the other cells of the batch, nor on who makes it. The kernel
is draw_tokens.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse

from data_pipelines.batches.draw_tokens import MeasuredFeatures, StoredCells, TokenDraw, TokenRows, draw_tokens
from data_pipelines.corpus.packed_counts import index_of, pack
from data_pipelines.counter_hash import Purpose, fold, hash_of
from data_pipelines.readers.whole_counts import MAX_COUNT, is_whole, whole, widened
from scmbert_jax.batch import CellBatch, CellProfile, ModalityTokens, panel_bits
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.modalities import MODALITIES


class TokenSampling(NamedTuple):
    """How many tokens of a modality a cell may have.

    Attributes:
      num_tokens: L; 0 leaves the modality out.
      zero_fraction: fraction of a cell's tokens that are measured zeros, in [0, 1). 0: expressed features only.
      whole_panel: read cells whole, all zeros included, where `num_tokens` holds the panel.
      profile_tokens: most expressed features of a cell's `CellProfile`; 0: the batch has no profiles.
    """

    num_tokens: int
    zero_fraction: float = 0.0
    whole_panel: bool = True
    profile_tokens: int = 0


def check_sampling(sampling: dict[str, TokenSampling], modalities: list[str], where: str) -> None:
    """Raises ConfigError: a modality `where` has not, impossible numbers, or no modality read at all."""
    for modality, choice in sampling.items():
        if choice.num_tokens < 0:
            raise ConfigError(f"num_tokens of {modality} is {choice.num_tokens}; expected 0 (leave out) or more")
        if not 0 <= choice.zero_fraction < 1:
            raise ConfigError(f"zero_fraction of {modality} is {choice.zero_fraction}; expected 0 <= value < 1")
        if choice.profile_tokens < 0:
            raise ConfigError(f"profile_tokens of {modality} is {choice.profile_tokens}; expected 0 (none) or more")
        if choice.num_tokens and modality not in modalities:
            raise ConfigError(
                f"{choice.num_tokens} tokens of {modality!r} are asked for, but {where} has only {modalities}: "
                "set its num_tokens to 0"
            )
    if not any(choice.num_tokens for choice in sampling.values()):
        raise ConfigError(f"no modality has num_tokens above 0; {where} has {modalities}")


def empty_tokens(num_rows: int, num_tokens: int) -> ModalityTokens:
    """Tokens of cells that were not measured: all padding."""
    return _tokens(np.zeros, num_rows, num_tokens)


def unwritten_tokens(num_rows: int, num_tokens: int) -> ModalityTokens:
    """As `empty_tokens`, but with anything in them: every row must be written.

    Clearing 16 kB for a cell of 2,048 tokens would cost nearly as much as drawing them.
    """
    return _tokens(np.empty, num_rows, num_tokens)


def _tokens(make: Callable[..., np.ndarray], num_rows: int, num_tokens: int) -> ModalityTokens:
    return ModalityTokens(
        feature_ids=make((num_rows, num_tokens), np.int32),
        counts=make((num_rows, num_tokens), np.int32),
        lengths=make(num_rows, np.int32),
        library_size=make(num_rows, np.float32),
        measured=make(num_rows, bool),
        num_expressed=make(num_rows, np.int32),
        num_measured=make(num_rows, np.int32),
        mean_log_count=make(num_rows, np.float32),
    )


def unwritten_profile(num_rows: int, profile_tokens: int, num_features: int) -> CellProfile:
    """A profile of a modality of `num_features` with anything in it: every row must be written."""
    width = min(profile_tokens, num_features)
    return CellProfile(
        feature_ids=np.empty((num_rows, width), np.int32),
        counts=np.empty((num_rows, width), np.int32),
        lengths=np.empty(num_rows, np.int32),
        panel=np.empty((num_rows, -(-num_features // 8)), np.uint8),
    )


def with_profile(tokens: ModalityTokens, profile: CellProfile) -> ModalityTokens:
    """`profile` as `fill_tokens` takes it: what else it fills it says of the cells, which are those of `tokens`."""
    return tokens._replace(feature_ids=profile.feature_ids, counts=profile.counts, lengths=profile.lengths)


def clear_tokens(tokens: ModalityTokens | CellProfile, rows: slice) -> None:
    """Makes these rows those of cells that were not measured."""
    for array in tokens:
        array[rows] = 0


def token_key(seed: int, epoch: int, modality: str) -> int:
    """The hash that all token sampling of one modality in one epoch starts from."""
    return hash_of(seed, Purpose.TOKENS, epoch, MODALITIES.index(modality))


def profile_key(seed: int, epoch: int, modality: str) -> int:
    """The same of profiles: of a cell with more expressed features than its profile holds, those that are predicted
    must be no likelier than others to be those that are shown."""
    return hash_of(seed, Purpose.PROFILE, epoch, MODALITIES.index(modality))


def fill_tokens(
    tokens: ModalityTokens,
    rows: slice,
    cells: np.ndarray,
    stored: StoredCells,
    measured: MeasuredFeatures,
    draw: TokenDraw,
) -> None:
    """Sample tokens of some cells into rows of `tokens`, with the numbers that say what they are a sample of.

    Fills feature_ids, counts, lengths, num_expressed, num_measured and mean_log_count.

    Args:
      tokens: arrays [B, L] and [B] to fill.
      rows: which rows; as many as `cells`.
      cells: int64 [b], which of the stored cells.
    """
    out = TokenRows(
        tokens.feature_ids[rows],
        tokens.counts[rows],
        tokens.lengths[rows],
        tokens.num_expressed[rows],
        tokens.num_measured[rows],
        tokens.mean_log_count[rows],
    )
    # The kernel is compiled for these very types.
    exact = TokenDraw(np.uint64(draw.key), float(draw.zero_fraction), bool(draw.whole_panel), int(draw.first_feature))
    draw_tokens(out, cells, stored, measured, exact)


def collate_counts(
    counts: dict[str, scipy.sparse.csr_matrix],
    sampling: dict[str, TokenSampling],
    slices: dict[str, tuple[int, int]],
    measured_features: dict[str, np.ndarray],
    *,
    measured_cells: dict[str, np.ndarray] | None = None,
    library_size: dict[str, np.ndarray] | None = None,
    covariates: dict[str, np.ndarray] | None = None,
    cell_index: np.ndarray | None = None,
    seed: int = 0,
    cell_keys: np.ndarray | None = None,
) -> CellBatch:
    """Cells of a file as a batch, for embedding: the tokens of a cell depend on its own counts and on nothing else.

    All cells share one hash key, so a cell gets the same tokens in any row, beside any neighbours, in any file. Of two
    cells that express the same features, the same are drawn; where that must not be, cells have keys of their own.

    Args:
      counts: modality -> integer CSR [B, features of that modality in the model's feature space]. Modalities that
        `sampling` reads and that are not here become all padding.
      sampling: modality -> number of tokens; must be as the model was trained for the numbers to mean the same.
      slices: modality -> rows of the feature table (`FeatureLayout.slices`).
      measured_features: modality -> bool [features of that modality], which of them the file measured.
      measured_cells: modality -> bool [B]; absent: measured in all.
      library_size: modality -> float [B], total counts over all mapped features, where that is more than the features
        of the model; absent: the row sums of `counts`.
      covariates: name -> int32 [B] codes.
      cell_index: int32 [B]; absent: 0 .. B - 1.
      seed: which tokens are drawn where a cell has more features than tokens; the same seed, the same tokens.
      cell_keys: uint64 [B], whose draws are independent of each other; absent: one for all cells.

    Raises:
      ConfigError: sampling of a modality the model has not.
      InputError: a counts matrix of another width, counts that are negative or above 2^31 - 1, or counts of what is
        said not to be measured.
    """
    check_sampling(sampling, list(slices), "the model's feature space")
    num_cells = next(iter(counts.values())).shape[0] if counts else len(cell_index if cell_index is not None else ())
    modalities, profiles = {}, {}
    for modality in MODALITIES:
        choice = sampling.get(modality)
        if choice is None or choice.num_tokens == 0:
            continue
        first, stop = slices[modality]
        tokens = empty_tokens(num_cells, choice.num_tokens)
        profile = unwritten_profile(num_cells, choice.profile_tokens, stop - first) if choice.profile_tokens else None
        if modality in counts:
            matrix = _canonical(counts[modality], (num_cells, stop - first), modality)
            is_measured = np.ones(num_cells, bool)
            if measured_cells is not None and modality in measured_cells:
                is_measured = np.asarray(measured_cells[modality], bool)
            panel = np.asarray(measured_features[modality], bool)
            if not panel[matrix.indices].all():
                outside = np.unique(matrix.indices[~panel[matrix.indices]])
                raise InputError(
                    f"counts of {modality}: {len(outside)} features have counts but are marked as not measured, the "
                    f"first is number {outside[0]}; correct measured_features"
                )
            if np.diff(matrix.indptr)[~is_measured].any():
                raise InputError(f"counts of {modality}: a cell that is marked as not measured has counts")
            packed = pack(np.diff(matrix.indptr), matrix.indices, matrix.data)
            stored = StoredCells(
                packed,
                index_of(packed),
                np.zeros(num_cells, np.uint64) if cell_keys is None else np.asarray(cell_keys, np.uint64),
                np.zeros(num_cells, np.int32),
                is_measured,
            )
            cells = slice(0, num_cells), np.arange(num_cells), stored, MeasuredFeatures.from_masks([panel])
            key = fold(token_key(seed, 0, modality), 0)
            fill_tokens(tokens, *cells, TokenDraw(key, choice.zero_fraction, choice.whole_panel, first))
            if profile is not None:
                key = fold(profile_key(seed, 0, modality), 0)
                fill_tokens(with_profile(tokens, profile), *cells, TokenDraw(key, first_feature=first))
                profile.panel[:] = panel_bits(panel & is_measured[:, None])
            totals = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
            if library_size is not None and modality in library_size:
                totals = np.asarray(library_size[modality])
            tokens = tokens._replace(
                library_size=np.where(is_measured, totals, 0).astype(np.float32), measured=is_measured
            )
        elif profile is not None:
            clear_tokens(profile, slice(0, num_cells))
        modalities[modality] = tokens
        if profile is not None:
            profiles[modality] = profile
    return CellBatch(
        modalities=modalities,
        covariates={name: np.asarray(codes, np.int32) for name, codes in (covariates or {}).items()},
        cell_index=np.arange(num_cells, dtype=np.int32) if cell_index is None else np.asarray(cell_index, np.int32),
        row=np.arange(num_cells, dtype=np.int32),
        profiles=profiles or None,
    )


def _canonical(matrix: scipy.sparse.csr_matrix, shape: tuple[int, int], modality: str) -> scipy.sparse.csr_matrix:
    """Duplicates summed, ids ascending, no stored zeros; the caller's matrix stays as it is."""
    if matrix.shape != shape:
        raise InputError(f"counts of {modality}: shape {matrix.shape}, expected {shape} (cells, features of the model)")
    matrix = scipy.sparse.csr_matrix(matrix, copy=True)
    matrix.data = widened(matrix.data, f"counts of {modality}")
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    if not is_whole(matrix.data).all():
        bad = matrix.data[~is_whole(matrix.data)]
        raise InputError(f"counts of {modality}: {len(bad):,} values are no whole numbers, the first is {bad[0]:.6g}")
    matrix = whole(matrix)
    if matrix.nnz and (matrix.data.min() < 0 or matrix.data.max() > MAX_COUNT):
        raise InputError(
            f"counts of {modality} lie between {matrix.data.min()} and {matrix.data.max()}; expected 0 .. {MAX_COUNT}"
        )
    return matrix
