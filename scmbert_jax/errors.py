"""Errors that are written for the person who reads them.

Every error a user can cause derives from `UserError`; the command line prints its message without a traceback and
exits with `exit_code`. A message says where (file, field, row), what was found, what was expected and what to do.
"""

import errno

from scmbert_jax.plain_text import without_secrets

# What a run exits with that a signal stopped before its last step. It saved and continues, so this is no error; but it
# is not done either, and whoever waits for 0 must not continue. 75: "try again" (EX_TEMPFAIL of sysexits.h).
INTERRUPTED = 75


class UserError(Exception):
    """Something the user can put right. `exit_code` is what `scmbert` exits with.

    A message says no password and no signature of a URL that stands in it.
    """

    exit_code = 1

    def __init__(self, message: str = ""):
        super().__init__(without_secrets(str(message)))


class ScmbertWarning(UserWarning):
    """Something the user should know of a result that was given all the same; the command line prints its message."""


class InputError(UserError):
    """A counts file that cannot be used: not counts, unknown features, broken file."""

    exit_code = 2


class CorpusError(UserError):
    """A corpus folder that is missing, incomplete, damaged or of another format version."""

    exit_code = 3


class ConfigError(UserError):
    """An experiment or a configuration field that does not exist or has an impossible value."""

    exit_code = 4


def require(condition: bool, where: str, found: object, expected: str) -> None:
    """Raises `ConfigError` unless `condition` holds of the field `where`, whose value is `found`."""
    if not condition:
        raise ConfigError(f"{where} is {found!r}; expected {expected}.")


class CheckpointError(UserError):
    """A checkpoint or a model folder that cannot be read or does not belong to this run."""

    exit_code = 5


class TrainingError(UserError):
    """Training had to stop: a non-finite loss, a full disk while saving."""

    exit_code = 6


class HostError(UserError):
    """Another process of the run cannot be reached, hangs or is gone. Starting all of them again may help."""

    exit_code = 7


class OutputError(UserError):
    """Something that cannot be written or read for the machine's sake: a full disk, no permission, too many files."""

    exit_code = 9


class MemoryExhausted(UserError):
    """More memory was asked for than the machine, or its accelerator, has."""

    exit_code = 10


class EvaluationError(UserError):
    """A run came to its end, but one of its evaluators failed on the way; its metrics.jsonl says which, and when."""

    exit_code = 11


class ForeignPackage(UserError, ImportError):
    """Another package stands where one of ours is looked for."""

    exit_code = 12


class RunInProgress(CheckpointError):
    """Another run holds the run folder; after a crash, the lock of a shared file system may outlive it for minutes."""

    exit_code = 8


# What an OSError that names no file may be of: writing to standard output, or deep in a library.
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EROFS)


def as_user_error(error: BaseException) -> UserError | None:
    """What the machine refuses, as an error for people; None for what only a programmer can put right.

    Code that knows more (which file, what to do) says it itself; this is for what nobody can foresee at every place.
    """
    first_line = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, MemoryError) or first_line.startswith("RESOURCE_EXHAUSTED"):
        return MemoryExhausted(
            f"more memory is needed than there is ({first_line[:300] or 'no amount was said'}). Do less at once: lower "
            "--batch-size (embed, translate), --workers (corpus build) or --data.global-batch-size, or raise "
            "--train.num-microbatches (pretrain, also of a run that continues; bfloat16 and remat help, too: scmbert "
            "plan)."
        )
    if isinstance(error, RecursionError):
        return InputError(
            "a file is nested too deep to be read (JSON in JSON, thousands of levels): no program writes that; "
            "--debug shows where it was read."
        )
    if isinstance(error, OSError) and (error.filename or error.errno in _OF_THE_MACHINE):
        where = error.filename or "a file or standard output"
        where = where.decode(errors="replace") if isinstance(where, bytes) else where
        full = " Make room there, then repeat the command." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return OutputError(f"{where}: {error.strerror}.{full}")
    return None
