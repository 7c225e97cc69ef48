"""`idiolect ui`: the link, the port, and what ends it."""

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import stat
import webbrowser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from idiolect.client.local import serving
from idiolect.client.local.guard import ADDRESS
from idiolect.client.local.serving import bound
from idiolect.client.page import serve
from idiolect.common.errors import IdiolectError

from .conftest import KEY


@pytest.fixture
def options(place: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    monkeypatch.setattr(serve, "key_of", lambda _options: KEY)
    return argparse.Namespace(vault=place, port=0, open=False, json=False)


@pytest.fixture
def at(monkeypatch):
    """Where it was served; nothing is served."""
    seen: list[Any] = []
    monkeypatch.setattr(serve, "serve", lambda _, door: seen.append(door.getsockname()))
    return seen


def test_it_listens_on_this_machine_alone_and_prints_the_link(options, at, capsys):
    assert serve.ui(options) == 0
    ((address, port),) = at
    link = capsys.readouterr().out.splitlines()[-1]
    assert address == "127.0.0.1" and link.startswith(f"http://127.0.0.1:{port}/open?")
    options.json = True
    serve.ui(options)
    found = json.loads(capsys.readouterr().out)["link"]
    assert len(urlparse(found).query) > 40 and found != link


def test_a_port_that_is_taken_or_none_is_refused(options, at):
    with socket.socket() as other:
        other.bind((ADDRESS, 0))
        other.listen()
        options.port = other.getsockname()[1]
        with pytest.raises(IdiolectError, match="or take another by --port"):
            serve.ui(options)
    options.port = 1 << 16
    with pytest.raises(IdiolectError, match="there is no port 65536"):
        serve.ui(options)
    assert at == []


def test_nobody_else_listens_where_localhost_may_lead():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("there is no ::1")
    with bound(0) as door:
        port = door.getsockname()[1]
        for other in ("::1", "::"):
            with pytest.raises(OSError, match="in use"):
                socket.create_server((other, port), family=socket.AF_INET6)
    with (
        socket.create_server(("::1", port), family=socket.AF_INET6),
        pytest.raises(IdiolectError, match="cannot be had"),
        bound(port),
    ):
        pass


def test_without_the_extra_the_package_is_named(options, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    with pytest.raises(IdiolectError, match=r"pip install 'idiolect\[serve\]'"):
        serve.ui(options)


def test_the_browser_is_given_a_private_file_and_not_the_link(options, at, monkeypatch):
    given: list[str] = []

    def opened(address: str) -> bool:
        file = Path(unquote(urlparse(address).path))
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        given.extend([address, file.read_text()])
        return True

    monkeypatch.setattr(webbrowser, "open", opened)
    options.open = True
    serve.ui(options)
    address, text = given
    assert f"http://127.0.0.1:{at[0][1]}/open?code=" in text and "code=" not in address
    assert not Path(unquote(urlparse(address).path)).exists()


@pytest.mark.parametrize("one", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_with_the_terminal_and_ends_what_it_has_begun(one):
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            kind = (await receive())["type"].removeprefix("lifespan.")
            seen.append(kind)
            await send({"type": f"lifespan.{kind}.complete"})
            if kind == "startup":
                asyncio.get_running_loop().call_later(0.2, signal.raise_signal, one)

    with bound(0) as door:
        serving.serve(app, door)
    assert seen == ["startup", "shutdown"]


def test_who_opens_many_connections_and_asks_nothing_shuts_nobody_out(monkeypatch):
    monkeypatch.setattr(serving, "UNASKED", 8)
    found: dict[str, Any] = {}
    go_on = asyncio.Event()

    async def attack(port: int) -> None:
        async def line(sent: bytes) -> Any:
            one = await asyncio.open_connection("127.0.0.1", port)
            one[1].write(sent)
            return one

        ask = b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n"
        slow = await line(ask % b"slow")
        await line(ask % b"before")
        held = [await line(b"GET / HTTP/1.1\r\nx: ") for _ in range(40)]
        new = await line(ask % b"new")
        found["new"] = await new[0].readline()
        with contextlib.suppress(ConnectionError):
            found["first"] = await held[0][0].read()
        go_on.set()
        found["slow"] = await slow[0].readline()
        found["last"] = held[-1][0].at_eof()
        signal.raise_signal(signal.SIGTERM)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        if scope["path"] == "/slow":
            await go_on.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    with bound(0) as door:
        real = asyncio.run

        def run(serving_: Any) -> None:
            async def both() -> None:
                # The listener's queue takes the first ones before the server is up.
                attacking = asyncio.create_task(attack(door.getsockname()[1]))
                await serving_
                await attacking

            real(asyncio.wait_for(both(), 20))

        monkeypatch.setattr(serving.asyncio, "run", run)
        serving.serve(app, door)
    assert found["new"] == found["slow"] == b"HTTP/1.1 204 No Content\r\n"
    assert not found.get("first") and not found["last"]
