"""The proxy before the SuperLink: it passes on what a device needs, and nothing else.

Flower's SuperLink has one port for everything: the control interface (submit a run,
register a node, read logs) and the fleet's calls. It reads a whole body of any size before
it asks who sends it. So the SuperLink is reached from this machine only, and devices
connect to this process. It handles a call in this order:

    TLS and header    before a deadline, and a header of at most 16 KiB
    method, path      POST and one of eight exact paths; otherwise 404 or 405
    size              at most that of the path; a body of unknown size is refused
    caller            the node's signature and its registration (`authorization.caller`)
    quota             calls and bytes of this node (`Quota`)
    body              is read only now, before a deadline
    authorization     the node that the call names, and what it asks for
                      (`authorization.check`)

A device that asks for work, while none waits for it, is answered here. Most calls are of
that kind, and the SuperLink would write to its database for each. Every other call is
passed on, and is made here: the path is our own constant, the headers are those in
`FORWARDED`, and the body is the device's. TLS ends here and begins again to the SuperLink,
with the same certificate.

Connections of strangers, which have not carried a signed call yet, are counted by address;
those of devices are counted by device (`quota.Shares`). So strangers get a limited number
of connections, and memory for one header each.
"""

import asyncio
import asyncio.sslproto
import contextlib
import os
import resource
import socket
import sqlite3
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.utils import formatdate
from importlib.metadata import version
from pathlib import Path

import h11
import httpx
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.supercore.constant import (
    FLWR_COMPONENT_NAME_METADATA_KEY,
    FLWR_PACKAGE_NAME_METADATA_KEY,
    FLWR_PACKAGE_VERSION_METADATA_KEY,
    VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY,
)
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from ...common.protocol.turned_away import CLOCK, VERSION
from . import authorization, database
from .authorization import Call, Caller, Refusal, refuse_if
from .counts import Counts, reason_of
from .places import COUNTS, DATABASE
from .quota import Bucket, Shares, neighbourhood

OWN = version("idiolect")

HEADER = 16 << 10  # bytes of a header; Flower's has 1 KB
PIECE = 64 << 10  # bytes that are read or written at a time
ANSWER = 8 << 20  # bytes of the SuperLink's answer; an object has 5 MiB

HANDSHAKE_SECONDS = 10.0
HEADER_SECONDS = 10.0  # of a connection's first call
IDLE_SECONDS = 30.0  # until the next header of a device is complete
BODY_SECONDS, SLOWEST = 30.0, 16 << 10  # plus one second for each SLOWEST bytes
LINGER_SECONDS = 1.0  # after a refusal, so that the other side can read it
PATIENCE = 60.0  # seconds until the SuperLink must have answered

STRANGERS, PER_ADDRESS = 256, 64  # connections that have not carried a signed call
DEVICES, PER_DEVICE = 4096, 8  # connections that have; Flower's client holds four
HELD, HELD_PER_DEVICE = 48 << 20, 16 << 20  # bytes of bodies and answers in memory
UPSTREAM = 32  # connections to the SuperLink
KEPT = 4.0  # seconds that an idle one is kept; the SuperLink keeps it longer
ACTIVE = 6  # calls of one device at a time: two transfers, a heartbeat, and retries
# Calls of one device: a request of 500 tensors is 2,000 objects to pull and to push, and
# between requests a device asks once a second at most.
CALLS, CALLS_PER_SECOND = 8000, 50
# Bytes that one device sends: a float32 update of rank 16 on every layer of a model of 8
# billion parameters (170 MB) at once, and as much again in half an hour. What a device
# sends stays in the database until the run has read it.
SENT, SENT_PER_SECOND = 256 << 20, (256 << 20) / 1800

# The headers of a device's call that are passed on.
FORWARDED = (
    authorization.KEY,
    authorization.TIME,
    authorization.SIGNATURE,
    FLWR_PACKAGE_NAME_METADATA_KEY.encode(),
    FLWR_PACKAGE_VERSION_METADATA_KEY.encode(),
    FLWR_COMPONENT_NAME_METADATA_KEY.encode(),
)
SINGLE = (*FORWARDED, b"content-type", b"content-length", b"host")
UPGRADES = {b"upgrade", b"http2-settings", b"trailer"}
PULL = "/v1/fleet/pull-messages"
# Status, headers and body of the answer to a device for which nothing waits.
NO_WORK = (
    200,
    [("content-type", PROTOBUF_MEDIA_TYPE)],
    PullMessagesResponse().SerializeToString(),
)
# Those of the SuperLink's answer that are passed on.
ANSWERED = ("content-type", VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY)


