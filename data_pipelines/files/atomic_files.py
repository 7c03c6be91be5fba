"""The folder of a corpus, that appears whole or not at all, and files in it likewise, on a disk that may be full.

`GrowingFolder` builds in `OUT.building` under an exclusive lock and renames it to `OUT` when everything in it is on the
disk. Killed at any moment, it leaves `OUT` as it was, and in `OUT.building` the files that `growing_file` finished.
"""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from scmbert_jax.errors import CorpusError, InputError
from scmbert_jax.outputs import (
    CORPUS,
    UNFINISHED_CORPUS,
    check_output_folder,
    foreign_names,
    is_of_kind,
    refuse_another_kind,
)

_GROWING = ".growing"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError while writing `path` (full disk, no permission) into a CorpusError that says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CorpusError(
            f"{path}: cannot be written ({reason}). Nothing that looks like a corpus was left behind; make room or "
            "choose another place, and run the command again"
        ) from error


@contextmanager
def growing_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is written beside `path` and takes its name when it is whole and on the disk, or goes.

    Several processes may write the same one; each replaces the other's. Raises CorpusError when the disk refuses.
    """
    growing = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_GROWING}")
    with writing(path):
        try:
            with open(growing, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.rename(growing, path)
        except BaseException:
            with contextlib.suppress(OSError):
                growing.unlink()
            raise


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder."""
    for path in folder.glob(f"*{_GROWING}"):
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file or a folder's list of files is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_what_is_no_build(path: Path) -> None:
    """Raises CorpusError where `path` is there and holds more than an unfinished build: all that is in it may go."""
    if not os.path.lexists(path):
        return
    foreign = ["it"] if path.is_symlink() or not path.is_dir() else foreign_names(path, UNFINISHED_CORPUS)
    begun = path.is_dir() and all(entry.name.endswith(_GROWING) for entry in path.iterdir())  # killed before its plan
    if foreign or not (begun or is_of_kind(path, UNFINISHED_CORPUS) or is_of_kind(path, CORPUS)):
        raise CorpusError(
            f"{path}: is where this corpus would be built, but is there and is not an unfinished build"
            f"{f' (it holds {foreign[0]!r})' if foreign else ''}: move it elsewhere, or choose another name"
        )


class GrowingFolder:
    """Use as `with GrowingFolder(out, building, replace) as folder:`; fill `folder.path`, then `folder.publish()`.

    What an earlier call left in `building` is there again: the caller continues with it, or calls `clear`. Left without
    `publish`, it keeps what was made, unless it is left by an InputError: what is built from has to change then.

    Args:
      out: the final path.
      building: where it grows, in the same parent folder.
      replace: if True, a corpus that is there at `out` is replaced at the end, in two renames.
      inputs: what is read, which `out` must not hold.

    Raises:
      CorpusError: `out` is there and must not be replaced (`check_output_folder`), `building` is there and is none,
        another process builds the same, or the disk refuses.
    """

    def __init__(self, out: Path, building: Path, replace: bool, inputs: Sequence[object] = ()):
        self.out = out
        self.inputs = inputs
        self.path = building
        self.replaced = out.with_name(out.name + ".replaced")
        self.replace = replace
        self._lock = -1

    def __enter__(self) -> "GrowingFolder":
        with writing(self.out):
            if self.replaced.exists():
                refuse_another_kind(self.replaced, CORPUS)
                if not self.out.exists():
                    # killed between the two renames of `publish`: the old one comes back
                    os.rename(self.replaced, self.out)
        check_output_folder(self.out, CORPUS, self.inputs, self.replace)
        _refuse_what_is_no_build(self.path)
        with writing(self.path):
            self._lock = self._acquire()
            sweep(self.path)
        return self

    def clear(self) -> None:
        """Remove everything that an earlier call left."""
        with writing(self.path):
            for leftover in self.path.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def _acquire(self) -> int:
        """Lock the folder itself, so that no lock file is left. A folder renamed by its owner meanwhile is not it."""
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self.path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(self.path)):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise CorpusError(
                    f"{self.path}: another process is building there now; wait for it, or build under another name"
                ) from None
            os.close(descriptor)

    def publish(self) -> None:
        """Everything in the folder is complete: put it in its final place. Durable when this returns."""
        with writing(self.out):
            sweep(self.path)
            for path in self.path.iterdir():
                sync(path)
            sync(self.path)
            check_output_folder(self.out, CORPUS, self.inputs, self.replace)  # it may have come meanwhile
            if os.path.lexists(self.out):
                if self.replaced.exists():
                    shutil.rmtree(self.replaced)
                os.rename(self.out, self.replaced)
            os.rename(self.path, self.out)
            sync(self.out.parent)
        if self.replaced.exists():
            shutil.rmtree(self.replaced, ignore_errors=True)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not None and self._lock >= 0:
            if issubclass(kind, InputError) or not (self.path.is_dir() and any(self.path.iterdir())):
                shutil.rmtree(self.path, ignore_errors=True)
            else:
                sweep(self.path)
        if self._lock >= 0:
            os.close(self._lock)
