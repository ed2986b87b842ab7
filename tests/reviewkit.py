"""A review of a run without a browser: the application behind a test client, and a server for a real one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.testclient import TestClient

from ad_jobs.review import Reviewing, review


@contextmanager
def client(run: str, **options: Any) -> Iterator[TestClient]:
    """A client that has been let in."""
    opened = review(run=run, **{"reviewer": "Ada", **options})
    with opened.app() as app, opened._socket:
        found = TestClient(app, base_url=f"http://127.0.0.1:{opened.port}")
        assert found.get(path_of(opened)).status_code == 200
        yield found


def path_of(opened: Reviewing) -> str:
    """The first visit's path, with the token."""
    return "/" + opened.address.rpartition("/")[2]


@contextmanager
def served(run: str, **options: Any) -> Iterator[str]:
    """The address of a server that runs in this process for as long as the block lasts."""
    opened = review(run=run, **{"reviewer": "Ada", **options})
    with opened.app() as app, opened._socket:
        opened._socket.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
        # Signals are the test runner's.
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened._socket]})
        thread.start()
        try:
            yield opened.address
        finally:
            server.should_exit = True
            thread.join()


def images(found: TestClient, **asked: Any) -> list[dict[str, Any]]:
    """All images that meet a filter, page by page."""
    rows: list[dict[str, Any]] = []
    while True:
        after = {"after": rows[-1]["position"]} if rows else {}
        page = found.get("/api/images", params={"limit": 4, **after, **asked}).json()["rows"]
        rows += page
        if len(page) < 4:
            return rows
