"""Builds that are killed, that a full disk or a lost permission stops, whose workers die: never a wrong corpus, nothing
half-written, and a rerun that finishes with the bytes of an undisturbed build without doing again what was done."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_builds import DIVIDED, build, contents, divide
from test_runners import is_running, wait_until

from data_pipelines.build import tasks as source_tasks
from data_pipelines.build import write_corpus as corpus_writer
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.corpus.manifest import MANIFEST, building_path
from data_pipelines.corpus.verify import verify_corpus
from data_pipelines.files import atomic_files as durable_files
from scmbert_jax.errors import CorpusError, InputError


@pytest.fixture(scope="module")
def undisturbed(mosaic_file, tmp_path_factory) -> dict[str, bytes]:
    return contents(build(tmp_path_factory.mktemp("undisturbed") / "corpus", mosaic_file).path)


# --- going on --------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """Stands for a kill between two tasks."""


def stop_at(stage: str, done: int):
    def progress(*what) -> None:
        if what[:2] == (stage, done):
            raise Stopped

    return progress


def stopped_build(out: Path, source: Path, stage: str, done: int, **options) -> None:
    with pytest.raises(Stopped):
        build(out, source, progress=stop_at(stage, done), **options)
    with pytest.raises(CorpusError, match="unfinished build lies at"):
        open_corpus(out)


@pytest.mark.parametrize(("stage", "done"), [("checking", 1), ("reading", 4), ("writing", 0), ("writing", 2)])
def test_a_build_that_stopped_goes_on_and_does_nothing_twice(
    mosaic_file, undisturbed, tmp_path, monkeypatch, stage, done
):
    divide(monkeypatch)
    stopped_build(tmp_path / "corpus", mosaic_file, stage, done)
    counted, notices = [], []
    build(tmp_path / "corpus", mosaic_file, progress=lambda *what: counted.append(what), notice=notices.append)
    assert contents(tmp_path / "corpus") == undisturbed
    assert "going on with a build that was not finished" in notices[0]
    stages = ["checking", "reading", "writing"]
    for earlier in stages[: stages.index(stage)]:
        assert len([what for what in counted if what[0] == earlier]) == 1, f"{earlier} was done, and only counted"
    assert next(what for what in counted if what[0] == stage)[1] == done


def test_when_all_shards_are_there_nothing_is_read_again(mosaic_file, undisturbed, tmp_path, monkeypatch):
    divide(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(corpus_writer, "write_manifest", _stop)
        with pytest.raises(Stopped):
            build(tmp_path / "corpus", mosaic_file)
    monkeypatch.setattr(source_tasks, "chunks_between", None)  # would fail
    build(tmp_path / "corpus", mosaic_file)
    assert contents(tmp_path / "corpus") == undisturbed


def _stop(*_) -> None:
    raise Stopped


@pytest.mark.parametrize("other", ["option", "file", "division"])
def test_the_work_of_another_build_is_not_taken_up_and_that_is_said(
    mosaic_cells, mosaic_file, tmp_path, monkeypatch, other
):
    source = tmp_path / "source.h5mu"
    source.write_bytes(mosaic_file.read_bytes())
    divide(monkeypatch)
    stopped_build(tmp_path / "corpus", source, "writing", 2)
    options = {"seed": 1} if other == "option" else {}
    if other == "file":
        os.utime(source, ns=(1, 1))
    if other == "division":  # as when the program was changed meanwhile
        divide(monkeypatch, task_rows=60)
    notices, counted = [], []
    build(tmp_path / "corpus", source, notice=notices.append, progress=lambda *what: counted.append(what), **options)
    assert "belongs to other inputs or options; it is removed" in notices[0]
    assert ("checking", 0, 1) in counted
    plain = build(tmp_path / "plain", source, **options)
    assert contents(tmp_path / "corpus") == contents(plain.path)


def test_what_is_in_memory_is_never_taken_for_the_same(mosaic_cells, tmp_path):
    data = mosaic_cells.to_mudata().mod["rna"]
    stopped_build(tmp_path / "corpus", data, "writing", 0)
    notices = []
    build(tmp_path / "corpus", data, notice=notices.append)
    assert "it is removed" in notices[0]


def test_a_damaged_segment_is_named_and_not_built_upon(mosaic_file, tmp_path, monkeypatch):
    divide(monkeypatch)
    stopped_build(tmp_path / "corpus", mosaic_file, "writing", 0)
    segment = building_path(tmp_path / "corpus") / "work" / "segments" / "000002.segments"
    data = bytearray(segment.read_bytes())
    data[50] ^= 4
    segment.write_bytes(bytes(data))
    with pytest.raises(CorpusError, match=r"000002\.segments: record .*damaged.*build again"):
        build(tmp_path / "corpus", mosaic_file)
    segment.unlink()
    build(tmp_path / "corpus", mosaic_file)
    assert verify_corpus(tmp_path / "corpus").ok


def test_segments_that_lack_cells_are_not_built_upon(mosaic_file, tmp_path, monkeypatch):
    divide(monkeypatch)
    stopped_build(tmp_path / "corpus", mosaic_file, "writing", 0)
    folder = building_path(tmp_path / "corpus") / "work" / "segments"
    (folder / "000001.segments").write_bytes((folder / "000002.segments").read_bytes())
    with pytest.raises(CorpusError, match=r"do not hold the cells .* once each"):
        build(tmp_path / "corpus", mosaic_file)


# --- killed ----------------------------------------------------------------------------------------------------------

# Forks, so that it need not import everything for each kill; sleeps a random part of the time that a build takes.
KILLS = """
import os, random, signal, sys, time
from pathlib import Path
from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.corpus.verify import verify_corpus
out, source, expected = (Path(argument) for argument in sys.argv[1:])

