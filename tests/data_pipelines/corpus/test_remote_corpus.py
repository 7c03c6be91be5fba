"""Corpora on object storage: the batches of the folder, bit for bit, whatever fails on the way; or a clear error."""

import functools
import json
import logging
import multiprocessing
import random
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pytest
from conftest import TINY, scmbert, scmbert_ok
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from object_storage import (
    ACCESS_DENIED,
    DROP,
    FLIP,
    INTERNAL_ERROR,
    SHORT,
    SLOW_DOWN,
    TRUNCATE,
    environment,
    s3_server,
)

from data_pipelines.batches.batch_reader import BatchReader
from data_pipelines.batches.collate import TokenSampling
from data_pipelines.batches.read_ahead import tf_batches, thread_batches
from data_pipelines.batches.window_reader import WindowReader
from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.build.describe import describe_corpus
from data_pipelines.corpus import remote_files
from data_pipelines.corpus.copy import copy_corpus
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.corpus.manifest import MANIFEST
from data_pipelines.corpus.retries import Retries, UnreachableError
from data_pipelines.corpus.verify import verify_corpus
from data_pipelines.sampling.source_blocks import SourceBlocks
from data_pipelines.synthetic.cells import synthetic_cells
from scmbert_jax.errors import CorpusError

URL = "s3://bucket/some/corpus"
SAMPLING = {"rna": TokenSampling(40, 0.25), "protein": TokenSampling(12, 0.5)}
SETTINGS = {"seed": 3, "global_batch_size": 24, "num_streams": 4, "window_blocks": 2}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A corpus of three shards, 24 blocks of 12 cells."""
    cells = synthetic_cells(288, 80, 10, 0, num_batches=4, seed=0)
    out = tmp_path_factory.mktemp("built") / "corpus"
    build_corpus(out, [cells.to_mudata()], min_genes=1, block_size=12, shard_bytes=3000)
    return out


@pytest.fixture(scope="module")
def server(built):
    """An S3 server with the corpus on it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with s3_server() as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(proxy).items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        copy_corpus(built, URL)
        yield proxy


