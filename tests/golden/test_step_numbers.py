"""One step of each objective computes what step_numbers.json says (see step_numbers.py)."""

import json

import pytest
import step_numbers

from scmbert_jax.objectives.mixture import OBJECTIVES


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, float]]:
    return json.loads(step_numbers.GOLDEN.read_text())


def test_a_step_of_each_objective_computes_what_it_did(golden):
    assert set(golden) == set(OBJECTIVES), step_numbers.__doc__
    lines = step_numbers.differences(golden, step_numbers.numbers())
    assert not lines, "\n".join([*lines, step_numbers.__doc__])


def test_a_number_that_is_another_or_is_missing_is_told(golden):
    found = {name: dict(numbers) for name, numbers in golden.items()}
    assert step_numbers.differences(golden, found) == []
    found["masked_modeling"]["grad_norm"] *= 1 + 2 * step_numbers.RTOL
    del found["whole_profile"]["update"]
    masked, whole = step_numbers.differences(golden, found)
    assert masked.startswith("masked_modeling, grad_norm: ")
    assert whole.startswith("whole_profile, update: None, the golden has ")
