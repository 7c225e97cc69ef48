"""The real proxy while strangers hold what they can: devices are served all the time."""

import json
import os
import re
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import (
    SendNodeHeartbeatRequest,
    SendNodeHeartbeatResponse,
)
from flwr.proto.node_pb2 import Node
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from idiolect.server.deploy import keys
from tests.server import running_proxy
from tests.server.running_proxy import Device, Place

LARGE = 16 << 20  # bytes that a stranger announces
HALF_OPEN, HALF_SENT = 500, 40
MOST_MEMORY = 200 << 20  # bytes
WITHIN = 2.0  # seconds for a device's call
LONGEST = 10.0  # seconds that any call may take

pytestmark = pytest.mark.slow


@contextmanager
def superlink(folder: Path) -> Iterator[int]:
    """Play a SuperLink with TLS at a port of its own."""
    kind = "application/protobuf"
    beat = SendNodeHeartbeatResponse(success=True).SerializeToString()
    none = PullMessagesResponse().SerializeToString()
    routes = [
        Route(
            f"/v1/fleet/{name}",
            lambda _, b=b: Response(b, 200, media_type=kind),
            methods=["POST"],
        )
        for name, b in (("send-node-heartbeat", beat), ("pull-messages", none))
    ]
    pair = str(folder / keys.PAIR)
    config = uvicorn.Config(
        Starlette(routes=routes),
        port=0,
        log_level="error",
        ssl_certfile=pair,
        ssl_keyfile=pair,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def attacked(tmp_path) -> Iterator[tuple[Place, Device, int]]:
    """A real proxy in a process of its own, and one registered device."""
    folder = tmp_path / "server"
    keys.keys_init(folder, ["localhost"], 9443)
    device = running_proxy.registered(running_proxy.state_of(folder))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    with superlink(folder) as inner:
        command = [sys.executable, "-m", "idiolect.server.deploy.proxy", "127.0.0.1"]
        command += [str(port), str(inner), str(folder), str(folder / keys.PAIR)]
        # A proxy in the environment is none for this machine's own SuperLink.
        names = ("http_proxy", "https_proxy", "all_proxy")
        proxies = dict.fromkeys(names, "http://127.0.0.1:9")
        process = subprocess.Popen(command, env={**os.environ, **proxies})
        try:
            place = Place(folder, port, running_proxy.Link(), None)  # type: ignore[arg-type]
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                with suppress(OSError), place.connect():
                    break
                time.sleep(0.1)
            yield place, device, process.pid
        finally:
            process.kill()
            process.wait()


def peak(pid: int) -> int:
    """The most memory that a process ever had, in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    assert found
    return int(found[1]) << 10


class Strangers:
    """Threads that keep a number of useless connections open, whatever becomes of them."""

    def __init__(self, place: Place) -> None:
        self.place, self.stop = place, threading.Event()
        self.threads = [
            threading.Thread(target=self.half_open, args=(n,)) for n in range(5)
        ]
        self.threads += [threading.Thread(target=self.half_sent) for _ in range(4)]
        self.made = 0

    def half_open(self, kind: int) -> None:
        """Hold a fifth of them: no byte, half a handshake, half a header."""
        while not self.stop.is_set():
            held = []
            for number in range(HALF_OPEN // 5):
                if self.stop.is_set():
                    break
                with suppress(OSError):
                    sock = self.place.connect(wrap=(number + kind) % 3 == 0)
                    if (number + kind) % 3 == 0:
                        sock.sendall(
                            b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: l\r\nx: "
                        )
                    elif (number + kind) % 3 == 1:
                        sock.sendall(b"\x16\x03\x01\x02\x00\x01")
                    held.append(sock)
                    self.made += 1
            self.stop.wait(3)
            for sock in held:
                sock.close()

    def half_sent(self) -> None:
        """Announce large bodies and send half of each, as long as anybody takes it."""
        stranger = Device(ec.generate_private_key(ec.SECP384R1()))
        while not self.stop.is_set():
            held = []
            for _ in range(HALF_SENT // 4):
                if self.stop.is_set():
                    break
                with suppress(OSError):
                    sock = self.place.connect()
                    sock.settimeout(2)
                    held.append(sock)
                    lines = ["POST /v1/fleet/push-object HTTP/1.1", "host: l"]
                    lines += [f"content-length: {LARGE}"]
                    lines += [f"{k}: {v}" for k, v in stranger.headers().items()]
                    sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
                    for _ in range(LARGE // 2 >> 16):
                        sock.sendall(bytes(1 << 16))
                    self.made += 1
            self.stop.wait(3)
            for sock in held:
                sock.close()


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.9"])
def test_devices_are_served_while_strangers_hold_all_they_can(attacked, source):
    """Strangers have 127.0.0.1; a device has the same address, or one of its own."""
    place, device, pid = attacked
    trust = ssl.create_default_context(cafile=str(place.folder / "ca.crt"))
    node = Node(node_id=device.node)
    beat = SendNodeHeartbeatRequest(node=node, heartbeat_interval=30)
    calls = (
        ("send-node-heartbeat", beat.SerializeToString()),
        ("pull-messages", PullMessagesRequest(node=node).SerializeToString()),
    )
    strangers = Strangers(place)
    for thread in strangers.threads:
        thread.start()
    took: list[float] = []
    began = time.monotonic()
    try:
        while time.monotonic() - began < 20:
            # A new connection for each call: one that is kept has it easier.
            transport = httpx.HTTPTransport(verify=trust, local_address=source)
            for path, body in calls:
                start = time.monotonic()
                # Flower's client tries again as well.
                while time.monotonic() - start < 10 * WITHIN:
                    with (
                        suppress(httpx.TransportError),
                        httpx.Client(transport=transport, timeout=10) as client,
                    ):
                        answer = client.post(
                            f"https://localhost:{place.port}/v1/fleet/{path}",
                            content=body,
                            headers=device.headers(),
                        )
                        assert answer.status_code == 200
                        break
                    transport = httpx.HTTPTransport(verify=trust, local_address=source)
                    time.sleep(0.05)
                took.append(time.monotonic() - start)
            time.sleep(0.1)
    finally:
        strangers.stop.set()
        for thread in strangers.threads:
            thread.join()
    memory = peak(pid)
    figures = {
        "connections": strangers.made,
        "calls": len(took),
        "slowest_seconds": round(max(took), 3),
        "peak_mb": round(memory / (1 << 20), 1),
    }
    print(json.dumps(figures))
    assert strangers.made >= HALF_OPEN  # else nothing was tried
    assert len(took) > 50
    # Nearly all: on a busy machine one call may wait for a processor.
    assert sorted(took)[-1 - len(took) // 20] < WITHIN, figures
    assert max(took) < LONGEST, figures
    assert memory < MOST_MEMORY, figures
