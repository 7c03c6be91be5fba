"""The ledger of time: on a clock of its own, every second is in one category, and what a death cost is lost."""

import json
from pathlib import Path

import pytest

from scmbert_jax.training.goodput import CATEGORIES, Goodput, GoodputLedger, read_goodput, summed


class Clock:
    """Seconds that pass only when told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def train(run_dir: Path, clock: Clock, first: int, last: int, *, checkpoint_every: int = 5) -> None:
    """A process that starts up, compiles, and dies 0.7 s after step `last`."""
    started = clock.now
    clock.now += 4  # imports
    ledger = GoodputLedger(run_dir / "goodput.jsonl", started, monotonic=clock, wall=clock)
    clock.now += 6
    ledger.begin(first)
    for step in range(first + 1, last + 1):
        with ledger.spending("data_wait"):
            clock.now += 0.25
        if step == first + 1:
            with ledger.spending("compile"):
                clock.now += 30
        clock.now += 2
        ledger.note(step)
        if step % checkpoint_every == 0:
            with ledger.spending("save"):
                clock.now += 0.5
            ledger.note(step)
    clock.now += 0.7


def ledger_of(run_dir: Path) -> Goodput:
    found = read_goodput(run_dir)
    assert found is not None
    return found


def test_a_run_without_a_death_spends_every_second_in_one_category(tmp_path):
    train(tmp_path, Clock(), 0, 10)
    found = ledger_of(tmp_path)
    expected = {"init": 10, "compile": 30, "data_wait": 2.5, "step": 20, "save": 1, "eval": 0, "lost": 0}
    assert found.seconds == pytest.approx(expected)
    assert found.wall == pytest.approx(63.5)
    assert found.fraction == pytest.approx(20 / 63.5)
    assert (found.starts, found.steps_again, found.idle) == (1, 0, 0)


def test_steps_after_the_last_checkpoint_and_the_time_until_the_next_start_are_lost(tmp_path):
    clock = Clock()
    train(tmp_path, clock, 0, 8)
    clock.now += 100
    train(tmp_path, clock, 5, 10)
    found = ledger_of(tmp_path)
    # Lost: three steps of 2.25 s, 0.7 s of one that was never noted, 100 s. Start-up and compilation happened twice.
    expected = {"init": 20, "compile": 60, "data_wait": 2.5, "step": 20, "save": 1, "eval": 0, "lost": 3 * 2.25 + 100.7}
    assert found.seconds == pytest.approx(expected)
    assert (found.starts, found.steps_again) == (2, 3)
    assert found.idle == pytest.approx(100.7)


def test_categories_add_up_to_the_time_that_passed_whatever_happened(tmp_path):
    clock = Clock()
    first_second = clock.now
    for first, last in ((0, 3), (0, 7), (5, 13), (10, 10), (10, 21), (10, 24), (20, 40)):  # 10 again: --restore-step
        train(tmp_path, clock, first, last)
        clock.now += 11
    found = ledger_of(tmp_path)
    assert sum(found.seconds.values()) == pytest.approx(found.wall, rel=1e-9)
    assert found.wall == pytest.approx(clock.now - first_second - 11 - 0.7)
    assert found.seconds["step"] == pytest.approx(40 * 2)  # each step once
    assert found.steps_again == 3 + 2 + 3 + 11 + 4


def test_a_clock_that_goes_back_or_ahead_adds_and_takes_no_time(tmp_path):
    clock, date = Clock(), Clock()
    ledger = GoodputLedger(tmp_path / "goodput.jsonl", monotonic=clock, wall=date)
    ledger.begin(0)
    for jump in (10, -5000, 9000, -3):
        clock.now += 10
        date.now += jump
        ledger.note(1)
    date.now -= 100  # and a second start, before the first ended by this clock
    train(tmp_path, date, 1, 2)
    found = ledger_of(tmp_path)
    assert found.seconds["step"] == pytest.approx(40 + 2)
    assert found.wall == pytest.approx(sum(found.seconds.values())) == pytest.approx(40 + 10 + 30 + 2.25)


def test_a_process_that_dies_before_it_trains_costs_its_time_and_nothing_else(tmp_path):
    clock = Clock()
    train(tmp_path, clock, 0, 5)
    before = ledger_of(tmp_path)
    clock.now += 50  # it died while it imported: no row
    train(tmp_path, clock, 5, 6)
    assert ledger_of(tmp_path).seconds["lost"] == pytest.approx(before.seconds["lost"] + 50.7)


@pytest.mark.parametrize("torn_at", [1, 20, 60])
def test_a_torn_last_line_is_left_out_and_never_becomes_part_of_the_next(tmp_path, torn_at):
    clock = Clock()
    train(tmp_path, clock, 0, 7)
    path = tmp_path / "goodput.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rows[:-1]) + rows[-1][:torn_at])
    assert ledger_of(tmp_path) == summed([json.loads(row) for row in rows[:-1]])
    train(tmp_path, clock, 5, 10)
    for row in path.read_bytes().splitlines():
        json.loads(row)
    found = ledger_of(tmp_path)
    assert sum(found.seconds.values()) == pytest.approx(found.wall, rel=1e-9)
    assert found.seconds["step"] == pytest.approx(20)


def test_time_inside_time_is_counted_once(tmp_path):
    clock = Clock()
    ledger = GoodputLedger(tmp_path / "goodput.jsonl", monotonic=clock, wall=clock)
    ledger.begin(0)
    with ledger.spending("save"):
        clock.now += 3
        with ledger.spending("data_wait"):
            clock.now += 5
        clock.now += 1
    ledger.note(1)
    found = ledger_of(tmp_path)
    assert (found.seconds["save"], found.seconds["data_wait"], found.wall) == (4, 5, 9)


def test_processes_that_are_not_the_coordinator_write_nothing(tmp_path):
    ledger = GoodputLedger(None)
    ledger.begin(3)
    ledger.note(4)
    assert not list(tmp_path.iterdir())
    assert read_goodput(tmp_path) is None


def test_what_is_printed_names_every_category_and_what_a_restart_cost(tmp_path):
    clock = Clock()
    train(tmp_path, clock, 0, 8)
    clock.now += 5000
    train(tmp_path, clock, 5, 10)
    text = ledger_of(tmp_path).text()
    assert text.startswith("goodput 0.4% of 1:25:11; started 2x; 3 steps were done again, 1:23:21 passed between")
    for words in CATEGORIES.values():
        assert words in text
