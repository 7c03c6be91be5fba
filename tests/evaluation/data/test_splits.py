"""Held-out technical batches: nothing leaks, nothing is dropped unsaid."""

import numpy as np
import pytest

from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.data.splits import (
    Fold,
    check_fold,
    inner_parts,
    leave_one_batch_out,
    subsample_training_cells,
)

BATCHES = np.array(["b2", "b1", "b1", "b2", "b3", "b3", "b3"])
LABELS = np.array(["T", "T", "B", "B", "T", "B", "NK"])


def test_every_batch_is_held_out_once_and_every_cell_tested_once():
    folds = leave_one_batch_out(BATCHES, LABELS)
    assert [f.held_out for f in folds] == ["b1", "b2", "b3"]
    assert sorted(np.concatenate([f.test for f in folds])) == list(range(7))
    for fold in folds:
        assert set(BATCHES[fold.test]) == {fold.held_out}
        assert sorted([*fold.train, *fold.test]) == list(range(7))


def test_classes_no_training_cell_has_are_reported_and_stay_in_the_test():
    fold = leave_one_batch_out(BATCHES, LABELS)[2]
    assert fold.absent_classes == {"NK": 1}
    assert 6 in fold.test


def test_only_the_asked_batches_are_held_out_and_unknown_names_are_refused():
    assert [f.held_out for f in leave_one_batch_out(BATCHES, LABELS, ["b3", "b1"])] == ["b3", "b1"]
    with pytest.raises(InputError, match="no cell is of batch b9; the batches are b1, b2, b3"):
        leave_one_batch_out(BATCHES, LABELS, ["b9"])


def test_a_single_batch_cannot_be_held_out():
    with pytest.raises(InputError, match="found 1 batch"):
        leave_one_batch_out(["a", "a"], ["T", "B"])


def test_cells_without_a_batch_are_refused_with_their_row():
    with pytest.raises(InputError, match=r"1 of 3 cells have no value \(first at row 1\)"):
        leave_one_batch_out(["a", "", "b"], ["T", "B", "T"])


def test_training_cells_of_one_class_are_refused():
    with pytest.raises(InputError, match="outside batch a every cell is 'T'"):
        leave_one_batch_out(["a", "a", "b", "b"], ["T", "B", "T", "T"])


@pytest.mark.parametrize(
    ("train", "test", "reason"),
    [
        ([0, 1], [1, 2], "both sides"),
        ([1, 4], [2, 5], "technical batch on both sides"),
        ([1, 1], [0], "twice"),
        ([], [0], "empty"),
        ([1], [7], "outside"),
    ],
)
def test_a_leaking_fold_is_caught(train, test, reason):
    with pytest.raises(ValueError, match=reason):
        check_fold(Fold("b1", np.array(train, int), np.array(test, int)), BATCHES)


def test_a_subsample_keeps_every_class_and_only_training_cells():
    labels = np.array(["common"] * 95 + ["rare"] + ["common"] * 4)
    fold = Fold("x", np.arange(96), np.arange(96, 100))
    rows = subsample_training_cells(fold, labels, 0.8, np.random.default_rng(0))
    assert rows.size == 77  # ceil(0.8 * 95) + ceil(0.8 * 1)
    assert 95 in rows
    assert np.unique(rows).size == 77
    assert set(rows) <= set(fold.train)
    assert not np.array_equal(rows, subsample_training_cells(fold, labels, 0.8, np.random.default_rng(1)))


def test_settings_are_chosen_across_training_batches_or_within_the_only_one():
    codes = np.array([0, 1, 0, 1, 0, 1])
    parts = inner_parts(np.array(["a", "a", "a", "b", "b", "b"]), codes, np.random.default_rng(0))
    assert len(set(parts[:3])) == len(set(parts[3:])) == 1
    assert parts[0] != parts[3]
    parts = inner_parts(np.array(["a"] * 6), codes, np.random.default_rng(0))
    for part in range(3):
        assert sorted(codes[parts == part]) == [0, 1]
