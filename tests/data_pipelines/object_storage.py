"""An S3 server on this machine (moto), behind a proxy that can be told to fail as real services and networks do."""

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

SLOW_DOWN = (503, "SlowDown", "Please reduce your request rate.")
INTERNAL_ERROR = (500, "InternalError", "We encountered an internal error. Please try again.")
ACCESS_DENIED = (403, "AccessDenied", "Access Denied")
DROP, TRUNCATE, SHORT, FLIP = "drop", "truncate", "short", "flip"  # what may happen to an answer on its way


class Request(NamedTuple):
    number: int  # from 1
    method: str
    path: str


class Proxy(ThreadingHTTPServer):
    """Passes requests on to `upstream` (host, port).

    Attributes:
      fault: asked for each request; gives what goes wrong (None: nothing), or seconds to wait.
      requests: those seen since the last `reset`.
      faults: how many of them went wrong.
    """

    daemon_threads = True

    def __init__(self, upstream: tuple[str, int]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.lock = threading.Lock()
        self.reset()

    def reset(self, fault: Callable[[Request], object] = lambda request: None) -> None:
        with self.lock:
            self.requests: list[Request] = []
            self.faults = 0
            self.fault = fault

    def handle_error(self, request, client_address) -> None:
        pass  # clients hang up on answers that were cut short

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            request = Request(len(self.server.requests) + 1, self.command, self.path)
            self.server.requests.append(request)
            fault = self.server.fault(request)
            self.server.faults += fault is not None
        if isinstance(fault, float):
            time.sleep(fault)
        if fault == DROP:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if isinstance(fault, tuple):
            status, code, message = fault
            self._answer(status, {}, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode())
            return
        upstream = http.client.HTTPConnection(*self.server.upstream)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        if fault == SHORT:
            data = data[: len(data) // 2]
        if fault == FLIP and data:
            data = data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
        headers = {
            name: value
            for name, value in answer.getheaders()
            if name.lower() not in ("connection", "transfer-encoding", "server", "date")
            and (name.lower() != "content-length" or self.command == "HEAD")
        }
        self._answer(answer.status, headers, data, cut=fault == TRUNCATE)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    def _answer(self, status: int, headers: dict[str, str], data: bytes, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def s3_server() -> Iterator[Proxy]:
    """moto behind a `Proxy`; both stop at the end."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    moto.start()
    proxy = Proxy(moto.get_host_and_port())
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        moto.stop()


def environment(proxy: Proxy) -> dict[str, str]:
    """What a user of that server has set."""
    return {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
