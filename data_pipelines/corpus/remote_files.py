"""The files of a corpus at a URL, read by range through fsspec: s3://, gs://, https://, and what else fsspec knows.

Credentials and endpoints come from where each service's own tools look for them, and from fsspec's configuration
(FSSPEC_S3_ANON=true, FSSPEC_S3='{"endpoint_url": "..."}', ~/.config/fsspec).

Every read asks for exactly the bytes it needs, and is tried again as `Retries` says. The libraries' own retries are
switched off where they can be (s3fs, botocore), so that these are all there are; gcsfs tries each request six times by
itself, and its time counts as that of one try.
"""

import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from data_pipelines.corpus.retries import Retries, ShortRead
from data_pipelines.corpus.storage import read_chunks
from scmbert_jax.errors import CorpusError
from scmbert_jax.plain_text import without_secrets

# Requests under way at once. At 50 ms of latency, 32 blocks of 256 cells are 160,000 cells/s; what s3fs computes for
# each request, 4 to 5 ms measured, is then the tighter limit.
CONNECTIONS = 32
REQUEST_SECONDS = 60.0  # then a try counts as failed; a block takes well under a second
_UPLOAD_SECONDS = 3600.0  # a shard is up to 1 GiB, and its parts are sent together
_MAX_AHEAD = 4096  # ranges fetched and not asked for; the oldest are given up (they belong to a step that never came)


class Service(NamedTuple):
    """How the file system of a protocol is made.

    Attributes:
      install: what to install when fsspec's module for it is missing.
      options: arguments of the file system, given the user's own configuration of it.
    """

    install: str
    options: Callable[[dict[str, Any]], dict[str, Any]]


def _s3_options(configured: dict[str, Any]) -> dict[str, Any]:
    ours = {
        "max_pool_connections": CONNECTIONS,
        "connect_timeout": 10,
        "read_timeout": 30,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    }
    return {"config_kwargs": {**ours, **configured.get("config_kwargs", {})}}


def _no_options(configured: dict[str, Any]) -> dict[str, Any]:
    return {}


_ANY_SERVICE = Service("the package that fsspec's list of implementations names for it", _no_options)
SERVICES: dict[str, Service] = {
    "s3": Service("pip install 'scmbert_jax[s3]'", _s3_options),
    "gs": Service("pip install 'scmbert_jax[gcs]'", _no_options),
    "http": Service("pip install aiohttp requests", _no_options),
    "https": Service("pip install aiohttp requests", _no_options),
}


class _Connection:
    """What one process holds: fsspec's event loop and threads do not survive a fork, so each process makes its own."""

    def __init__(self, url: str, inherited: "_Connection | None" = None):
        self.process = os.getpid()
        # Kept in a forked process, since collecting it would close the parent's sockets from another event loop.
        self.inherited = inherited
        self.filesystem, self.root = _connect(url)
        # for file systems that are asynchronous inside, a limit on the time of a request
        self.limits = {"timeout": REQUEST_SECONDS} if self.filesystem.async_impl else {}
        self.pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="remote-read")
        self.lock = threading.Lock()
        self.ahead: dict[tuple[str, int, int], Future[bytes]] = {}


class RemoteFiles:
    """See `CorpusFiles`. Threads share it; a forked process connects anew.

    Args:
      url: of the folder.
      retries: how often and how long a request is tried.

    Raises:
      CorpusError: fsspec does not know the protocol, or its package is not installed.
    """

    remote = True

    def __init__(self, url: str, retries: Retries | None = None):
        self.location = self._url = url.rstrip("/")
        self.root = without_secrets(self._url)  # what is said of it, and remembered
        self._retries = retries or Retries()
        self._connected: _Connection | None = _Connection(self._url)

    def path(self, file: str) -> str:
        return f"{self.root}/{file}"

    def size(self, file: str) -> int:
        here = self._here()
        size = self._retries.run(
            self.path(file), lambda: here.filesystem.info(f"{here.root}/{file}", **here.limits)["size"]
        )
        if size is None:
            raise CorpusError(
                f"{self.path(file)}: the server does not say how long it is; it must, to be read by range"
            )
        return size

    def read(self, file: str, start: int, stop: int) -> bytes:
        here = self._here()
        with here.lock:
            fetched = here.ahead.pop((file, start, stop), None)
        if fetched is not None and fetched.exception() is None:
            return fetched.result()
        # Reading ahead tries once. What it failed to get is tried here, where somebody waits for it.
        return self._retries.run(self.path(file), lambda: self._fetch(file, start, stop))

    def open(self, file: str) -> BinaryIO:
        return io.BytesIO(b"".join(read_chunks(self, file, self.size(file))))

    def read_ahead(self, ranges: list[tuple[str, int, int]]) -> None:
        here = self._here()
        with here.lock:
            for wanted in ranges:
                if wanted not in here.ahead:
                    here.ahead[wanted] = here.pool.submit(self._fetch, *wanted)
            while len(here.ahead) > _MAX_AHEAD:
                here.ahead.pop(next(iter(here.ahead))).cancel()

    def forget(self, file: str, start: int, stop: int) -> None:
        here = self._here()
        with here.lock:
            here.ahead.pop((file, start, stop), None)

    def write(self, source: Path, file: str) -> None:
        here = self._here()
        limits = {"timeout": _UPLOAD_SECONDS} if here.limits else {}
        target = f"{here.root}/{file}"
        self._retries.run(self.path(file), lambda: here.filesystem.put_file(str(source), target, **limits))

    def close(self) -> None:
        connected, self._connected = self._connected, None
        if connected is not None and connected.process == os.getpid():
            connected.pool.shutdown(wait=False, cancel_futures=True)

    def _here(self) -> _Connection:
        connected = self._connected
        if connected is None or connected.process != os.getpid():
            connected = self._connected = _Connection(self._url, inherited=connected)
        return connected

    def _fetch(self, file: str, start: int, stop: int) -> bytes:
        here = self._here()
        data = here.filesystem.cat_file(f"{here.root}/{file}", start=start, end=stop, **here.limits)
        if len(data) < stop - start:
            raise ShortRead(f"{len(data):,} bytes came of {stop - start:,} asked for")
        if len(data) > stop - start:
            raise ValueError(f"{len(data):,} bytes came for a range of {stop - start:,}: the server knows no ranges")
        return data


def _connect(url: str) -> tuple[Any, str]:
    import fsspec
    from fsspec.config import conf

    protocol = url.partition("://")[0]
    service = SERVICES.get(protocol, _ANY_SERVICE)
    try:
        filesystem, root = fsspec.core.url_to_fs(
            url, skip_instance_cache=True, **service.options(conf.get(protocol, {}))
        )
    except ImportError as error:
        raise CorpusError(
            f"{url}: a package that reads {protocol}:// is missing: {service.install} ({error})"
        ) from error
    except ValueError as error:
        raise CorpusError(f"{url}: {error}; a corpus lies in a folder, or at s3://, gs:// or https://") from error
    if protocol == "s3":
        filesystem.retries = 1  # s3fs offers no argument for it
    return filesystem, root
