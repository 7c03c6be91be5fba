"""Sources as blocks: layouts that lose no cell, and virtual blocks that hold exactly the cells they should."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_corpora import two_corpora

from data_pipelines.corpus.cell_block import CellBlock
from data_pipelines.corpus.corpus import balanced_block_sizes, open_corpus
from data_pipelines.sampling.source_blocks import SourceBlocks, plan_alone, plan_in_mixture
from scmbert_jax.errors import ConfigError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return open_corpus(two_corpora(tmp_path_factory.mktemp("mixed"))[0].path)


def contents(block: CellBlock) -> list[dict]:
    """Everything of every cell."""
    cells = []
    for cell in range(block.num_cells):
        of_cell: dict = {name: int(codes[cell]) for name, codes in block.obs_codes.items()}
        of_cell["index"] = int(block.cell_index[cell])
        for name, columns in block.modalities.items():
            start = int(columns.lengths[:cell].sum())
            here = slice(start, start + int(columns.lengths[cell]))
            if columns.measured[cell]:
                of_cell[name] = (
                    columns.feature_ids[here].tolist(),
                    columns.counts[here].tolist(),
                    int(columns.total_counts[cell]),
                )
        cells.append(of_cell)
    return cells


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_virtual_blocks_hold_the_chosen_cells_in_corpus_order(corpus, data):
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, corpus.num_cells - 1), min_size=1))), np.int32)
    sizes = balanced_block_sizes(len(rows), data.draw(st.integers(1, 40)))
    blocks = SourceBlocks(corpus, rows, sizes)
    whole = [cell for number in range(corpus.num_blocks) for cell in contents(corpus.read_block(number))]
    expected = np.split(rows, np.cumsum(sizes)[:-1])
    order = data.draw(st.permutations(range(len(sizes))))
    read = [
        part.unpacked() for part in blocks.read_blocks(np.array(order), ("rna", "protein"), tuple(corpus.vocabularies))
    ]
    assert [cell for part in read for cell in contents(part)] == [whole[row] for n in order for row in expected[n]]


def test_a_whole_corpus_is_read_by_its_own_blocks_or_as_one(corpus):
    plain = SourceBlocks(corpus, None, corpus.block_sizes)
    (block,) = plain.read_blocks(np.array([3]), ("rna",), tuple(corpus.vocabularies))
    assert contents(block.unpacked()) == contents(corpus.read_block(3, ("rna",)))
    one = SourceBlocks(corpus, None, np.array([corpus.num_cells]))
    parts = one.read_blocks(np.array([0]), ("rna",), ())
    assert np.concatenate([part.cell_index for part in parts]).tolist() == list(range(corpus.num_cells))


# --- layouts ---------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    num_blocks=st.integers(1, 60),
    block_size=st.integers(1, 256),
    kept=st.floats(0, 1),
    fraction=st.floats(1e-4, 1),
    num_sources=st.integers(2, 2000),
    num_streams=st.sampled_from([1, 2, 4, 6, 8, 64]),
    window_blocks=st.integers(1, 16),
)
def test_a_layout_has_every_cell_lanes_that_divide_the_streams_and_bounded_windows(
    num_blocks, block_size, kept, fraction, num_sources, num_streams, window_blocks
):
    corpus_sizes = np.full(num_blocks, block_size)
    rows = None if kept == 1 else np.arange(max(1, int(kept * num_blocks * block_size)))
    num_cells = num_blocks * block_size if rows is None else len(rows)
    plan = plan_in_mixture(corpus_sizes, rows, fraction, num_sources, num_streams, window_blocks)
    assert plan.block_sizes.sum() == num_cells
    assert np.ptp(plan.block_sizes) <= 1
    assert plan.block_sizes.min() >= 1
    assert num_streams % plan.num_partitions == 0
    assert plan.num_partitions <= len(plan.block_sizes)
    in_memory = window_blocks * block_size
    window = max(fraction * in_memory, min(block_size, in_memory / num_sources), 16)
    if len(plan.block_sizes) == 1:
        assert num_cells <= 4 * window or num_blocks == 1 or num_cells <= block_size
    else:
        assert plan.window_blocks * plan.block_sizes.max() <= max(window, block_size if rows is None else 0) + 1
    if rows is not None:
        assert len(plan.block_sizes) % plan.num_partitions == 0  # no block rests


def test_a_filter_alone_gives_every_stream_the_same_number_of_blocks():
    plan = plan_alone(np.full(100, 256), np.arange(70), 8, 4)
    assert plan.block_sizes.tolist() == [9, 9, 9, 9, 9, 9, 8, 8]
    assert plan_alone(np.full(100, 256), np.arange(5000), 8, 4).block_sizes.max() <= 256


def test_a_corpus_of_fewer_blocks_than_streams_says_what_to_change():
    with pytest.raises(ConfigError, match=r"10 blocks for 16 streams.*--block-size 3"):
        plan_alone(np.full(10, 5), None, 16, 2)
