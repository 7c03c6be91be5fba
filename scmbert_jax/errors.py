"""Errors that are written for the person who reads them.

Every error a user can cause derives from `UserError`; the command line prints its message without a traceback and
exits with `exit_code`. A message says where (file, field, row), what was found, what was expected and what to do.
"""

# What a run exits with that a signal stopped before its last step. It saved and continues, so this is no error; but it
# is not done either, and whoever waits for 0 must not go on. 75: "try again" (EX_TEMPFAIL of sysexits.h).
INTERRUPTED = 75


class UserError(Exception):
    """Something the user can put right. `exit_code` is what `scmbert` exits with."""

    exit_code = 1


class InputError(UserError):
    """A counts file that cannot be used: not counts, unknown features, broken file."""

    exit_code = 2


class CorpusError(UserError):
    """A corpus folder that is missing, incomplete, damaged or of another format version."""

    exit_code = 3


class ConfigError(UserError):
    """An experiment or a configuration field that does not exist or has an impossible value."""

    exit_code = 4


class CheckpointError(UserError):
    """A checkpoint or a model folder that cannot be read or does not belong to this run."""

    exit_code = 5


class TrainingError(UserError):
    """Training had to stop: a non-finite loss, a full disk while saving."""

    exit_code = 6


class HostError(UserError):
    """Another process of the run cannot be reached, hangs or is gone. Starting all of them again may help."""

    exit_code = 7


class RunInProgress(CheckpointError):
    """Another run holds the run folder; after a crash, the lock of a shared file system may outlive it for minutes."""

    exit_code = 8
