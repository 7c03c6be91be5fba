"""The value scales, against arithmetic done by hand."""

import numpy as np
import pytest
import scipy.sparse as sp

from scmbert_jax.evaluation.data.value_scale import ValueScale, change_target_sum, clr_of_log1p, median_library_size

COUNTS = sp.csr_matrix(np.array([[3, 0, 1], [0, 0, 0], [10, 20, 10]]))


def test_rna_is_scaled_to_the_target_sum_and_logged():
    values = ValueScale("rna", 8.0).values(COUNTS).toarray()
    np.testing.assert_allclose(values[0], np.log1p([6, 0, 2]), rtol=1e-6)
    np.testing.assert_allclose(values[1], 0)  # a cell without counts stays zero, not nan
    np.testing.assert_allclose(np.expm1(values[2]).sum(), 8, rtol=1e-6)


def test_protein_is_divided_by_the_geometric_mean_of_one_plus_its_counts():
    values = ValueScale("protein").values(COUNTS).toarray()
    g = np.exp(np.log([4, 1, 2]).mean())
    np.testing.assert_allclose(values[0], np.log1p(np.array([3, 0, 1]) / g), rtol=1e-6)


def test_peaks_are_open_or_closed():
    np.testing.assert_array_equal(ValueScale("atac").values(COUNTS).toarray(), COUNTS.toarray() > 0)


def test_a_change_of_target_sum_equals_scaling_anew():
    old, new = (ValueScale("rna", t).values(COUNTS).toarray() for t in (8.0, 500.0))
    np.testing.assert_allclose(change_target_sum(old, 8.0, 500.0), new, rtol=1e-5)


def test_log1p_counts_become_the_clr_of_those_counts():
    counts = COUNTS[[0, 2]]
    expected = ValueScale("protein").values(counts).toarray()
    np.testing.assert_allclose(clr_of_log1p(np.log1p(counts.toarray())), expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [ValueScale("rna", 8.0), ValueScale("protein"), ValueScale("atac")])
def test_the_counts_themselves_are_left_alone_even_with_unsorted_columns(scale):
    unsorted = sp.csr_matrix((np.array([5, 1, 2], np.int32), np.array([2, 0, 1]), np.array([0, 3])), (1, 3))
    before = unsorted.toarray()
    values = scale.values(unsorted)
    values.sort_indices()
    np.testing.assert_array_equal(unsorted.toarray(), before)
    assert values.toarray().argmax() == (2 if scale.modality != "atac" else 0)


def test_cells_without_counts_do_not_lower_the_median_library_size():
    assert median_library_size(COUNTS) == 22.0


@pytest.mark.parametrize(("modality", "target_sum"), [("rna", None), ("protein", 10.0), ("rna", -1.0), ("dna", None)])
def test_a_scale_that_makes_no_sense_is_refused(modality, target_sum):
    with pytest.raises(ValueError, match=r"target_sum|expected one of"):
        ValueScale(modality, target_sum)
