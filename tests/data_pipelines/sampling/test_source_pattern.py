"""Which source a draw comes from: exact shares over a period, near them in every batch, found at any draw."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.sampling.source_pattern import MIN_PERIOD, SourcePattern, draws_per_period
from scmbert_jax.errors import ConfigError

weights = st.lists(st.integers(1, 1000), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(weights=weights)
def test_no_share_is_off_by_more_than_a_draw(weights):
    draws = draws_per_period(weights)
    wanted = np.array(weights) / sum(weights)
    assert draws.min() >= 1
    seldom = np.maximum(1 - wanted * draws.sum(), 0).sum()  # sources that would not have been drawn at all
    assert np.abs(draws - wanted * draws.sum()).max() <= 1 + seldom
    assert MIN_PERIOD - 512 < draws.sum() <= MIN_PERIOD + len(weights)


@pytest.mark.parametrize("weights", [(1, 1, 1), (2, 1, 1), (0.3, 0.7), (1, 1000), (5,), (1 / 3, 2 / 3)])
def test_simple_ratios_are_exact(weights):
    draws = draws_per_period(weights)
    np.testing.assert_allclose(draws / draws.sum(), np.array(weights) / sum(weights), atol=1e-9)


def test_a_thousand_sources_have_a_longer_period():
    draws = draws_per_period([1] * 1000)
    assert len(set(draws.tolist())) == 1
    assert draws.sum() > 8 * 1000


@settings(max_examples=25, deadline=None)
@given(weights=weights, stream=st.integers(0, 3), first=st.integers(0, 20_000), length=st.integers(1, 9000))
def test_what_is_drawn_between_two_draws_adds_up_and_counts_on(weights, stream, first, length):
    pattern = SourcePattern(draws_per_period(weights), 7, 4)
    middle = first + length // 2
    whole = {d.source: d for d in pattern.between(stream, first, first + length)}
    left = {d.source: d for d in pattern.between(stream, first, middle)}
    right = {d.source: d for d in pattern.between(stream, middle, first + length)}
    assert sum(d.number for d in whole.values()) == length
    for source, draws in whole.items():
        parts = [part[source] for part in (left, right) if source in part]
        assert parts[0].first == draws.first
        assert sum(part.number for part in parts) == draws.number
        if len(parts) == 2:
            assert parts[1].first == draws.first + parts[0].number


@settings(max_examples=15, deadline=None)
@given(weights=weights, stream=st.integers(0, 3), periods=st.integers(1, 4))
def test_whole_periods_have_exactly_the_shares(weights, stream, periods):
    draws = draws_per_period(weights)
    pattern = SourcePattern(draws, 1, 4)
    found = pattern.between(stream, draws.sum(), (1 + periods) * draws.sum())
    assert [d.number for d in found] == (draws * periods).tolist()
    assert [d.first for d in found] == draws.tolist()


def test_a_short_stretch_has_nearly_the_shares_and_streams_differ():
    draws = draws_per_period([2, 1, 1])
    pattern = SourcePattern(draws, 0, 2)
    for first in range(0, 3000, 37):
        numbers = {d.source: d.number for d in pattern.between(0, first, first + 64)}
        for source, share in ((0, 32), (1, 16), (2, 16)):
            assert abs(numbers[source] - share) <= 2  # every part of the period holds one draw of a source
    one, other = ([pattern.between(stream, t, t + 1)[0].source for t in range(200)] for stream in (0, 1))
    again = [pattern.between(0, draws.sum() + t, draws.sum() + t + 1)[0].source for t in range(200)]
    assert one != other
    assert one != again


@pytest.mark.parametrize("weights", [(), (1.0, 0.0), (1.0, -2.0), (1.0, float("nan")), (1.0, float("inf"))])
def test_shares_that_are_none_are_refused(weights):
    with pytest.raises(ConfigError, match=r"expected (positive numbers|1 to 4096)"):
        draws_per_period(weights)
