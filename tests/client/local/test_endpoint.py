"""The endpoint: streams, errors, clients that leave, and a real server and client."""

import asyncio
import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idiolect.client.local import endpoint as endpoint_module
from idiolect.client.local.endpoint import WAITING, Endpoint
from idiolect.client.local.serving import key_of
from idiolect.client.owner import consent, resident
from idiolect.client.owner.keys import Passphrase
from idiolect.client.owner.resident import Loaded
from idiolect.client.owner.vault import Vault
from idiolect.common.errors import IdiolectError
from tests.client.local.fake import FakeKeeper
from tests.waiting import until

KEY = Passphrase("twelve quiet herons")
CHAT = "/v1/chat/completions"
LEAST = {"model": "personal", "messages": [{"role": "user", "content": "Hi"}]}
STREAM = {**LEAST, "stream": True}


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[FakeKeeper]:
    made = FakeKeeper(tmp_path / "vault.db")
    yield made
    made.close()


@pytest.fixture
def app(tmp_path: Path, keeper: FakeKeeper) -> Endpoint:
    return Endpoint(Loaded(tmp_path / "vault.db", KEY))


class Client:
    """One request of a client, that may leave."""

    def __init__(self, body: Any, path: str = CHAT, method: str = "POST") -> None:
        self.scope = {"type": "http", "method": method, "path": path, "headers": []}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._first = [{"type": "http.request", "body": data, "more_body": False}]
        self.left = asyncio.Event()
        self.sent: list[Any] = []
        self.came = asyncio.Event()

    async def receive(self) -> Any:
        if self._first:
            return self._first.pop()
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        self.came.set()

    async def ask(self, app: Endpoint) -> "Client":
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def body(self) -> bytes:
        return b"".join(part["body"] for part in self.sent[1:])

    @property
    def events(self) -> list[Any]:
        parts = self.body.decode().split("\n\n")
        assert parts[-1] == "" and all(part.startswith("data: ") for part in parts[:-1])
        words = [part.removeprefix("data: ") for part in parts[:-1]]
        return [word if word == "[DONE]" else json.loads(word) for word in words]


def ask(app: Endpoint, body: Any, path: str = CHAT, method: str = "POST") -> Client:
    async def run() -> Client:
        return await Client(body, path, method).ask(app)

    return asyncio.run(run())


def test_a_whole_answer(app, keeper) -> None:
    found = ask(app, LEAST)
    answer = json.loads(found.body)
    assert found.status == 200
    assert answer["choices"][0]["message"]["content"] == "Hello 👍!"
    assert answer["usage"]["completion_tokens"] == 4
    assert keeper.asked[0].texts == ("Hi",) and keeper.asked[0].policy == "personal"


def test_a_stream_has_the_shape_that_clients_read(app) -> None:
    *chunks, done = ask(app, STREAM).events
    assert done == "[DONE]"
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({(c["id"], c["created"], c["model"]) for c in chunks}) == 1
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert deltas[0]["role"] == "assistant"
    assert not any("role" in delta for delta in deltas[1:])
    assert "".join(d.get("content", "") for d in deltas) == "Hello 👍!"
    ends = [c["choices"][0]["finish_reason"] for c in chunks]
    assert ends == [None] * (len(ends) - 1) + ["stop"]
    assert not any("usage" in c for c in chunks)


def test_tokens_are_counted_only_where_that_is_asked_for(app) -> None:
    asked = {**STREAM, "stream_options": {"include_usage": True}}
    *chunks, last, done = ask(app, asked).events
    assert done == "[DONE]" and last["choices"] == []
    assert last["usage"]["total_tokens"] == 9
    assert all(c["usage"] is None and c["choices"] for c in chunks)


def test_models_and_errors(app, keeper) -> None:
    found = json.loads(ask(app, b"", "/v1/models", "GET").body)
    assert [one["id"] for one in found["data"]] == ["personal", "shared"]
    assert ask(app, b"", "/v1/models/shared", "GET").status == 200
    for path, method, body, status in (
        ("/v1/models/gpt", "GET", b"", 404),
        ("/", "GET", b"", 404),
        ("/v1/completions", "POST", b"{}", 405),
        (CHAT, "GET", b"", 405),
        (CHAT, "POST", b"{", 400),
        (CHAT, "POST", b"[" * 99999, 400),
        (CHAT, "POST", b"\xff", 400),
        (CHAT, "POST", {**LEAST, "model": "gpt"}, 404),
        (CHAT, "POST", {**LEAST, "n": 2}, 400),
    ):
        found = ask(app, body, path, method)
        error = json.loads(found.body)["error"]
        assert (found.status, set(error)) == (
            status,
            {"message", "type", "param", "code"},
        )
    assert error["param"] == "n" and keeper.asked == []


