"""Which failures of object storage are tried again, how often and how long, and what the user is told of the others."""

import errno
import random

import aiohttp
import botocore.exceptions
import google.auth.exceptions
import multidict
import pytest
import yarl
from gcsfs.retry import HttpError
from hypothesis import given
from hypothesis import strategies as st
from s3fs.errors import translate_boto_error

from data_pipelines.corpus.retries import Fault, Retries, ShortRead, UnreachableError, fault_of
from scmbert_jax.errors import CorpusError


def s3_error(status: int, code: str) -> Exception:
    """As s3fs raises what botocore says of an answer."""
    response = {"Error": {"Code": code, "Message": "said so"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(botocore.exceptions.ClientError(response, "GetObject"))


def http_error(status: int) -> Exception:
    url = yarl.URL("https://there/shard")
    request = aiohttp.RequestInfo(url, "GET", multidict.CIMultiDictProxy(multidict.CIMultiDict()), url)
    return aiohttp.ClientResponseError(request, (), status=status, message="said so")


FAULTS = [
    (s3_error(500, "InternalError"), Fault.TRANSIENT),
    (s3_error(503, "SlowDown"), Fault.TRANSIENT),
    (s3_error(502, "Bad Gateway"), Fault.TRANSIENT),
    (s3_error(400, "RequestTimeout"), Fault.TRANSIENT),
    (s3_error(429, "TooManyRequests"), Fault.TRANSIENT),
    (s3_error(404, "NoSuchKey"), Fault.MISSING),
    (s3_error(404, "NoSuchBucket"), Fault.MISSING),
    (s3_error(403, "AccessDenied"), Fault.REFUSED),
    (s3_error(403, "SignatureDoesNotMatch"), Fault.REFUSED),
    (s3_error(400, "ExpiredToken"), Fault.REFUSED),
    (s3_error(301, "PermanentRedirect"), Fault.OTHER),
    (s3_error(416, "InvalidRange"), Fault.OTHER),
    (botocore.exceptions.NoCredentialsError(), Fault.REFUSED),
    (botocore.exceptions.ProfileNotFound(profile="mine"), Fault.REFUSED),
    (botocore.exceptions.EndpointConnectionError(endpoint_url="http://there"), Fault.TRANSIENT),
    (botocore.exceptions.ReadTimeoutError(endpoint_url="http://there"), Fault.TRANSIENT),
    (botocore.exceptions.ConnectionClosedError(endpoint_url="http://there"), Fault.TRANSIENT),
    (botocore.exceptions.SSLError(endpoint_url="https://there", error="certificate"), Fault.OTHER),
    (http_error(500), Fault.TRANSIENT),
    (http_error(408), Fault.TRANSIENT),
    (http_error(429), Fault.TRANSIENT),
    (http_error(401), Fault.REFUSED),
    (http_error(404), Fault.MISSING),
    (http_error(400), Fault.OTHER),
    (aiohttp.ClientPayloadError("cut off"), Fault.TRANSIENT),
    (aiohttp.ServerDisconnectedError(), Fault.TRANSIENT),
    (HttpError({"code": 503, "message": "said so"}), Fault.TRANSIENT),
    (HttpError({"code": 401, "message": "said so"}), Fault.REFUSED),
    (HttpError({"code": 400, "message": "said so"}), Fault.OTHER),
    (OSError("Forbidden: https://storage.googleapis.com/b/o"), Fault.REFUSED),  # so gcsfs says 403
    (google.auth.exceptions.DefaultCredentialsError("none"), Fault.REFUSED),
    (google.auth.exceptions.TransportError("network"), Fault.TRANSIENT),
    (ConnectionResetError(), Fault.TRANSIENT),
    (TimeoutError(), Fault.TRANSIENT),
    (OSError(errno.ENETUNREACH, "Network is unreachable"), Fault.TRANSIENT),
    (ShortRead("1 of 2"), Fault.TRANSIENT),
    (ValueError("a bug, or an answer nobody expected"), Fault.OTHER),
]


@pytest.mark.parametrize(("error", "fault"), FAULTS, ids=[f"{type(e).__name__}-{str(e)[:40]}" for e, _ in FAULTS])
def test_each_failure_is_told_as_what_it_is(error, fault):
    assert fault_of(error) is fault


class Clock:
    """Time passes only in `sleep`."""

    def __init__(self):
        self.now, self.waits = 0.0, []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.waits.append(seconds)

    def retries(self, **settings) -> Retries:
        return Retries(sleep=self.sleep, clock=lambda: self.now, jitter=random.Random(0), **settings)


def failing(times: int, error: Exception):
    left = [times]

    def request() -> str:
        if left[0]:
            left[0] -= 1
            raise error
        return "data"

    return request


def test_a_request_that_fails_for_a_while_succeeds_in_the_end():
    clock = Clock()
    assert clock.retries().run("s3://b/shard", failing(7, ConnectionResetError())) == "data"
    assert len(clock.waits) == 7
    assert all(half / 2 <= wait <= half for wait, half in zip(clock.waits, (0.5, 1, 2, 4, 8, 16, 30), strict=True))
    again = Clock()
    again.retries().run("s3://b/shard", failing(7, ConnectionResetError()))
    assert again.waits == clock.waits  # one seed of the jitter, the same waits


def test_the_last_try_fails_with_the_file_the_reason_how_often_and_what_to_do():
    clock = Clock()
    with pytest.raises(UnreachableError, match=r"s3://b/shard: OSError: .*tried 8 times"):
        clock.retries().run("s3://b/shard", failing(8, s3_error(503, "SlowDown")))
    assert len(clock.waits) == 7
    with pytest.raises(CorpusError, match=r"s3://b/shard: 1 of 2, 8 times: .*copy the corpus"):
        clock.retries().run("s3://b/shard", failing(8, ShortRead("1 of 2")))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (s3_error(404, "NoSuchKey"), CorpusError, "s3://b/shard: no such file or bucket.*corpus copy"),
        (s3_error(403, "AccessDenied"), UnreachableError, "s3://b/shard: PermissionError: said so: .*AWS_PROFILE"),
        (botocore.exceptions.NoCredentialsError(), UnreachableError, "Unable to locate credentials.*AWS_PROFILE"),
        (s3_error(301, "PermanentRedirect"), UnreachableError, "check the URL, the region"),
    ],
)
def test_what_will_not_change_fails_at_once(error, kind, message):
    clock = Clock()
    with pytest.raises(kind, match=message):
        clock.retries().run("s3://b/shard", failing(1, error))
    assert clock.waits == []


@given(
    tries=st.integers(1, 30),
    first=st.floats(0.01, 10),
    longest=st.floats(0.01, 100),
    total=st.floats(0.1, 500),
    seconds=st.floats(0, 60),
)
def test_no_request_is_tried_more_often_or_longer_than_was_said(tries, first, longest, total, seconds):
    clock = Clock()
    began = []

    def request():
        began.append(clock.now)
        clock.now += seconds
        raise TimeoutError

    settings = {"tries": tries, "first_wait": first, "longest_wait": longest, "total_seconds": total}
    with pytest.raises(UnreachableError):
        clock.retries(**settings).run("s3://b/shard", request)
    assert len(began) <= tries
    assert began[-1] <= total
    assert all(wait <= longest for wait in clock.waits)


def test_a_fault_of_the_network_is_no_news_until_it_lasts(caplog):
    clock = Clock()
    clock.retries().run("s3://b/shard", failing(2, TimeoutError()))
    assert not caplog.records
    clock.retries().run("s3://b/shard", failing(3, TimeoutError()))
    assert "s3://b/shard: TimeoutError; try 4 of 8" in caplog.text
