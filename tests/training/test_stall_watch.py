"""A step that does not finish is told of while it lasts; in vain waited for too long, the process ends."""

import dataclasses
import subprocess
import sys
import time

import jax
import pytest
from conftest import REPOSITORY
from test_loop import SyntheticData

from scmbert_jax.errors import HostError
from scmbert_jax.training.loop import pretrain
from scmbert_jax.training.stall_watch import StallWatch


def reports(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "no step finished" in line]


def until_reported(capsys, number: int) -> list[str]:
    seen: list[str] = []
    patience = time.monotonic() + 20
    while len(seen) < number:
        assert time.monotonic() < patience, seen
        time.sleep(0.01)
        seen += reports(capsys)
    return seen


def test_a_step_that_takes_long_is_reported_at_twice_the_time_and_so_on(capsys):
    with StallWatch(41, report_after=0.1) as watch:
        began = time.monotonic()
        watch.finished(42)
        seen = until_reported(capsys, 3)
        assert time.monotonic() - began >= 0.4  # 0.1, 0.2, 0.4
    assert all("the last was step 42" in line for line in seen)
    assert all(line.startswith("scmbert: no step finished") for line in seen)


def test_steps_that_finish_are_not_reported(capsys):
    with StallWatch(0, report_after=1.0) as watch:
        for step in range(30):
            time.sleep(0.05)  # 1.5 s together
            watch.finished(step)
    assert reports(capsys) == []


def test_one_that_is_over_is_not_reported_again_but_the_next_one_is(capsys):
    with StallWatch(0, report_after=0.1) as watch:
        until_reported(capsys, 1)
        watch.finished(1)
        assert "the last was step 1)" in until_reported(capsys, 1)[-1]


def test_nothing_is_reported_after_the_end(capsys):
    with StallWatch(0, report_after=0.05):
        pass
    time.sleep(0.2)
    assert reports(capsys) == []


def test_one_of_several_says_which(capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    with StallWatch(0, report_after=0.05):
        assert until_reported(capsys, 1)[0].startswith("scmbert: process 2 of 4: no step finished")


def test_a_process_that_waits_for_too_long_ends_and_shows_where_it_stood():
    code = """
import time
from scmbert_jax.training.stall_watch import StallWatch

def stuck_here():
    time.sleep(60)

with StallWatch(12, report_after=0.1, give_up_after=0.3):
    stuck_here()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == HostError.exit_code == 7
    assert "in stuck_here" in done.stderr
    assert "(the last was step 12): this process ends" in done.stderr


@pytest.mark.slow
def test_the_loop_reports_data_that_do_not_come(tiny_config, tiny_layout, tmp_path, capsys):
    config = dataclasses.replace(tiny_config, train=dataclasses.replace(tiny_config.train, num_steps=3))
    data = SyntheticData(config, tiny_layout, at_step=lambda step: time.sleep(1.2 if step == 2 else 0))
    pretrain(config, data, tmp_path / "run", devices=jax.devices()[:1], show_progress=False, report_stall_after=0.3)
    # Step 2 is dispatched when the third batch is waited for; that step 1 has finished is known by then.
    assert any("the last was step 1)" in line for line in reports(capsys))
