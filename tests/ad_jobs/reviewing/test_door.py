"""Who is let in: the token's holder, by its cookie or header, at the right host, from no other site."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from ad_jobs.reviewing.door import Door

TOKEN, PORT = "a-token-of-this-start", 8642


@pytest.fixture
def client() -> Iterator[TestClient]:
    inside = Starlette(routes=[Route("/{any:path}", lambda _: PlainTextResponse("inside"), methods=["GET", "POST"])])
    with TestClient(Door(inside, TOKEN, PORT), base_url=f"http://127.0.0.1:{PORT}") as found:
        yield found


def test_without_the_token_nothing_is_answered(client):
    for path in ("/", "/api/run", "/web/app.js", "/?token=wrong", "/?token=", "/api/run?token=" + TOKEN):
        assert client.get(path, follow_redirects=False).status_code == 401, path
    assert client.post("/api/verdicts", json={}).status_code == 401
    assert client.get("/", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/", headers={"Cookie": f"retroscan-review-{PORT}=wrong"}).status_code == 401


def test_the_first_visit_is_given_a_cookie_and_sent_on_without_the_token(client):
    first = client.get(f"/?token={TOKEN}", follow_redirects=False)
    assert (first.status_code, first.headers["location"]) == (303, "/")
    cookie = first.headers["set-cookie"]
    assert cookie.startswith(f"retroscan-review-{PORT}={TOKEN};")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert client.get("/api/run").text == "inside"


def test_a_program_sends_the_token_in_a_header(client):
    assert client.get("/api/run", headers={"Authorization": f"Bearer {TOKEN}"}).text == "inside"


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1:1", f"127.0.0.1.evil:{PORT}", ""])
def test_a_name_of_another_host_does_not_lead_here(client, host):
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": host}
    assert client.get("/api/run", headers=headers).status_code == 421


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_another_sites_page_may_not_send_anything(client, origin):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert client.post("/api/undo", headers={**headers, "Origin": origin}).status_code == 403
    assert client.post("/api/undo", headers={**headers, "Origin": f"http://127.0.0.1:{PORT}"}).text == "inside"


def test_every_answer_says_what_a_browser_may_do_with_it(client):
    for answer in (client.get("/"), client.get(f"/?token={TOKEN}", follow_redirects=False), client.get("/api/run")):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
