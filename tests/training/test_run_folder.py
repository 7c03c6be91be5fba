"""Who may write into a run folder: one run at a time, with the permission to, on a file system that knows locks."""

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from scmbert_jax.errors import CheckpointError, ConfigError, RunInProgress
from scmbert_jax.training.checkpoint import RunCheckpoints
from scmbert_jax.training.run_folder import RunFolder

# Another run, as far as its lock is concerned.
HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("process 7 on tpu-3")
file.flush()
print("held", flush=True)
time.sleep(600)
"""


class NoData:
    """What identifies data, without data."""

    def __init__(self):
        self.fingerprint, self.feature_space_hash = "f" * 64, "a" * 64
        self.covariates, self.information = {}, {}
        self.description = {"corpora": [{"path": "made"}], "options": {}, "order_version": 2}

    def save_features(self, folder: Path) -> None:
        (folder / "feature_space.parquet").write_bytes(b"features")


@pytest.fixture
def open_folder(tiny_config):
    """Opens a run folder, and closes it after the test."""
    with contextlib.ExitStack() as opened:

        def open_(path: Path, is_coordinator: bool = True) -> RunFolder:
            folder = RunFolder(path, tiny_config, NoData(), is_coordinator)
            opened.callback(folder.close)
            return folder

        yield open_


@contextlib.contextmanager
def somebody_else():
    """Without root's right to write everywhere; what is imported later than this could not even be read."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public_path():
    """A folder that everyone may enter; pytest's own are closed to all but their owner."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


def test_a_second_process_is_refused_and_told_who_runs_until_the_first_is_killed(open_folder, tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock"], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(RunInProgress, match=r"\(process 7 on tpu-3\)"):
            open_folder(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock"]
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    open_folder(tmp_path)
    assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_run_that_is_refused_gives_the_lock_back(open_folder, tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config.json"):
        open_folder(tmp_path)
    (tmp_path / "config.json").unlink()
    open_folder(tmp_path)


def test_only_the_coordinator_locks(open_folder, tmp_path):
    open_folder(tmp_path / "run")
    open_folder(tmp_path / "run", is_coordinator=False)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(open_folder, tmp_path, monkeypatch, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(CheckpointError, match="knows no file locks"):
        open_folder(tmp_path)


@pytest.mark.parametrize("closed", [".", "lock", "metrics.jsonl", "config.json", "checkpoints"])
def test_what_may_not_be_written_or_read_is_named(open_folder, public_path, closed):
    run_dir = public_path / "run"
    open_folder(run_dir).close()
    (run_dir / "checkpoints").mkdir()
    for path in (run_dir, *run_dir.iterdir()):
        path.chmod(0o777)
    (run_dir / closed).chmod(0o555 if closed == "checkpoints" else 0o000)
    place = run_dir if closed == "." else run_dir / closed
    refusal = pytest.raises((CheckpointError, ConfigError), match=rf"{place}.*Permission denied")
    with somebody_else(), refusal:
        open_folder(run_dir)
    (run_dir / closed).chmod(0o777)
    with somebody_else():
        open_folder(run_dir)


def test_a_folder_of_checkpoints_that_may_not_be_read_is_named(public_path):
    RunCheckpoints(public_path / "before", keep=1).close()  # imports what is imported late
    (public_path / "checkpoints").mkdir(mode=0o300)
    refusal = pytest.raises(CheckpointError, match=f"{public_path}/checkpoints: .*Permission denied")
    with somebody_else(), refusal:
        RunCheckpoints(public_path / "checkpoints", keep=1)
