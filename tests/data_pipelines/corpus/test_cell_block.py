"""The block on disk gives back exactly what was put in, or an error; never something else."""

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.corpus import cell_block, tfrecord
from data_pipelines.corpus.cell_block import CellBlock, ModalityColumns, decode, deserialise, encode, serialise
from scmbert_jax.errors import CorpusError

NUM_FEATURES = {"rna": 70_000, "protein": 5, "atac": 2**31 - 1}


def feature_lists(num_features: int) -> list[st.SearchStrategy]:
    """Anywhere; with equal gaps, small and large; at the limits."""
    evenly = st.builds(
        lambda first, step, size: [i for i in range(first, first + step * size, step) if i < num_features],
        *(st.sampled_from([0, 1, 254, 255, 256]), st.sampled_from([1, 2, 255, 256, 257]), st.integers(0, 40)),
    )
    anywhere = st.lists(st.integers(0, num_features - 1), unique=True, max_size=12)
    return [anywhere, evenly, st.just([0, num_features - 1])]


@st.composite
def columns_of(draw, modality: str, num_cells: int) -> ModalityColumns:
    measured = draw(st.lists(st.booleans(), min_size=num_cells, max_size=num_cells))
    ids, lengths, counts = [], [], []
    for is_measured in measured:
        cell = draw(st.one_of(feature_lists(NUM_FEATURES[modality]))) if is_measured else []
        ids += sorted(cell)
        lengths.append(len(cell))
    counts = draw(
        st.lists(
            st.one_of(st.integers(0, 20), st.sampled_from([14, 15, 16, 254, 255, 256, 2**32 - 1])),
            min_size=len(ids),
            max_size=len(ids),
        )
    )
    totals = draw(st.lists(st.integers(0, 2**64 - 1), min_size=num_cells, max_size=num_cells))
    return ModalityColumns(
        np.array(lengths, np.int32),
        np.array(ids, np.int32),
        np.array(counts, np.uint32),
        np.array(totals, np.uint64),
        np.array(measured, bool),
    )


@st.composite
def blocks(draw) -> CellBlock:
    num_cells = draw(st.integers(0, 20))
    chosen = draw(st.lists(st.sampled_from(sorted(NUM_FEATURES)), unique=True))
    modalities = {name: draw(columns_of(name, num_cells)) for name in chosen}
    codes = st.lists(st.integers(-1, 2**31 - 2), min_size=num_cells, max_size=num_cells)
    obs = {name: np.array(draw(codes), np.int32) for name in draw(st.sampled_from([(), ("dataset", "cell_type")]))}
    return CellBlock(modalities, obs, draw(st.integers(0, 2**62)) * (num_cells > 0) + np.arange(num_cells))


def assert_same_block(found: CellBlock, expected: CellBlock) -> None:
    np.testing.assert_array_equal(found.cell_index, expected.cell_index)
    assert list(found.obs_codes) == list(expected.obs_codes)
    for name, codes in expected.obs_codes.items():
        np.testing.assert_array_equal(found.obs_codes[name], codes)
    kept = {name: columns for name, columns in expected.modalities.items() if columns.measured.any()}
    assert list(found.modalities) == list(kept)
    for name, columns in kept.items():
        for field, values in columns._asdict().items():
            np.testing.assert_array_equal(getattr(found.modalities[name], field), values, err_msg=f"{name}.{field}")
            assert getattr(found.modalities[name], field).dtype == values.dtype, f"{name}.{field}"


def example_block(num_cells: int = 40, nnz: int = 30, seed: int = 0) -> CellBlock:
    rng = np.random.default_rng(seed)
    ids = np.concatenate([np.sort(rng.choice(20_000, nnz, replace=False)) for _ in range(num_cells)])
    counts = np.minimum(rng.geometric(0.3, num_cells * nnz), 2000)
    columns = ModalityColumns(
        np.full(num_cells, nnz, np.int32),
        ids.astype(np.int32),
        counts.astype(np.uint32),
        counts.reshape(num_cells, nnz).sum(1).astype(np.uint64),
        np.ones(num_cells, bool),
    )
    return CellBlock({"rna": columns}, {"dataset": np.zeros(num_cells, np.int32)}, np.arange(num_cells) + 1000)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(block=blocks(), codec=st.sampled_from(["none", "zstd"]))
def test_what_goes_in_comes_out(block, codec):
    assert_same_block(decode(encode(block, codec)), block)