def test_what_the_process_refuses_has_a_status_also_for_streams(app, keeper) -> None:
    keeper.error = {"error": "the conversation has 900 tokens", "long": True}
    for body in (LEAST, STREAM):
        found = ask(app, body)
        error = json.loads(found.body)["error"]
        assert (found.status, error["code"]) == (400, "context_length_exceeded")
    keeper.error = {"error": "the device is busy", "long": False}
    assert ask(app, STREAM).status == 503


def test_where_nothing_can_be_loaded_it_is_said(tmp_path, monkeypatch) -> None:
    def start(*_: object) -> None:
        raise IdiolectError("no adapter is in use: train one.")

    monkeypatch.setattr(resident, "start", start)
    found = ask(Endpoint(Loaded(tmp_path / "vault.db", KEY)), STREAM)
    assert found.status == 503 and b"no adapter is in use" in found.body


def test_an_end_in_the_middle_is_an_error_and_no_end(app, keeper, monkeypatch) -> None:
    monkeypatch.setattr(FakeKeeper, "_answer", _half)
    found = ask(app, STREAM)
    assert b"[DONE]" not in found.body and b'"finish_reason": "stop"' not in found.body
    assert "error" in found.events[-1]
    assert ask(app, LEAST).status == 503


def _half(_keeper: FakeKeeper, line: Any, _request: Any) -> None:
    for message in (
        {"backbone": "tiny", "chat": True, "tokens": 5, "dropped": 0},
        {"text": "Hel", "end": "", "tokens": 1},
    ):
        line.sendall(json.dumps(message).encode() + b"\n")


@pytest.mark.parametrize("body", [LEAST, STREAM])
def test_a_client_that_leaves_stops_the_writing_and_the_next_is_served(
    app, keeper, body
) -> None:
    keeper.tokens, keeper.pace = ["x "] * 500, 0.02

    async def run() -> Client:
        gone = Client(body)
        task = asyncio.create_task(gone.ask(app))
        while not keeper.sent or keeper.sent[0] < 3:
            await asyncio.sleep(0.01)
        before = keeper.sent[0]
        gone.left.set()
        await task
        await asyncio.sleep(0.2)
        assert keeper.sent[0] <= before + 3
        keeper.tokens, keeper.pace = ["next"], 0.0
        return await Client(LEAST).ask(app)

    assert b"next" in asyncio.run(run()).body


def test_a_client_that_leaves_while_it_waits_is_forgotten(app, keeper) -> None:
    keeper.tokens, keeper.pace = ["x "] * 15, 0.02

    async def run() -> list[Client]:
        first, second, third = (Client(STREAM) for _ in range(3))
        tasks = [asyncio.create_task(one.ask(app)) for one in (first, second, third)]
        await first.came.wait()
        second.left.set()
        await tasks[1]
        assert not tasks[0].done()
        await asyncio.gather(*tasks)
        return [first, second, third]

    first, second, third = asyncio.run(run())
    assert len(keeper.asked) == 2 and second.sent == []
    assert first.events[-1] == third.events[-1] == "[DONE]"


def test_one_answer_at_a_time_and_a_bounded_queue(app, keeper) -> None:
    keeper.tokens, keeper.pace = ["x "] * 3, 0.02

    async def run() -> list[Client]:
        clients = [Client(LEAST) for _ in range(WAITING + 3)]
        return await asyncio.gather(*(one.ask(app) for one in clients))

    statuses = [one.status for one in asyncio.run(run())]
    assert statuses.count(429) == 2 and statuses.count(200) == WAITING + 1
    assert ask(app, LEAST).status == 200


def test_a_client_that_takes_nothing_has_left(app, keeper, monkeypatch) -> None:
    monkeypatch.setattr(endpoint_module, "SLOW", 0.1)

    async def run() -> Client:
        stuck = Client(STREAM)

        async def never(_message: Any) -> None:
            await asyncio.sleep(60)

        stuck.send = never  # type: ignore[method-assign]
        await asyncio.wait_for(stuck.ask(app), 5)
        return await Client(LEAST).ask(app)

    assert asyncio.run(run()).status == 200


# --- the key ---------------------------------------------------------------------------


def test_the_key_is_for_this_account_alone(tmp_path: Path) -> None:
    vault = tmp_path / "vault.db"
    key, file = key_of(vault), resident.endpoint_key(vault)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key_of(vault) == key and key_of(vault, new=True) != key
    file.chmod(0o640)
    with pytest.raises(IdiolectError, match="can be read by other accounts"):
        key_of(vault)
    file.write_text("short")
    file.chmod(0o600)
    with pytest.raises(IdiolectError, match="has no key"):
        key_of(vault)


