"""A chat model of a few lines on loopback: it answers by a rule."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Rule = Callable[[str, str], str]
"""Candidates A and B -> what is answered."""


@dataclass
class Chat:
    """What a server was asked, and how it answers.

    `status` has one entry for each of the first requests; later ones are answered.
    """

    rule: Rule
    address: str = ""
    status: list[int] = field(default_factory=list)
    raw: bytes | None = None
    wait: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    key: str = ""
    location: str = ""


def candidates(body: dict[str, Any]) -> tuple[str, str]:
    """Return A and B as a reader finds them: between the marks of the system's message."""
    system, user = (one["content"] for one in body["messages"])
    (mark,) = {*re.findall(r"=== [0-9a-f]{16}", system)}
    parts = dict(
        part.split("\n", 1) for part in user.split(f"{mark} ")[1:] if "\n" in part
    )
    return parts["CANDIDATE A"].strip("\n"), parts["CANDIDATE B"].strip("\n")


@contextmanager
def chat(rule: Rule, **changes: Any) -> Iterator[Chat]:
    """Serve until the block ends."""
    found = Chat(rule, **changes)

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.bodies.append(body)
            found.headers.append(dict(self.headers))
            status = found.status.pop(0) if found.status else 200
            if found.key and self.headers["Authorization"] != f"Bearer {found.key}":
                status = 401
            time.sleep(found.wait)
            text = {"error": {"message": "as told", "type": "x"}}
            if status == 200:
                said = found.rule(*candidates(body))
                message = {"role": "assistant", "content": said}
                text = {"model": "served", "choices": [{"message": message}]}
            self.send_response(status)
            if found.location:
                self.send_header("Location", found.location)
            self.end_headers()
            with suppress(OSError):  # whoever asked no longer waits
                self.wfile.write(
                    found.raw if found.raw is not None else json.dumps(text).encode()
                )

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