@settings(max_examples=60, deadline=None)
@given(block=blocks(), wanted=st.sets(st.sampled_from(sorted(NUM_FEATURES))), fields=st.sets(st.just("cell_type")))
def test_what_is_not_asked_for_is_stepped_over(block, wanted, fields):
    found = deserialise(serialise(block), wanted, fields).unpacked()
    kept = {name: columns for name, columns in block.modalities.items() if name in wanted}
    codes = {name: values for name, values in block.obs_codes.items() if name in fields}
    assert_same_block(found, CellBlock(kept, codes, block.cell_index))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), codec=st.sampled_from(["none", "zstd"]))
def test_every_flipped_bit_of_a_framed_block_is_noticed(data, codec):
    framed = bytearray(tfrecord.frame(encode(example_block(), codec)))
    position = data.draw(st.integers(0, len(framed) - 1))
    framed[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorpusError):
        decode(tfrecord.unframe(bytes(framed)))


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(data=st.data(), codec=st.sampled_from(["none", "zstd"]))
def test_every_truncation_is_noticed_without_a_checksum(data, codec):
    record = encode(data.draw(blocks()), codec)
    with pytest.raises(CorpusError):
        decode(record[: data.draw(st.integers(0, len(record) - 1))])
    payload = serialise(example_block(num_cells=3))
    with pytest.raises(CorpusError):
        deserialise(payload[: data.draw(st.integers(0, len(payload) - 1))])


@settings(max_examples=300, deadline=None)
@given(payload=st.binary(max_size=300), start=st.integers(0, 40))
def test_random_bytes_are_no_block_and_never_crash(payload, start):
    sound = serialise(example_block(num_cells=3, nnz=4))
    for read in (payload, sound[:start] + payload):
        with contextlib.suppress(CorpusError):
            deserialise(read).unpacked()
    with pytest.raises(CorpusError):
        decode(payload)
    for codec in cell_block.CODECS:
        header = cell_block.pack(sound, codec)[:24]
        with contextlib.suppress(CorpusError):
            decode(header + payload)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(block=blocks(), data=st.data())
def test_a_damaged_payload_gives_a_block_or_an_error_and_never_crashes(block, data):
    payload = bytearray(serialise(block))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CorpusError):
        found = deserialise(bytes(payload))
        for columns in found.modalities.values():
            assert len(columns.unpacked().feature_ids) == columns.counts.lengths.sum()


def test_a_modality_nobody_measured_costs_nothing():
    block = example_block()
    n = block.num_cells
    absent = ModalityColumns(
        np.zeros(n, np.int32), np.zeros(0, np.int32), np.zeros(0, np.uint32), np.zeros(n, np.uint64), np.zeros(n, bool)
    )
    with_atac = block._replace(modalities={**block.modalities, "atac": absent})
    assert encode(with_atac, "none") == encode(block, "none")


def test_a_block_of_another_version_is_refused_by_number():
    record = bytearray(encode(example_block(), "none"))
    record[4:6] = struct.pack("<H", 99)
    with pytest.raises(CorpusError, match=r"version 99.*rebuild the corpus"):
        decode(bytes(record))


def test_gaps_and_byte_planes_make_a_block_small():
    block = example_block(num_cells=256, nnz=500)
    bytes_per_entry = len(encode(block, "zstd")) / (256 * 500)
    assert bytes_per_entry < 1.3  # u16 ids + u8 counts would be 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c._replace(feature_ids=c.feature_ids[::-1].copy()), "ascending"),
        (lambda c: c._replace(counts=c.counts[:-1]), "add up"),
        (lambda c: c._replace(measured=np.zeros_like(c.measured)), "not measured"),
        (lambda c: c._replace(total_counts=c.total_counts[:-1]), "total_counts"),
        (lambda c: c._replace(feature_ids=np.repeat(c.feature_ids[::2], 2)), "ascending"),
    ],
)
def test_columns_that_contradict_each_other_are_not_written(change, message):
    block = example_block()
    with pytest.raises(ValueError, match=message):
        encode(block._replace(modalities={"rna": change(block.modalities["rna"])}))


@pytest.mark.parametrize(
    "cell_index", [np.arange(40) * 2, np.arange(40)[::-1], np.random.default_rng(0).permutation(40)]
)
def test_cells_keep_their_numbers_in_any_order(cell_index):
    """Segments of a build hold cells as their file has them."""
    assert decode(encode(example_block()._replace(cell_index=cell_index))).cell_index.tolist() == cell_index.tolist()
