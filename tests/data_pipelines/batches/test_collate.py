"""Tokens: drawn uniformly, of the right kinds and numbers, and a function of the cell alone."""

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.batches.collate import (
    TokenSampling,
    collate_counts,
    empty_tokens,
    fill_tokens,
    token_key,
)
from data_pipelines.batches.draw_tokens import MeasuredFeatures, StoredCells, TokenDraw
from data_pipelines.corpus.packed_counts import index_of, pack
from data_pipelines.counter_hash import fold, fold_array, fold_compiled, hash_of
from scmbert_jax.errors import ConfigError, InputError


def tokens_of(dense, num_tokens, zero_fraction, *, mask=None, seed=0, epoch=0, keys=None, first=0, measured=None):
    """Sample tokens of the rows of a dense count matrix: ModalityTokens."""
    matrix = scipy.sparse.csr_matrix(dense)
    num_cells, num_features = matrix.shape
    packed = pack(np.diff(matrix.indptr), matrix.indices, matrix.data)
    tokens = empty_tokens(num_cells, num_tokens)
    fill_tokens(
        tokens,
        slice(0, num_cells),
        np.arange(num_cells),
        StoredCells(
            packed,
            index_of(packed),
            (np.arange(num_cells) if keys is None else np.asarray(keys)).astype(np.uint64),
            np.zeros(num_cells, np.int32),
            np.ones(num_cells, bool) if measured is None else measured,
        ),
        MeasuredFeatures.from_masks([np.ones(num_features, bool) if mask is None else mask]),
        TokenDraw(token_key(seed, epoch, "rna"), zero_fraction, first_feature=first),
    )
    return tokens


