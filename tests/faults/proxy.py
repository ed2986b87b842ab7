"""A proxy in front of an S3 server that counts what is asked for, and fails on purpose.

Requests pass unchanged, the Host header included, so that their signatures stay valid.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, unquote, urlsplit

SLOW_S = 1.0
Kind = Literal["error", "slow", "reset", "cut"]


class Request(NamedTuple):
    """One request as the proxy sees it."""

    method: str
    # Bucket and key.
    key: str
    query: str


class Fault(NamedTuple):
    """What happens to a request instead of its answer.

    `error` answers `status` and `code`; `slow` answers rightly and late, its body in two halves; `reset` closes the
    connection without an answer; `cut` closes it in the middle of the body.
    """

    kind: Kind
    status: int = 500
    code: str = "InternalError"


Rule = Callable[[Request], Fault | None]


class FaultProxy:
    """The proxy: `endpoint`, the `rule` that decides on each request, and `requests`, a list of all that came."""

    def __init__(self, upstream: str) -> None:
        self.rule: Rule = lambda _: None
        self.requests: list[Request] = []
        self.faults: Counter[str] = Counter()
        self._lock = threading.Lock()
        address = urlsplit(upstream)
        self.upstream = (str(address.hostname), int(address.port or 80))
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, name="fault-proxy", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def decide(self, method: str, path: str) -> Fault | None:
        parts = urlsplit(path)
        with self._lock:
            request = Request(method, unquote(parts.path).lstrip("/"), parts.query)
            self.requests.append(request)
            fault = self.rule(request)
            if fault is not None:
                self.faults[fault.kind if fault.kind != "error" else str(fault.status)] += 1
            return fault

    def listings(self, folder: str, since: int = 0) -> int:
        """How often what lies below a folder of the bucket was listed."""
        prefix = f"prefix={quote(folder, safe='')}"
        return sum("list-type" in request.query and prefix in request.query for request in self.requests[since:])


class _Handler(BaseHTTPRequestHandler):
    owner: FaultProxy
    protocol_version = "HTTP/1.1"
    # Otherwise a body waits 40 ms for the client's acknowledgement of the header.
    disable_nagle_algorithm = True

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.owner.decide(self.command, self.path)
        if fault is not None and fault.kind == "error":
            self._refuse(fault)
        elif fault is not None and fault.kind == "reset":
            self._hang_up()
        else:
            self._forward(body, fault)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on  # noqa: N815 - the base class's names

    def _forward(self, body: bytes, fault: Fault | None) -> None:
        upstream = http.client.HTTPConnection(*self.owner.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):
            # As the client would see it: the server is gone.
            self._hang_up()
            return
        finally:
            upstream.close()
        if fault is not None and fault.kind == "slow":
            time.sleep(SLOW_S)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(name, value)
        length = answer.headers.get("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if fault is None:
            self._write(data)
            return
        half = len(data) // 2
        self._write(data[:half])
        if fault.kind == "cut":
            self._hang_up()
            return
        time.sleep(SLOW_S)
        self._write(data[half:])

    def _write(self, data: bytes) -> None:
        try:
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:
            # The client was killed: that, too, is tested here.
            self.close_connection = True

    def _refuse(self, fault: Fault) -> None:
        body = f"<Error><Code>{fault.code}</Code><Message>on purpose</Message></Error>".encode()
        self.send_response(fault.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._write(b"" if self.command == "HEAD" else body)

    def _hang_up(self) -> None:
        # A lingering time of 0 sends a reset and no end of file.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RD)
        self.rfile.close()
        self.wfile.close()
        self.connection.close()

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):
            # The connection ended by a fault, or by a killed client.
            self.close_connection = True

    def finish(self) -> None:
        if not self.wfile.closed:
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: `requests` has it."""
