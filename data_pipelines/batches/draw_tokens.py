"""The kernel that turns cells into tokens; what it must give is said in collate.py.

Everything is done cell by cell in arrays that stay in the first cache of the processor. Conditions on random numbers
are added, not branched on: a mispredicted branch costs more than the rest of the loop.
"""

from typing import NamedTuple

import numba
import numpy as np
from numba.extending import intrinsic

from data_pipelines.corpus.packed_counts import CellIndex, PackedCounts, unpack_cell
from data_pipelines.counter_hash import fold_compiled

_ZERO_DRAWS = 1 << 40  # above every feature id: draws of zeros never share a hash with a feature


@intrinsic
def _num_bits(typing_context, word):
    """How many bits of a uint64 are set: one instruction, which numba has no name for."""
    return numba.uint64(numba.uint64), lambda context, builder, signature, arguments: builder.ctpop(arguments[0])


class TokenRows(NamedTuple):
    """What is written: rows [b] of a `ModalityTokens` or `CellProfile` of L tokens, all but two of its columns."""

    feature_ids: np.ndarray  # int32 [b, L]
    counts: np.ndarray  # int32 [b, L]
    lengths: np.ndarray  # int32 [b]
    num_expressed: np.ndarray  # int32 [b]
    num_measured: np.ndarray  # int32 [b]
    mean_log_count: np.ndarray  # float32 [b]


class StoredCells(NamedTuple):
    """n cells as they are stored.

    Attributes:
      counts, index: every feature id is below `MeasuredFeatures.num_features`, every count at most MAX_COUNT.
      keys: uint64 [n], what makes the cell's randomness its own (its position in the corpus).
      datasets: int32 [n], which data set of `MeasuredFeatures`.
      measured: bool [n].
    """

    counts: PackedCounts
    index: CellIndex
    keys: np.ndarray
    datasets: np.ndarray
    measured: np.ndarray


class MeasuredFeatures(NamedTuple):
    """Which features each dataset measured, as lists: dataset d measured `ids[starts[d] : starts[d + 1]]`.

    Attributes:
      starts: int64 [num_datasets + 1].
      ids: int32, indices within the modality, ascending for each dataset.
      num_features: features of the modality.
    """

    starts: np.ndarray
    ids: np.ndarray
    num_features: int

    @classmethod
    def from_masks(cls, masks: list[np.ndarray]) -> "MeasuredFeatures":
        """From one bool [num_features] per dataset."""
        lists = [np.flatnonzero(mask).astype(np.int32) for mask in masks]
        starts = np.concatenate([[0], np.cumsum([len(ids) for ids in lists])]).astype(np.int64)
        return cls(starts, np.concatenate(lists) if lists else np.zeros(0, np.int32), len(masks[0]) if masks else 0)


class TokenDraw(NamedTuple):
    """How tokens are drawn.

    Attributes:
      key: uint64, from `collate.token_key` or `profile_key`.
      zero_fraction, whole_panel: see `TokenSampling`.
      first_feature: row of the feature table of the modality's first feature.
    """

    key: int | np.uint64
    zero_fraction: float = 0.0
    whole_panel: bool = True
    first_feature: int = 0


