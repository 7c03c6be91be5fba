"""Who is learned from, who is predicted, and that these are never the same cells."""

import numpy as np
import pytest

from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.annotation.splits import (
    NUM_FOLDS,
    LabelledCells,
    make_tasks,
    refuse_identical_cells,
    validation_parts,
)


def cells(number=200, **groups):
    rng = np.random.default_rng(0)
    codes = rng.choice(3, number, p=[0.6, 0.3, 0.1])
    return LabelledCells("some cells", codes, np.array(["B", "NK", "T"]), groups)


def donors(number=200, of=8):
    return np.array([f"d{i}" for i in np.random.default_rng(1).integers(0, of, number)])


def test_every_cell_is_predicted_once_in_each_seed_and_never_learned_from_then():
    tasks = make_tasks(cells(), "cell", num_seeds=2)
    assert len(tasks) == 2 * NUM_FOLDS
    for seed in range(2):
        tested = np.concatenate([task.test for task in tasks if task.seed == seed])
        assert sorted(tested) == list(range(200))
    for task in tasks:
        assert not np.intersect1d(task.train, task.test).size
        assert task.train.size + task.test.size == 200
    assert not np.array_equal(tasks[0].test, tasks[NUM_FOLDS].test), "another seed, other folds"


def test_folds_hold_each_type_evenly():
    labelled = cells()
    for task in make_tasks(labelled, "cell", num_seeds=1):
        fraction = np.bincount(labelled.codes[task.test]) / np.bincount(labelled.codes)
        np.testing.assert_allclose(fraction, 0.2, atol=0.06)


def test_no_donor_is_on_both_sides_nor_in_two_validation_parts():
    groups = donors()
    for task in make_tasks(cells(donor=groups), "donor", num_seeds=3):
        assert not np.intersect1d(groups[task.train], groups[task.test]).size
        for part in np.unique(task.parts):
            mine = task.parts == part
            assert not np.intersect1d(task.groups[mine], task.groups[~mine]).size


def test_seeds_put_donors_into_other_folds():
    groups = donors()
    first, second = (
        {tuple(np.unique(groups[t.test])) for t in make_tasks(cells(donor=groups), "donor", num_seeds=2) if t.seed == s}
        for s in range(2)
    )
    assert first != second


@pytest.mark.parametrize("number", [1, 5, 30])
def test_few_cells_of_each_type_are_drawn_and_all_others_predicted(number):
    labelled = cells()
    for task in make_tasks(labelled, "cell", per_type=(number,), num_seeds=3):
        sizes = np.bincount(labelled.codes)
        np.testing.assert_array_equal(np.bincount(task.codes), np.minimum(number, sizes // 2))
        assert task.test.size == 200 - task.train.size
        assert not np.intersect1d(task.train, task.test).size
        assert (task.parts is None) == (number == 1)
    assert task.case == f"{number} per type"


def test_few_cells_of_other_donors_predict_those_of_a_donor():
    groups = donors()
    for task in make_tasks(cells(donor=groups), "donor", per_type=(5,), num_seeds=1):
        assert np.bincount(task.codes).max() == 5
        assert not np.intersect1d(groups[task.train], groups[task.test]).size


def test_a_type_that_is_left_out_teaches_nothing_and_is_tested_whole():
    labelled = cells()
    tasks = make_tasks(labelled, "type", num_seeds=2)
    assert [task.case for task in tasks] == ["B", "NK", "T"] * 2
    for task in tasks:
        code = int(np.flatnonzero(labelled.classes == task.case)[0])
        assert code not in task.codes
        assert (labelled.codes[task.test] == code).sum() == (labelled.codes == code).sum()
        assert (labelled.codes[task.test] != code).sum() == pytest.approx((labelled.codes != code).sum() / 5, abs=4)


def test_one_data_set_predicts_the_other_both_ways():
    of = np.repeat(["first", "second"], [120, 80])
    tasks = make_tasks(cells(data_set=of), "data_set", num_seeds=1)
    assert [(t.case, t.train.size, t.test.size) for t in tasks] == [
        ("first -> second", 120, 80),
        ("second -> first", 80, 120),
    ]


def test_what_cannot_be_split_is_refused_with_what_to_do():
    with pytest.raises(
        InputError, match="to split by donor, every cell needs one, of two or more; 200 cells have none"
    ):
        make_tasks(cells(), "donor")
    with pytest.raises(InputError, match="all are 'd': name its column: --obs-field donor="):
        make_tasks(cells(donor=np.full(200, "d")), "donor")
    with pytest.raises(InputError, match="give a second file: --test-data"):
        make_tasks(cells(), "data_set")
    with pytest.raises(ConfigError, match="--split lab: expected cell, donor"):
        make_tasks(cells(), "lab")
    with pytest.raises(ConfigError, match="--per-type 0: expected numbers of 1 or more"):
        make_tasks(cells(), "cell", per_type=(0,))
    one = LabelledCells("some cells", np.zeros(9, int), np.array(["B"]), {})
    with pytest.raises(InputError, match=r"of 1 type \(B\); two or more are needed"):
        make_tasks(one, "cell")


def test_validation_parts_are_none_where_no_two_types_have_two_cells():
    rng = np.random.default_rng(0)
    assert validation_parts(np.array([0, 0, 1, 2]), np.full(4, ""), rng) is None
    parts = validation_parts(np.array([0, 0, 1, 1]), np.full(4, ""), rng)
    assert sorted(np.bincount(parts)) == [2, 2]


def test_identical_cells_on_both_sides_are_named_and_refused_unless_allowed():
    ids = np.array([f"cell{i}" for i in range(200)])
    keys = np.arange(1, 201, dtype=np.uint64)
    tasks = make_tasks(cells(), "cell", num_seeds=1)
    assert refuse_identical_cells("f", ids, tasks, {"rna": keys}) == []
    first, second = tasks[0].test[0], tasks[0].train[0]
    keys[first] = keys[second]
    with pytest.raises(
        InputError, match=f"2 cells are tested on that stand among those to learn from.*cell{min(first, second)}, cell"
    ):
        refuse_identical_cells("f", ids, tasks, {"rna": keys})
    (note,) = refuse_identical_cells("f", ids, tasks, {"rna": keys}, allow=True)
    assert "this was allowed" in note
    unmeasured = np.zeros(200, np.uint64)
    assert refuse_identical_cells("f", ids, tasks, {"rna": unmeasured}) == []
