"""Who may ask a server on 127.0.0.1: checked around a whole ASGI app.

Any web page that the owner's browser shows, and any account of the machine, can send
requests to 127.0.0.1. So each request is checked, in this order:

1. Host names this server, port included unless it is 80 (another site's name may lead to
   127.0.0.1: DNS rebinding),
2. Origin, if given, is the server's own or one that the owner listed, and the browser does
   not say that another site made the request,
3. the token, as ``Authorization: Bearer``, or the cookie,
4. a request other than GET has a content type that no form can send, and a bounded body.

Refusals are JSON in OpenAI's shape. Only listed origins get cross-origin headers; their
preflight is answered without a token. No request is logged.

An endpoint for programs::

    app = guarded(app, port=port, token=new_secret())

A page for a browser::

    entry = Entry(port)
    app = guarded(app, port=port, entry=entry)
    print(entry.link)  # works once

The link's code is swapped for a cookie, and the page lies under ``entry.room``: in
Starlette ``request.scope["root_path"]``, which routes leave out. So its own addresses have
to be relative. Browsers send a cookie of 127.0.0.1 to all ports, so to servers of other
accounts too; they do not know the room, to which the cookie is bound. Arguments of
processes are seen by other accounts: to open the link in a browser, write it into a file
of mode 600 that leads there.
"""