# --- a server and its clients ----------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Any]:
    """`idiolect serve-local` beside a stand-in, its base URL, its key and its process."""
    folder = tmp_path_factory.mktemp("server")
    vault = folder / "vault.db"
    with Vault.create(vault, KEY) as made:
        consent.choose(made, keep_loaded="1")
    (folder / "pass").write_text(KEY.text)
    keeper = FakeKeeper(vault)
    words = ["serve-local", "--port", "0", "--json", "--vault", str(vault)]
    process = subprocess.Popen(
        [sys.executable, "-m", "idiolect.client.cli", *words]
        + ["--passphrase-file", str(folder / "pass"), "--origin", "http://localhost:1"],
        stdout=subprocess.PIPE,
        stderr=os.open(folder / "err", os.O_WRONLY | os.O_CREAT),
    )
    assert process.stdout is not None
    said = json.loads(process.stdout.readline())
    key = Path(said["key_file"]).read_text().strip()
    yield said["base_url"], key, process, keeper, folder / "err"
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()
    keeper.close()


@pytest.mark.process
def test_openais_client_reads_both_kinds(server) -> None:
    openai = pytest.importorskip("openai")
    base, key, *_ = server
    client = openai.OpenAI(base_url=base, api_key=key, max_retries=0)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    whole = client.chat.completions.create(model="personal", messages=messages)
    assert whole.choices[0].message.content == "Hello 👍!"
    assert whole.choices[0].finish_reason == "stop" and whole.usage.total_tokens == 9
    parts = list(
        client.chat.completions.create(
            model="shared",
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
    assert text == "Hello 👍!" and parts[-1].usage.completion_tokens == 4
    assert [one.id for one in client.models.list()] == ["personal", "shared"]
    assert client.models.retrieve("shared").id == "shared"
    with pytest.raises(openai.NotFoundError, match="There is no model"):
        client.chat.completions.create(model="gpt-4o", messages=messages)
    with pytest.raises(openai.BadRequestError, match="'n'"):
        client.chat.completions.create(model="personal", messages=messages, n=2)
    stranger = openai.OpenAI(base_url=base, api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


@pytest.mark.process
def test_attacks_over_the_wire(server) -> None:
    import httpx

    base, key, _, keeper, err = server
    good = {"authorization": f"Bearer {key}"}
    before = len(keeper.asked)
    with httpx.Client(base_url=base, trust_env=False) as client:

        def post(headers: Any, **more: Any) -> int:
            return client.post("chat/completions", headers=headers, **more).status_code

        port = base.split(":")[2].split("/")[0]
        assert post({**good, "host": f"evil.example:{port}"}, json=LEAST) == 403
        assert post({**good, "origin": "https://evil.example"}, json=LEAST) == 403
        assert post({**good, "origin": "null"}, json=LEAST) == 403
        plain = {**good, "content-type": "text/plain"}
        assert post(plain, content=json.dumps(LEAST)) == 415
        assert post({}, json=LEAST) == 401
        assert post({"authorization": f"Bearer {key[:-1]}"}, json=LEAST) == 401
        url = f"chat/completions?api_key={key}&token={key}"
        assert client.post(url, json=LEAST).status_code == 401
        large = {**good, "content-type": "application/json"}
        assert post(large, content=b" " * (2 << 20)) == 413
        chunked = (b" " * 65536 for _ in range(32))
        with contextlib.suppress(httpx.WriteError, httpx.ReadError):
            assert post(large, content=chunked) == 413
        preflight = client.options(
            "chat/completions",
            headers={
                "origin": "http://localhost:1",
                "access-control-request-method": "POST",
            },
        )
        allowed = preflight.headers["access-control-allow-origin"]
        assert (preflight.status_code, allowed) == (204, "http://localhost:1")
        assert len(keeper.asked) == before
        assert post(good, json=LEAST) == 200
    assert key not in err.read_text()


@pytest.mark.process
def test_a_client_that_leaves_over_the_wire(server) -> None:
    import httpx

    base, key, _, keeper, _ = server
    keeper.tokens, keeper.pace = ["x "] * 2000, 0.01
    good = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=base, headers=good, trust_env=False) as client:
        with client.stream("POST", "chat/completions", json=STREAM) as answer:
            next(answer.iter_bytes())
        time.sleep(1)
        sent = keeper.sent[-1]
        time.sleep(0.5)
        assert keeper.sent[-1] == sent < 1000
        keeper.tokens, keeper.pace = ["next"], 0.0
        answer = client.post("chat/completions", json=LEAST, timeout=5)
        assert "next" in answer.text


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_it_ends_at_once_also_while_it_answers(server, number) -> None:
    import httpx

    base, key, process, keeper, err = server
    keeper.tokens, keeper.pace = ["x "] * 5000, 0.01
    good = {"authorization": f"Bearer {key}"}
    with (
        httpx.Client(base_url=base, headers=good, trust_env=False) as client,
        client.stream("POST", "chat/completions", json=STREAM) as answer,
    ):
        next(answer.iter_bytes())
        began = time.monotonic()
        process.send_signal(number)
        until(lambda: process.poll() is not None, 20)
    assert time.monotonic() - began < 10 and process.returncode == 0
    # What it says of tiny, and that it loads: nothing when it ends.
    assert err.read_text().endswith("loading the model; Ctrl-C here ends it\n")
