"""The page's addresses: short functions over the open vault and what the commands call.

The vault is used by one thread: SQLite wants that, and two tabs take turns. Who may ask is
checked before (`local.guard`). What is asked comes as a JSON object, whose fields are
checked by `field`; every refusal is an `IdiolectError`.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ...common.command import sentence_of
from ...common.data.types import Prompt
from ...common.errors import IdiolectError, refuse_if
from ...common.text import read_json
from ..imports.read import MOST as MOST_ROWS
from ..imports.read import Asked
from ..local.guard import error_body
from ..owner import adapters, consent, forgetting, history, learning
from ..owner.history import Entry
from ..owner.keys import Key
from ..owner.vault import Vault
from . import views
from .uploads import INVENTED, Uploads, invented
from .words import on_page
from .work import Scribe, Trainer

Some = TypeVar("Some")
Answer = dict[str, Any]

HERE = Path(__file__).parent
STATIC = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    "thumb.svg": ("thumb.svg", "image/svg+xml"),
}
# Nothing from elsewhere, nothing inline, and no text that becomes markup.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
BYTES = "application/octet-stream"  # of a file; no form can send it
METHODS = ("c-bpo", "sft")
BUDGET = 64  # tokens of a text, where nothing is said


@dataclass
class Desk:
    """What the addresses work on."""

    vault: Vault
    thread: ThreadPoolExecutor
    uploads: Uploads
    trainer: Trainer
    scribe: Scribe

    async def do(self, act: Callable[..., Some], *arguments: Any) -> Some:
        """Do something with the vault, in its thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.thread, act, self.vault, *arguments)

    async def close(self) -> None:
        """End the processes, and close the vault when what it is at is done."""
        await self.trainer.stop()
        await self.scribe.end()
        await self.do(Vault.close)
        self.thread.shutdown()


def opened(path: Path, key: Key) -> Desk:
    """Open a vault for the page.

    Raises
    ------
    IdiolectError
        It cannot be opened (`Vault.open`).
    """
    thread = ThreadPoolExecutor(1, "vault")
    vault = thread.submit(Vault.open, path, key).result()
    uploads = Uploads(path.absolute().parent)
    uploads.clear()
    return Desk(vault, thread, uploads, Trainer(path, key), Scribe(path, key))


# --- what is asked ---------------------------------------------------------------------


def field(asked: Answer, name: str, kind: type[Some], otherwise: Some) -> Some:
    """A field of what is asked.

    Raises
    ------
    IdiolectError
        It is not of this kind.
    """
    found: Any = asked.get(name, otherwise)
    if kind is float and type(found) is int and abs(found) <= sys.float_info.max:
        found = float(found)
    refuse_if(
        type(found) is not kind,
        f"'{name}' has to be of the kind {kind.__name__}: load the page again.",
    )
    return cast(Some, found)


def names(asked: Answer, name: str) -> list[str]:
    """A field that is a list of texts."""
    found = field(asked, name, list, [])
    refuse_if(
        not all(isinstance(one, str) for one in found),
        f"'{name}' has to be a list of texts: load the page again.",
    )
    return found


