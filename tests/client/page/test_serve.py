"""`idiolect ui`: the link, the port, and what ends it."""

import argparse
import json
import signal
import socket
import stat
import webbrowser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
import uvicorn

from idiolect.client.local.guard import ADDRESS, Entry
from idiolect.client.page import serve
from idiolect.common.errors import IdiolectError

from .conftest import KEY


@pytest.fixture
def options(place: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    monkeypatch.setattr(serve, "key_of", lambda _options: KEY)
    return argparse.Namespace(vault=place, port=0, open=False, json=False)


@pytest.fixture
def at(monkeypatch):
    """Where it was served, and behind what; nothing is served."""
    seen: list[Any] = []

    def served(_app: Any, entry: Entry, door: socket.socket) -> None:
        seen.append((entry, door.getsockname()))

    monkeypatch.setattr(serve, "_serve", served)
    return seen


def test_it_listens_on_this_machine_alone_and_prints_the_link(options, at, capsys):
    assert serve.ui(options) == 0
    ((entry, (address, port)),) = at
    assert (address, port) == (ADDRESS, entry.port) and address == "127.0.0.1"
    assert capsys.readouterr().out.splitlines()[-1] == entry.link
    options.json = True
    serve.ui(options)
    assert json.loads(capsys.readouterr().out) == {"link": at[1][0].link}


def test_a_port_that_is_taken_or_none_is_refused(options, at):
    with socket.socket() as other:
        other.bind((ADDRESS, 0))
        other.listen()
        options.port = other.getsockname()[1]
        with pytest.raises(IdiolectError, match="name another by --port"):
            serve.ui(options)
    options.port = 1 << 16
    with pytest.raises(IdiolectError, match="--port is 65536"):
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
    assert at[0][0].link in text and "code=" not in address
    assert not Path(unquote(urlparse(address).path)).exists()


@pytest.mark.parametrize("one", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_with_the_terminal(monkeypatch, one):
    seen: list[bool] = []
    before = {each: signal.getsignal(each) for each in serve.ENDINGS}

    def run(server: uvicorn.Server, sockets: Any = None) -> None:
        signal.raise_signal(one)
        seen.append(server.should_exit)

    async def nothing(*_: Any) -> None:
        """Serve nobody."""

    monkeypatch.setattr(uvicorn.Server, "run", run)
    try:
        with socket.socket() as door:
            serve._serve(nothing, Entry(8123), door)
    finally:
        for each, how in before.items():
            signal.signal(each, how)
    assert seen == [True]