@dataclass
class Quota:
    """What one device may still use."""

    calls: Bucket = field(default_factory=lambda: Bucket(CALLS, CALLS_PER_SECOND))
    sent: Bucket = field(default_factory=lambda: Bucket(SENT, SENT_PER_SECOND))
    active: int = 0


@dataclass(eq=False)
class Connection:
    """One connection: its address, and its device since the first signed call."""

    address: str
    sock: socket.socket
    task: "asyncio.Task[None] | None" = None
    node: int | None = None


@dataclass
class Proxy:
    """The state that all connections share.

    Attributes
    ----------
    upstream
        HTTP client whose base URL is the SuperLink's.
    database
        The SuperLink's database, which has the registered keys.
    counts
        What an operator may know: calls, bytes, refusals; by name (`counts.NAMES`).
    """

    upstream: httpx.AsyncClient
    database: Path
    counts: "Counter[str] | Counts" = field(default_factory=Counter)
    reader: sqlite3.Connection | None = None
    trees: authorization.Trees = field(default_factory=authorization.Trees)
    quotas: dict[int, Quota] = field(default_factory=dict)
    strangers: Shares = field(default_factory=lambda: Shares(PER_ADDRESS, STRANGERS))
    devices: Shares = field(default_factory=lambda: Shares(PER_DEVICE, DEVICES))
    held: Shares = field(default_factory=lambda: Shares(HELD_PER_DEVICE, HELD))

    def read(self) -> sqlite3.Connection:
        """Return the open database.

        Raises
        ------
        Refusal
            There is none yet.
        """
        if self.reader is None:
            self.reader = database.opened(self.database)
        return self.reader