def parsed(body: bytes | str) -> Answer:
    """A JSON object.

    Raises
    ------
    IdiolectError
        It is none.
    """
    try:
        found = read_json(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise IdiolectError("what the page sent is no JSON object: load it again.")
    return found


# --- overview and history --------------------------------------------------------------


async def overview(desk: Desk, _asked: Answer) -> Answer:
    """All but the history itself."""
    return await desk.do(views.overview) | await training(desk, {})


async def pairs(desk: Desk, asked: Answer) -> Answer:
    """A part of the history."""
    return await desk.do(
        views.pairs,
        field(asked, "search", str, ""),
        field(asked, "source", str, ""),
        max(0, field(asked, "skip", int, 0)),
    )


async def upload(desk: Desk, request: Request) -> Answer:
    """Read a file, and say what adding it would do."""
    given = parsed(unquote(request.headers.get("x-asked", "")))
    asked = Asked(
        task=field(given, "task", str, ""),
        user=field(given, "user", str, ""),
        dates=field(given, "dates", str, ""),
        newest_first=field(given, "newest", bool, False),
        most=field(given, "most", int, MOST_ROWS),
        skip=field(given, "skip", bool, False),
    )
    name = field(given, "name", str, "")
    number, found, source = await desk.uploads.take(request.stream(), name, asked)
    shown = await desk.do(views.preview, found)
    return {"id": number, "source": source, **shown}


async def example(desk: Desk, _asked: Answer) -> Answer:
    """Let the texts of an invented person wait to be added: for a first look."""
    found = await asyncio.to_thread(invented)
    number = desk.uploads.keep(found, INVENTED)
    shown = await desk.do(views.preview, found)
    return {"id": number, "source": INVENTED, **shown}


async def add(desk: Desk, asked: Answer) -> Answer:
    """Add what was previewed."""
    found, source = desk.uploads.taken(field(asked, "id", str, ""))
    source = field(asked, "source", str, "") or source
    new = await desk.do(history.add, found.entries, source)
    return {"new": new, "source": history.source_name(source)}


async def drop(desk: Desk, asked: Answer) -> Answer:
    """Forget what was previewed."""
    desk.uploads.taken(field(asked, "id", str, ""))
    return {}


async def feedback(desk: Desk, asked: Answer) -> Answer:
    """Like or dislike a pair of the history, or a new one."""
    liked, name = field(asked, "liked", bool, True), field(asked, "id", str, "")
    prompt = history.clean(field(asked, "prompt", str, ""))
    text = history.clean(field(asked, "text", str, ""))
    refuse_if(not name and not text, "there is no text: write one.")
    longest = max(len(prompt), len(text))
    refuse_if(
        longest > history.LONGEST,
        f"a text has more than {history.LONGEST} characters: give a shorter one.",
    )

    def judged(vault: Vault) -> Entry:
        # In one transaction: what is forgotten meanwhile does not come back.
        with vault.transaction():
            given = Entry(Prompt("", prompt), text)
            entry = history.find(vault, [name])[0] if name else given
            return history.judge(vault, entry, liked)

    return views.pair(await desk.do(judged))


async def cost(desk: Desk, asked: Answer) -> Answer:
    """What forgetting would cost."""
    sources, ids = names(asked, "sources"), names(asked, "ids")
    return await desk.do(lambda vault: views.cost(vault, _named(vault, sources, ids)))


def _named(vault: Vault, sources: list[str], ids: list[str]) -> forgetting.Forgotten:
    refuse_if(not (sources or ids), "nothing is named that is to be forgotten.")
    return forgetting.to_forget(vault, sources, ids)


async def forget(desk: Desk, asked: Answer) -> Answer:
    """Forget pairs or sources; train again in the place of the adapter in use."""
    sources, ids = names(asked, "sources"), names(asked, "ids")

    def forgotten(vault: Vault) -> tuple[int, list[int], str]:
        _named(vault, sources, ids)
        used = adapters.active(vault)
        count, stale = forgetting.forget(vault, sources, ids)
        method = next((one.method for one in stale if one.number == used), "")
        return count, [one.number for one in stale], method

    await desk.trainer.stop()  # it may be learning what is to be forgotten
    try:
        count, numbers, method = await desk.do(forgotten)
    finally:
        await desk.scribe.end()  # it has what is erased in its memory
    if method and field(asked, "train", bool, False):
        await desk.trainer.start(method)
    return {"pairs": count, "adapters": numbers, "again": desk.trainer.at.running}


# --- training and writing --------------------------------------------------------------


async def training(desk: Desk, _asked: Answer) -> Answer:
    """What the training does, or what came of the last one."""
    at = vars(desk.trainer.at)
    return {"training": {**at, "error": on_page(at["error"])}}


async def train(desk: Desk, asked: Answer) -> Answer:
    """Start a training."""
    method = field(asked, "method", str, METHODS[0])
    refuse_if(method not in METHODS, f"the method is one of {', '.join(METHODS)}.")
    # Too little history is said at once, not after the libraries are loaded.
    await desk.do(lambda vault: learning.split(history.entries(vault)))
    await desk.trainer.start(method)
    return await training(desk, {})


async def stop(desk: Desk, _asked: Answer) -> Answer:
    """Stop it."""
    await desk.trainer.stop()
    return await training(desk, {})


async def warm(desk: Desk, _asked: Answer) -> Answer:
    """Load the model, if there is something to write with: the owner may soon ask."""
    if await desk.do(adapters.active):
        await desk.scribe.warm()
    return {}


async def write(desk: Desk, asked: Answer) -> AsyncIterator[Answer]:
    """Write, and say the pieces of the texts as they come."""
    prompt = field(asked, "prompt", str, "")
    refuse_if(not history.clean(prompt), "there is no prompt: write one.")
    await desk.do(adapters.in_use)  # refuses before a process is started
    strength = field(asked, "strength", float, -1.0)
    return desk.scribe.write(
        prompt=prompt,
        budget=field(asked, "budget", int, BUDGET),
        compare=field(asked, "compare", bool, False),
        strength=None if strength < 0 else min(strength, adapters.MOST_STRENGTH),
    )


# --- adapters --------------------------------------------------------------------------


async def use(desk: Desk, asked: Answer) -> Answer:
    """Use an adapter, at a strength if one is given; 0: none."""
    number = field(asked, "number", int, 0)
    strength = asked.get("strength")
    if strength is not None:
        strength = field(asked, "strength", float, 1.0)
    await desk.do(adapters.use, number, strength)
    return {"active": number}


async def rollback(desk: Desk, _asked: Answer) -> Answer:
    """Use the adapter before the one in use."""
    return {"active": await desk.do(adapters.rollback)}


async def reset(desk: Desk, _asked: Answer) -> Answer:
    """Go back to the bare model."""
    return {"before": await desk.do(adapters.reset)}


# --- what leaves -----------------------------------------------------------------------


async def answer(desk: Desk, asked: Answer) -> Answer:
    """Say what may leave the device."""
    name, given = field(asked, "outflow", str, ""), field(asked, "answer", str, "")
    await desk.do(consent.consent, name, given)
    return {"outflow": name, "answer": given}


async def ceiling(desk: Desk, asked: Answer) -> Answer:
    """Change a ceiling of what runs may spend."""
    name, value = field(asked, "name", str, ""), field(asked, "value", str, "").strip()
    refuse_if(
        name not in (*consent.CEILINGS, "fewest-users"),
        "this setting is not changed here: `idiolect settings NAME VALUE` does it.",
    )
    await desk.do(lambda vault: consent.choose(vault, **{name: value}))
    return {"name": name, "value": value}


async def pause(desk: Desk, asked: Answer) -> Answer:
    """Answer no server from now on, or answer again."""
    paused = field(asked, "paused", bool, True)
    await desk.do(consent.pause, paused)
    return {"paused": paused}


async def leave(desk: Desk, _asked: Answer) -> Answer:
    """Leave the server, and forget it."""
    return {"left": await desk.do(views.left)}


# --- as an app -------------------------------------------------------------------------

ASKED = (
    *(overview, pairs, example, add, drop, feedback, cost, forget),
    *(training, train, stop, warm, use, rollback, reset),
    *(answer, ceiling, pause, leave),
)


def app(desk: Desk) -> Starlette:
    """The page, without the guard that has to be around it."""

    def route(act: Callable[[Desk, Any], Any], whole: bool = False) -> Route:
        async def reply(request: Request) -> Response:
            try:
                asked = request if whole else await _json(request)
                found = await act(desk, asked)
            except ClientDisconnect:
                return Response(status_code=499)
            except Exception as error:
                return _refused(error, desk.vault.path.parent)
            if isinstance(found, AsyncIterator):
                return StreamingResponse(
                    _lines(found), media_type="application/x-ndjson"
                )
            return Response(json.dumps(found), media_type="application/json")

        return Route(f"/api/{act.__name__}", reply, methods=["POST"])

    @contextlib.asynccontextmanager
    async def life(_app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await desk.close()

    routes = [
        *(_static(name, *what) for name, what in STATIC.items()),
        *map(route, (*ASKED, write)),
        route(upload, whole=True),
    ]
    return Starlette(routes=routes, lifespan=life)


async def _json(request: Request) -> Answer:
    """The JSON object of a request; bytes, which the guard does not bound, are none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return parsed(b"" if kind == BYTES else await request.body())


def _refused(error: Exception, folder: Path) -> Response:
    """An error as a sentence; of a defect the traceback is kept beside the vault."""
    status = 400 if isinstance(error, IdiolectError) else 500
    body = error_body(status, on_page(sentence_of(error, folder)))
    return Response(body, status, media_type="application/json")


async def _lines(events: AsyncIterator[Answer]) -> AsyncIterator[bytes]:
    """Events as lines of JSON; an error is the last one."""
    try:
        async for event in events:
            if "error" in event:
                event = {**event, "error": on_page(event["error"])}
            yield json.dumps(event).encode() + b"\n"
    except IdiolectError as error:
        yield json.dumps({"error": on_page(str(error))}).encode() + b"\n"


def _static(address: str, file: str, kind: str) -> Route:
    """A file of the page."""
    body = (HERE / file).read_bytes()
    headers = {"content-security-policy": POLICY}

    async def reply(_request: Request) -> Response:
        return Response(body, headers=headers, media_type=kind)

    return Route(f"/{address}", reply, methods=["GET"])
