"""The way to a dashboard: what is said of an address where none answers, and of a token that is none."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.jobs.connection import connect


def test_an_address_that_is_no_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as free:
        # Bound and not listening: nothing answers, and nobody else can.
        free.bind(("127.0.0.1", 0))
        for address in (f"http://127.0.0.1:{free.getsockname()[1]}", f"127.0.0.1:{free.getsockname()[1]}"):
            with pytest.raises(ClusterError, match=r"No Ray cluster answers.*--address, http://HEAD:8265"):
                connect(address)
    with pytest.raises(ClusterError, match="ray://head:10001"):
        connect("ray://someone:password@head:10001")


def test_a_token_file_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match=r"RAY_AUTH_TOKEN_PATH.*none \(No such file"):
        connect("http://127.0.0.1:1")


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, format: str, *args: object) -> None:
        del format, args


def test_another_web_server_at_the_address() -> None:
    server = HTTPServer(("127.0.0.1", 0), _Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for scheme in ("http://", ""):
            with pytest.raises(ClusterError, match="No Ray cluster answers"):
                connect(f"{scheme}127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
