"""A save or a read that fails is told once, by the error that ends the command, and not by what Orbax leaves behind.

This changes loggers and a hook of the whole process, so only the command line does it: a library leaves them alone.
"""

import logging
import sys
from functools import partial
from typing import Any


def tell_failures_once() -> None:
    """Silences what a failed save or read says besides its error, until the process ends. Calling it again is nothing.

    Until the end, and not only while a checkpoint is read: some of it comes when threads and tasks are collected.
    """
    import absl.logging  # noqa: F401 - it makes the logger of its name, of a class of its own

    logging.getLogger("absl").addFilter(_is_no_failure_of_orbax)
    logging.getLogger("asyncio").addFilter(_is_no_late_read)
    if getattr(sys.unraisablehook, "func", None) is not _tell_all_but_late_writes:
        sys.unraisablehook = partial(_tell_all_but_late_writes, sys.unraisablehook)


def _is_no_failure_of_orbax(record: logging.LogRecord) -> bool:
    """Its threads log the traceback of a failed write besides raising it."""
    return not (record.exc_info and "orbax" in record.pathname)


def _is_no_late_read(record: logging.LogRecord) -> bool:
    """When one of its reads fails, the others end later, and asyncio tells of each that nobody waited for."""
    return "tensorstore_spec" not in record.getMessage()


def _tell_all_but_late_writes(tell: Any, unraisable: Any) -> None:
    """When one of its writes fails, the others end later, find that nobody waits, and print a traceback."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
        tell(unraisable)