@dataclass
class Stream:
    """HTTP over one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http: h11.Connection

    async def event(self) -> h11.Event | type[h11.PAUSED]:
        """Return the next event; read only while the parser needs data."""
        while (found := self.http.next_event()) is h11.NEED_DATA:
            if self.http.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                self.writer.write(self.http.send(go_on) or b"")
            self.http.receive_data(await self.reader.read(PIECE))
        return found  # type: ignore[return-value]

    async def answer(self, status: int, headers: list, body: bytes) -> None:
        """Send a whole answer, piece by piece."""
        sized = [*headers, ("content-length", str(len(body)))]
        head = h11.Response(status_code=status, headers=sized)
        async with asyncio.timeout(_long_enough(len(body))):
            self.writer.write(self.http.send(head) or b"")
            for start in range(0, len(body), PIECE):
                piece = h11.Data(data=body[start : start + PIECE])
                self.writer.write(self.http.send(piece) or b"")
                await self.writer.drain()
            self.writer.write(self.http.send(h11.EndOfMessage()) or b"")
            await self.writer.drain()


def _long_enough(size: int) -> float:
    return BODY_SECONDS + size / SLOWEST


# --- one call --------------------------------------------------------------------------


def route(request: h11.Request) -> tuple[Call, int]:
    """Return which call this is, and the size of its body in bytes.

    Raises
    ------
    Refusal
        It is not one of the eight calls, or its size is missing or too large.
    """
    call = authorization.CALLS.get(request.target)
    if call is None:
        raise Refusal(404, "there is nothing here")
    names = [name for name, _ in request.headers]
    unsized = b"content-length" not in names or b"transfer-encoding" in names
    refuse_if(request.method != b"POST", 405, "a call is a POST")
    refuse_if(request.http_version != b"1.1", 505, "this is HTTP/1.1")
    twice = any(names.count(name) > 1 for name in SINGLE)
    refuse_if(twice, 400, "a header is given twice")
    upgrade = not UPGRADES.isdisjoint(names)
    refuse_if(upgrade, 400, "this is HTTP/1.1 and stays so")
    refuse_if(unsized, 411, "the body has no size")
    size = dict(request.headers)[b"content-length"]
    refuse_if(len(size) > 12 or int(size) > call.most, 413, "the body is too large")
    return call, int(size)


def admitted(
    proxy: Proxy, connection: Connection, headers: dict[bytes, bytes]
) -> Caller:
    """Return the caller; from now on the connection counts as this device's.

    Raises
    ------
    Refusal
        It is not a registered device, or not the one that used the connection before.
    """
    who = authorization.caller(headers, proxy.read())
    refuse_if(
        connection.node not in (None, who.node),
        401,
        "this connection is another device's",
    )
    connection.node = who.node
    proxy.strangers.drop(connection.address, connection)
    proxy.devices.drop(who.node, connection)  # the last used counts as the newest
    _end(proxy.devices.hold(who.node, connection))
    return who


def _end(connections: list) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):  # asyncio continues a cancelled handshake
            connection.sock.shutdown(socket.SHUT_RDWR)
        if connection.task is not None:
            connection.task.cancel()


def charge(quota: Quota, size: int) -> None:
    """Count bytes that the SuperLink stores for a device.

    Raises
    ------
    Refusal
        The device has sent too much.
    """
    refuse_if(
        not quota.sent.take(size), 503, "this device has sent too much: try again later"
    )


async def call_of(proxy: Proxy, connection: Connection, stream: Stream) -> bool:
    """Answer one call; return whether there may be another on this connection.

    Raises
    ------
    Refusal
        Something is wrong with the call, or the device makes too many or has sent too much.
    """
    waiting = HEADER_SECONDS if connection.node is None else IDLE_SECONDS
    async with asyncio.timeout(waiting):
        request = await stream.event()
    if not isinstance(request, h11.Request):
        return False
    call, size = route(request)
    headers = dict(request.headers)
    who = admitted(proxy, connection, headers)
    quota = proxy.quotas.setdefault(who.node, Quota())
    refuse_if(
        quota.active >= ACTIVE or not quota.calls.take(),
        503,
        "too many calls of this device: try again later",
    )
    charge(quota, size)
    quota.active += 1
    try:
        body = await _body(proxy, connection, stream, size)
        objects = authorization.check(call, body, who, proxy.read(), proxy.trees)
        charge(quota, objects * authorization.STORED)
        proxy.counts["calls"] += 1
        proxy.counts["bytes in"] += len(body)
        if call.path == PULL and not database.waits(proxy.read(), who.node):
            status, kept, text = NO_WORK
        else:
            status, kept, text = await forward(proxy, connection, call, headers, body)
        proxy.counts["bytes out"] += len(text)
        del body
        if call.path == PULL and status == 200:
            proxy.trees.note(who.node, text)
        await stream.answer(status, kept, text)
    finally:
        quota.active -= 1
        proxy.held.drop(connection.node, connection)
    if stream.http.our_state is h11.MUST_CLOSE:
        return False
    stream.http.start_next_cycle()
    return True


async def _body(
    proxy: Proxy, connection: Connection, stream: Stream, size: int
) -> bytes:
    pieces = []
    async with asyncio.timeout(_long_enough(size)):
        while isinstance(event := await stream.event(), h11.Data):
            pieces.append(bytes(event.data))
            _hold(proxy, connection, len(event.data))
    return b"".join(pieces)


def _hold(proxy: Proxy, connection: Connection, size: int) -> None:
    """Count bytes in memory; at the limit the largest holder loses its oldest ones."""
    _end(proxy.held.hold(connection.node, connection, size))


async def forward(
    proxy: Proxy,
    connection: Connection,
    call: Call,
    headers: dict[bytes, bytes],
    body: bytes,
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Pass a call on to the SuperLink; return status, headers and body of its answer.

    Raises
    ------
    Refusal
        There is no answer, or it is larger than any real one.
    """
    kept = {name: headers[name] for name in FORWARDED if name in headers}
    kept |= {
        b"content-type": PROTOBUF_MEDIA_TYPE.encode(),
        b"accept": PROTOBUF_MEDIA_TYPE.encode(),
        b"accept-encoding": b"identity",
        b"content-length": str(len(body)).encode(),
    }
    try:
        async with proxy.upstream.stream(
            "POST", call.path, content=_pieces(body), headers=kept
        ) as answer:
            parts, size = [], 0
            async for part in answer.aiter_raw(PIECE):
                size += len(part)
                _hold(proxy, connection, len(part))
                refuse_if(size > ANSWER, 502, "the SuperLink's answer is too large")
                parts.append(part)
    except httpx.HTTPError:
        raise Refusal(503, "the SuperLink does not answer") from None
    shown = [
        (name, answer.headers[name]) for name in ANSWERED if name in answer.headers
    ]
    return answer.status_code, shown, b"".join(parts)


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]


# --- one connection --------------------------------------------------------------------


async def converse(proxy: Proxy, connection: Connection, stream: Stream) -> None:
    """Answer the calls of one connection, until one is refused or it ends."""
    try:
        while await call_of(proxy, connection, stream):
            pass
    except (Refusal, h11.RemoteProtocolError, sqlite3.Error) as error:
        await _refuse(proxy, connection, stream, _refusal(proxy, error))