@numba.njit(nogil=True, cache=True)
def draw_tokens(out, cells, stored, measured, draw):
    """Writes every row of the output, whatever it held.

    Args: `TokenRows` [b], int64 [b] (which of the stored cells), `StoredCells`, `MeasuredFeatures`, `TokenDraw`.
    """
    # Taken out of the tuples once: in the loop, each would be counted as a reference for every cell.
    out_ids, out_counts, out_lengths, out_num_expressed, out_num_measured, out_mean_log_count = out
    packed, index, cell_keys, datasets, measured_cells = stored
    measured_starts, measured_ids, num_features = measured
    key, zero_fraction, whole_panel, first_feature = draw
    num_tokens = out_ids.shape[1]
    longest = 0
    for cell in cells:
        longest = max(longest, np.int64(packed.lengths[cell]))
    ids = np.empty(longest + 1, np.int32)  # one more: what is kept is written before it is known whether it is
    counts = np.empty(longest + 1, np.int32)
    keys = np.empty(longest, np.uint32)
    expressed = np.zeros((num_features + 63) // 64, np.uint64)  # one bit per feature, cleared after each cell
    zeros = np.zeros((num_features + 63) // 64, np.uint64)  # likewise: drawn
    before = np.empty((num_features + 63) // 64, np.int32)  # tokens in the words before
    zero_ids = np.empty(num_tokens + 1, np.int32)
    for row in range(len(cells)):
        cell = cells[row]
        n = np.int64(packed.lengths[cell])
        dataset = datasets[cell]
        panel = measured_ids[measured_starts[dataset] : measured_starts[dataset + 1]]
        if not measured_cells[cell]:
            n, panel = 0, panel[:0]
        num_expressed, num_zeros = _numbers(n, len(panel), num_tokens, zero_fraction, whole_panel)
        cell_key = fold_compiled(key, cell_keys[cell])
        out_num_expressed[row] = n
        out_num_measured[row] = len(panel)
        out_mean_log_count[row] = index.sums_of_logs[cell] / max(len(panel), 1)
        if num_zeros:
            unpack_cell(packed, index, cell, 0, ids, counts)
            _set_bits(expressed, ids[:n])
            _draw_zeros(zero_ids, zeros, expressed, panel, num_zeros, len(panel) - n, cell_key)
            if num_expressed < n:
                _clear_bits(expressed, ids[:n])
                _keep(ids, counts, n, num_expressed, cell_key, keys, 0, ids, counts)
                _set_bits(expressed, ids[:num_expressed])
            _join(expressed, zeros, before)
            for i in range(num_expressed):
                place = _rank(ids[i], expressed, before)
                out_ids[row, place] = ids[i] + first_feature
                out_counts[row, place] = counts[i]
            for i in range(num_zeros):
                place = _rank(zero_ids[i], expressed, before)
                out_ids[row, place] = zero_ids[i] + first_feature
                out_counts[row, place] = 0
            _clear_bits(expressed, ids[:num_expressed])
            _clear_bits(expressed, zero_ids[:num_zeros])
        elif num_expressed == packed.lengths[cell]:  # nothing is drawn: from the record into the row
            unpack_cell(packed, index, cell, first_feature, out_ids[row], out_counts[row])
        else:
            unpack_cell(packed, index, cell, 0, ids, counts)
            _keep(ids, counts, n, num_expressed, cell_key, keys, first_feature, out_ids[row], out_counts[row])
        length = num_expressed + num_zeros
        out_lengths[row] = length
        out_ids[row, length:] = 0
        out_counts[row, length:] = 0


@numba.njit(nogil=True, cache=True)
def _numbers(n, panel_size, num_tokens, zero_fraction, whole_panel):
    """How many expressed features and how many zeros become tokens."""
    if whole_panel and num_tokens >= max(panel_size, n) and zero_fraction > 0:
        return n, max(0, panel_size - n)
    num_expressed = min(n, num_tokens - int(np.floor(num_tokens * zero_fraction)))
    wanted = int(np.floor(num_expressed * zero_fraction / (1 - zero_fraction) + 0.5))
    return num_expressed, max(0, min(wanted, panel_size - n, num_tokens - num_expressed))


@numba.njit(nogil=True, cache=True)
def _keep(ids, counts, n, k, cell_key, keys, first_feature, kept_ids, kept_counts):
    """Copies k of the n entries, in their order: those whose features have the smallest keys. 1 <= k < n, or k = 0."""
    first, second = np.uint32(cell_key), np.uint32(cell_key >> np.uint64(32))
    for i in range(n):
        keys[i] = feature_key(np.uint32(ids[i]), first, second)
    threshold = _kth_smallest(keys, n, k) if k else np.uint32(0)
    kept = i = 0
    while kept < k:  # written always, counted where it is kept
        kept_ids[kept] = ids[i] + first_feature
        kept_counts[kept] = counts[i]
        kept += keys[i] <= threshold
        i += 1


@numba.njit(inline="always")
def feature_key(feature, first, second):
    """A random 32-bit number that `first` and `second` (of a cell) give a feature; another one for every feature.

    The finaliser of MurmurHash3 (Appleby 2011), keyed before and between its multiplications; each step can be undone,
    so that no two features of a cell have the same number.
    """
    mixed = np.uint32(feature ^ first)
    mixed = np.uint32(mixed ^ (mixed >> np.uint32(16)))
    mixed = np.uint32(mixed * np.uint32(0x85EBCA6B))
    mixed = np.uint32(mixed ^ (mixed >> np.uint32(13)))
    mixed = np.uint32(mixed + second)
    mixed = np.uint32(mixed * np.uint32(0xC2B2AE35))
    return np.uint32(mixed ^ (mixed >> np.uint32(16)))


@numba.njit(nogil=True, cache=True)
def _kth_smallest(keys, n, k):
    """The k-th smallest of the distinct keys[:n], 1 <= k < n; or a number between it and the next.

    Regula falsi for "k keys are not above it": exact, as keys are distinct; quick, as they are uniform, and as each try
    is a plain count, eight keys at a time.
    """
    low, high = np.int64(-1), np.int64(4294967295)
    low_count, high_count = 0, n
    while high_count != k:
        fraction = (k - low_count) / (high_count - low_count)
        guess = min(max(low + np.int64(fraction * (high - low)), low + 1), high - 1)
        threshold = np.uint32(guess)
        count = np.int32(0)
        for i in range(n):
            count += np.int32(keys[i] <= threshold)
        if count < k:
            low, low_count = guess, count
        else:
            high, high_count = guess, count
    return np.uint32(high)


@numba.njit(nogil=True, cache=True)
def _set_bits(bits, ids):
    for i in range(len(ids)):
        feature = np.uint64(ids[i])
        bits[feature >> np.uint64(6)] |= np.uint64(1) << (feature & np.uint64(63))


@numba.njit(nogil=True, cache=True)
def _clear_bits(bits, ids):
    for i in range(len(ids)):
        bits[np.uint64(ids[i]) >> np.uint64(6)] = np.uint64(0)


@numba.njit(nogil=True, cache=True)
def _draw_zeros(zero_ids, zeros, expressed, panel, num_zeros, num_all, cell_key):
    """Draws `num_zeros` of the features of the panel that are not expressed, of which there are `num_all`.

    Gives their ids, in any order (`zero_ids` has room for one more), and sets their bits in `zeros`.
    """
    one = np.uint64(1)
    drawn = 0
    if num_zeros == num_all:
        for feature in panel:
            if drawn == num_zeros:
                break
            is_new = ~(expressed[feature >> 6] >> np.uint64(feature & 63)) & one
            zeros[feature >> 6] |= is_new << np.uint64(feature & 63)
            zero_ids[drawn] = feature
            drawn += np.int64(is_new)
        return
    draw = np.uint64(_ZERO_DRAWS)
    while drawn < num_zeros:
        uniform = (fold_compiled(cell_key, draw) >> np.uint64(11)) * (1.0 / 9007199254740992.0)  # [0, 1)
        draw += one
        feature = panel[int(uniform * len(panel))]
        word, place = feature >> 6, np.uint64(feature & 63)
        is_new = ~((expressed[word] | zeros[word]) >> place) & one
        zeros[word] |= is_new << place
        zero_ids[drawn] = feature
        drawn += np.int64(is_new)


@numba.njit(nogil=True, cache=True)
def _join(bits, other, before):
    """Moves the bits of `other` into `bits`; fills `before` with how many are set in the words before each."""
    total = 0
    for word in range(len(bits)):
        before[word] = total
        bits[word] |= other[word]
        other[word] = np.uint64(0)
        total += np.int64(_num_bits(bits[word]))


@numba.njit(nogil=True, cache=True)
def _rank(feature, bits, before):
    """How many bits are set below that of `feature`."""
    word = np.uint64(feature) >> np.uint64(6)
    below = (np.uint64(1) << (np.uint64(feature) & np.uint64(63))) - np.uint64(1)
    return np.int64(before[word]) + np.int64(_num_bits(bits[word] & below))
