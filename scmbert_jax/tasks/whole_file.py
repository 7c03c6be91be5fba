"""An output file that appears whole or not at all, and is refused before the work where it cannot be written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scmbert_jax.errors import InputError


def require_writable(path: Path) -> None:
    """Raises `InputError` when no file can be written at `path`; to be asked before the work."""
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        what = "is a folder" if path.is_dir() else f"{path.parent} is no folder that can be written to"
        raise InputError(f"{path}: cannot be written ({what}); choose another place.")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a name beside `path` to write to, which becomes `path` in the end.

    Whatever happens, `path` is what it was before or complete, and nothing else is left. Raises `InputError` when the
    system refuses (a full disk, no permission).
    """
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # HDF5 raises the second where the first happens while it closes
        raise InputError(f"{path}: cannot be written ({_reason(error)}).") from error
    finally:
        partial.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """What the system said of a failed write, without HDF5's words around it."""
    number = getattr(error, "errno", None)
    if number is None and error.__context__ is not None:
        return _reason(error.__context__)
    return os.strerror(number) if number is not None else str(error).partition("\n")[0]
