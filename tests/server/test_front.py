"""The devices' entrance lets through what a device needs, and nothing else."""

import asyncio

import httpx
import pytest

from idiolect.server import front

CONTROL = ["start-run", "list-runs", "register-node", "stream-logs", "stop-run"]


class Link:
    """Stands for the SuperLink: remembers what reached it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes, str]] = []
        self.down = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("refused")
        signature = request.headers.get("flwr-signature", "")
        self.seen.append((request.url.path, request.content, signature))
        return httpx.Response(200, content=b"answer", headers={"flwr-x": "y"})


@pytest.fixture
def link() -> Link:
    return Link()


def call(link: Link, method: str, path: str, **more) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.MockTransport(link)
        async with httpx.AsyncClient(transport=transport, base_url="https://l") as up:
            asgi = httpx.ASGITransport(front.entrance(up))
            async with httpx.AsyncClient(
                transport=asgi, base_url="https://e"
            ) as client:
                return await client.request(method, path, **more)

    return asyncio.run(once())


def test_a_fleet_call_passes_with_its_signature(link):
    headers = {"flwr-signature": "s"}
    path = "/v1/fleet/pull-messages"
    answer = call(link, "POST", path, content=b"body", headers=headers)
    assert (answer.status_code, answer.content) == (200, b"answer")
    assert answer.headers["flwr-x"] == "y"
    assert link.seen == [(path, b"body", "s")]


@pytest.mark.parametrize(
    "path",
    [
        *(f"/v1/control/{name}" for name in CONTROL),
        "/v1/fleet/register-node",  # only the operator registers
        "/v1/fleet/get-fab",  # no device needs a bundle
        "/v1/runtime/pull-task-input",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/pull-messages/../../control/start-run",
        "/V1/FLEET/PULL-MESSAGES",
        "//v1/fleet/pull-messages",
        "/",
        "/docs",
        "/health",
    ],
)
def test_nothing_else_reaches_the_superlink(link, path):
    for method in ("POST", "GET", "PUT", "DELETE"):
        assert call(link, method, path).status_code in (404, 405)
    assert link.seen == []


def test_other_methods_are_refused(link):
    assert call(link, "GET", "/v1/fleet/pull-messages").status_code == 405
    assert link.seen == []


def test_a_large_body_is_refused_before_it_is_read(link):
    def endless():
        raise AssertionError("the body was read")
        yield b""

    headers = {"content-length": str(front.LARGEST + 1)}
    path = "/v1/fleet/push-object"
    answer = call(link, "POST", path, content=b"x", headers=headers)
    assert answer.status_code == 413
    assert link.seen == []


def test_a_body_of_unknown_size_is_refused(link):
    async def pieces():
        yield b"x"

    answer = call(link, "POST", "/v1/fleet/push-object", content=pieces())
    assert answer.status_code == 411
    assert link.seen == []


def test_a_superlink_that_is_down_is_no_crash(link):
    link.down = True
    answer = call(link, "POST", "/v1/fleet/pull-messages", content=b"body")
    assert answer.status_code == 503  # on which Flower's client tries again