def start():
    child = os.fork()
    if child == 0:
        build_corpus(out, [source], min_genes=5, block_size=16, shard_bytes=3000, overwrite=True)
        os._exit(0)
    return child

def same():
    return {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in expected.iterdir()}

begun = time.monotonic()
os.waitpid(start(), 0)
seconds = time.monotonic() - begun
assert same()
rng = random.Random(0)
killed = finished = 0
while killed < 20:
    before = out.stat().st_ino if out.exists() else None
    child = start()
    time.sleep(rng.uniform(0.05, 0.9) * seconds)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    killed += os.WIFSIGNALED(status)
    if out.exists():
        finished += out.stat().st_ino != before
        assert verify_corpus(out).ok and same(), "verifies, but differs"
    assert finished < 60, "hardly ever killed in time"
os.waitpid(start(), 0)
assert same()
print(killed, finished, seconds)
"""


@pytest.mark.nightly
def test_twenty_kills_at_random_moments_never_leave_a_corpus_that_differs(mosaic_file, undisturbed, tmp_path):
    expected = tmp_path / "expected"
    expected.mkdir()
    for name, data in undisturbed.items():
        (expected / name).write_bytes(data)
    arguments = [sys.executable, "-c", DIVIDED + KILLS, str(tmp_path / "corpus"), str(mosaic_file), str(expected)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "20"


BUILD = """
import os, resource, sys
from data_pipelines.build.build_corpus import build_corpus

def tell(*what):
    print(*what, flush=True)

if __name__ == "__main__":
    out, source, workers, limit = sys.argv[1:]
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    build_corpus(out, [source], min_genes=5, block_size=16, shard_bytes=3000, workers=int(workers), progress=tell)
"""


def start_build(out: Path, source: Path, *, workers: int, limit: int = 0) -> subprocess.Popen:
    arguments = [sys.executable, "-c", DIVIDED + BUILD, str(out), str(source), str(workers), str(limit)]
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SCMBERT_TEST_BUILD": str(out)},
    )


def processes_of(out: Path) -> list[int]:
    """Those that `start_build` started, and what these started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"SCMBERT_TEST_BUILD={out}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return [pid for pid in found if is_running(pid)]


