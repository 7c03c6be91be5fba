"""The cache of blocks: never more bytes than said, never a byte that is not the block's, never a reason to stop."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.corpus import block_cache
from data_pipelines.corpus.block_cache import BlockCache, CachedFiles, cache_for
from data_pipelines.corpus.storage import LocalFiles
from scmbert_jax.errors import ConfigError

SHARD = "0123abcd"


def block(start: int, size: int) -> bytes:
    """What lies in the shard from `start` on."""
    return random.Random(start).randbytes(size)


def bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*-*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # thrown away meanwhile
            continue
    return total


def test_what_was_put_is_got_and_nothing_else(tmp_path):
    cache = BlockCache(tmp_path / "cache", 10_000)
    assert cache.get(SHARD, 0, 100) is None
    cache.put(SHARD, 0, block(0, 100))
    assert cache.get(SHARD, 0, 100) == block(0, 100)
    assert cache.get(SHARD, 0, 99) is None
    assert cache.get("another shard", 0, 100) is None
    cache.forget(SHARD, 0, 100)
    assert cache.get(SHARD, 0, 100) is None


def test_the_block_used_least_recently_goes_first(tmp_path):
    cache = BlockCache(tmp_path, 1000)
    for start in range(9):
        cache.put(SHARD, start, block(start, 100))
        os.utime(tmp_path / SHARD / f"{start}-{start + 100}", ns=(start, start))  # an order no clock can blur
    assert cache.get(SHARD, 0, 100) is not None  # used: now the last to go
    cache.put(SHARD, 20, block(20, 200))
    kept = [start for start in range(9) if cache.has(SHARD, start, start + 100)]
    assert kept == [0, 3, 4, 5, 6, 7, 8]
    assert cache.has(SHARD, 20, 220)


@settings(max_examples=50, deadline=None)
@given(
    limit=st.integers(1, 3000),
    actions=st.lists(st.tuples(st.sampled_from(["put", "get", "forget"]), st.integers(0, 12)), max_size=60),
)
def test_whatever_is_done_the_limit_holds_and_data_are_whole(limit, actions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    cache = BlockCache(folder, limit)
    for action, start in actions:
        data = block(start, 40 * start)
        if action == "put":
            cache.put(SHARD, start, data)
            assert cache.has(SHARD, start, start + len(data)) == (len(data) <= limit)
        elif action == "get":
            assert cache.get(SHARD, start, start + len(data)) in (None, data)
        else:
            cache.forget(SHARD, start, start + len(data))
        assert bytes_in(folder) <= limit


WRITER = """
import logging, random, sys
from pathlib import Path
from data_pipelines.corpus.block_cache import BlockCache
logging.basicConfig(level="WARNING", stream=sys.stdout, format="%(message)s")
cache, numbers = BlockCache(Path(sys.argv[1]), 400_000), random.Random(int(sys.argv[2]))
print("ready", flush=True)
while True:
    start = numbers.randrange(200)
    data = cache.get("shard", start, start + 10_000)
    assert data in (None, random.Random(start).randbytes(10_000)), start
    cache.put("shard", start, random.Random(start).randbytes(10_000))
"""


@pytest.mark.slow
def test_processes_share_a_cache_within_its_limit_and_may_be_killed_at_any_time(tmp_path):
    def start(seed: int) -> subprocess.Popen:
        arguments = [sys.executable, "-c", WRITER, str(tmp_path), str(seed)]
        process = subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        return process

    most, killed = 0, 0
    running = [start(seed) for seed in range(3)]
    until = time.monotonic() + 4
    while time.monotonic() < until:
        most = max(most, bytes_in(tmp_path))
        if killed < 5 and random.random() < 0.05:
            running[0].send_signal(signal.SIGKILL)
            _, errors = running.pop(0).communicate()
            assert errors == ""
            killed += 1
            running.append(start(10 + killed))
    for process in running:
        process.kill()
        _, errors = process.communicate()
        assert errors == ""  # no entry was ever another's or half of its own
    assert killed
    assert 200_000 < most <= 400_000
    cache = BlockCache(tmp_path, 400_000)
    found = [cache.get("shard", start, start + 10_000) for start in range(200)]
    assert any(found)
    assert all(data in (None, block(start, 10_000)) for start, data in enumerate(found))
    cache.put("shard", 500, block(500, 300_000))  # a walk, which clears away what the killed left
    assert not list(tmp_path.rglob("*.growing"))


def test_threads_share_a_cache_within_its_limit(tmp_path):
    cache = BlockCache(tmp_path, 5000)

    def use(start: int) -> None:
        cache.put(SHARD, start % 40, block(start % 40, 300))
        assert cache.get(SHARD, start % 40, start % 40 + 300) in (None, block(start % 40, 300))
        assert bytes_in(tmp_path) <= 5000

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(400)))


def test_half_an_entry_is_none(tmp_path):
    cache = BlockCache(tmp_path, 1000)
    cache.put(SHARD, 0, block(0, 100))
    path = tmp_path / SHARD / "0-100"
    path.write_bytes(path.read_bytes()[:50])
    assert cache.get(SHARD, 0, 100) is None


@pytest.mark.parametrize("broken", ["full", "no folder"])
def test_a_disk_that_refuses_costs_one_warning_and_the_cache(broken, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / ("cache" if broken == "full" else "file")
    if broken == "full":
        plain = Path.write_bytes

        def full(path: Path, data: bytes) -> int:
            plain(path, data[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", full)
    shard = tmp_path / "shard"
    with open(shard, "wb") as file:
        file.write(block(0, 1000))
    files = CachedFiles(LocalFiles(tmp_path), BlockCache(folder, 10_000), {"shard": SHARD})
    for start in (0, 100, 200, 0):
        assert files.read("shard", start, start + 100) == block(0, 1000)[start : start + 100]
    (record,) = caplog.records
    reason = {"full": "cannot be written (No space left on device)", "no folder": "cannot be read (Not a directory)"}
    assert f"{folder}: the cache of blocks {reason[broken]}" in record.message
    assert "--cache-dir" in record.message
    if broken == "full":
        assert not list(folder.rglob("*.growing"))


def test_only_a_remote_corpus_is_cached_unless_somebody_asks(tmp_path, monkeypatch):
    monkeypatch.setenv("SCMBERT_CACHE_DIR", str(tmp_path / "set"))
    assert cache_for(tmp_path) is None
    assert cache_for("s3://bucket/corpus").folder == tmp_path / "set"
    assert cache_for(tmp_path, folder=tmp_path / "asked").folder == tmp_path / "asked"
    assert cache_for("s3://bucket/corpus", gigabytes=0) is None
    monkeypatch.delenv("SCMBERT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_for("s3://bucket/corpus").folder == tmp_path / "xdg" / "scmbert" / "blocks"
    for wrong in (-1, float("nan")):
        with pytest.raises(ConfigError, match=r"--cache-gigabytes .*expected 0"):
            cache_for("s3://bucket/corpus", gigabytes=wrong)


def test_without_a_size_it_leaves_half_of_the_disk_free(tmp_path, monkeypatch):
    usage = block_cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(block_cache.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    cache = BlockCache(tmp_path)
    cache.put(SHARD, 0, block(0, 501))
    assert not cache.has(SHARD, 0, 501)
    cache.put(SHARD, 0, block(0, 300))
    assert cache.has(SHARD, 0, 300)
