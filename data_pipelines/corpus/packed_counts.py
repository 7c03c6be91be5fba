"""Counts of cells as they lie in a block: a byte per gap between features, four bits per count, and lists of the rest.

The features of a cell ascend, and the gap before each (id - previous id - 1, the first counted from -1) mostly fits a
byte; most counts fit four bits. What does not fit is marked by the largest value and stands in a list. So 1.5 bytes per
entry instead of 8 travel from the file to the kernel that draws tokens, which unpacks one cell at a time, into the
first cache of the processor.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
from numba.core import cgutils
from numba.extending import intrinsic

from scmbert_jax.errors import CorpusError

LARGE_GAP = 255  # a gap of this or more stands in `large_gaps`
LARGE_COUNT = 15  # a count of this or more stands in `large_counts`

# log(1 + count) of both counts in a byte of `small_counts`; large ones are added by themselves
_LOG_OF_COUNT = np.where(np.arange(16) < LARGE_COUNT, np.log1p(np.arange(16)), 0.0)
_LOGS = np.log1p(np.arange(1024))
_LOG_OF_PAIR = _LOG_OF_COUNT[np.arange(256) & 15] + _LOG_OF_COUNT[np.arange(256) >> 4]


class PackedCounts(NamedTuple):
    """Counts of n cells.

    Attributes:
      lengths: int32 [n], entries of each cell.
      gaps: uint8 [nnz].
      small_counts: uint8 [sum of ceil(length / 2)], two counts in a byte, the first in its lower half; every cell
        begins with a new byte.
      large_gaps: uint32, in order of the entries.
      large_counts: uint32, likewise.
    """

    lengths: np.ndarray
    gaps: np.ndarray
    small_counts: np.ndarray
    large_gaps: np.ndarray
    large_counts: np.ndarray


class CellIndex(NamedTuple):
    """What is known of each of n cells once their `PackedCounts` were gone through.

    Attributes:
      gaps, small_counts, large_gaps, large_counts: int64 [n + 1], where it begins in the array of that name, and where
        the last one ends.
      large_places: int32, of every large count: which entry of its cell it is.
      sums_of_logs: float64 [n], of log(1 + count) over its entries.
    """

    gaps: np.ndarray
    small_counts: np.ndarray
    large_gaps: np.ndarray
    large_counts: np.ndarray
    large_places: np.ndarray
    sums_of_logs: np.ndarray


def pack(lengths: np.ndarray, feature_ids: np.ndarray, counts: np.ndarray) -> PackedCounts:
    """Packs the counts of cells.

    Args:
      lengths: int32 [n], none negative, adding up to nnz.
      feature_ids: int32 [nnz], strictly ascending within a cell.
      counts: uint32 [nnz].

    Raises:
      ValueError: ids that do not ascend within a cell, or are negative.
    """
    lengths = lengths.astype(np.int32, copy=False)
    gaps = np.empty(len(feature_ids), np.uint8)
    small_counts = np.empty(num_pairs(lengths), np.uint8)
    large_gaps, large_counts = np.empty(len(gaps), np.uint32), np.empty(len(gaps), np.uint32)
    num_gaps, num_counts = _pack(
        lengths,
        feature_ids.astype(np.int32, copy=False),
        counts.astype(np.uint32, copy=False),
        gaps,
        small_counts,
        large_gaps,
        large_counts,
    )
    if num_gaps < 0:
        raise ValueError("feature ids are not strictly ascending within each cell")
    return PackedCounts(lengths, gaps, small_counts, large_gaps[:num_gaps].copy(), large_counts[:num_counts].copy())


def unpack(packed: PackedCounts, index: CellIndex) -> tuple[np.ndarray, np.ndarray]:
    """Feature ids int32 [nnz] and counts uint32 [nnz]."""
    feature_ids, counts = np.empty(len(packed.gaps), np.int32), np.empty(len(packed.gaps), np.uint32)
    _unpack(packed, index, feature_ids, counts)
    return feature_ids, counts


def unpack_some(packed: PackedCounts, index: CellIndex, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of `cells` int64 [b]: lengths int32 [b], feature ids int32 [nnz] and counts uint32 [nnz], cell after cell."""
    lengths = packed.lengths[cells]
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    feature_ids, counts = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.uint32)
    _unpack_some(packed, index, cells, starts, feature_ids, counts)
    return lengths, feature_ids, counts


