"""The kernel that turns cells into tokens; what it must give is said in collate.py.

Everything is done cell by cell in arrays that stay in the first cache of the processor. Conditions on random numbers
are added, not branched on: a mispredicted branch costs more than the rest of the loop.
"""

import numba
import numpy as np

from data_pipelines.counter_hash import fold_compiled
from data_pipelines.packed_counts import LARGE_COUNT, unpack_cell

_ZERO_DRAWS = 1 << 40  # above every feature id: draws of zeros never share a hash with a feature
# log2 of a power of two: multiplied with this sequence, the highest six bits are another number for each of the 64
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_BIT_INDEX = np.zeros(64, np.int64)
_BIT_INDEX[[((1 << bit) * 0x03F79D71B4CB0A89 % (1 << 64)) >> 58 for bit in range(64)]] = np.arange(64)

# log(1 + count) of both counts in a byte of `PackedCounts.small_counts`; large ones are added by themselves
_LOG_OF_COUNT = np.where(np.arange(16) < LARGE_COUNT, np.log1p(np.arange(16)), 0.0)
_LOG_OF_PAIR = _LOG_OF_COUNT[np.arange(256) & 15] + _LOG_OF_COUNT[np.arange(256) >> 4]


@numba.njit(nogil=True, cache=True)
def draw_tokens(
    out_ids,  # int32 [b, L]
    out_counts,  # int32 [b, L]
    out_lengths,  # int32 [b]
    out_num_expressed,  # int32 [b]
    out_num_measured,  # int32 [b]
    out_mean_log_count,  # float32 [b]
    cells,
    packed,
    index,
    cell_keys,
    datasets,
    measured_cells,
    measured_starts,
    measured_ids,
    num_features,
    first_feature,
    zero_fraction,
    key,
):
    """Every row of the output is written, whatever it held. Arguments: see `collate.fill_tokens`."""
    num_tokens = out_ids.shape[1]
    longest = 0
    for cell in cells:
        longest = max(longest, np.int64(packed.lengths[cell]))
    ids = np.empty(longest + 1, np.int32)  # one more: what is kept is written before it is known whether it is
    counts = np.empty(longest + 1, np.int32)
    keys = np.empty(longest, np.uint32)
    near = np.empty(longest + 1, np.uint32)
    expressed = np.zeros((num_features + 63) // 64, np.uint64)  # one bit per feature, cleared after each cell
    zeros = np.zeros((num_features + 63) // 64, np.uint64)  # likewise: drawn
    for row in range(len(cells)):
        cell = cells[row]
        n = np.int64(packed.lengths[cell])
        panel = measured_ids[measured_starts[datasets[cell]] : measured_starts[datasets[cell] + 1]]
        if not measured_cells[cell]:
            n, panel = 0, panel[:0]
        num_expressed, num_zeros = _numbers(n, len(panel), num_tokens, zero_fraction)
        cell_key = fold_compiled(key, cell_keys[cell])
        out_num_expressed[row] = n
        out_num_measured[row] = len(panel)
        out_mean_log_count[row] = _sum_of_logs(packed, index, cell) / max(len(panel), 1)
        unpack_cell(packed, index, cell, ids, counts)
        if num_zeros:
            _set_bits(expressed, ids[:n])
            _draw_zeros(zeros, expressed, panel, num_zeros, len(panel) - n, cell_key)
        if num_expressed < n:
            if num_zeros:
                _clear_bits(expressed, ids[:n])
            _keep(ids, counts, n, num_expressed, cell_key, keys, near)
            if num_zeros:
                _set_bits(expressed, ids[:num_expressed])
        if num_zeros:
            _write_both(out_ids[row], out_counts[row], expressed, zeros, counts, first_feature)
        else:
            for i in range(num_expressed):
                out_ids[row, i] = ids[i] + first_feature
                out_counts[row, i] = counts[i]
        length = num_expressed + num_zeros
        out_lengths[row] = length
        out_ids[row, length:] = 0
        out_counts[row, length:] = 0


@numba.njit(nogil=True, cache=True)
def _numbers(n, panel_size, num_tokens, zero_fraction):
    """How many expressed features and how many zeros become tokens."""
    if num_tokens >= panel_size and zero_fraction > 0:
        return n, panel_size - n
    num_expressed = min(n, num_tokens - int(np.floor(num_tokens * zero_fraction)))
    wanted = int(np.floor(num_expressed * zero_fraction / (1 - zero_fraction) + 0.5))
    return num_expressed, max(0, min(wanted, panel_size - n, num_tokens - num_expressed))


@numba.njit(nogil=True, cache=True)
def _sum_of_logs(packed, index, cell):
    """The sum of log(1 + count) over the entries of a cell."""
    pairs = packed.small_counts[index.small_counts[cell] : index.small_counts[cell + 1]]
    even, odd = 0.0, 0.0
    for i in range(len(pairs) >> 1):
        even += _LOG_OF_PAIR[pairs[2 * i]]
        odd += _LOG_OF_PAIR[pairs[2 * i + 1]]
    if len(pairs) & 1:
        even += _LOG_OF_PAIR[pairs[len(pairs) - 1]]
    for count in packed.large_counts[index.large_counts[cell] : index.large_counts[cell + 1]]:
        odd += np.log1p(np.float64(count))
    return even + odd


@numba.njit(nogil=True, cache=True)
def _keep(ids, counts, n, k, cell_key, keys, near):
    """Moves k of the n entries to the front, in their order: those whose features have the smallest keys."""
    first, second = np.uint32(cell_key), np.uint32(cell_key >> np.uint64(32))
    for i in range(n):
        keys[i] = feature_key(np.uint32(ids[i]), first, second)
    threshold = _kth_smallest(keys, n, k, near)
    kept = 0
    for i in range(n):
        ids[kept] = ids[i]
        counts[kept] = counts[i]
        kept += keys[i] <= threshold


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
def _kth_smallest(keys, n, k, near):
    """The k-th smallest of the distinct keys[:n], 1 <= k < n; `near` (n + 1) is working space.

    Keys are uniform, so the k-th lies near k / n: only keys within four standard deviations of that are looked at.
    """
    spread = 4.0 * np.sqrt(k * (1.0 - k / n)) + 4.0
    lower = np.uint32(max(0.0, (k - spread) / n) * 4294967295.0)
    upper = np.uint32(min(1.0, (k + spread) / n) * 4294967295.0)
    width = np.uint32(upper - lower)
    size, below = 0, 0
    for i in range(n):
        near[size] = keys[i]
        below += keys[i] < lower
        size += np.uint32(keys[i] - lower) <= width
    if below >= k or below + size < k:  # once in ten thousand cells
        lower, upper, size, below = np.uint32(0), np.uint32(4294967295), n, 0
        near[:n] = keys[:n]
    # Regula falsi for "k keys are not above the threshold": exact, as keys are distinct; quick, as they are uniform.
    low, high = np.int64(lower) - 1, np.int64(upper)
    low_count, high_count = below, below + size
    while high_count != k:
        share = (k - low_count) / (high_count - low_count)
        guess = min(max(low + np.int64(share * (high - low)), low + 1), high - 1)
        count = below
        for i in range(size):
            count += near[i] <= guess
        if count < k:
            low, low_count = guess, count
        else:
            high, high_count = guess, count
    return np.uint32(high)


@numba.njit(nogil=True, cache=True)
def _set_bits(bits, ids):
    for i in range(len(ids)):
        bits[ids[i] >> 6] |= np.uint64(1) << np.uint64(ids[i] & 63)


@numba.njit(nogil=True, cache=True)
def _clear_bits(bits, ids):
    for i in range(len(ids)):
        bits[ids[i] >> 6] = np.uint64(0)


@numba.njit(nogil=True, cache=True)
def _draw_zeros(zeros, expressed, panel, num_zeros, num_all, cell_key):
    """Sets the bits of `num_zeros` features of the panel that are not expressed, of which there are `num_all`."""
    one = np.uint64(1)
    if num_zeros == num_all:
        for i in range(len(panel)):
            word, bit = panel[i] >> 6, one << np.uint64(panel[i] & 63)
            zeros[word] |= bit & ~expressed[word]
        return
    drawn = 0
    draw = np.uint64(_ZERO_DRAWS)
    while drawn < num_zeros:
        uniform = (fold_compiled(cell_key, draw) >> np.uint64(11)) * (1.0 / 9007199254740992.0)  # [0, 1)
        draw += one
        feature = panel[int(uniform * len(panel))]
        word, place = feature >> 6, np.uint64(feature & 63)
        is_new = ~((expressed[word] | zeros[word]) >> place) & one
        zeros[word] |= is_new << place
        drawn += np.int64(is_new)


@numba.njit(nogil=True, cache=True)
def _write_both(out_ids, out_counts, expressed, zeros, counts, first_feature):
    """Writes the features of both in ascending order and clears them; `counts` are those of the expressed."""
    one = np.uint64(1)
    position, num_expressed = 0, 0
    for word in range(len(zeros)):
        with_count = expressed[word]
        bits = with_count | zeros[word]
        expressed[word] = np.uint64(0)
        zeros[word] = np.uint64(0)
        while bits:
            lowest = bits & (~bits + one)
            place = _BIT_INDEX[(lowest * _DE_BRUIJN) >> np.uint64(58)]
            is_expressed = np.int64((with_count >> np.uint64(place)) & one)
            out_ids[position] = word * 64 + place + first_feature
            out_counts[position] = counts[num_expressed] * is_expressed
            num_expressed += is_expressed
            position += 1
            bits ^= lowest
