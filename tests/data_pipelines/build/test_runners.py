"""Tasks in processes: done once, errors as they were raised, no process left behind, a death told of at once."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_pipelines.build.runners import InProcess, LocalProcesses, run_tasks
from scmbert_jax.errors import CorpusError, InputError


@dataclass(frozen=True)
class Write:
    """Writes its process id: whoever sees the file can read all of it."""

    output: Path

    def run(self) -> None:
        partial = self.output.with_suffix(".partial")
        partial.write_text(str(os.getpid()))
        partial.rename(self.output)


@dataclass(frozen=True)
class Fail(Write):
    def run(self) -> None:
        raise InputError(f"{self.output}: no counts")


@dataclass(frozen=True)
class Die(Write):
    def run(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Sleep(Write):
    def run(self) -> None:
        super().run()
        time.sleep(600)


def is_running(pid: int) -> bool:
    """Not so a process that ended and was not waited for."""
    if not Path("/proc/self/stat").exists():
        return subprocess.run(["kill", "-0", str(pid)], capture_output=True).returncode == 0
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_what_is_done_is_not_done_again_and_all_is_counted(tmp_path):
    tasks = [Write(tmp_path / str(number)) for number in range(4)]
    tasks[2].output.write_text("before")
    seen = []
    run_tasks(InProcess(), "writing", tasks, lambda *what: seen.append(what))
    assert tasks[2].output.read_text() == "before"
    assert seen == [("writing", done, 4) for done in range(1, 5)]


@pytest.mark.slow
def test_processes_do_the_work_and_end(tmp_path):
    tasks = [Write(tmp_path / str(number)) for number in range(6)]
    with closing(LocalProcesses(2)) as runner:
        run_tasks(runner, "writing", tasks[:3], lambda *what: None)
        run_tasks(runner, "writing", tasks, lambda *what: None)
        pids = {int(task.output.read_text()) for task in tasks}
        assert os.getpid() not in pids
        assert 1 <= len(pids) <= 2, "the processes stay for the next stage"
        assert all(is_running(pid) for pid in pids)
    assert not any(is_running(pid) for pid in pids)


@pytest.mark.slow
def test_an_error_comes_as_it_was_raised_and_ends_the_others(tmp_path):
    sleeper = Sleep(tmp_path / "sleeper")
    with pytest.raises(InputError, match="broken: no counts"), closing(LocalProcesses(2)) as runner:
        run_tasks(runner, "reading", [sleeper, Fail(tmp_path / "broken")], lambda *what: None)
    if sleeper.output.exists():  # the error may come before the other has begun
        assert not is_running(int(sleeper.output.read_text()))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told_of_and_not_waited_for(tmp_path):
    tasks = [Die(tmp_path / "dies"), Sleep(tmp_path / "sleeps")]
    told = r"worker processes was killed.*run the same command again.*--workers"
    with pytest.raises(CorpusError, match=told), closing(LocalProcesses(2)) as runner:
        run_tasks(runner, "reading", tasks, lambda *what: None)


PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background has it ignored
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_runners import LocalProcesses, Sleep, closing, run_tasks
if __name__ == "__main__":
    with closing(LocalProcesses(2)) as runner:
        run_tasks(runner, "s", [Sleep(Path(sys.argv[2]) / n) for n in "ab"], lambda *what: None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_a_parent_that_is_killed(tmp_path, how):
    arguments = [sys.executable, "-c", PARENT, str(Path(__file__).parent), str(tmp_path)]
    parent = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    wait_until(lambda: all((tmp_path / name).exists() for name in "ab"), 60)
    pids = [int((tmp_path / name).read_text()) for name in "ab"]
    assert all(is_running(pid) for pid in pids)
    parent.send_signal(how)
    parent.wait(timeout=20)
    wait_until(lambda: not any(is_running(pid) for pid in pids))
