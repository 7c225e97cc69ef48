"""`idiolect ui`: the link, the port, and what ends it."""

import argparse
import asyncio
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
