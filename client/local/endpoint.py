"""OpenAI's chat completions, answered by the process that keeps the model loaded.

One answer at a time: that process has one model. Others wait, a bounded number of them.
Whoever leaves, while waiting or while the answer comes, is forgotten at once: the line to
the process is closed, and it computes no token after the one it is at.
"""

import asyncio
import contextlib
import json
import secrets
import socket
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from time import time
from typing import Any, TypeVar

from ...common.command import keep_traceback
from ...common.engine.pieces import Piece, TooLong
from ...common.errors import IdiolectError
from ...common.text import read_json
from ..owner import resident
from ..owner.resident import Asked, Loaded
from . import openai
from .guard import Receive, Scope, Send, answer, error_body
from .openai import BadRequest, Request

WAITING = 8  # requests, beside the one that is answered
SLOW = 10.0  # seconds in which a client must take a part; one that is slower has left
CHAT, LIST = "/v1/chat/completions", "/v1/models"
EVENTS = {"content-type": "text/event-stream; charset=utf-8"}
LINE = 1 << 20  # bytes of a line of the process, more than one token has

Some = TypeVar("Some")


class Endpoint:
    """An ASGI app; who may ask it is `guard.guarded`'s business.

    Attributes
    ----------
    loaded
        The process that keeps the model loaded.
    created
        When this began, in seconds since 1970.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.created = int(time())
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        begun = False

        async def sent(message: Any) -> None:
            nonlocal begun
            begun = True
            async with asyncio.timeout(SLOW):
                await send(message)

        try:
            await self._answer(scope, receive, sent)
        except TimeoutError:
            return
        except Exception as error:
            if not begun:
                await _refuse(send, error)
            elif scope["path"] == CHAT:  # the status is out: it is said in the stream
                body = _sentence(error)[1]
                await send(_part(b"data: " + body + b"\n\n"))
                await send(_part(b"", last=True))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path == CHAT:
            if method != "POST":
                raise BadRequest(f"{CHAT} takes POST.", status=405)
            request = openai.request_of(_json((await receive())["body"]))
            return await while_there(receive, self._chat(request, send))
        if method not in ("GET", "HEAD"):
            raise BadRequest(f"{CHAT} alone takes {method[:10]}.", status=405)
        if path == LIST:
            found = openai.model_list(self.created)
        elif path.startswith(f"{LIST}/"):
            name = path.removeprefix(f"{LIST}/")
            if name not in openai.MODELS:
                raise openai.unknown_model(name)
            found = openai.model_card(name, self.created)
        else:
            raise BadRequest(f"There are {LIST} and {CHAT} here.", status=404)
        await answer(send, 200, json.dumps(found).encode(), {})

    async def _chat(self, request: Request, send: Send) -> None:
        """Answer a conversation when it is its turn."""
        if self._waiting > WAITING:
            raise BadRequest("Too many requests are waiting: try again.", status=429)
        self._waiting += 1
        try:
            async with self._turn:
                shape = openai.Shape(
                    f"chatcmpl-{secrets.token_hex(12)}",
                    int(time()),
                    request.asked.policy,
                )
                begun, pieces = await self._written(request.asked)
                async with contextlib.aclosing(pieces):
                    if request.stream:
                        await _stream(request, shape, begun["tokens"], pieces, send)
                    else:
                        await _whole(shape, begun["tokens"], pieces, send)
        finally:
            self._waiting -= 1

    async def _written(
        self, asked: Asked
    ) -> tuple[dict[str, Any], AsyncGenerator[Piece, None]]:
        """Ask the process; what it says first, and its pieces."""

        def line() -> tuple[socket.socket, bytes] | None:
            found = resident.sent(self.loaded.vault, asked)
            if found is None:
                return None
            first = resident.first_line(found)
            if not first:
                found.close()
                return None
            return found, first

        found, first = await in_thread(
            lambda: self.loaded.answered(line), lambda late: late[0].close()
        )
        try:
            begun = resident.told(first)
        except BaseException:
            found.close()
            raise
        return begun, _pieces(found)


async def _pieces(line: socket.socket) -> AsyncGenerator[Piece, None]:
    line.setblocking(False)
    came, out = await asyncio.open_unix_connection(sock=line, limit=LINE)
    try:
        while True:
            piece = Piece(**resident.told(await came.readline()))
            yield piece
            if piece.end:
                return
    finally:
        out.close()


async def _whole(
    shape: openai.Shape, prompt: int, pieces: AsyncGenerator[Piece, None], send: Send
) -> None:
    text, last = "", Piece("")
    async for last in pieces:
        text += last.text
    await answer(send, 200, json.dumps(shape.whole(text, last, prompt)).encode(), {})


async def _stream(
    request: Request,
    shape: openai.Shape,
    prompt: int,
    pieces: AsyncGenerator[Piece, None],
    send: Send,
) -> None:
    headers = [(name.encode(), value.encode()) for name, value in EVENTS.items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send(_event(shape.first(request.usage)))
    last = Piece("")
    async for last in pieces:
        for chunk in shape.chunk(last, request.usage):
            await send(_event(chunk))
    if request.usage:
        await send(_event(shape.count(prompt, last.tokens)))
    await send(_part(b"data: [DONE]\n\n"))
    await send(_part(b"", last=True))


def _event(value: dict[str, Any]) -> dict[str, Any]:
    return _part(b"data: " + json.dumps(value).encode() + b"\n\n")


def _part(body: bytes, last: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": not last}


def _json(body: bytes) -> Any:
    try:
        return read_json(body)
    except ValueError:
        raise BadRequest("The body is not JSON.") from None


def _sentence(error: Exception) -> tuple[int, bytes]:
    """Status and body of an error."""
    if isinstance(error, BadRequest):
        status, more = error.status, (error.param, error.code)
        return status, error_body(status, str(error), *more)
    if isinstance(error, TooLong):
        return 400, error_body(400, str(error), "messages", "context_length_exceeded")
    if isinstance(error, IdiolectError):
        return 503, error_body(503, str(error))
    place = keep_traceback(error, quote=False)
    return 500, error_body(500, f"idiolect has a defect: {place}.")


async def _refuse(send: Send, error: Exception) -> None:
    status, body = _sentence(error)
    await answer(send, status, body, {"retry-after": "1"} if status == 429 else {})


# --- waiting ---------------------------------------------------------------------------


async def while_there(receive: Receive, work: Awaitable[None]) -> None:
    """Do something for a client, and end it at once if the client leaves."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        done, _ = await asyncio.gather(*tasks, return_exceptions=True)
    if isinstance(done, Exception):
        raise done


async def in_thread(work: Callable[[], Some], late: Callable[[Some], object]) -> Some:
    """Do something that blocks; `late` takes what comes when nobody waits any more.

    In a thread that the end of the program does not wait for: the process may be loading.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Some] = loop.create_future()

    def tell(result: Some | None, error: Exception | None) -> None:
        if done.cancelled():
            if error is None:
                late(result)  # type: ignore[arg-type]
        elif error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as found:
            error = found
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, daemon=True).start()
    return await done