import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from ...common.errors import refuse_if

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ADDRESS = "127.0.0.1"
USUAL = 80  # port of an http address that names none
MOST = 1 << 20  # bytes of a body
JSON = ("application/json",)
OPEN = "/open"  # where a link's code is swapped
READING = ("GET", "HEAD")
ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|[a-z][a-z0-9+.-]*://[\w.-]+")
PRIVATE = {
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
# Leads on from the server's own page: behind a redirect, a browser sends no strict cookie
# to one who came from elsewhere.
LEAD = (
    '<!doctype html><title>idiolect</title><meta http-equiv="refresh" content="0;url={0}">\
<p><a href="{0}">Continue</a></p>'
)


class Refused(Exception):
    """A request is not answered: HTTP status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def new_secret() -> str:
    """Return 256 random bits, fit for an address."""
    return secrets.token_urlsafe(32)


@dataclass(eq=False)
class Entry:
    """A link that opens a page once, and the cookie that its browser has from then on.

    Attributes
    ----------
    port
        Of the server.
    room
        First part of the page's addresses, ``/...``; the cookie is bound to it.
    code
        Of the link; empty: used.
    cookie
        Value of the cookie.
    """

    port: int
    room: str = field(default_factory=lambda: f"/{secrets.token_urlsafe(16)}")
    code: str = field(default_factory=new_secret)
    cookie: str = field(default_factory=new_secret)

    @property
    def link(self) -> str:
        """The address to open."""
        return f"http://{ADDRESS}:{self.port}{OPEN}?code={self.code}"

    @property
    def name(self) -> str:
        """The cookie's name; two pages of one machine have two."""
        return f"idiolect-{self.port}"


def guarded(
    app: App,
    *,
    port: int,
    token: str = "",
    entry: Entry | None = None,
    origins: Iterable[str] = (),
    kinds: Iterable[str] = JSON,
    most: int = MOST,
    streamed: Iterable[str] = (),
) -> App:
    """Return an app that lets only checked requests through to another.

    Parameters
    ----------
    app
        Gets the whole body at once, unless it is `streamed`, and then the client's leaving.
    port
        Where it is served, on 127.0.0.1.
    token
        Of programs; empty: none is taken.
    entry
        Of a page; None: no cookie is taken.
    origins
        Other web pages that may ask with the token (`checked_origin`).
    kinds
        Content types of bodies. None may be one that a form can send.
    most
        Bytes of a body.
    streamed
        Further content types; such a body is not read here, and the app bounds it.

    Raises
    ------
    ValueError
        Nobody could be let in.
    """
    if not token and entry is None:
        raise ValueError("a token or an entry is needed")
    guard = _Guard(
        *(app, port, token, entry),
        frozenset(origins),
        frozenset(kinds),
        frozenset(streamed),
        most,
    )
    return guard.__call__


def checked_origin(origin: str) -> str:
    """Return an origin as browsers send it: a scheme, a host and perhaps a port.

    Raises
    ------
    IdiolectError
        It is none, or stands for more than one (``*``, ``null``).
    """
    found = origin.strip().lower().removesuffix("/")
    refuse_if(
        not ORIGIN.fullmatch(found),
        f"--origin {origin}: give one web page's scheme, host and port, such as "
        "http://localhost:5173.",
    )
    return found


# --- the checks ------------------------------------------------------------------------


def values(scope: Scope, name: str) -> list[str]:
    """All values of a request's header."""
    raw = name.encode()
    return [value.decode("latin-1") for key, value in scope["headers"] if key == raw]


def only(scope: Scope, name: str) -> str:
    """A header's value; empty: it is not there.

    Raises
    ------
    Refused
        It is there twice: programs would differ in which one counts.
    """
    found = values(scope, name)
    if len(found) > 1:
        raise Refused(400, f"The header {name} is there twice.")
    return found[0].strip() if found else ""


def check_host(scope: Scope, port: int) -> str:
    """Return the host that a request is for.

    Raises
    ------
    Refused
        It is not this server.
    """
    host = only(scope, "host").lower()
    names = [f"{name}:{port}" for name in (ADDRESS, "localhost")]
    if port == USUAL:  # which browsers leave out
        names += [ADDRESS, "localhost"]
    if host not in names:
        raise Refused(
            403, f"This server answers at http://{ADDRESS}:{port} and no other name."
        )
    return host


def check_origin(scope: Scope, host: str, origins: frozenset[str]) -> str:
    """Return the listed origin of a request; empty: it is no other page's.

    Raises
    ------
    Refused
        Another web page made the request.
    """
    origin = only(scope, "origin")
    if origin in origins:
        return origin
    elsewhere = only(scope, "sec-fetch-site") in ("cross-site", "same-site")
    if origin not in ("", f"http://{host}") or (elsewhere and scope["path"] != OPEN):
        raise Refused(403, "Other web pages may not ask this server.")
    return ""


def same(given: str, secret: str) -> bool:
    """Whether a secret was given, in a time that does not depend on how much is right."""
    return bool(secret) and secrets.compare_digest(given.encode(), secret.encode())


def check_secret(scope: Scope, token: str, entry: Entry | None) -> None:
    """Refuse who has neither the token nor, under the entry's room, its cookie.

    Raises
    ------
    Refused
        Has neither.
    """
    scheme, _, given = only(scope, "authorization").partition(" ")
    if scheme.lower() == "bearer" and same(given.strip(), token):
        return
    if entry and f"{scope['path']}/".startswith(f"{entry.room}/"):
        pairs = [part.strip().partition("=") for part in cookies(scope)]
        if any(name == entry.name and same(v, entry.cookie) for name, _, v in pairs):
            return
    raise Refused(
        401,
        "The key is missing or wrong: send it as `Authorization: Bearer KEY`."
        if token
        else "This page is open only where its link was used: start it again.",
    )


def cookies(scope: Scope) -> list[str]:
    """The cookies of a request, each ``name=value``."""
    return [part for line in values(scope, "cookie") for part in line.split(";")]


def check_kind(
    scope: Scope, kinds: frozenset[str], most: int, streamed: frozenset[str]
) -> bool:
    """Refuse a body that a form could send, or that says that it is too long.

    Returns whether it is one of the streamed ones.

    Raises
    ------
    Refused
        It is one.
    """
    kind = only(scope, "content-type").partition(";")[0].strip().lower()
    if kind in streamed:
        return True
    if kind not in kinds:
        raise Refused(415, f"The content type has to be {' or '.join(sorted(kinds))}.")
    length = only(scope, "content-length")
    if length and (not length.isdecimal() or int(length[:20]) > most):
        raise Refused(413, f"The request has more than {most} bytes.")
    return False


async def read_body(receive: Receive, most: int) -> bytes | None:
    """The whole body of a request; None: the client left.

    Raises
    ------
    Refused
        It is too long.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > most:
            raise Refused(413, f"The request has more than {most} bytes.")
        if not message.get("more_body"):
            return bytes(body)


def allowed(origin: str) -> dict[str, str]:
    """Headers by which a browser lets a page of a listed origin read an answer."""
    if not origin:
        return {}
    return {"access-control-allow-origin": origin, "vary": "Origin"}


PREFLIGHT = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "Authorization, Content-Type",
    "access-control-allow-private-network": "true",
}


def error_body(status: int, sentence: str, param: str = "", code: str = "") -> bytes:
    """An error in OpenAI's shape."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": sentence, "type": kind, "param": param or None}
    return json.dumps({"error": error | {"code": code or None}}).encode()


# --- around the app --------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Guard:
    """See `guarded`, whose parameters these are."""

    app: App
    port: int
    token: str
    entry: Entry | None
    origins: frozenset[str]
    kinds: frozenset[str]
    streamed: frozenset[str]
    most: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        origin = ""
        try:
            host = check_host(scope, self.port)
            origin = check_origin(scope, host, self.origins)
            if origin and scope["method"] == "OPTIONS":
                return await answer(send, 204, b"", allowed(origin) | PREFLIGHT)
            if self.entry and scope["path"] == OPEN:
                return await self._open(self.entry, scope, send)
            check_secret(scope, self.token, self.entry)
            passed = scope["method"] not in READING and check_kind(
                scope, self.kinds, self.most, self.streamed
            )
            if not passed:
                body = await read_body(receive, self.most)
                if body is None:
                    return None
                receive = _again(body, receive)
        except Refused as refused:
            more = allowed(origin)
            if refused.status == 401:
                more["www-authenticate"] = "Bearer"
            body = error_body(refused.status, str(refused))
            return await answer(send, refused.status, body, more)
        if self.entry and scope["path"].startswith(self.entry.room):
            scope = {**scope, "root_path": self.entry.room}
        await self.app(scope, receive, _with(send, allowed(origin)))

    async def _open(self, entry: Entry, scope: Scope, send: Send) -> None:
        """Swap a link's code for the cookie.

        Raises
        ------
        Refused
            The code is wrong, or was used.
        """
        found = parse_qs(scope["query_string"].decode("latin-1")).get("code", [""])
        if scope["method"] != "GET" or not same(found[0], entry.code):
            raise Refused(403, "This link works once, and was used: start it again.")
        entry.code = ""
        cookie = (
            f"{entry.name}={entry.cookie}; Path={entry.room}; HttpOnly; SameSite=Strict"
        )
        more = {"set-cookie": cookie, "content-type": "text/html; charset=utf-8"}
        await answer(send, 200, LEAD.format(f"{entry.room}/").encode(), more)


async def answer(send: Send, status: int, body: bytes, more: dict[str, str]) -> None:
    """Send a whole answer, of JSON if it is not said otherwise."""
    headers = {"content-type": "application/json"} | PRIVATE | more
    headers["content-length"] = str(len(body))
    if not body:
        del headers["content-type"], headers["content-length"]
    await send(
        {"type": "http.response.start", "status": status, "headers": _raw(headers)}
    )
    await send({"type": "http.response.body", "body": body})


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def _again(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read, and then what comes behind it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        return waiting.pop() if waiting else await receive()

    return given


def _with(send: Send, more: dict[str, str]) -> Send:
    """Add headers to an answer, where it does not say otherwise."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            said = {name.lower() for name, _ in headers}
            extra = [pair for pair in _raw(PRIVATE | more) if pair[0] not in said]
            message = {**message, "headers": [*headers, *extra]}
        await send(message)

    return sent
