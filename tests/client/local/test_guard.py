"""Who may ask a server on 127.0.0.1, and who may not: each refusal is an attack."""

import asyncio
import json
from typing import Any

import pytest

from idiolect.client.local.guard import (
    MOST,
    Entry,
    checked_origin,
    guarded,
)
from idiolect.common.errors import IdiolectError

PORT = 4321
TOKEN = "t0" * 22  # always the same: names of tests have it
HOST = f"127.0.0.1:{PORT}"
HERE = {"host": HOST}
ALLOWED = {**HERE, "authorization": f"Bearer {TOKEN}"}
POST = {**ALLOWED, "content-type": "application/json"}
FRIEND = "http://localhost:5173"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An app that says what it got."""
    message = await receive()
    said = {"path": scope["path"], "root": scope.get("root_path", "")}
    said["body"] = message["body"].decode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})


class Answer:
    """What came back."""

    def __init__(self, messages: list[Any]) -> None:
        start, *rest = messages
        self.status = start["status"]
        self.headers = {k.decode(): v.decode() for k, v in start["headers"]}
        self.body = b"".join(part["body"] for part in rest)


def ask(
    app: Any,
    method: str = "GET",
    path: str = "/",
    headers: Any = (),
    body: bytes = b"",
) -> Answer:
    """Send one request; several values of a header are a list."""
    raw = []
    for name, value in dict(headers).items():
        each = value if isinstance(value, list) else [value]
        raw += [(name.encode(), one.encode()) for one in each]
    bare, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "path": bare,
        "query_string": query.encode(),
        "headers": raw,
    }
    parts = [body[i : i + 65536] for i in range(0, len(body), 65536)] or [b""]
    waiting = [
        {"type": "http.request", "body": part, "more_body": i < len(parts) - 1}
        for i, part in enumerate(parts)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return Answer(sent)


def endpoint(**more: Any) -> Any:
    """The app, guarded by a token."""
    return guarded(echo, port=PORT, token=TOKEN, **more)


def test_the_token_lets_in_and_the_body_arrives() -> None:
    answer = ask(endpoint(), "POST", "/v1", POST, b'{"a": "\xc3\xa4"}')
    assert answer.status == 200
    assert json.loads(answer.body)["body"] == '{"a": "ä"}'
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"evil.example:{PORT}", "127.0.0.1", f"127.0.0.1:{PORT + 1}"]
    + [f"127.0.0.1.nip.io:{PORT}", f"[::1]:{PORT}", f"0.0.0.0:{PORT}", ""],
)
def test_another_hosts_name_is_refused_even_with_the_token(host: str) -> None:
    answer = ask(endpoint(origins=[FRIEND]), "POST", "/", POST | {"host": host}, b"{}")
    assert answer.status == 403
    assert TOKEN not in answer.body.decode()


def test_the_port_that_browsers_leave_out_may_be_left_out() -> None:
    """A page of http://127.0.0.1:80 says neither in Host nor in Origin which port."""
    app = guarded(echo, port=80, token=TOKEN)
    for host in ("127.0.0.1", "localhost", "127.0.0.1:80"):
        own = POST | {"host": host, "origin": f"http://{host}"}
        assert ask(app, "POST", "/v1", own, b"{}").status == 200
    for host in ("evil.example", "127.0.0.1:8080", "127.0.0.1.", "80"):
        assert ask(app, "POST", "/v1", POST | {"host": host}, b"{}").status == 403


def test_a_missing_or_second_host_is_refused_before_anything_else() -> None:
    bare = {name: value for name, value in POST.items() if name != "host"}
    assert ask(endpoint(), "POST", "/", bare, b"{}").status == 403
    twice = POST | {"host": [HOST, "evil.example"]}
    assert ask(endpoint(), "POST", "/", twice, b"{}").status == 400
    # The name is looked at first: a stranger does not learn whether the token is right.
    wrong = {"host": "evil.example", "authorization": "Bearer no"}
    assert ask(endpoint(), "POST", "/", wrong, b"x" * (MOST + 1)).status == 403


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "file://", f"https://{HOST}"]
    + [f"http://127.0.0.1:{PORT + 1}", f"http://localhost:{PORT}", "http://localhost"],
)
def test_a_foreign_origin_is_refused_even_with_the_token(origin: str) -> None:
    answer = ask(endpoint(), "POST", "/", POST | {"origin": origin}, b"{}")
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers


def test_a_browser_that_says_cross_site_is_refused() -> None:
    for site in ("cross-site", "same-site"):
        headers = ALLOWED | {"sec-fetch-site": site}
        assert ask(endpoint(), headers=headers).status == 403
    headers = ALLOWED | {"sec-fetch-site": "same-origin"}
    assert ask(endpoint(), headers=headers).status == 200


def test_the_own_origin_is_taken() -> None:
    headers = POST | {"origin": f"http://{HOST}"}
    answer = ask(endpoint(), "POST", "/", headers, b"{}")
    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers


def test_a_listed_origins_preflight_needs_no_token_and_errors_are_readable() -> None:
    app = endpoint(origins=[FRIEND])
    asking = HERE | {"origin": FRIEND, "access-control-request-method": "POST"}
    answer = ask(app, "OPTIONS", "/v1/chat/completions", asking)
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == FRIEND
    assert "Authorization" in answer.headers["access-control-allow-headers"]
    for given, status in ((POST, 200), (POST | {"authorization": "Bearer no"}, 401)):
        from_there = given | {"origin": FRIEND, "sec-fetch-site": "same-site"}
        answer = ask(app, "POST", "/", from_there, b"{}")
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == FRIEND
        assert answer.headers["vary"] == "Origin"
    assert "*" not in answer.headers.values()
    stranger = asking | {"origin": "https://evil.example"}
    assert ask(app, "OPTIONS", "/", stranger).status == 403