def _refusal(proxy: Proxy, error: Exception) -> Refusal:
    """Return what the caller is told of an error of its call."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, h11.RemoteProtocolError):
        return Refusal(error.error_status_hint, "this is not HTTP/1.1")
    proxy.reader = None
    return Refusal(503, "the SuperLink is not up yet")


async def _refuse(
    proxy: Proxy, connection: Connection, stream: Stream, refusal: Refusal
) -> None:
    proxy.counts[reason_of(refusal)] += 1
    if stream.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return  # a part of an answer is sent
    with contextlib.suppress(h11.LocalProtocolError):
        kept = [("content-type", "text/plain"), ("connection", "close")]
        if str(refusal) == CLOCK:  # only this caller is told the server's time
            kept.append(("date", formatdate(usegmt=True)))
        if connection.node is not None:  # a stranger does not learn it
            kept.append((VERSION, OWN))
        await stream.answer(refusal.status, kept, str(refusal).encode())
    # Discard what still comes: after an immediate close the answer would be lost.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while await stream.reader.read(PIECE):
                pass


async def connected(
    proxy: Proxy, connection: Connection, sock: socket.socket, tls
) -> None:
    """Serve one connection from its first byte to its last."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=HEADER)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport = None
    try:
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            sock,
            ssl=tls,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=1.0,
        )
        transport.set_write_buffer_limits(PIECE)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER)
        await converse(proxy, connection, Stream(reader, writer, http))
        writer.close()
        async with asyncio.timeout(2.0):
            await writer.wait_closed()
    except (OSError, TimeoutError, EOFError):
        pass  # gone, too slow, or not TLS: no answer is possible
    finally:
        if transport is not None:  # otherwise asyncio has closed the socket
            transport.abort()
        proxy.strangers.drop(connection.address, connection)
        proxy.devices.drop(connection.node, connection)
        proxy.held.drop(connection.node, connection)


async def listen(proxy: Proxy, listener: socket.socket, tls) -> None:
    """Accept connections, forever."""
    loop = asyncio.get_running_loop()
    running: set[asyncio.Task[None]] = set()
    while True:
        try:
            sock, peer = await loop.sock_accept(listener)
        except OSError:  # the other side is gone, or too many files are open
            await asyncio.sleep(0.05)
            continue
        connection = Connection(neighbourhood(peer[0]), sock)
        _end(proxy.strangers.hold(connection.address, connection))
        connection.task = loop.create_task(connected(proxy, connection, sock, tls))
        running.add(connection.task)
        connection.task.add_done_callback(running.discard)
        await asyncio.sleep(0)  # others may be served while many wait


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=1024)
    listener.setblocking(False)
    return listener


def protected(pair: Path) -> ssl.SSLContext:
    """Return a TLS context with the server's key and certificate."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.options |= ssl.OP_NO_RENEGOTIATION
    tls.set_alpn_protocols(["http/1.1"])
    tls.load_cert_chain(pair)
    return tls


async def serve(host: str, port: int, inner: int, folder: Path, pair: Path) -> None:
    """Listen at a port, forever.

    Parameters
    ----------
    host, port
        Where devices connect to.
    inner
        The SuperLink's port on this machine.
    folder
        Has the authority's certificate and the SuperLink's database.
    pair
        PEM file of the server's private key and certificate.
    """
    upstream = httpx.AsyncClient(
        base_url=f"https://127.0.0.1:{inner}",
        verify=ssl.create_default_context(cafile=str(folder / "ca.crt")),
        timeout=PATIENCE,
        limits=httpx.Limits(max_connections=UPSTREAM, keepalive_expiry=KEPT),
        trust_env=False,  # no HTTP proxy to this machine itself
    )
    proxy = Proxy(upstream, folder / DATABASE, Counts(folder / COUNTS))
    await listen(proxy, bound(host, port), protected(pair))


def main() -> None:
    """Listen: ``HOST PORT SUPERLINK_PORT FOLDER PAIR``."""
    os.umask(0o077)
    host, port, inner, folder, pair = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = STRANGERS + DEVICES + UPSTREAM + 256
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    # asyncio allocates (and writes to) 256 KiB for every TLS connection; a TLS record has
    # 16 KiB.
    asyncio.sslproto.SSLProtocol.max_size = 32 << 10
    asyncio.run(serve(host, int(port), int(inner), Path(folder), Path(pair)))


if __name__ == "__main__":
    main()
