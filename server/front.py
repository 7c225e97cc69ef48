"""The devices' entrance: a proxy that lets through what a device needs, and nothing else.

Flower's SuperLink has one port, where the control interface (submit a run, register a
node, read logs) stands beside the fleet's, and asks nobody for a login there. So the
SuperLink listens on this machine alone, and devices reach this process:

    a path that is no fleet path of ours    404
    a body that is too large, or of unknown size    413 or 411, before it is read
    everything else    passed on, with the device's signature; the SuperLink checks that

TLS ends here and begins anew towards the SuperLink, with the same certificate.
"""

import ssl
import sys
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# What `idiolect node` calls. No bundle (get-fab) and no registration by the device itself.
PATHS = {
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "pull-object",
        "push-object",
        "confirm-message-received",
    )
}
LARGEST = 16 << 20  # bytes of a body; Flower cuts tensors into objects of 5 MB
PATIENCE = 60.0  # seconds for the SuperLink's answer
# About one connection, not about what is sent over it.
HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


def entrance(upstream: httpx.AsyncClient) -> Starlette:
    """Return the proxy as an ASGI application.

    Parameters
    ----------
    upstream
        A client whose base URL is the SuperLink's.
    """

    async def forward(request: Request) -> Response:
        size = request.headers.get("content-length", "")
        if not size.isdigit():
            return Response("the body has no size", 411)
        if int(size) > LARGEST:
            return Response("the body is too large", 413)
        kept = {k: v for k, v in request.headers.items() if k.lower() not in HOP}
        try:
            answer = await upstream.post(
                request.url.path, content=await request.body(), headers=kept
            )
        except httpx.HTTPError:
            return Response("the SuperLink does not answer", 503)
        headers = {k: v for k, v in answer.headers.items() if k.lower() not in HOP}
        headers.pop("content-encoding", None)  # httpx has undone it
        return Response(answer.content, answer.status_code, headers)

    return Starlette(routes=[Route(path, forward, methods=["POST"]) for path in PATHS])


def main() -> None:
    """Listen: ``HOST PORT SUPERLINK_PORT FOLDER``; the keys are in the folder."""
    host, port, inner, folder = sys.argv[1:]
    keys = Path(folder)
    trust = ssl.create_default_context(cafile=str(keys / "ca.crt"))
    upstream = httpx.AsyncClient(
        base_url=f"https://127.0.0.1:{inner}", verify=trust, timeout=PATIENCE
    )
    uvicorn.run(
        entrance(upstream),
        host=host,
        port=int(port),
        ssl_certfile=str(keys / "server.crt"),
        ssl_keyfile=str(keys / "server.key"),
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
