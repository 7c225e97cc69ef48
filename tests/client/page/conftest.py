"""A page over a vault in this process, as a browser sees it that has used the link."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from idiolect.client.local.guard import Entry, guarded
from idiolect.client.owner import history
from idiolect.client.owner.history import Entry as Pair
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.vault import Vault
from idiolect.client.page import app as page
from idiolect.common.data.types import Prompt

KEY, PORT = RandomKey(bytes(32)), 8123
HERE = f"http://127.0.0.1:{PORT}"


class Tab:
    """One tab of the owner's browser."""

    def __init__(self, client: TestClient, entry: Entry) -> None:
        self.client, self.room = client, entry.room

    def post(self, name: str, asked: Any = None, **more: Any) -> Any:
        headers = {"origin": HERE, "content-type": "application/json"}
        headers |= more.pop("headers", {})
        content = more or {"content": json.dumps({} if asked is None else asked)}
        return self.client.post(f"{self.room}/api/{name}", headers=headers, **content)

    def ask(self, act: str, /, **asked: Any) -> Any:
        answer = self.post(act, asked)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(
        self, name: str, asked: Any = None, status: int = 400, **more: Any
    ) -> str:
        answer = self.post(name, asked, **more)
        assert answer.status_code == status, answer.text
        return answer.json()["error"]["message"]

    def send(self, body: bytes, **asked: Any) -> Any:
        headers = {
            "content-type": page.BYTES,
            "x-asked": quote(json.dumps(asked)),
            "origin": HERE,
        }
        address = f"{self.room}/api/upload"
        return self.client.post(address, headers=headers, content=body)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A vault with six pairs of two sources."""
    path = tmp_path / "device" / "vault.db"
    with Vault.create(path, KEY) as vault:
        for source, number in (("mails", 4), ("chat", 2)):
            made = [
                Pair(Prompt("", f"{source} {n}?"), f"{source} {n}!")
                for n in range(number)
            ]
            history.add(vault, made, source)
    return path


@contextlib.contextmanager
def looked_into(path: Path) -> Iterator[Vault]:
    with Vault.open(path, KEY) as vault:
        yield vault


@pytest.fixture
def served(place: Path) -> Iterator[tuple[TestClient, Entry, page.Desk]]:
    """The page behind its guard, and nobody has come in yet."""
    desk, entry = page.opened(place, KEY), Entry(PORT)
    app = guarded(page.app(desk), port=PORT, entry=entry, streamed=[page.BYTES])
    with TestClient(app, base_url=HERE) as client:
        yield client, entry, desk


@pytest.fixture
def tab(served: tuple[TestClient, Entry, page.Desk]) -> Tab:
    """A browser that has used the link."""
    client, entry, _ = served
    assert client.get(entry.link).status_code == 200
    return Tab(client, entry)


@pytest.fixture
def desk(served: tuple[TestClient, Entry, page.Desk]) -> page.Desk:
    return served[2]
