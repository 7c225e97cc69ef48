"""A proxy on this machine, with a SuperLink that is played and a real database."""

import asyncio
import contextlib
import socket
import sqlite3
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.date import now
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.superlink.federation import NoOpFederationManager
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from idiolect.server.deploy import keys
from idiolect.server.deploy.proxy import Proxy, bound, listen, protected


@dataclass
class Device:
    """A key, and the number under which it is registered (0: it is not)."""

    key: ec.EllipticCurvePrivateKey
    node: int = 0

    @property
    def public(self) -> bytes:
        return public_key_to_bytes(self.key.public_key())

    def headers(self, stamp: str = "") -> dict[str, str]:
        """Headers of a signed call."""
        stamp = stamp or now().isoformat()
        signature = sign_message(self.key, stamp.encode())
        return {
            "content-type": "application/protobuf",
            "flwr-public-key": b64encode(self.public).decode(),
            "flwr-timestamp": stamp,
            "flwr-signature": b64encode(signature).decode(),
        }

    def client(self, place: "Place") -> FleetHttpClient:
        """Flower's own client."""
        return FleetHttpClient.from_server_address(
            f"localhost:{place.port}",
            False,
            (place.folder / "ca.crt").read_bytes(),
            [NodeAuthHttpInterceptor(self.key, self.key.public_key())],
        )


@dataclass
class Link:
    """Stands for the SuperLink: remembers what reached it."""

    seen: list[httpx.Request] = field(default_factory=list)
    answers: dict[str, bytes] = field(default_factory=dict)
    down: bool = False

    def __post_init__(self) -> None:
        self.answers |= {
            "/v1/fleet/send-node-heartbeat": SendNodeHeartbeatResponse(
                success=True
            ).SerializeToString(),
            "/v1/fleet/pull-messages": PullMessagesResponse().SerializeToString(),
            "/v1/fleet/push-messages": PushMessagesResponse().SerializeToString(),
        }

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("refused")
        await request.aread()
        self.seen.append(request)
        body = self.answers.get(request.url.path, b"")
        kind = {"content-type": "application/protobuf", "set-cookie": "a=b"}
        return httpx.Response(200, stream=httpx.ByteStream(body), headers=kind)


@dataclass
class Place:
    """A running proxy."""

    folder: Path
    port: int
    link: Link
    proxy: Proxy
    state: Any = None

    def registered(self) -> Device:
        """Register a new device, for which something waits: its calls are passed on."""
        device = registered(self.state)
        self.send_work(device)
        return device

    def send_work(self, device: Device, delivered: str = "") -> None:
        """Put a message for a device into the database, in place of others for it."""
        node = device.node - 2**64 if device.node >= 2**63 else device.node
        with (
            contextlib.closing(sqlite3.connect(database_of(self.folder))) as base,
            base,
        ):
            base.execute("DELETE FROM message_ins WHERE dst_node_id = ?", (node,))
            row = (str(node), node, delivered, time.time(), 60.0)
            names = "message_id, dst_node_id, delivered_at, created_at, ttl"
            base.execute(
                f"INSERT INTO message_ins ({names}) VALUES (?, ?, ?, ?, ?)", row
            )

    def connect(self, source: str = "127.0.0.1", wrap: bool = True):
        """Open a connection to it."""
        raw = socket.create_connection(
            ("127.0.0.1", self.port), timeout=10, source_address=(source, 0)
        )
        if not wrap:
            return raw
        trust = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        return trust.wrap_socket(raw, server_hostname="localhost")

    def say(self, text: bytes, answers: int = 1) -> bytes:
        """Send bytes; return so many answers, or all before it closes."""
        with self.connect() as sock:
            sock.settimeout(10)
            sock.sendall(text)
            found = b""
            try:
                while piece := sock.recv(65536):
                    found += piece
                    if found.count(b"HTTP/1.1 ") >= answers:
                        break
            except OSError:
                pass
            return found


def database_of(folder: Path) -> str:
    """Where the SuperLink keeps its state."""
    return str(folder / "flower" / "state.db")


def state_of(folder: Path):
    """Flower's own state, in the database where the SuperLink keeps it."""
    (folder / "flower").mkdir(exist_ok=True)
    path = database_of(folder)
    store = ObjectStoreFactory(path)
    return LinkStateFactory(path, NoOpFederationManager(), store).state()


def registered(state, key: ec.EllipticCurvePrivateKey | None = None) -> Device:
    """Register a new device."""
    device = Device(key or ec.generate_private_key(ec.SECP384R1()))
    device.node = state.create_node("<none>", "<none>", device.public, 0)
    return device


@contextmanager
def running(folder: Path) -> Iterator[Place]:
    """Run a proxy in a thread of its own."""
    keys.keys_init(folder, ["localhost"], 9443)
    state = state_of(folder)
    link, ready, made = Link(), threading.Event(), []

    async def main() -> None:
        transport = httpx.MockTransport(link)
        upstream = httpx.AsyncClient(transport=transport, base_url="https://link")
        proxy = Proxy(upstream, Path(database_of(folder)))
        listener = bound("127.0.0.1", 0)
        tls = protected(folder / keys.PAIR)
        task = asyncio.create_task(listen(proxy, listener, tls))
        place = Place(folder, listener.getsockname()[1], link, proxy, state)
        made.append((asyncio.get_running_loop(), task, place))
        ready.set()
        try:
            await task
        except asyncio.CancelledError:
            pass
        finally:
            listener.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(20)
    loop, task, place = made[0]
    yield place
    loop.call_soon_threadsafe(task.cancel)
    thread.join(10)
