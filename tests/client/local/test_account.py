"""Another account of the machine, against `serve-local` and `ui` as they run."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from idiolect.client.owner import consent, history, resident
from idiolect.client.owner.history import Entry
from idiolect.client.owner.keys import Passphrase
from idiolect.client.owner.vault import Vault
from idiolect.common.data.types import Prompt
from tests.client.local.fake import FakeKeeper

KEY = Passphrase("twelve quiet herons")
NOBODY = 65534
pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0,
        reason="only root can take another account",
    ),
]

# What an account without any right can try; it prints what came of it.
STRANGER = """
import encodings.idna, http.client, json, os, sys  # it cannot load any later
given = json.loads(sys.argv[1])
os.setgroups([]), os.setgid(65534), os.setuid(65534)

def asked(port, method, path, headers={}):
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    line.request(method, path, "{}" if method == "POST" else None, headers)
    answer = line.getresponse()
    return answer.status, answer.read().decode()

def opened(path):
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace")
    except PermissionError:
        return None

kind = {"content-type": "application/json"}
wrong = {**kind, "authorization": "Bearer " + "x" * 43}
local, page = given["local"], given["page"]
processes = [f"/proc/{number}" for number in given["processes"]]
print(json.dumps({
    "local": [
        asked(local, "GET", "/v1/models"),
        asked(local, "POST", "/v1/chat/completions", kind),
        asked(local, "POST", "/v1/chat/completions", wrong),
    ],
    "page": [
        asked(page, "GET", "/"),
        asked(page, "POST", "/api/overview", kind),
        asked(page, "POST", "/" + "x" * 22 + "/api/overview", kind),
        asked(page, "GET", "/open?code=" + "x" * 43),
    ],
    "files": {path: opened(path) for path in given["files"]},
    "private": [opened(f"{one}/{name}") for one in processes for name in
                ("environ", "mem", "maps")],
    "lines": [opened(f"{one}/cmdline") for one in processes],
}))
"""


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    where = ["--vault", folder / "vault.db", "--passphrase-file", folder / "pass"]
    command = [sys.executable, "-m", "idiolect.client.cli", *words, "--json"]
    return subprocess.Popen(
        [*command, *map(str, where)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every account can look into, with a vault."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Vault.create(folder / "vault.db", KEY) as made:
            consent.choose(made, keep_loaded="1")
            history.add(made, [Entry(Prompt("", "Tea?"), "Heron.")], "mails")
        (folder / "pass").touch(0o600)
        (folder / "pass").write_text(KEY.text)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def served(folder: Path) -> Iterator[tuple[Any, Any, list[int]]]:
    """What `serve-local` and `ui` say, and their processes."""
    keeper = FakeKeeper(folder / "vault.db")
    with contextlib.ExitStack() as kept:
        kept.callback(keeper.close)
        said, processes = [], []
        for words in (("serve-local", "--port", "0"), ("ui",)):
            process = kept.enter_context(started(folder, *words))
            kept.callback(process.kill)
            assert process.stdout
            said.append(json.loads(process.stdout.readline()))
            processes.append(process.pid)
        yield said[0], said[1], processes


def test_another_account_gets_nothing(folder: Path, served: Any) -> None:
    local, page, processes = served
    link = urlparse(page["link"])
    vault = folder / "vault.db"
    key = resident.endpoint_key(vault)
    # The real files of the vault, as they are left while both run.
    files = [key, vault, folder / "vault.db-wal", folder / "vault.db-shm"]
    there = [str(file) for file in files if file.exists()]
    assert len(there) >= 2
    given = {
        "local": urlparse(local["base_url"]).port,
        "page": link.port,
        "files": [*there, str(folder / "pass")],
        "processes": processes,
    }
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", STRANGER, json.dumps(given)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [status for status, _ in found["local"]] == [401, 401, 401]
    assert [status for status, _ in found["page"]] == [401, 401, 401, 403]
    assert set(found["files"].values()) == {None}
    assert set(found["private"]) == {None}
    # Command lines can be read, and hold neither key nor code; nor does any answer.
    code = link.query.removeprefix("code=")
    assert "serve-local" in found["lines"][0] and "\0ui\0" in found["lines"][1]
    for secret in (key.read_text().strip(), code, KEY.text):
        assert len(secret) > 10 and secret not in done.stdout
    # The stranger's tries have not used the link up.
    import httpx

    assert httpx.get(page["link"], trust_env=False).status_code == 200