def random_counts(num_cells, num_features, density, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(1, 9, (num_cells, num_features)) * (rng.random((num_cells, num_features)) < density)


@st.composite
def cells(draw):
    """A dense matrix whose expressed features are all measured, the mask, L and z."""
    num_features = draw(st.integers(1, 150))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = rng.random(num_features) < draw(st.sampled_from([0.1, 0.5, 1.0]))
    mask[rng.integers(num_features)] = True
    dense = random_counts(5, num_features, draw(st.sampled_from([0.0, 0.02, 0.4, 1.0])), rng.integers(2**32)) * mask
    length = draw(st.one_of(st.integers(1, int(mask.sum())), st.integers(1, 200)))  # too small for the panel, or any
    return dense, mask, length, draw(st.sampled_from([0.0, 0.2, 0.5, 0.9]))


@settings(max_examples=200, deadline=None)
@given(case=cells())
def test_a_cell_gets_the_stated_numbers_of_expressed_features_and_zeros(case):
    dense, mask, length, zero_fraction = case
    tokens = tokens_of(dense, length, zero_fraction, mask=mask, first=1000)
    panel = int(mask.sum())
    for cell, row in enumerate(dense):
        n = int((row > 0).sum())
        if length >= panel and zero_fraction > 0:
            num_expressed, num_zeros = n, panel - n
        else:
            num_expressed = min(n, length - int(length * zero_fraction))
            num_zeros = min(
                int(num_expressed * zero_fraction / (1 - zero_fraction) + 0.5), panel - n, length - num_expressed
            )
        real = tokens.lengths[cell]
        ids = tokens.feature_ids[cell, :real] - 1000
        assert real == num_expressed + num_zeros
        assert (tokens.counts[cell, :real] > 0).sum() == num_expressed
        assert np.all(np.diff(ids) > 0), "ascending, so also distinct"
        assert mask[ids].all(), "not measured is not zero"
        np.testing.assert_array_equal(tokens.counts[cell, :real], row[ids])
        assert not tokens.feature_ids[cell, real:].any()
        assert not tokens.counts[cell, real:].any()


def test_every_expressed_feature_and_every_zero_is_drawn_equally_often():
    """4,000 copies of a cell with 60 expressed of 200 features; 20 + 20 tokens. Each feature's tally is binomial."""
    copies = 4000
    cell = random_counts(1, 200, 0.3, seed=1)
    n = int((cell > 0).sum())
    tokens = tokens_of(np.repeat(cell, copies, axis=0), 40, 0.5)
    assert (tokens.lengths == 40).all()
    tally = np.bincount(tokens.feature_ids.ravel(), minlength=200)
    for kind, size in [(cell[0] > 0, n), (cell[0] == 0, 200 - n)]:
        fraction = 20 / size
        deviation = (tally[kind] - copies * fraction) / np.sqrt(copies * fraction * (1 - fraction))
        assert np.abs(deviation).max() < 4.5  # of 200 normal deviates the largest is about 3
        assert 0.7 < deviation.std() < 1.3


def test_what_was_not_measured_is_never_drawn_as_a_zero():
    mask = np.arange(200) % 2 == 0
    tokens = tokens_of(random_counts(50, 200, 0.2) * mask, 40, 0.5, mask=mask)
    assert (tokens.feature_ids % 2 == 0).all()
    zeros = (tokens.counts == 0) & (np.arange(40) < tokens.lengths[:, None])
    assert zeros.sum() > 500


def test_pairs_of_features_are_drawn_independently():
    copies = 4000
    tokens = tokens_of(np.ones((copies, 30), int), 10, 0.0)
    together = np.zeros((30, 30))
    chosen = np.zeros((copies, 30))
    np.put_along_axis(chosen, tokens.feature_ids, 1, axis=1)
    together = chosen.T @ chosen / copies
    expected = 10 / 30 * 9 / 29  # without replacement
    off_diagonal = together[~np.eye(30, dtype=bool)]
    assert np.abs(off_diagonal - expected).max() < 5 * np.sqrt(expected * (1 - expected) / copies)


@pytest.mark.parametrize("zero_fraction", [0.0, 0.3])
def test_the_tokens_of_a_cell_do_not_depend_on_its_neighbours(zero_fraction):
    dense = random_counts(12, 300, 0.3)
    keys = np.arange(12) * 7 + 3
    together = tokens_of(dense, 40, zero_fraction, keys=keys)
    order = np.random.default_rng(0).permutation(12)
    shuffled = tokens_of(dense[order], 40, zero_fraction, keys=keys[order])
    alone = tokens_of(dense[[5]], 40, zero_fraction, keys=keys[[5]])
    np.testing.assert_array_equal(shuffled.feature_ids, together.feature_ids[order])
    np.testing.assert_array_equal(alone.counts[0], together.counts[5])
    np.testing.assert_array_equal(alone.feature_ids[0], together.feature_ids[5])


@pytest.mark.parametrize("zero_fraction", [0.0, 0.25])
def test_more_room_than_needed_adds_only_padding(zero_fraction):
    dense = random_counts(6, 500, 0.1)
    small, large = tokens_of(dense, 150, zero_fraction), tokens_of(dense, 300, zero_fraction)
    assert small.lengths.max() < 150
    np.testing.assert_array_equal(small.feature_ids, large.feature_ids[:, :150])
    np.testing.assert_array_equal(small.lengths, large.lengths)
    assert not large.feature_ids[:, 150:].any()


def test_another_epoch_seed_or_cell_draws_other_tokens():
    dense = np.ones((1, 400), int)
    base = tokens_of(dense, 50, 0.0).feature_ids
    for other in ({"epoch": 1}, {"seed": 1}, {"keys": [1]}):
        fraction = np.isin(base, tokens_of(dense, 50, 0.0, **other).feature_ids).mean()
        assert fraction < 0.4, other  # 1/8 expected


def test_a_panel_that_fits_is_read_whole():
    dense = random_counts(3, 224, 0.8)
    tokens = tokens_of(dense, 224, 0.25)
    assert (tokens.lengths == 224).all()
    np.testing.assert_array_equal(tokens.counts, dense)


def test_a_cell_that_was_not_measured_has_no_tokens():
    tokens = tokens_of(random_counts(2, 50, 0.5), 20, 0.5, measured=np.array([False, True]))
    assert tokens.lengths[0] == 0
    assert tokens.lengths[1] == 20
    assert not tokens.feature_ids[0].any()


@settings(max_examples=50, deadline=None)
@given(state=st.integers(0, 2**64 - 1), value=st.integers(0, 2**63 - 1))
def test_the_three_forms_of_the_hash_agree(state, value):
    expected = fold(state, value)
    assert int(fold_array(state, np.array([value]))[0]) == expected
    assert int(fold_compiled(np.uint64(state), np.uint64(value))) == expected


def test_the_hash_is_splitmix64():
    assert hash_of(0) == 0xE220A8397B1DCDAF  # first output of the reference implementation for seed 0


class TestCollateCounts:
    slices = {"rna": (0, 300), "protein": (300, 320)}  # noqa: RUF012
    sampling = {"rna": TokenSampling(64, 0.25), "protein": TokenSampling(20, 0.5)}  # noqa: RUF012
    masks = {"rna": np.ones(300, bool), "protein": np.ones(20, bool)}  # noqa: RUF012

    def counts(self, num_cells=6):
        return {
            "rna": scipy.sparse.csr_matrix(random_counts(num_cells, 300, 0.4)),
            "protein": scipy.sparse.csr_matrix(random_counts(num_cells, 20, 0.9, seed=3)),
        }

    def test_a_cell_gets_the_same_tokens_in_any_row_and_company(self):
        counts = self.counts()
        order = np.array([3, 0, 3, 5])
        whole = collate_counts(counts, self.sampling, self.slices, self.masks)
        part = collate_counts({m: c[order] for m, c in counts.items()}, self.sampling, self.slices, self.masks)
        for modality, tokens in part.modalities.items():
            for field, values in tokens._asdict().items():
                np.testing.assert_array_equal(values, getattr(whole.modalities[modality], field)[order], err_msg=field)

    def test_rows_of_the_feature_table_and_dtypes_are_those_of_the_contract(self):
        batch = collate_counts(self.counts(), self.sampling, self.slices, self.masks)
        protein = batch.modalities["protein"]
        np.testing.assert_array_equal(protein.feature_ids[0], np.arange(300, 320))
        assert list(batch.modalities) == ["rna", "protein"]
        dtypes = {field: values.dtype.name for field, values in protein._asdict().items()}
        assert dtypes == {
            "feature_ids": "int32",
            "counts": "int32",
            "lengths": "int32",
            "library_size": "float32",
            "measured": "bool",
            "num_expressed": "int32",
            "num_measured": "int32",
            "mean_log_count": "float32",
        }
        assert batch.row.dtype == batch.cell_index.dtype == np.int32

    def test_the_matrix_need_not_be_sorted_nor_free_of_duplicates(self):
        messy = scipy.sparse.csr_matrix(([2, 0, 1, 5], [7, 3, 7, 2], [0, 4]), shape=(1, 300))
        tidy = scipy.sparse.csr_matrix(([5, 3], [2, 7], [0, 2]), shape=(1, 300))
        sampling = {"rna": TokenSampling(8, 0.0)}
        found, expected = (
            collate_counts({"rna": m}, sampling, self.slices, self.masks).modalities["rna"] for m in (messy, tidy)
        )
        np.testing.assert_array_equal(found.feature_ids, expected.feature_ids)
        np.testing.assert_array_equal(found.counts, expected.counts)
        assert found.library_size[0] == 8
        assert messy.nnz == 4, "the caller's matrix stays as it is"

    def test_what_is_predicted_is_drawn_without_a_look_at_what_is_shown(self):
        counts = {"rna": self.counts(1)["rna"]}
        sampling, common = {"rna": TokenSampling(30, profile_tokens=30)}, []
        for seed in range(100):
            batch = collate_counts(counts, sampling, self.slices, self.masks, seed=seed)
            shown, asked = batch.modalities["rna"].feature_ids[0], batch.profiles["rna"].feature_ids[0]
            assert len(set(asked.tolist())) == batch.profiles["rna"].lengths[0] == 30
            common.append(len(set(shown.tolist()) & set(asked.tolist())))
        expressed = int(batch.modalities["rna"].num_expressed[0])
        # Hypergeometric, of standard deviation below 2.7; five standard errors.
        assert abs(np.mean(common) - 30 * 30 / expressed) < 1.4

    def test_a_missing_modality_is_padding_and_says_not_measured(self):
        counts = {"rna": self.counts()["rna"]}
        protein = collate_counts(counts, self.sampling, self.slices, self.masks).modalities["protein"]
        assert not protein.measured.any()
        assert not protein.lengths.any()

    def test_counts_of_what_was_not_measured_are_refused(self):
        masks = {**self.masks, "rna": np.arange(300) < 100}
        with pytest.raises(InputError, match="marked as not measured"):
            collate_counts(self.counts(), self.sampling, self.slices, masks)

    def test_a_matrix_of_another_width_is_refused(self):
        with pytest.raises(InputError, match=r"shape \(6, 300\), expected \(6, 20\)"):
            collate_counts({"protein": self.counts()["rna"]}, self.sampling, self.slices, self.masks)

    @pytest.mark.parametrize(
        ("sampling", "message"),
        [
            ({"atac": TokenSampling(5)}, "'atac' are asked for"),
            ({"rna": TokenSampling(5, 1.0)}, "zero_fraction of rna is 1.0"),
            ({"rna": TokenSampling(-1)}, "num_tokens of rna is -1"),
            ({"rna": TokenSampling(0)}, "no modality has num_tokens"),
            ({"rna": TokenSampling(5, profile_tokens=-1)}, "profile_tokens of rna is -1"),
        ],
    )
    def test_impossible_sampling_is_refused_by_name(self, sampling, message):
        with pytest.raises(ConfigError, match=message):
            collate_counts(self.counts(), sampling, self.slices, self.masks)
