"""Which source a draw comes from: exact fractions over a cycle, near them in every batch, found at any draw."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.sampling.source_cycle import MIN_CYCLE, SourceCycle, draws_per_cycle
from scmbert_jax.errors import ConfigError

weights = st.lists(st.integers(1, 1000), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(weights=weights)
def test_no_fraction_is_off_by_more_than_a_draw(weights):
    draws = draws_per_cycle(weights)
    wanted = np.array(weights) / sum(weights)
    assert draws.min() >= 1
    seldom = np.maximum(1 - wanted * draws.sum(), 0).sum()  # sources that would not have been drawn at all
    assert np.abs(draws - wanted * draws.sum()).max() <= 1 + seldom
    assert MIN_CYCLE - 512 < draws.sum() <= MIN_CYCLE + len(weights)


@pytest.mark.parametrize("weights", [(1, 1, 1), (2, 1, 1), (0.3, 0.7), (1, 1000), (5,), (1 / 3, 2 / 3)])
def test_simple_ratios_are_exact(weights):
    draws = draws_per_cycle(weights)
    np.testing.assert_allclose(draws / draws.sum(), np.array(weights) / sum(weights), atol=1e-9)


def test_a_thousand_sources_have_a_longer_cycle():
    draws = draws_per_cycle([1] * 1000)
    assert len(set(draws.tolist())) == 1
    assert draws.sum() > 8 * 1000


@settings(max_examples=25, deadline=None)
@given(weights=weights, stream=st.integers(0, 3), first=st.integers(0, 20_000), length=st.integers(1, 9000))
def test_what_is_drawn_between_two_draws_adds_up_and_counts_on(weights, stream, first, length):
    cycle = SourceCycle(draws_per_cycle(weights), 7, 4)
    middle = first + length // 2
    whole = {d.source: d for d in cycle.between(stream, first, first + length)}
    left = {d.source: d for d in cycle.between(stream, first, middle)}
    right = {d.source: d for d in cycle.between(stream, middle, first + length)}
    assert sum(d.number for d in whole.values()) == length
    for source, draws in whole.items():
        parts = [part[source] for part in (left, right) if source in part]
        assert parts[0].first == draws.first
        assert sum(part.number for part in parts) == draws.number
        if len(parts) == 2:
            assert parts[1].first == draws.first + parts[0].number


@settings(max_examples=15, deadline=None)
@given(weights=weights, stream=st.integers(0, 3), cycles=st.integers(1, 4))
def test_whole_cycles_have_exactly_the_fractions(weights, stream, cycles):
    draws = draws_per_cycle(weights)
    cycle = SourceCycle(draws, 1, 4)
    found = cycle.between(stream, draws.sum(), (1 + cycles) * draws.sum())
    assert [d.number for d in found] == (draws * cycles).tolist()
    assert [d.first for d in found] == draws.tolist()


def test_a_short_range_has_nearly_the_fractions_and_streams_differ():
    draws = draws_per_cycle([2, 1, 1])
    cycle = SourceCycle(draws, 0, 2)
    for first in range(0, 3000, 37):
        numbers = {d.source: d.number for d in cycle.between(0, first, first + 64)}
        for source, fraction in ((0, 32), (1, 16), (2, 16)):
            assert abs(numbers[source] - fraction) <= 2  # every part of the cycle holds one draw of a source
    one, other = ([cycle.between(stream, t, t + 1)[0].source for t in range(200)] for stream in (0, 1))
    again = [cycle.between(0, draws.sum() + t, draws.sum() + t + 1)[0].source for t in range(200)]
    assert one != other
    assert one != again


@pytest.mark.parametrize("weights", [(), (1.0, 0.0), (1.0, -2.0), (1.0, float("nan")), (1.0, float("inf"))])
def test_fractions_that_are_none_are_refused(weights):
    with pytest.raises(ConfigError, match=r"expected (positive numbers|1 to 4096)"):
        draws_per_cycle(weights)