@pytest.fixture
def s3(server, monkeypatch, tmp_path):
    """The server, in order; waits between tries are short, and blocks are kept in a folder of the test."""
    server.reset()
    monkeypatch.setenv("SCMBERT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_files, "Retries", partial(Retries, first_wait=0.001, jitter=random.Random(0)))
    return server


def batches_of(corpus, how=thread_batches):
    reader = BatchReader(corpus, SAMPLING, **SETTINGS, covariates=("technical_batch",))
    return list(how(reader, 0, 2 * reader.steps_per_epoch))


@pytest.fixture(scope="module")
def expected(built):
    with open_corpus(built) as corpus:
        return batches_of(corpus)


def assert_same(found, expected):
    assert [step for step, _ in found] == [step for step, _ in expected]
    for (_, mine), (_, others) in zip(found, expected, strict=True):
        for name, tokens in others.modalities.items():
            for left, right in zip(mine.modalities[name], tokens, strict=True):
                np.testing.assert_array_equal(left, right)
        np.testing.assert_array_equal(mine.covariates["technical_batch"], others.covariates["technical_batch"])
        np.testing.assert_array_equal(mine.cell_index, others.cell_index)


def shard_requests(server):
    return [request for request in server.requests if "tfrecord" in request.path and request.method == "GET"]


# --- the same batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [thread_batches, tf_batches])
def test_batches_from_object_storage_are_those_of_the_folder(how, s3, built, expected):
    with open_corpus(URL) as corpus, open_corpus(built) as local:
        assert corpus.fingerprint == local.fingerprint
        assert_same(batches_of(corpus, how), expected)
    assert describe_corpus(URL) | {"path": ""} == describe_corpus(built) | {"path": ""}


@pytest.mark.slow
@pytest.mark.parametrize("fault", [DROP, INTERNAL_ERROR, SLOW_DOWN, TRUNCATE, SHORT, 0.05], ids=str)
def test_every_third_request_fails_and_nothing_is_lost(fault, s3, expected):
    s3.reset(lambda request: fault if request.number % 3 == 0 else None)
    with open_corpus(URL, cache_gigabytes=0) as corpus:
        assert_same(batches_of(corpus), expected)
    assert s3.faults > 20


def test_a_block_that_arrives_damaged_is_read_once_more(s3, expected):
    seen = set()

    def first_time(request):
        known = request.number, request.path
        if "tfrecord" not in request.path or request.method != "GET" or len(seen) > 5 or s3.flipped:
            s3.flipped = False
            return None
        seen.add(known)
        s3.flipped = True
        return FLIP

    s3.flipped = False
    s3.reset(first_time)
    with open_corpus(URL) as corpus:
        for index in range(corpus.num_blocks):
            corpus.read_block(index)
        assert s3.faults > 5
        s3.reset()
        assert_same(batches_of(corpus), expected)


def test_threads_share_a_remote_corpus(s3, built):
    with open_corpus(URL, cache_gigabytes=0) as corpus, open_corpus(built) as local, ThreadPoolExecutor(8) as pool:
        order = np.random.default_rng(0).integers(0, corpus.num_blocks, 60).tolist()
        for index, block in zip(order, pool.map(corpus.read_block, order), strict=True):
            np.testing.assert_array_equal(block.cell_index, local.read_block(index).cell_index)


def _read_in_child(corpus, queue):
    queue.put([corpus.read_block(index).cell_index.tolist() for index in range(6)])


def test_a_forked_process_reads_on_by_itself(s3, built):
    """With blocks under way in the parent: neither its event loop nor its threads live on in the child."""
    with open_corpus(URL, cache_gigabytes=0) as corpus, open_corpus(built) as local:
        corpus.read_ahead(range(6))
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        children = [context.Process(target=_read_in_child, args=(corpus, queue)) for _ in range(2)]
        for child in children:
            child.start()
        found = [queue.get(timeout=60) for _ in children]
        for child in children:
            child.join(60)
            assert child.exitcode == 0
        mine = [corpus.read_block(index).cell_index.tolist() for index in range(6)]
        assert found == [mine, mine] == [[local.read_block(index).cell_index.tolist() for index in range(6)]] * 2


def test_the_windows_of_a_step_come_together(s3, expected):
    """Each answer takes 0.2 s: one after the other, the first step alone would take 1.6 s, an epoch 4.8."""
    with open_corpus(URL, cache_gigabytes=0) as corpus:
        corpus.read_block(0)  # connected
        most, flying, lock = 0, 0, threading.Lock()
        plain = remote_files.RemoteFiles._fetch

        def counted(self, *wanted):
            nonlocal most, flying
            with lock:
                flying += 1
                most = max(most, flying)
            try:
                return plain(self, *wanted)
            finally:
                with lock:
                    flying -= 1

        s3.reset(lambda request: 0.2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(remote_files.RemoteFiles, "_fetch", counted)
            assert_same(batches_of(corpus), expected)
    assert most >= SETTINGS["num_streams"] * SETTINGS["window_blocks"]
    # two epochs, none fetched twice in either, and the windows ahead of the last step
    assert len(shard_requests(s3)) <= 2 * corpus.num_blocks + SETTINGS["num_streams"] * SETTINGS["window_blocks"]


def test_a_window_that_is_decoded_meanwhile_is_not_fetched_again(s3, built):
    """Another thread asks for it while its read-ahead still learns where its blocks lie."""
    blocks = np.array([0, 1])
    with open_corpus(URL, cache_gigabytes=0) as corpus:
        source = SourceBlocks(corpus, None, corpus.block_sizes)
        windows = WindowReader(source, ("rna",), (), capacity=2)
        plain = source.ranges

        def slowly(numbers):
            with ThreadPoolExecutor(1) as other:
                other.submit(windows.window, numbers).result(60)
            return plain(numbers)

        source.ranges = slowly
        s3.reset()
        windows.read_ahead(blocks)
        windows.window(blocks)
        corpus.read_block(2)  # requests begin in the order they were asked for: any of before has begun
    assert len(shard_requests(s3)) == len(blocks) + 1


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_read_once_is_not_asked_for_again(s3, expected):
    with open_corpus(URL) as corpus:
        assert_same(batches_of(corpus), expected)
    assert len(shard_requests(s3)) >= corpus.num_blocks
    s3.reset()
    with open_corpus(URL) as corpus:
        assert_same(batches_of(corpus), expected)
    assert shard_requests(s3) == []


@pytest.mark.slow
def test_a_damaged_entry_of_the_cache_is_never_data(s3, expected, tmp_path):
    with open_corpus(URL) as corpus:
        batches_of(corpus)
    entries = list((tmp_path / "cache").rglob("*-*"))
    for entry in entries:
        data = entry.read_bytes()
        entry.write_bytes(data[: len(data) // 2] + b"\0" * (len(data) - len(data) // 2))  # as after a power cut
    s3.reset()
    with open_corpus(URL) as corpus:
        assert_same(batches_of(corpus), expected)
    assert len(entries) <= len(shard_requests(s3)) <= 2 * len(entries)  # a thread ahead may fetch what was just dropped
    s3.reset()
    with open_corpus(URL) as corpus:
        assert_same(batches_of(corpus), expected)
    assert shard_requests(s3) == []  # the sound ones took their places


def test_a_cache_smaller_than_the_corpus_changes_no_batch(s3, expected, tmp_path):
    with open_corpus(URL, cache_gigabytes=5e-6) as corpus:
        assert_same(batches_of(corpus), expected)
    assert 0 < sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*-*")) <= 5000


def test_a_local_corpus_is_cached_on_request(built, expected, tmp_path):
    with open_corpus(built, cache_dir=tmp_path / "here") as corpus:
        assert_same(batches_of(corpus), expected)
    assert len(list((tmp_path / "here").rglob("*-*"))) > 10


# --- what cannot be read ---------------------------------------------------------------------------------------------


def test_a_block_that_stays_damaged_is_named_with_its_shard(s3):
    with open_corpus(URL) as corpus:
        s3.reset(lambda request: FLIP if "shard-00001.tfrecord" in request.path else None)
        first = int(corpus.shard_ends[0])
        with pytest.raises(CorpusError, match=rf"{URL}/shard-00001\.tfrecord: block {first} \(record 0 of the shard\)"):
            corpus.read_block(first)
        assert len(shard_requests(s3)) == 2
        corpus.read_block(0)


@pytest.mark.slow
def test_a_service_that_stays_away_is_named_with_the_block_that_was_needed(s3):
    with open_corpus(URL) as corpus:
        s3.reset(lambda request: SLOW_DOWN)
        with pytest.raises(
            UnreachableError, match=rf"{URL}/shard-00000\.\w+: OSError.* tried 8 times .*needed for .*block 0 "
        ):
            corpus.read_block(0)
        assert len(s3.requests) == 8
        with pytest.raises(UnreachableError, match="tried 8 times"):
            batches_of(corpus)


@pytest.mark.slow
@pytest.mark.parametrize("use", [open_corpus, verify_corpus, describe_corpus])
def test_refused_access_fails_at_once_with_the_remedy(use, s3):
    s3.reset(lambda request: ACCESS_DENIED)
    with pytest.raises(UnreachableError, match=rf"{URL}/manifest\.json: PermissionError.*refused.*AWS_PROFILE"):
        use(URL)
    assert len(s3.requests) == 1


def test_missing_credentials_are_asked_for(s3, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UnreachableError, match=r"NoCredentialsError.*AWS_PROFILE.*FSSPEC_S3_ANON"):
        open_corpus(URL)
    assert s3.requests == []


def test_no_corpus_there_is_said_at_once(s3):
    for url in ("s3://bucket/elsewhere", "s3://no-such-bucket/corpus"):
        with pytest.raises(CorpusError, match=rf"{url}/manifest\.json: .*scmbert corpus copy"):
            open_corpus(url)


@pytest.mark.slow
def test_a_shard_that_vanishes_is_missed_at_once(s3, built):
    url = "s3://bucket/vanishing"
    copy_corpus(built, url)
    with open_corpus(url) as corpus:
        fsspec.filesystem("s3").rm("bucket/vanishing/shard-00001.tfrecord")
        with pytest.raises(CorpusError, match=r"shard-00001\.tfrecord: no such file.*needed for"):
            corpus.read_block(int(corpus.shard_ends[0]))
    report = verify_corpus(url)
    assert report.damaged_blocks == tuple(range(int(corpus.shard_ends[0]), int(corpus.shard_ends[1])))
    with pytest.raises(CorpusError, match=r"shard-00001\.tfrecord: no such file"):
        open_corpus(url)


@pytest.mark.slow
def test_verify_reads_a_remote_corpus_once_and_not_its_cache(s3, built):
    assert verify_corpus(URL).ok
    assert len(shard_requests(s3)) == open_corpus(built).num_blocks
    s3.reset(lambda request: FLIP if "shard-00001.tfrecord" in request.path else None)
    assert not verify_corpus(URL).ok
    s3.reset(lambda request: SLOW_DOWN if request.method == "GET" and "shard-00001.tf" in request.path else None)
    with pytest.raises(UnreachableError, match=r"shard-00001\.tfrecord.*needed for"):  # not called damaged
        verify_corpus(URL)


# --- copy ------------------------------------------------------------------------------------------------------------


def same_files(first, second):
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in second.iterdir()}
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


@pytest.mark.slow
def test_a_corpus_travels_there_and_back(s3, built, tmp_path):
    assert "files copied" in scmbert_ok("corpus", "copy", built, "s3://bucket/travelled")
    assert "all intact" in scmbert_ok("corpus", "verify", "s3://bucket/travelled")
    assert "288 cells in 24 blocks" in scmbert_ok("corpus", "info", "s3://bucket/travelled/")
    scmbert_ok("corpus", "copy", "s3://bucket/travelled", tmp_path / "back")
    assert same_files(built, tmp_path / "back")
    assert "0 files copied" in scmbert_ok("corpus", "copy", built, tmp_path / "back")


@pytest.mark.slow
def test_a_copy_over_a_bad_line_is_whole(s3, built, tmp_path):
    faults = (DROP, SLOW_DOWN, TRUNCATE)
    s3.reset(lambda request: faults[request.number // 3 % 3] if request.number % 3 == 0 else None)
    url = "s3://bucket/bad-line"
    copy_corpus(built, url)
    copy_corpus(url, tmp_path / "back")
    assert same_files(built, tmp_path / "back")


@pytest.mark.slow
def test_half_a_copy_is_no_corpus_and_is_completed_without_sending_the_half_again(s3, built):
    url = "s3://bucket/half"
    s3.reset(lambda request: ACCESS_DENIED if "shard-00002" in request.path and request.method == "PUT" else None)
    with pytest.raises(UnreachableError, match=r"half/shard-00002\.tfrecord.*refused"):
        copy_corpus(built, url)
    s3.reset()
    with pytest.raises(CorpusError, match=r"manifest\.json: no such file"):
        open_corpus(url)
    there = fsspec.filesystem("s3")
    there.pipe("bucket/half/shard-00001.tfrecord", b"x" * there.size("bucket/half/shard-00001.tfrecord"))  # same size
    s3.reset()
    report = copy_corpus(built, url)
    sent = [request.path for request in s3.requests if request.method == "PUT"]
    assert len(sent) == report.copied
    assert any("shard-00001.tfrecord" in path for path in sent)
    assert not any("shard-00000" in path for path in sent)
    assert MANIFEST in sent[-1]
    assert report.found == 3
    assert verify_corpus(url).ok


@pytest.mark.slow
def test_a_copy_never_replaces_another_corpus(s3, built, tmp_path):
    cells = synthetic_cells(60, 70, 0, 0, num_batches=2, seed=1, mosaic=False)
    build_corpus(tmp_path / "other", [cells.to_mudata()], min_genes=5)
    for target in (URL, built):
        with pytest.raises(CorpusError, match="another corpus lies there"):
            copy_corpus(tmp_path / "other", target)


def test_a_damaged_source_is_noticed_and_gives_no_corpus(s3, built, tmp_path):
    broken = shutil.copytree(built, tmp_path / "broken")
    data = bytearray((broken / "shard-00001.tfrecord").read_bytes())
    data[50] ^= 1
    (broken / "shard-00001.tfrecord").write_bytes(data)
    for target in ("s3://bucket/broken", tmp_path / "copy"):
        with pytest.raises(CorpusError, match=r"shard-00001\.tfrecord: .*corpus verify"):
            copy_corpus(broken, target)
        with pytest.raises(CorpusError, match=r"no such file|no manifest\.json"):
            open_corpus(target)


def test_a_corpus_is_not_built_at_a_url_but_copied_there(tmp_path):
    ran = scmbert("corpus", "build", "s3://bucket/corpus", "example:pbmc_mosaic")
    assert ran.code == 3
    assert "scmbert corpus copy FOLDER s3://bucket/corpus" in ran.err


# --- other places ----------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(monkeypatch):
    """Instead of gcsfs's class: files in memory, and the arguments it was made with."""
    made = []

    class Recorded(MemoryFileSystem):
        protocol = ("gs", "gcs")
        cachable = False

        def __init__(self, **options):
            made.append(options)
            super().__init__()

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(path.removeprefix("gs://"))

    assert fsspec.get_filesystem_class("gs").__module__.startswith("gcsfs")
    monkeypatch.setitem(_registry, "gs", Recorded)
    yield made
    MemoryFileSystem.store.clear()


def test_gs_urls_go_to_gcsfs_with_the_users_options(recorded, built, expected, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon", "project": "mine"})
    copy_corpus(built, "gs://bucket/corpus")
    with open_corpus("gs://bucket/corpus", cache_gigabytes=0) as corpus:
        assert_same(batches_of(corpus), expected)
    assert recorded
    assert all(options == {"token": "anon", "project": "mine"} for options in recorded)


def test_users_options_of_s3_join_ours(s3, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"s3": {"addressing_style": "path"}}})
    filesystem, _ = remote_files._connect(URL)
    assert filesystem.config_kwargs["s3"] == {"addressing_style": "path"}
    assert filesystem.config_kwargs["max_pool_connections"] == remote_files.CONNECTIONS


@pytest.mark.parametrize(
    ("url", "module", "remedy"),
    [
        ("s3://bucket/corpus", "s3fs", r"pip install 'scmbert_jax\[s3\]'"),
        ("gs://bucket/corpus", "gcsfs", r"pip install 'scmbert_jax\[gcs\]'"),
    ],
)
def test_without_its_package_a_url_says_what_to_install(url, module, remedy, monkeypatch):
    monkeypatch.delitem(_registry, url.partition("://")[0], raising=False)  # the class, if it was imported before
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CorpusError, match=rf"{url}: a package that reads .* is missing: {remedy}"):
        open_corpus(url)


def test_a_url_that_nothing_reads_is_refused():
    with pytest.raises(CorpusError, match=r"nonsense://here: .*s3://, gs:// or https://"):
        open_corpus("nonsense://here")


def test_a_corpus_is_read_from_a_web_server_that_answers_ranges(s3, expected):
    bucket = fsspec.filesystem("s3")
    for path in bucket.ls("bucket/some/corpus"):
        bucket.chmod(path, acl="public-read")
    s3.reset(lambda request: INTERNAL_ERROR if request.number % 3 == 0 else None)
    with open_corpus(f"{s3.url}/bucket/some/corpus") as corpus:
        assert_same(batches_of(corpus), expected)
    s3.reset()
    with pytest.raises(CorpusError, match=r"elsewhere/manifest\.json"):
        open_corpus(f"{s3.url}/bucket/elsewhere")


def test_a_web_server_without_ranges_is_told_so(built):
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=built)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with (
            open_corpus(f"http://127.0.0.1:{server.server_port}", cache_gigabytes=0) as corpus,
            pytest.raises(UnreachableError, match="the server knows no ranges"),
        ):
            corpus.read_block(1)
        server.shutdown()


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_continues_from_a_corpus_that_was_moved_to_a_bucket(s3, pbmc_corpus, pbmc_run, run_scmbert, tmp_path):
    def losses(folder):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return {row["step"]: row["loss"] for row in rows if "loss" in row}

    url = "s3://bucket/pbmc"
    scmbert_ok("corpus", "copy", pbmc_corpus, url)
    run_dir = shutil.copytree(pbmc_run, tmp_path / "run")
    shutil.rmtree(run_dir / "checkpoints" / "6")
    rows = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(row for row in rows if json.loads(row)["step"] <= 3))
    options = ("--steps", "6", "--train.checkpoint-every", "3", "--train.log-every", "1")
    ran = run_scmbert(*TINY, "--corpus", url, "--run-dir", run_dir, *options, "--cache-dir", tmp_path / "blocks")
    assert ran.code == 0, ran.err
    assert (run_dir / "checkpoints" / "6").is_dir()
    assert losses(run_dir) == losses(pbmc_run)
    assert 6 in losses(run_dir)
    # Those that were drawn from: what was measured at the start of the run is not measured again.
    assert len(list((tmp_path / "blocks").rglob("*-*"))) > 1
