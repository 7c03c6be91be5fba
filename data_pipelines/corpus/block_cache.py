"""Blocks of a corpus that were read before, kept on a local disk up to a number of bytes.

    FOLDER/lock                          held while something is written or thrown away; holds the number of bytes kept
    FOLDER/<key of the shard>/<start>-<stop>    the bytes of one block, as they lie in the shard

The key (`shard_key`) is of the place of a shard and of the sha256 that its manifest claims: a rebuilt shard never meets
the old blocks, and a corpus elsewhere that claims the shard of another puts no block in its place. (The sha256 of
a shard cannot be checked by who reads a block of it.) Any number of processes and threads may share a folder: entries
appear by rename under the lock, so the limit holds for all of them together. Readers take no lock. The entries used
least recently go first.

The cache may lose anything at any time and never says more than "perhaps": who reads a block checks its CRC, and calls
`forget` on damage. A disk that is full or read-only ends the writing with one warning; reading continues from the
source.

Why our own: fsspec's caches know no limit of bytes. diskcache does, but has had no release since August 2023, and its
index in SQLite costs a committed transaction for every read that is to count as a use.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from data_pipelines.corpus.storage import CorpusFiles, Location, is_url
from scmbert_jax.errors import ConfigError
from scmbert_jax.plain_text import without_secrets

DEFAULT_BYTES = 32 << 30  # of a remote corpus: 20 million cells; less on a disk with less than twice that free
_KEEP = 0.9  # of the limit, when entries are thrown away: so a walk through the folder pays for a tenth of it
_log = logging.getLogger(__name__)


class BlockCache:
    """See above. Nothing here raises because of the disk.

    Args:
      folder: made when first needed.
      max_bytes: that all entries may have together; None: `DEFAULT_BYTES`, or half of what the disk has for us.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None):
        self.folder = folder
        self._max_bytes = max_bytes
        self._usable = True
        self._warning = threading.Lock()

    def get(self, shard: str, start: int, stop: int) -> bytes | None:
        """The entry, now the one used last; None: there is none that could be it."""
        path = self._path(shard, start, stop)
        try:
            data = path.read_bytes()
            if len(data) != stop - start:
                return None
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._give_up("read", error)
            return None
        return data

    def has(self, shard: str, start: int, stop: int) -> bool:
        return os.path.exists(self._path(shard, start, stop))

    def put(self, shard: str, start: int, data: bytes) -> None:
        """Keep `data`, the bytes of the shard from `start` on, and throw away what has to go for it."""
        if not self._usable:
            return
        path = self._path(shard, start, start + len(data))
        try:
            with self._locked() as ledger:
                limit = self._limit(ledger)
                if len(data) > limit or path.exists():
                    return
                kept = _read_number(ledger)
                if kept is None or kept + len(data) > limit:
                    kept = self._make_room(int(_KEEP * limit) - len(data))
                _write_number(ledger, kept + len(data))  # first: killed here, we count too many bytes, never too few
                path.parent.mkdir(exist_ok=True)
                growing = path.with_name(path.name + ".growing")
                try:
                    growing.write_bytes(data)
                except OSError:
                    growing.unlink(missing_ok=True)  # a full disk gets back what was written
                    raise
                os.rename(growing, path)
        except OSError as error:
            self._give_up("written", error)

    def forget(self, shard: str, start: int, stop: int) -> None:
        """Throw an entry away; it was found damaged."""
        with contextlib.suppress(OSError):  # its bytes still count until the next walk: too many, never too few
            self._path(shard, start, stop).unlink()

    def _path(self, shard: str, start: int, stop: int) -> Path:
        return self.folder / shard / f"{start}-{stop}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Opened anew each time: locks belong to the open file, so threads exclude each other, too.
        with open(self.folder / "lock", "a+b") as ledger:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            yield ledger

    def _limit(self, ledger: BinaryIO) -> int:
        if self._max_bytes is None:
            ours = _read_number(ledger) or 0
            self._max_bytes = min(DEFAULT_BYTES, (shutil.disk_usage(self.folder).free + ours) // 2)
        return self._max_bytes

    def _make_room(self, aim: int) -> int:
        """Throw away leftovers of killed writers and, beyond `aim` bytes, the entries used least recently. Returns the
        bytes that are left. Under the lock: whatever is growing has lost its writer."""
        found = []
        for entry in (entry for shard in os.scandir(self.folder) if shard.is_dir() for entry in os.scandir(shard)):
            if entry.name.endswith(".growing"):
                os.unlink(entry)
                continue
            with contextlib.suppress(FileNotFoundError):  # forgotten meanwhile
                status = entry.stat()
                found.append((status.st_mtime_ns, status.st_size, entry.path))
        kept = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if kept <= aim:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            kept -= size
        return kept

    def _give_up(self, what: str, error: OSError) -> None:
        with self._warning:
            if self._usable:
                self._usable = False
                _log.warning(
                    "%s: the cache of blocks cannot be %s (%s); nothing more is kept there by this process, and blocks "
                    "are read from the corpus itself. Make room, or choose another place or size with --cache-dir and "
                    "--cache-gigabytes (0: no cache)",
                    *(self.folder, what, error.strerror or error),
                )


def _read_number(ledger: BinaryIO) -> int | None:
    ledger.seek(0)
    text = ledger.read()
    return int(text) if text.isdigit() else None


def _write_number(ledger: BinaryIO, number: int) -> None:
    ledger.truncate(0)
    ledger.write(str(number).encode())
    ledger.flush()


class CachedFiles:
    """Files of which some are looked up in a cache first.

    Args:
      files: where they lie.
      cache: where their blocks are kept.
      keys: file -> its key; of these files ranges are kept.
    """

    def __init__(self, files: CorpusFiles, cache: BlockCache, keys: Mapping[str, str]):
        self.root, self.location, self.remote = files.root, files.location, True
        self.path, self.size, self.open, self.write, self.close = (
            files.path,
            files.size,
            files.open,
            files.write,
            files.close,
        )
        self._files, self._cache, self._keys = files, cache, keys

    def read(self, file: str, start: int, stop: int) -> bytes:
        shard = self._keys.get(file)
        if shard is None:
            return self._files.read(file, start, stop)
        data = self._cache.get(shard, start, stop)
        if data is None:
            data = self._files.read(file, start, stop)
            self._cache.put(shard, start, data)
        return data

    def read_ahead(self, ranges: list[tuple[str, int, int]]) -> None:
        self._files.read_ahead(
            [
                (file, start, stop)
                for file, start, stop in ranges
                if file not in self._keys or not self._cache.has(self._keys[file], start, stop)
            ]
        )

    def forget(self, file: str, start: int, stop: int) -> None:
        if file in self._keys:
            self._cache.forget(self._keys[file], start, stop)
        self._files.forget(file, start, stop)


def shard_key(place: Location, file: str, sha256: str) -> str:
    """64 hex digits: of a shard of the corpus at `place` with this sha256. A URL without its secrets, which change."""
    where = without_secrets(str(place)) if is_url(place) else str(Path(place).resolve())
    return hashlib.sha256(f"{where}\n{file}\n{sha256}".encode()).hexdigest()


def cache_for(
    location: Location, folder: str | Path | None = None, gigabytes: float | None = None
) -> BlockCache | None:
    """The cache for a corpus at `location`; None: none.

    Without a folder or a size, a corpus on this machine has none, and one at a URL has `DEFAULT_BYTES` in
    $SCMBERT_CACHE_DIR, or in scmbert/blocks of the user's cache folder. 0 GB: none.

    Raises:
      ConfigError: a negative size.
    """
    if gigabytes is not None and not gigabytes >= 0:
        raise ConfigError(f"--cache-gigabytes {gigabytes}: expected 0 (no cache) or more")
    if gigabytes == 0 or (folder is None and gigabytes is None and not is_url(location)):
        return None
    if folder is None:
        users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = os.environ.get("SCMBERT_CACHE_DIR") or users / "scmbert" / "blocks"
    return BlockCache(Path(folder), None if gigabytes is None else int(gigabytes * 1e9))