def test_a_preflight_without_an_origin_needs_the_token() -> None:
    assert ask(endpoint(origins=[FRIEND]), "OPTIONS", "/", HERE).status == 401


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN]
    + [f"Basic {TOKEN}", "Bearer ä"],
)
def test_a_wrong_token_is_refused(given: str) -> None:
    answer = ask(endpoint(), headers=HERE | {"authorization": given})
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert json.loads(answer.body)["error"]["message"].startswith("The key is missing")


def test_a_token_in_the_address_or_twice_is_refused() -> None:
    path = f"/?token={TOKEN}&access_token={TOKEN}&api_key={TOKEN}"
    assert ask(endpoint(), path=path, headers=HERE).status == 401
    twice = HERE | {"authorization": ["Bearer no", f"Bearer {TOKEN}"]}
    assert ask(endpoint(), headers=twice).status == 400


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "text/plain; application/json", "multipart/form-data"]
    + ["application/x-www-form-urlencoded", "application/jsonx"],
)
def test_what_a_form_can_send_is_refused(kind: str) -> None:
    headers = POST | {"content-type": kind}
    assert ask(endpoint(), "POST", "/", headers, b"{}").status == 415
    given = POST | {"content-type": "Application/JSON; charset=utf-8"}
    assert ask(endpoint(), "POST", "/", given, b"{}").status == 200


def test_a_body_is_bounded_whether_it_says_its_length_or_not() -> None:
    body = b"x" * (2 << 20)
    assert ask(endpoint(), "POST", "/", POST, body).status == 413
    for length in (str(len(body)), "9" * 5000, "-1"):
        headers = POST | {"content-length": length}
        assert ask(endpoint(), "POST", "/", headers, b"").status == 413
    assert ask(endpoint(), "POST", "/", POST, b"x" * MOST).status == 200


def test_websockets_are_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(endpoint()({"type": "websocket", "headers": []}, None, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_nobody_can_be_let_in() -> None:
    with pytest.raises(ValueError, match="token or an entry"):
        guarded(echo, port=PORT)


# --- a page ----------------------------------------------------------------------------


def opened(entry: Entry, app: Any, **headers: str) -> Answer:
    """Use the link."""
    return ask(
        app, path=entry.link.removeprefix(f"http://{HOST}"), headers=HERE | headers
    )


def test_the_link_works_once_and_gives_a_cookie_bound_to_the_room() -> None:
    entry = Entry(PORT)
    app = guarded(echo, port=PORT, entry=entry)
    link = entry.link
    first = opened(entry, app, **{"sec-fetch-site": "cross-site"})
    assert first.status == 200
    cookie = first.headers["set-cookie"]
    assert "; HttpOnly; SameSite=Strict" in cookie
    assert f"; Path={entry.room};" in cookie
    assert entry.cookie not in first.body.decode()
    again = ask(app, path=link.removeprefix(f"http://{HOST}"), headers=HERE)
    assert again.status == 403
    assert "set-cookie" not in again.headers
    assert opened(entry, app).status == 403  # an empty code is none

    given = HERE | {"cookie": f"other=1; {cookie.partition(';')[0]}"}
    answer = ask(app, path=f"{entry.room}/x", headers=given)
    assert json.loads(answer.body) == {
        "path": f"{entry.room}/x",
        "root": entry.room,
        "body": "",
    }
    # Outside the room, and beside it, the cookie is worth nothing.
    for path in ("/", "/x", f"{entry.room}x/y"):
        assert ask(app, path=path, headers=given).status == 401


def test_looking_at_the_link_does_not_use_it() -> None:
    entry = Entry(PORT)
    app = guarded(echo, port=PORT, entry=entry)
    path = entry.link.removeprefix(f"http://{HOST}")
    assert ask(app, "HEAD", path, HERE).status == 403
    assert ask(app, "GET", path[:-1], HERE).status == 403
    assert ask(app, "GET", path, HERE | {"host": "evil.example"}).status == 403
    assert opened(entry, app).status == 200


def test_a_cookie_does_not_help_another_page() -> None:
    entry = Entry(PORT)
    app = guarded(echo, port=PORT, entry=entry)
    given = HERE | {"cookie": f"{entry.name}={entry.cookie}"}
    path = f"{entry.room}/forget"
    form = given | {"content-type": "application/json", "origin": "null"}
    assert ask(app, "POST", path, form, b"{}").status == 403
    plain = given | {"content-type": "text/plain", "origin": f"http://{HOST}"}
    assert ask(app, "POST", path, plain, b"{}").status == 415
    for wrong in (entry.cookie[:-1], "", entry.code):
        bad = HERE | {"cookie": f"{entry.name}={wrong}"}
        assert ask(app, path=path, headers=bad).status == 401


def test_the_token_of_programs_does_not_open_a_page_without_one() -> None:
    app = guarded(echo, port=PORT, entry=Entry(PORT))
    for given in ("Bearer ", "Bearer", "Bearer  "):
        assert ask(app, headers=HERE | {"authorization": given}).status == 401


# --- origins ---------------------------------------------------------------------------


def test_an_origin_is_one_page() -> None:
    assert checked_origin("HTTP://LocalHost:5173/") == "http://localhost:5173"
    assert checked_origin("app://obsidian.md") == "app://obsidian.md"
    for wrong in ("*", "null", "localhost:5173", "https://*.example", "http://a/b", ""):
        with pytest.raises(IdiolectError, match="--origin"):
            checked_origin(wrong)