def workers_of(process: subprocess.Popen, out: Path) -> list[int]:
    """Without the process that counts shared memory for Python, which sees to it that nothing is left."""
    return [
        pid
        for pid in processes_of(out)
        if pid != process.pid and b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("victim", ["builder", "worker"])
def test_a_build_in_processes_that_is_killed_leaves_no_process_and_goes_on(
    mosaic_file, undisturbed, tmp_path, monkeypatch, victim
):
    out = tmp_path / "corpus"
    process = start_build(out, mosaic_file, workers=2)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("reading 2 "):
            break
    if victim == "builder":
        process.send_signal(signal.SIGKILL)
    else:
        os.kill(workers_of(process, out)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if victim == "builder" else 1)
    if victim == "worker":
        assert "worker processes was killed" in errors
    wait_until(lambda: not processes_of(out))
    assert not out.exists()
    assert building_path(out).is_dir()
    divide(monkeypatch)
    notices: list[str] = []
    build(out, mosaic_file, notice=notices.append)
    assert "going on" in notices[0]
    assert contents(out) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


# --- the disk --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "workers"), [(1000, 2), (4000, 1), (4000, 2)])
def test_a_disk_that_fills_up_is_an_error_with_the_path_and_leaves_nothing_half_written(
    mosaic_file, undisturbed, tmp_path, workers, limit
):
    """No file may grow past the limit: with the lower one segments do not fit, with the other shards do not."""
    out = tmp_path / "corpus"
    process = start_build(out, mosaic_file, workers=workers, limit=limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "CorpusError" in errors
    assert str(building_path(out)) in errors
    assert "File too large" in errors
    assert not processes_of(out)
    assert not out.exists()
    assert not list(building_path(out).rglob("*.growing"))
    build(out, mosaic_file)
    assert contents(out) == undisturbed


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize(
    "failing", ["plan.json", "check-", ".segments", "shard-00001.tfrecord", "obs.parquet", "manifest.json"]
)
def test_a_disk_that_refuses_any_file_is_an_error_and_a_rerun_finishes(
    mosaic_file, undisturbed, tmp_path, monkeypatch, failing, reason
):
    """Every write goes through `writing(path)`; here the disk refuses as soon as that path is written."""

    @contextlib.contextmanager
    def refusing(path):
        with durable_writing(path):
            if failing in Path(path).name:
                raise OSError(reason, os.strerror(reason), str(path))
            yield

    durable_writing = durable_files.writing
    with monkeypatch.context() as patched:
        for module in (corpus_writer, durable_files):
            patched.setattr(module, "writing", refusing)
        with pytest.raises(CorpusError, match=f"{failing}.*{os.strerror(reason)}"):
            build(tmp_path / "corpus", mosaic_file)
    assert not (tmp_path / "corpus").exists()
    building = building_path(tmp_path / "corpus")
    assert not (building / MANIFEST).exists()
    assert not list(building.rglob("*.growing"))
    build(tmp_path / "corpus", mosaic_file)
    assert contents(tmp_path / "corpus") == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_a_source_that_turns_out_damaged_leaves_nothing(mosaic_file, tmp_path, monkeypatch):
    def damaged(*_):
        raise InputError("mosaic.h5mu: damaged")

    monkeypatch.setattr(source_tasks, "chunks_between", damaged)
    with pytest.raises(InputError, match="damaged"):
        build(tmp_path / "corpus", mosaic_file)
    assert list(tmp_path.iterdir()) == []


def test_the_plan_says_what_the_work_belongs_to(mosaic_file, tmp_path):
    stopped_build(tmp_path / "corpus", mosaic_file, "checking", 1, seed=5)
    plan = json.loads((building_path(tmp_path / "corpus") / "plan.json").read_text())
    assert plan["options"]["seed"] == 5
    stat = mosaic_file.stat()
    assert plan["inputs"][0]["files"] == [[str(mosaic_file), stat.st_size, stat.st_mtime_ns]]
