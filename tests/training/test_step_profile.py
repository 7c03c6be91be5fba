"""--profile-steps: which steps are traced, and what is refused. A run that is traced: test_continuation."""

import pytest

from scmbert_jax.commands.train import _steps
from scmbert_jax.errors import ConfigError
from scmbert_jax.training import step_profile
from scmbert_jax.training.step_profile import StepProfile, check_profile_steps


@pytest.fixture
def events(monkeypatch):
    """What the profiler was asked to do."""
    found = []
    monkeypatch.setattr(step_profile.jax.profiler, "start_trace", lambda folder: found.append(f"start {folder}"))
    monkeypatch.setattr(step_profile.jax.profiler, "stop_trace", lambda: found.append("stop"))
    return found


@pytest.mark.parametrize(
    ("steps", "start", "stop", "expected"),
    [
        ((2, 4), 0, 6, ["1 done", "start p", "2 done", "3 done", "stop", "4 done"]),
        ((0, 1), 0, 6, ["start p", "0 done", "stop", "1 done"]),
        ((2, 4), 3, 6, ["start p", "3 done", "stop", "4 done"]),
        ((2, 6), 0, 6, ["start p", "2 done", "5 done", "stop", "6 done"]),
        ((2, 6), 0, 4, ["start p", "2 done", "4 done", "stop"]),  # a signal ended the run
    ],
)
def test_exactly_these_steps_are_traced(events, steps, start, stop, expected):
    with StepProfile(steps, "p", start) as profile:
        for done in range(start, stop + 1):
            profile.dispatched(done, ())
            events.append(f"{done} done")
    assert [event for event in events if event in expected] == expected
    assert events.count("stop") == events.count("start p") == 1


def test_what_is_done_or_another_processs_is_not_traced(events, capsys):
    for steps, folder in (((2, 4), "p"), ((5, 6), None), (None, "p")):
        with StepProfile(steps, folder, 4) as profile:
            for done in range(4, 7):
                profile.dispatched(done, ())
    assert events == []
    assert capsys.readouterr().err == "scmbert: --profile-steps 2:4: the run continues from step 4; nothing is traced\n"


@pytest.mark.parametrize("steps", [(-1, 2), (3, 3), (4, 2), (8, 11)])
def test_steps_outside_of_the_run_are_refused(steps):
    with pytest.raises(ConfigError, match=r"--profile-steps .* 0 <= A < B <= 10, the steps of the run"):
        check_profile_steps(steps, 10)


@pytest.mark.parametrize("text", ["3", "3:", ":5", "a:b", "1:2:3", "-1:4", "1.5:4", ""])
def test_what_is_no_pair_of_steps_is_refused(text):
    with pytest.raises(ConfigError, match=r"--profile-steps .*expected A:B"):
        _steps("--profile-steps", text)
