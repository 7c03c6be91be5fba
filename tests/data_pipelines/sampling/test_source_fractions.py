"""Fractions by size, temperature and weights; caps hold and nothing is lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.sampling import source_fractions
from scmbert_jax.errors import ConfigError

sizes = st.lists(st.integers(1, 10**8), min_size=1, max_size=20)


@settings(deadline=None)
@given(sizes=sizes, temperature=st.floats(0.2, 50))
def test_a_temperature_keeps_the_order_of_sizes_and_sums_to_one(sizes, temperature):
    fractions = source_fractions.tempered(sizes, temperature)
    assert fractions.sum() == pytest.approx(1)
    order = np.argsort(sizes, kind="stable")
    assert (np.diff(fractions[order]) >= -1e-12).all()


def test_one_is_by_size_infinity_equal_and_two_between():
    np.testing.assert_allclose(source_fractions.tempered([100, 300], 1), [0.25, 0.75])
    np.testing.assert_allclose(source_fractions.tempered([100, 300], float("inf")), [0.5, 0.5])
    np.testing.assert_allclose(source_fractions.tempered([100, 400], 2), [1 / 3, 2 / 3])  # square roots 10 and 20


@settings(deadline=None)
@given(sizes=sizes, data=st.data())
def test_no_fraction_is_above_its_cap_and_those_below_keep_their_ratios(sizes, data):
    fractions = source_fractions.tempered(sizes, 1)
    caps = np.array(data.draw(st.lists(st.floats(0.01, 1), min_size=len(sizes), max_size=len(sizes))))
    if caps.sum() < 1:
        with pytest.raises(ConfigError, match=r"--max-fraction: .* less than all"):
            source_fractions.capped(fractions, caps, "--max-fraction")
        return
    capped = source_fractions.capped(fractions, caps, "--max-fraction")
    assert capped.sum() == pytest.approx(1)
    assert (capped <= caps * (1 + 1e-9)).all()
    free = capped < caps * (1 - 1e-9)
    if free.any():
        ratios = capped[free] / fractions[free]
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)
        assert (capped[~free] / fractions[~free] <= ratios[0] * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((2.0, 1.0, 1.0), "--corpus-weights: 3 weights for 2 corpora"),
        ((2.0, -1.0), "weight -1; expected positive"),
        ((2.0, 0.0), "weight 0; expected positive"),
        ((2.0, float("nan")), "weight nan; expected positive"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    with pytest.raises(ConfigError, match=message):
        source_fractions.given(weights, 2, "--corpus-weights")


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ConfigError, match="expected a positive number"):
        source_fractions.tempered([1, 2], temperature)
