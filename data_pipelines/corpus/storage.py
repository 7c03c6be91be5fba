"""The files of a corpus, wherever they lie: a folder (`LocalFiles`) or a URL (`remote_files.RemoteFiles`).

A corpus asks for byte ranges by file name and knows no more of the place. What cannot be read is a `CorpusError` that
names the file and the reason; fewer bytes than asked for are an error, never data.
"""

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from data_pipelines.files.atomic_files import writing
from scmbert_jax.errors import CorpusError
from scmbert_jax.outputs import partial_beside

Location = Path | str  # a folder, or a URL such as s3://bucket/corpus
CHUNK_BYTES = 8 << 20
_CHUNKS_AHEAD = 8  # asked for before the first of them is used


def is_url(location: Location) -> bool:
    return isinstance(location, str) and "://" in location


def base_name(location: Location) -> str:
    """Of the folder or of the last part of the URL."""
    return Path(location).resolve().name if not is_url(location) else str(location).rstrip("/").rpartition("/")[2]


class CorpusFiles(Protocol):
    """Threads may share it."""

    @property
    def root(self) -> Location:
        """Where the files lie, for messages and records."""

    @property
    def location(self) -> Location:
        """What opens them again; of a URL, with the user and password in it, so it is never said or written."""

    @property
    def remote(self) -> bool:
        """If True, what is asked for early costs less waiting, and what is damaged may be sound when read once more."""

    def path(self, file: str) -> Location:
        """Where a file lies, for messages."""

    def size(self, file: str) -> int:
        """In bytes. Raises CorpusError."""

    def read(self, file: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop), all of them. Raises CorpusError."""

    def open(self, file: str) -> BinaryIO:
        """The whole file, to be closed by the caller. Raises CorpusError."""

    def read_ahead(self, ranges: list[tuple[str, int, int]]) -> None:
        """Begin to fetch (file, start, stop) that will be read soon, if that pays here. Raises nothing."""

    def forget(self, file: str, start: int, stop: int) -> None:
        """Bytes that were read are damaged: drop whatever is kept of them, so that the next read goes to the source."""

    def write(self, source: Path, file: str) -> None:
        """Copy a local file here; it appears whole or not at all. Raises CorpusError."""

    def close(self) -> None:
        """Release descriptors, threads and connections; they come back when needed."""


def read_chunks(files: CorpusFiles, file: str, size: int) -> Iterator[bytes]:
    """A file from its start to `size`, in pieces, of which the next ones are under way."""
    ranges = [(file, start, min(start + CHUNK_BYTES, size)) for start in range(0, size, CHUNK_BYTES)]
    for place, chunk in enumerate(ranges):
        files.read_ahead(ranges[place : place + _CHUNKS_AHEAD])
        yield files.read(*chunk)


class LocalFiles:
    """A folder on a disk of this machine. Files stay open; `pread` moves no position, so threads share descriptors."""

    remote = False

    def __init__(self, root: Path):
        self.root = self.location = root
        self._lock = threading.Lock()
        self._descriptors: dict[str, int] = {}

    def path(self, file: str) -> Path:
        return self.root / file

    def _inside(self, file: str) -> Path:
        """The path of an ordinary file in the folder itself. Raises CorpusError: a link that leads out, a pipe, ...;
        OSError: it is not there."""
        path = self.path(file)
        status = path.stat()
        if path.resolve().parent != self.root.resolve():
            raise CorpusError(
                f"{path}: leads out of the corpus (to {path.resolve()}); only files in its folder are read"
            )
        if not stat.S_ISREG(status.st_mode):
            raise CorpusError(f"{path}: is no ordinary file")
        return path

    def size(self, file: str) -> int:
        try:
            return self._inside(file).stat().st_size
        except OSError as error:
            raise CorpusError(f"{self.path(file)}: {error.strerror}") from error

    def read(self, file: str, start: int, stop: int) -> bytes:
        try:
            data = _pread(self._descriptor(file), start, stop)
        except OSError as error:
            raise CorpusError(f"{self.path(file)}: cannot be read ({error.strerror})") from error
        if len(data) != stop - start:
            raise CorpusError(
                f"{self.path(file)}: ends after {start + len(data):,} bytes, {stop:,} were expected: truncated"
            )
        return data

    def open(self, file: str) -> BinaryIO:
        try:
            return open(self._inside(file), "rb")
        except OSError as error:
            raise CorpusError(f"{self.path(file)}: cannot be read ({error.strerror})") from error

    def read_ahead(self, ranges: list[tuple[str, int, int]]) -> None:
        pass

    def forget(self, file: str, start: int, stop: int) -> None:
        pass

    def write(self, source: Path, file: str) -> None:
        with writing(self.path(file)), open(source, "rb") as reader:
            self.root.mkdir(parents=True, exist_ok=True)
            growing = partial_beside(self.path(file))
            try:
                with open(growing, "xb") as writer:
                    while chunk := reader.read(CHUNK_BYTES):
                        writer.write(chunk)
                    writer.flush()
                    os.fsync(writer.fileno())
                os.replace(growing, self.path(file))
            finally:
                growing.unlink(missing_ok=True)

    def close(self) -> None:
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def _descriptor(self, file: str) -> int:
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(self._inside(file), os.O_RDONLY)
            return self._descriptors[file]


def _pread(descriptor: int, start: int, stop: int) -> bytes:
    """Bytes [start, stop), or fewer at the end of the file."""
    data = os.pread(descriptor, stop - start, start)
    if len(data) == stop - start:
        return data
    parts = [data]
    while parts[-1]:  # a signal may cut a read short; only an empty one is the end
        start += len(parts[-1])
        parts.append(os.pread(descriptor, stop - start, start))
    return b"".join(parts)
