"""The order, alone and in mixtures: every cell at most once an epoch, for any number of processes, seekable."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_pipelines.sampling.drawn_together import fraction_with_another, side_by_side
from data_pipelines.sampling.sampling_order import SamplingOrder, SourcePlan, WindowDraws
from data_pipelines.sampling.source_blocks import plan_alone, plan_in_mixture
from data_pipelines.sampling.source_cycle import draws_per_cycle
from scmbert_jax.errors import ConfigError


def order_of(block_sizes, seed, global_batch_size, num_streams, window_blocks, groups=None) -> SamplingOrder:
    """Of a corpus alone."""
    plan = plan_alone(np.asarray(block_sizes), None, num_streams, window_blocks)._replace(groups=groups)
    return SamplingOrder([plan], draws_per_cycle([1]), seed, global_batch_size, num_streams)


@st.composite
def orders(draw) -> SamplingOrder:
    num_streams = draw(st.sampled_from([1, 2, 4, 6]))
    num_blocks = draw(st.integers(num_streams, 40))
    block_size = draw(st.integers(2, 9))
    larger = draw(st.integers(0, num_blocks - 1))
    sizes = np.full(num_blocks, block_size)
    sizes[:larger] += 1
    per_stream = draw(st.integers(1, (num_blocks // num_streams) * block_size))
    groups = groups_of(sizes.sum(), draw(st.integers(1, 50))) if draw(st.booleans()) else None
    batch_size, seed, window_blocks = per_stream * num_streams, draw(st.integers(-5, 2**40)), draw(st.integers(1, 7))
    return order_of(sizes, seed, batch_size, num_streams, window_blocks, groups)


def groups_of(num_cells: int, number: int) -> np.ndarray:
    """So many groups of unequal size, and cells of none."""
    sizes = np.random.default_rng(number).integers(-1, number, (2, num_cells))
    return sizes.min(axis=0).astype(np.int32)


@st.composite
def mixtures(draw) -> SamplingOrder:
    """Two to five sources of 1 to 300 cells, whole corpora or some cells of them, at any fractions."""
    num_streams = draw(st.sampled_from([1, 2, 4, 8]))
    window_blocks = draw(st.integers(1, 4))
    fractions = draw(st.lists(st.integers(1, 50), min_size=2, max_size=5))
    plans = []
    for fraction in fractions:
        num_blocks = draw(st.integers(1, 40))
        sizes = np.full(num_blocks, 8)
        rows = None if draw(st.booleans()) else np.arange(draw(st.integers(1, 8 * num_blocks)))
        plans.append(
            plan_in_mixture(sizes, rows, fraction / sum(fractions), len(fractions), num_streams, window_blocks)
        )
        if draw(st.booleans()):
            plans[-1] = plans[-1]._replace(groups=groups_of(int(plans[-1].block_sizes.sum()), draw(st.integers(1, 9))))
    available = sum(int(plan.block_sizes.sum()) for plan in plans)
    assume(available >= 2 * num_streams)
    per_stream = draw(st.integers(1, min(12, available // num_streams // 2)))
    draws = draws_per_cycle(fractions)
    return SamplingOrder(plans, draws, draw(st.integers(-5, 2**40)), per_stream * num_streams, num_streams)


def cells_of(order: SamplingOrder, draws: WindowDraws) -> np.ndarray:
    """int64 [rows]: their numbers within the source."""
    sizes = order.source_orders[draws.source].block_sizes
    first_cell = np.cumsum(sizes) - sizes
    return np.concatenate([first_cell[b] + np.arange(sizes[b]) for b in draws.blocks])[draws.cells]


def global_cells(order: SamplingOrder, step: int, process_index: int = 0, process_count: int = 1) -> np.ndarray:
    """The rows in row order: int64 [b], cells numbered through the sources."""
    first = np.cumsum([0, *(int(source.block_sizes.sum()) for source in order.source_orders)])
    of_step = order.cells_at(step, process_index, process_count)
    return np.concatenate([first[draws.source] + cells_of(order, draws) for draws in of_step])


@settings(max_examples=80, deadline=None)
@given(order=orders(), epoch=st.integers(0, 3))
def test_an_epoch_offers_every_cell_once_but_for_the_stated_tail(order, epoch):
    first = epoch * order.steps_per_epoch
    seen = np.concatenate([global_cells(order, step) for step in range(first, first + order.steps_per_epoch)])
    (own,) = order.source_orders
    assert len(np.unique(seen)) == len(seen) == own.block_sizes.sum() - own.unused_per_epoch
    left_over_blocks = (len(own.block_sizes) % order.num_streams) * own.block_sizes.max()
    uneven_blocks = own.blocks_per_partition * order.num_streams
    assert own.unused_per_epoch <= left_over_blocks + uneven_blocks + order.global_batch_size


@settings(max_examples=60, deadline=None)
@given(order=st.one_of(orders(), mixtures()), step=st.integers(0, 200))
def test_concatenating_the_processes_gives_the_batch_of_one(order, step):
    alone = global_cells(order, step)
    assert len(alone) == order.global_batch_size
    for process_count in [count for count in (1, 2, 3, 4, 6, 8) if order.num_streams % count == 0]:
        together = [global_cells(order, step, index, process_count) for index in range(process_count)]
        np.testing.assert_array_equal(np.concatenate(together), alone)


@settings(max_examples=40, deadline=None)
@given(order=st.one_of(orders(), mixtures()))
def test_rows_count_up_through_the_windows(order):
    row = 0
    for draws in order.cells_at(order.steps_per_epoch - 1):
        assert draws.first_row == row
        row += len(draws.cells)
    assert row == order.global_batch_size


@settings(max_examples=30, deadline=None)
@given(order=st.one_of(orders(), mixtures()), step=st.integers(0, 500))
def test_seeking_equals_walking(order, step):
    plans = [
        SourcePlan(source.block_sizes, source.num_partitions, source.window_blocks, source.groups)
        for source in order.source_orders
    ]
    fresh = SamplingOrder(plans, order.draws, order.seed, order.global_batch_size, order.num_streams)
    for earlier in range(max(0, step - 5), step):
        global_cells(order, earlier)
    np.testing.assert_array_equal(global_cells(order, step), global_cells(fresh, step))


def test_the_order_is_the_one_we_promised():
    """Golden: a change here breaks the exact resume of every run. If it is meant, raise ORDER_VERSION too."""
    order = order_of([4, 4, 3, 3, 3], seed=7, global_batch_size=4, num_streams=2, window_blocks=2)
    assert order.steps_per_epoch == 3
    assert [global_cells(order, step).tolist() for step in (0, 1, 2, 3)] == GOLDEN


GOLDEN = [[3, 11, 9, 15], [1, 13, 10, 16], [0, 12, 14, 8], [5, 1, 9, 8]]


def test_another_epoch_or_seed_is_another_order():
    sizes = np.full(50, 10)
    order = order_of(sizes, 0, 20, 4, 3)
    other = order_of(sizes, 1, 20, 4, 3)
    assert not np.array_equal(global_cells(order, 0), global_cells(order, order.steps_per_epoch))
    assert not np.array_equal(global_cells(order, 0), global_cells(other, 0))


def test_every_cell_is_left_out_as_often_as_every_other():
    """11 blocks for 4 streams: 3 blocks rest each epoch. Over 400 epochs each rests in 109 ± 4.5 sd of them."""
    order = order_of(np.full(11, 4), 0, 8, 4, 2)
    used = np.zeros(44, int)
    for step in range(400 * order.steps_per_epoch):
        used[global_cells(order, step)] += 1
    expected, sd = 400 * 8 / 11, np.sqrt(400 * 8 / 11 * 3 / 11)
    assert np.abs(used - expected).max() < 4.5 * sd


def test_cells_of_one_block_are_spread_over_the_window():
    order = order_of(np.full(64, 16), 0, 16, 1, 16)  # one stream, windows of 16 blocks of 16 cells
    blocks_in_batch = [len(np.unique(global_cells(order, step) // 16)) for step in range(order.steps_per_epoch)]
    assert np.mean(blocks_in_batch) > 9  # 10.3 expected for 16 cells over 16 blocks; 1 if nothing were permuted


# --- cells of a group drawn together ---------------------------------------------------------------------------------


def test_cells_of_rare_groups_come_together_and_all_else_stays_as_it_was():
    """Of 200 technical batches, as in an atlas: by chance, 64 cells of 64 batches."""
    groups = np.random.default_rng(0).integers(0, 200, 128 * 256).astype(np.int32)
    settings = {"seed": 3, "global_batch_size": 64, "num_streams": 4, "window_blocks": 8}
    by_chance, together = (order_of(np.full(128, 256), **settings, groups=g) for g in (None, groups))

    def mean_fraction(order):
        return np.mean([fraction_with_another(groups[global_cells(order, step)]) for step in range(0, 512, 8)])

    assert mean_fraction(by_chance) < 0.35
    assert mean_fraction(together) > 0.97
    # The same cells in each window: what is read does not change, and no cell is drawn more or less often.
    for window in range(4):
        steps = range(window * 128, (window + 1) * 128)
        for stream in range(4):
            rows = slice(stream * 16, (stream + 1) * 16)
            one, other = (np.concatenate([global_cells(o, s)[rows] for s in steps]) for o in (by_chance, together))
            assert set(one) == set(other)


def test_groups_that_chance_brings_together_change_nothing():
    groups = np.arange(64 * 16).astype(np.int32) % 4  # 16 of each in a batch of 64
    by_chance, together = (order_of(np.full(64, 16), 0, 64, 4, 8, groups=g) for g in (None, groups))
    for step in range(by_chance.steps_per_epoch):
        np.testing.assert_array_equal(global_cells(by_chance, step), global_cells(together, step))


def test_runs_of_a_group_lie_where_the_first_of_them_was():
    found = side_by_side(np.array([7, 5, -1, 7, 5, 7, -1, 7, 7]), run=3)
    assert found.tolist() == [0, 3, 5, 1, 4, 2, 6, 7, 8]


# --- mixtures --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(order=mixtures())
def test_a_mixture_offers_every_cell_of_a_source_once_in_each_of_its_epochs(order):
    """Over enough steps that the smallest sources are through several epochs."""
    seen: dict[tuple[int, int], list[np.ndarray]] = {}
    for step in range(40):
        for draws in order.cells_at(step):
            seen.setdefault((draws.source, draws.epoch), []).append(cells_of(order, draws))
    for (source, epoch), parts in seen.items():
        cells, own = np.concatenate(parts), order.source_orders[source]
        assert len(np.unique(cells)) == len(cells) <= own.epoch_draws * own.num_partitions
        # streams that draw from one partition are a few draws apart
        if (source, epoch + 1) in seen and own.num_partitions == 1:
            assert len(cells) >= own.epoch_draws - 3 * order.num_streams
        if own.num_partitions == 1:
            assert own.unused_per_epoch == 0
        else:
            assert own.unused_per_epoch < own.num_partitions * own.block_sizes.max() + len(own.block_sizes)


def test_over_a_cycle_every_source_is_drawn_exactly_as_often_as_it_should_be():
    fractions = (5, 2, 1)
    plans = [plan_in_mixture(np.full(n, 16), None, s / 8, 3, 4, 2) for n, s in zip((60, 9, 1), fractions, strict=True)]
    of_sources = draws_per_cycle(fractions)
    order = SamplingOrder(plans, of_sources, 0, 4 * 64, 4)
    assert of_sources.sum() == 4096
    drawn = np.zeros(3, np.int64)
    for step in range(64, 128):  # the second cycle
        for draws in order.cells_at(step):
            drawn[draws.source] += len(draws.cells)
    assert drawn.tolist() == [4 * 2560, 4 * 1024, 4 * 512]


def test_the_draws_of_a_small_source_are_shared_by_all_streams():
    """Five cells for eight streams: each comes once before any comes again."""
    plans = [SourcePlan(np.full(40, 8), 8, 2), SourcePlan(np.array([5]), 1, 1)]
    order = SamplingOrder(plans, np.array([1, 1]), 0, 16, 8)
    of_source = [draws for step in range(200) for draws in order.cells_at(step) if draws.source == 1]
    counts = np.bincount(np.concatenate([cells_of(order, draws) for draws in of_source]), minlength=5)
    assert counts.sum() == 8 * 200
    assert np.ptp(counts) <= 3


def test_a_mixture_of_fewer_cells_than_a_batch_is_refused():
    plans = [SourcePlan(np.array([5]), 1, 1), SourcePlan(np.array([6]), 1, 1)]
    with pytest.raises(ConfigError, match=r"11 cells in 2 blocks.*one batch of 12"):
        SamplingOrder(plans, np.array([1, 1]), 0, 12, 4)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_batch_size": 10, "num_streams": 4}, r"10 is not a multiple of num_streams 4"),
        ({"global_batch_size": 16, "num_streams": 16}, r"10 blocks for 16 streams.*--block-size 3"),
        ({"global_batch_size": 400, "num_streams": 2}, r"shorter than one batch of 400.*to 50 or less"),
    ],
)
def test_an_impossible_order_says_what_to_change(arguments, message):
    with pytest.raises(ConfigError, match=message):
        order_of(np.full(10, 5), **{"seed": 0, "window_blocks": 2, **arguments})


def test_processes_must_divide_the_streams():
    order = order_of(np.full(10, 5), 0, 8, 4, 2)
    with pytest.raises(ConfigError, match="3 processes cannot share 4 streams"):
        order.cells_at(0, 0, 3)