def index_of(packed: PackedCounts) -> CellIndex:
    """Where cells begin. Raises CorpusError: an array that is longer or shorter than the entries need."""
    num_cells = len(packed.lengths)
    index = CellIndex(
        *(np.zeros(num_cells + 1, np.int64) for _ in range(4)),
        np.zeros(len(packed.large_counts), np.int32),
        np.empty(num_cells),
    )
    np.cumsum(packed.lengths, out=index.gaps[1:])
    np.cumsum((packed.lengths + np.int64(1)) >> 1, out=index.small_counts[1:])
    _require("gaps", len(packed.gaps), index.gaps[-1])
    _require("pairs of counts", len(packed.small_counts), index.small_counts[-1])
    _find_large(packed, index)
    _require("large gaps", len(packed.large_gaps), index.large_gaps[-1])
    _require("large counts", len(packed.large_counts), index.large_counts[-1])
    _add_large_logs(packed, index)
    return index


def largest_feature(packed: PackedCounts, index: CellIndex) -> int:
    """The largest feature id of any cell; -1 where there are no entries."""
    return int(_largest_feature(packed, index))


def joined(parts: Sequence[tuple[PackedCounts, CellIndex]]) -> tuple[PackedCounts, CellIndex]:
    """The cells of several, one after the other."""
    packed, indices = zip(*parts, strict=True)
    starts = []
    for field in CellIndex._fields[:4]:
        of_parts = [getattr(index, field) for index in indices]
        before = np.cumsum([0, *(int(of_part[-1]) for of_part in of_parts)])
        whole = [of_part[:-1] + first for of_part, first in zip(of_parts, before, strict=False)]
        starts.append(np.concatenate([*whole, before[-1:]]))
    return (
        PackedCounts(*(np.concatenate(arrays) for arrays in zip(*packed, strict=True))),
        CellIndex(
            *starts,
            np.concatenate([index.large_places for index in indices]),
            np.concatenate([index.sums_of_logs for index in indices]),
        ),
    )


def num_pairs(lengths: np.ndarray) -> int:
    """Bytes of `small_counts` for cells of these lengths."""
    return int(((lengths + np.int64(1)) >> 1).sum())


def _require(what: str, found: int, needed: int) -> None:
    if found != needed:
        raise CorpusError(f"block: {found} {what} where the entries of its cells need {needed}")


@intrinsic
def _lowest_bit(typing_context, word):
    """The place of the lowest bit of a uint64 that is set, of which there must be one."""

    def trailing_zeros(context, builder, signature, arguments):
        return builder.cttz(arguments[0], cgutils.true_bit)

    return numba.uint64(numba.uint64), trailing_zeros


# --- kernels ---------------------------------------------------------------------------------------------------------


@numba.njit(nogil=True, cache=True)
def _pack(lengths, feature_ids, counts, gaps, small_counts, large_gaps, large_counts):
    """Fills the last four; returns how many large gaps and large counts there are, or -1, -1: ids do not ascend."""
    num_gaps, num_counts, entry, byte = 0, 0, 0, 0
    for cell in range(len(lengths)):
        length = np.int64(lengths[cell])
        previous = np.int64(-1)
        for i in range(length):
            gap = np.int64(feature_ids[entry + i]) - previous - 1
            previous += gap + 1
            if gap < 0:
                return -1, -1
            gaps[entry + i] = min(gap, LARGE_GAP)
            if gap >= LARGE_GAP:
                large_gaps[num_gaps] = gap
                num_gaps += 1
            count = np.int64(counts[entry + i])
            small = np.uint8(min(count, LARGE_COUNT))
            if i & 1:
                small_counts[byte + (i >> 1)] |= small << 4
            else:
                small_counts[byte + (i >> 1)] = small
            if count >= LARGE_COUNT:
                large_counts[num_counts] = count
                num_counts += 1
        entry += length
        byte += (length + 1) >> 1
    return num_gaps, num_counts


@numba.njit(nogil=True, cache=True)
def _find_large(packed, index):
    """Fills `index` but for the logs of large counts."""
    for cell in range(len(packed.lengths)):
        found = 0
        for gap in packed.gaps[index.gaps[cell] : index.gaps[cell + 1]]:
            found += gap == LARGE_GAP
        index.large_gaps[cell + 1] = index.large_gaps[cell] + found
        pairs = packed.small_counts[index.small_counts[cell] : index.small_counts[cell + 1]]
        index.sums_of_logs[cell] = _sum_of_logs(pairs)
        place = index.large_counts[cell]
        words = pairs[: len(pairs) & ~7].view(np.uint64)  # sixteen counts at once
        for word in range(len(words)):
            large = words[word]
            large &= large >> np.uint64(1)
            large = large & (large >> np.uint64(2)) & np.uint64(0x1111111111111111)  # all four bits of a count are set
            while large:
                if place < len(index.large_places):
                    index.large_places[place] = 16 * word + (_lowest_bit(large) >> np.uint64(2))
                place += 1
                large &= large - np.uint64(1)
        for entry in range(16 * len(words), packed.lengths[cell]):
            if (pairs[entry >> 1] >> (4 * (entry & 1))) & 15 == LARGE_COUNT:
                if place < len(index.large_places):
                    index.large_places[place] = entry
                place += 1
        index.large_counts[cell + 1] = place


