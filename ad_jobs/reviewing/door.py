"""Who may ask: the holder of the token, by the address that was printed, and no page of another site.

A token of 256 bits is drawn at every start. The first visit brings it in the address, is given a cookie for it
(HttpOnly, SameSite=Strict) and sent on to an address without it; programs send `Authorization: Bearer TOKEN`.
The Host header must be ours, so that no name of another site can be made to lead here (DNS rebinding).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost")
# Nothing from anywhere but this server, nothing inline, in no frame.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Door:
    """Middleware: lets in who has the token, and puts HEADERS on every answer."""

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app, self._token = app, token
        # Cookies are of a host, whatever the port: two reviews at once have one each.
        self._cookie = f"retroscan-review-{port}"
        self._hosts = {f"{host}:{port}" for host in HOSTS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            # No websocket is served here.
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refused = self._refused(scope)
        await (refused or self._app)(scope, receive, send_with_headers)

    def _refused(self, scope: Scope) -> Response | None:
        """The answer to who is not let in, or is sent on; None for who may ask."""
        headers = Headers(scope=scope)
        if headers.get("host") not in self._hosts:
            return PlainTextResponse("This is the address of another host.", 421)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token")
        if given is not None and scope["path"] == "/" and scope["method"] == "GET":
            return self._sent_on() if self._is_token(given[0]) else _unknown()
        if not self._is_token(self._of(headers)):
            return _unknown()
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin not in (None, *(f"http://{host}" for host in self._hosts)):
            return PlainTextResponse("Another site's page may not ask this.", 403)
        return None

    def _sent_on(self) -> Response:
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
        return answer

    def _of(self, headers: Mapping[str, str]) -> str:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return bearer
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return ""
        return "" if cookie is None else cookie.value

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())


def _unknown() -> Response:
    return PlainTextResponse(
        "This page is opened by the whole address that retroscan review printed, with its token.", 401
    )
