"""What went wrong with a request to object storage: worth another try, or not, and what the user can do about it.

Errors of the libraries behind fsspec (botocore, aiohttp, gcsfs, requests, google.auth) are told by name, so that none
of them has to be installed or imported here.
"""

import errno
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from scmbert_jax.errors import CorpusError
from scmbert_jax.plain_text import without_secrets

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_QUIET_TRIES = 2  # a single failed request in many is everyday life and no news


class Fault(Enum):
    """Kinds of failure; the value says what to do."""

    TRANSIENT = (
        "the service does not answer, is overloaded, or the network is down: the same command continues when it is back"
    )
    MISSING = (
        "no such file or bucket: check the URL; bring a corpus there with `scmbert corpus copy FOLDER URL`; the same "
        "command completes a copy that was interrupted"
    )
    REFUSED = (
        "access was refused: check that credentials are there and not expired (s3: AWS_PROFILE, or AWS_ACCESS_KEY_ID "
        "and AWS_SECRET_ACCESS_KEY; gs: `gcloud auth application-default login`) and may read this bucket; for a "
        "public bucket set FSSPEC_S3_ANON=true or FSSPEC_GS_TOKEN=anon"
    )
    OTHER = "check the URL, the region and the endpoint (s3: AWS_ENDPOINT_URL, AWS_REGION)"


class ShortRead(Exception):
    """The answer has fewer bytes than were asked for."""


class UnreachableError(CorpusError):
    """The storage cannot be reached or refuses: this says nothing about the corpus there."""


_REFUSED = {
    "botocore.NoCredentialsError",
    "botocore.PartialCredentialsError",
    "botocore.CredentialRetrievalError",
    "botocore.ProfileNotFound",
    "botocore.TokenRetrievalError",
    "botocore.UnauthorizedSSOTokenError",
    "google.DefaultCredentialsError",
    "google.RefreshError",
}
_UNTRUSTED = {"botocore.SSLError", "aiohttp.ClientConnectorCertificateError", "requests.SSLError"}
_TRANSIENT = {
    "botocore.ConnectionError",
    "botocore.HTTPClientError",
    "botocore.ResponseParserError",  # throttled answers are not always XML
    "botocore.FlexibleChecksumError",
    "botocore.ChecksumError",
    "aiohttp.ClientConnectionError",
    "aiohttp.ClientPayloadError",
    "requests.ConnectionError",
    "requests.Timeout",
    "requests.ChunkedEncodingError",
    "urllib3.HTTPError",
    "http.IncompleteRead",
    "google.TransportError",
    "gcsfs.ChecksumError",
}
_TRANSIENT_ERRNO = {
    *(errno.EBUSY, errno.EIO, errno.EREMOTEIO, errno.EPIPE, errno.EAGAIN, errno.EINTR),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH),
}
_TRANSIENT_STATUS = {408, 425, 429}  # time-out, too early, too many requests; and 500 and above


def fault_of(error: Exception) -> Fault:
    """The kind of failure that an exception of an fsspec file system stands for."""
    names = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(error).__mro__}
    status = _http_status(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return Fault.MISSING
    if isinstance(error, PermissionError) or status in (401, 403) or names & _REFUSED:
        return Fault.REFUSED
    if type(error) is OSError and str(error).startswith("Forbidden"):  # gcsfs says 403 in words only
        return Fault.REFUSED
    if names & _UNTRUSTED:
        return Fault.OTHER
    if isinstance(error, ConnectionError | TimeoutError | ShortRead) or names & _TRANSIENT:
        return Fault.TRANSIENT
    if status is not None:
        return Fault.TRANSIENT if status in _TRANSIENT_STATUS or status >= 500 else Fault.OTHER
    return Fault.TRANSIENT if getattr(error, "errno", None) in _TRANSIENT_ERRNO else Fault.OTHER


def _unwrapped(error: Exception) -> Exception:
    """fsspec's HTTP says "not found" whatever happened to a question for a size; its cause knows better."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def _http_status(error: Exception) -> int | None:
    for botocores in (error, error.__cause__):  # s3fs translates its errors and keeps them as the cause
        if isinstance(response := getattr(botocores, "response", None), dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for name in ("status", "code"):  # aiohttp, gcsfs
        if str(value := getattr(error, name, None)).isdigit():
            return int(str(value))
    return None


@dataclass(frozen=True)
class Retries:
    """How often a request is tried, and for how long: waits of 0.5, 1, 2, ... 30 s, each shortened by up to a half at
    random so that the hosts of a pod do not come back all at once; with the defaults about 50 s in all."""

    tries: int = 8
    first_wait: float = 0.5
    """Seconds before the second try; doubles with each."""
    longest_wait: float = 30.0
    """Seconds."""
    total_seconds: float = 300.0
    """No try begins later than this after the first one began."""
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    jitter: random.Random = field(default_factory=random.Random)
    """Not of the run's seed: it changes when, never what."""

    def run(self, where: object, request: Callable[[], _Result]) -> _Result:
        """The result of `request`, tried again while its failure is transient.

        Raises:
          UnreachableError: every try failed, or access is refused.
          CorpusError: the file is not there, or never has the bytes that were asked for.
        """
        began = self.clock()
        for number in range(1, self.tries + 1):
            try:
                return request()
            except Exception as failure:  # each library has its own
                error = _unwrapped(failure)
                fault = fault_of(error)
                wait = min(self.longest_wait, self.first_wait * 2 ** (number - 1)) * self.jitter.uniform(0.5, 1.0)
                spent = self.clock() - began
                last = number == self.tries or spent + wait > self.total_seconds
                if fault is not Fault.TRANSIENT or last:
                    raise _for_the_user(where, error, fault, number, spent) from error
                if number > _QUIET_TRIES:
                    _log.warning("%s: %s; try %d of %d in %.0f s", where, _reason(error), number + 1, self.tries, wait)
            self.sleep(wait)
        raise AssertionError(f"{self.tries} tries")


def _for_the_user(where: object, error: Exception, fault: Fault, tries: int, seconds: float) -> CorpusError:
    if isinstance(error, ShortRead):
        return CorpusError(
            f"{where}: {error}, {tries} times: the file was truncated or replaced there; run `scmbert corpus verify`, "
            "and copy the corpus again"
        )
    if fault is Fault.MISSING:
        return CorpusError(f"{where}: {fault.value}")
    tried = f", tried {tries} times in {seconds:.0f} s" if fault is Fault.TRANSIENT else ""
    return UnreachableError(f"{where}: {_reason(error)}{tried}: {fault.value}")


def _reason(error: Exception) -> str:
    text = without_secrets(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