@numba.njit(nogil=True, cache=True)
def _sum_of_logs(pairs):
    """Of counts that are not large. Four sums at a time: one alone would wait for each addition."""
    first, second, third, fourth = 0.0, 0.0, 0.0, 0.0
    whole = len(pairs) & ~3
    for i in range(0, whole, 4):
        first += _LOG_OF_PAIR[pairs[i]]
        second += _LOG_OF_PAIR[pairs[i + 1]]
        third += _LOG_OF_PAIR[pairs[i + 2]]
        fourth += _LOG_OF_PAIR[pairs[i + 3]]
    for pair in pairs[whole:]:
        first += _LOG_OF_PAIR[pair]
    return (first + second) + (third + fourth)


@numba.njit(nogil=True, cache=True)
def _add_large_logs(packed, index):
    for cell in range(len(packed.lengths)):
        for count in packed.large_counts[index.large_counts[cell] : index.large_counts[cell + 1]]:
            known = count < len(_LOGS)
            index.sums_of_logs[cell] += _LOGS[count] if known else np.log1p(np.float64(count))


@numba.njit(nogil=True, cache=True)
def _largest_feature(packed, index):
    largest = np.int64(-1)
    for cell in range(len(packed.lengths)):
        feature = np.int64(packed.lengths[cell]) - 1
        for gap in packed.gaps[index.gaps[cell] : index.gaps[cell + 1]]:
            feature += gap
        for gap in packed.large_gaps[index.large_gaps[cell] : index.large_gaps[cell + 1]]:
            feature += np.int64(gap) - LARGE_GAP
        largest = max(largest, feature)
    return largest


@numba.njit(nogil=True, cache=True)
def _unpack(packed, index, feature_ids, counts):
    for cell in range(len(packed.lengths)):
        start, stop = index.gaps[cell], index.gaps[cell + 1]
        unpack_cell(packed, index, cell, 0, feature_ids[start:stop], counts[start:stop])


@numba.njit(nogil=True, cache=True)
def _unpack_some(packed, index, cells, starts, feature_ids, counts):
    for i in range(len(cells)):
        start, stop = starts[i], starts[i + 1]
        unpack_cell(packed, index, cells[i], 0, feature_ids[start:stop], counts[start:stop])


@numba.njit(nogil=True, cache=True)
def unpack_cell(packed, index, cell, first_feature, feature_ids, counts):
    """Fills `feature_ids` (counted from `first_feature`) and `counts`; both have room for the cell's entries."""
    gaps = packed.gaps[index.gaps[cell] : index.gaps[cell + 1]]
    large_gap = index.large_gaps[cell]
    feature = np.int32(first_feature - 1)
    if large_gap == index.large_gaps[cell + 1]:
        whole = len(gaps) & ~3
        for i in range(0, whole, 4):  # only every fourth addition waits for the one before
            first, third = np.int32(gaps[i]) + 1, np.int32(gaps[i + 2]) + 1
            two, last_two = first + np.int32(gaps[i + 1]) + 1, third + np.int32(gaps[i + 3]) + 1
            feature_ids[i] = feature + first
            feature_ids[i + 1] = feature + two
            feature_ids[i + 2] = feature + two + third
            feature = np.int32(feature + two + last_two)
            feature_ids[i + 3] = feature
        for i in range(whole, len(gaps)):
            feature = np.int32(feature + np.int32(gaps[i]) + 1)
            feature_ids[i] = feature
    else:
        for i in range(len(gaps)):
            gap = np.int64(gaps[i])
            if gap == LARGE_GAP:
                gap = np.int64(packed.large_gaps[large_gap])
                large_gap += 1
            feature = np.int32(feature + gap + 1)
            feature_ids[i] = feature
    pairs = packed.small_counts[index.small_counts[cell] : index.small_counts[cell + 1]]
    for i in range(len(gaps) >> 1):
        counts[2 * i] = pairs[i] & 15
        counts[2 * i + 1] = pairs[i] >> 4
    if len(gaps) & 1:
        counts[len(gaps) - 1] = pairs[len(pairs) - 1] & 15
    for i in range(index.large_counts[cell], index.large_counts[cell + 1]):
        counts[index.large_places[i]] = packed.large_counts[i]
