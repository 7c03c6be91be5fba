"""The order: every cell at most once an epoch, the same for any number of processes, seekable."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.sampling_order import SamplingOrder
from scmbert_jax.errors import ConfigError


@st.composite
def orders(draw) -> SamplingOrder:
    num_streams = draw(st.sampled_from([1, 2, 4, 6]))
    num_blocks = draw(st.integers(num_streams, 40))
    block_size = draw(st.integers(2, 9))
    larger = draw(st.integers(0, num_blocks - 1))
    sizes = np.full(num_blocks, block_size)
    sizes[:larger] += 1
    per_stream = draw(st.integers(1, (num_blocks // num_streams) * block_size))
    return SamplingOrder(
        sizes, draw(st.integers(-5, 2**40)), per_stream * num_streams, num_streams, draw(st.integers(1, 7))
    )


def global_cells(order: SamplingOrder, step: int, process_index: int = 0, process_count: int = 1) -> np.ndarray:
    """Global cell numbers of the rows, in row order: int64 [b]."""
    first_cell = np.cumsum(order.block_sizes) - order.block_sizes
    rows = []
    for piece in order.cells_at(step, process_index, process_count).pieces:
        window = np.concatenate([first_cell[b] + np.arange(order.block_sizes[b]) for b in piece.blocks])
        rows.append(window[piece.cells])
    return np.concatenate(rows)


@settings(max_examples=120, deadline=None)
@given(order=orders(), epoch=st.integers(0, 3))
def test_an_epoch_offers_every_cell_once_but_for_the_stated_tail(order, epoch):
    first = epoch * order.steps_per_epoch
    seen = np.concatenate([global_cells(order, step) for step in range(first, first + order.steps_per_epoch)])
    assert len(np.unique(seen)) == len(seen) == order.cells_per_epoch
    assert order.cells_per_epoch + order.unused_per_epoch == order.block_sizes.sum()
    largest = order.block_sizes.max()
    left_over_blocks = (len(order.block_sizes) % order.num_streams) * largest
    uneven_blocks = order.blocks_per_stream * order.num_streams
    assert order.unused_per_epoch <= left_over_blocks + uneven_blocks + order.global_batch_size


@settings(max_examples=60, deadline=None)
@given(order=orders(), step=st.integers(0, 200))
def test_concatenating_the_processes_gives_the_batch_of_one(order, step):
    alone = global_cells(order, step)
    assert len(alone) == order.global_batch_size
    for process_count in [count for count in (1, 2, 3, 4, 6) if order.num_streams % count == 0]:
        together = [global_cells(order, step, index, process_count) for index in range(process_count)]
        np.testing.assert_array_equal(np.concatenate(together), alone)


@settings(max_examples=40, deadline=None)
@given(order=orders())
def test_rows_count_up_through_the_pieces(order):
    row = 0
    for piece in order.cells_at(order.steps_per_epoch - 1).pieces:
        assert piece.first_row == row
        row += len(piece.cells)
    assert row == order.global_batch_size


@settings(max_examples=30, deadline=None)
@given(order=orders(), step=st.integers(0, 500))
def test_seeking_equals_walking(order, step):
    fresh = SamplingOrder(
        order.block_sizes, order.seed, order.global_batch_size, order.num_streams, order.window_blocks
    )
    for earlier in range(max(0, step - 5), step):
        global_cells(order, earlier)
    np.testing.assert_array_equal(global_cells(order, step), global_cells(fresh, step))


def test_the_order_is_the_one_we_promised():
    """Golden: a change here breaks the exact resume of every run. If it is meant, raise ORDER_VERSION too."""
    order = SamplingOrder(np.array([4, 4, 3, 3, 3]), seed=7, global_batch_size=4, num_streams=2, window_blocks=2)
    assert order.steps_per_epoch == 3
    assert [global_cells(order, step).tolist() for step in (0, 1, 2, 3)] == GOLDEN


GOLDEN = [[3, 11, 9, 15], [1, 13, 10, 16], [0, 12, 14, 8], [5, 1, 9, 8]]


def test_another_epoch_or_seed_is_another_order():
    sizes = np.full(50, 10)
    order = SamplingOrder(sizes, 0, 20, 4, 3)
    other = SamplingOrder(sizes, 1, 20, 4, 3)
    assert not np.array_equal(global_cells(order, 0), global_cells(order, order.steps_per_epoch))
    assert not np.array_equal(global_cells(order, 0), global_cells(other, 0))


def test_every_cell_is_left_out_as_often_as_every_other():
    """11 blocks for 4 streams: 3 blocks rest each epoch. Over 400 epochs each rests in 109 ± 4.5 sd of them."""
    order = SamplingOrder(np.full(11, 4), 0, 8, 4, 2)
    used = np.zeros(44, int)
    for step in range(400 * order.steps_per_epoch):
        used[global_cells(order, step)] += 1
    expected, sd = 400 * 8 / 11, np.sqrt(400 * 8 / 11 * 3 / 11)
    assert np.abs(used - expected).max() < 4.5 * sd


def test_cells_of_one_block_are_spread_over_the_window():
    order = SamplingOrder(np.full(64, 16), 0, 16, 1, 16)  # one stream, windows of 16 blocks of 16 cells
    blocks_in_batch = [len(np.unique(global_cells(order, step) // 16)) for step in range(order.steps_per_epoch)]
    assert np.mean(blocks_in_batch) > 9  # 10.3 expected for 16 cells over 16 blocks; 1 if nothing were permuted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_batch_size": 10, "num_streams": 4}, r"10 is not a multiple of num_streams 4"),
        ({"global_batch_size": 16, "num_streams": 16}, r"10 blocks for 16 streams.*--block-size 3"),
        ({"global_batch_size": 400, "num_streams": 2}, r"shorter than one batch of 400.*to 50 or less"),
        ({"global_batch_size": 4, "num_streams": 2, "window_blocks": 0}, r"window_blocks is 0"),
    ],
)
def test_an_impossible_order_says_what_to_change(arguments, message):
    with pytest.raises(ConfigError, match=message):
        SamplingOrder(np.full(10, 5), **{"seed": 0, "window_blocks": 2, **arguments})


def test_processes_must_divide_the_streams():
    order = SamplingOrder(np.full(10, 5), 0, 8, 4, 2)
    with pytest.raises(ConfigError, match="3 processes cannot share 4 streams"):
        order.cells_at(0, 0, 3)
